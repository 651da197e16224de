"""celegans: whole-brain recordings of seven behaving worms (Dag et al., Cell 2023).

Data: the files of that study in a folder of yours (data/celegans_dag2023/README.md):
make pretrain EXP=celegans ARGS="--data.source FOLDER"
Seven animals, one recording of eight minutes each, 130-146 neurons that are not matched
between animals, no trials: contiguous blocks of 70/15/15 % with gaps of 8 frames.
Purpose: recordings of minutes that drift. The input is what changed, not where the trace
stands; the forecast starts from the last value; a linear map of the last 48 frames
shared by all neurons lies inside the model; training stops early on the validation part.
Expected: see docs/results.md. Cost: about 6 minutes on 2 CPU cores, 4 GiB.
"""

from __future__ import annotations

import dataclasses

from calm_jax.config import Data, DualAxis, Experiment, Forecasting, Training
from experiments import calm_base


def experiment() -> Experiment:
    """The tokenizer of calm_base, and a small transformer for little data."""
    base = calm_base.experiment()
    return dataclasses.replace(
        base,
        name="celegans",
        purpose="seven worms: forecasts of short recordings that drift",
        data=Data(name="celegans_dag2023"),
        tokenizer_training=dataclasses.replace(base.tokenizer_training, steps=400, window=96),
        transformer=DualAxis(
            width=48,
            layers=2,
            heads=4,
            ffn=96,
            dropout=0.1,
            mixing="softmax",
            neuron_embedding=False,
            session_embedding=False,
            values="difference",
            readout_frames=16,
            linear_context=48,
            code_weight=0.1,
            tokens="encoded",
            scheduled_probability=0.0,
        ),
        transformer_training=Training(
            steps=200,
            batch=7,
            window=96,
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            weight_decay=1e-2,
            ema=0.95,
            log_every=20,
            eval_every=25,
            eval_batches=4,
            watch="mse",  # codes of worms go on improving long after forecasts overfit
            early_stop=4,
        ),
        forecasting=Forecasting(mode="readout", origin_stride=4, protocols=("B",)),
    )
