"""ca1: CalM on hippocampal CA1 recordings of hundreds of cells, sized for one CPU core.

    calm-jax benchmark scaling --experiment ca1 --data mouse_ca1_sheintuch2020 --source FOLDER \
        --windows 60 --steps 100 --json scaling.json
    make pretrain EXP=ca1 ARGS="--data.source FOLDER"

Data: 64 sessions of four mice (Sheintuch et al. 2020), traces made of the detected events of
270 to 530 cells at 20 Hz, about 20 minutes each; runs of about 3 minutes are trials.
Purpose: the models of `calm_base` where a step over all cells takes a CPU 17 s and more: of
every window 128 cells are drawn (about 2 s), and the models are checked on fewer windows. Both
transformers forecast all cells.
Expected: see docs/results.md ("Mouse CA1"): level with the linear map shared by all cells. The
rule takes the alternative, which stops early; the main transformer was trained for 120 steps.
"""

from __future__ import annotations

import dataclasses

from calm_jax.config import Data, Experiment
from experiments import calm_base


def experiment() -> Experiment:
    """calm_base, 128 cells at a time."""
    base = calm_base.experiment()
    few = lambda network: dataclasses.replace(network, neurons_per_trial=128)
    other = dataclasses.replace(base.alternative, transformer=few(base.alternative.transformer))
    return dataclasses.replace(
        base,
        name="ca1",
        purpose="CalM on CA1 recordings of hundreds of cells, sized for one CPU core",
        data=Data(name="mouse_ca1_sheintuch2020"),
        tokenizer_training=dataclasses.replace(base.tokenizer_training, eval_batches=4),
        transformer=few(base.transformer),
        alternative=other,
        transformer_training=dataclasses.replace(base.transformer_training, eval_batches=4),
    )
