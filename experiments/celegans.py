"""celegans: whole-brain recordings of seven behaving worms (Dag et al., Cell 2023).

Data: the files of that study in a folder of yours (data/celegans_dag2023/README.md):
make pretrain EXP=celegans ARGS="--data.source FOLDER"
Seven animals, one recording of eight minutes each, 130-146 neurons that are not matched
between animals, no trials: contiguous blocks of 70/15/15 % with gaps of 8 frames.
Purpose: calm_base on recordings of minutes that drift; its rule takes the alternative
transformer here. Origins lie closer together, for test blocks are short.
Expected: see docs/results.md. Cost: about 6 minutes on 2 CPU cores, 4 GiB.
"""

from __future__ import annotations

import dataclasses

from calm_jax.config import Data, Experiment
from experiments import calm_base


def experiment() -> Experiment:
    """calm_base on the worms, with fewer steps of the tokenizer for less data."""
    base = calm_base.experiment()
    return dataclasses.replace(
        base,
        name="celegans",
        purpose="seven worms: forecasts of short recordings that drift",
        data=Data(name="celegans_dag2023"),
        tokenizer_training=dataclasses.replace(base.tokenizer_training, steps=400, window=96),
        forecasting=dataclasses.replace(
            base.forecasting, origin_stride=4, protocols=("B",)
        ),
    )
