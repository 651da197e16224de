"""poyo_ssl: pretraining on predictable cells, gratings and movie, at a size for two CPU cores.

Data: the simulated Allen-like data set (13 cell lines, 2 animals each). Four lines are predictable
by the knee of Algorithm S1 and pretrain; half of the animals of the others are fine-tuned on.
Sizes are an eighth of the published ones; everything else is the published method (the size of
the paper is in poyo_ssl_full). Expected and cost: docs/results.md.
"""

from __future__ import annotations

import dataclasses

from calm_jax.config import Data, Training
from calm_jax.models.movie_decoder import DecoderConfig
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.tasks.finetuning import FineTuning
from calm_jax.visual.experiment import VisualExperiment


def experiment() -> VisualExperiment:
    """POYO-SSL on the small simulation."""
    training = Training(
        batch=32, precision="float32", weight_decay=1e-4, log_every=50, eval_every=50,
        eval_batches=8, clip=None, checkpoint_seconds=600.0, keep=1,
    )  # fmt: skip
    return VisualExperiment(
        name="poyo_ssl",
        purpose="POYO-SSL on a simulated Allen-like data set",
        data=Data(name="simulated_visual"),
        encoder=EncoderConfig(
            width=32, depth=3, head_width=16, cross_heads=2, self_heads=2, latents_per_step=4,
        ),
        pretraining=_with(training, steps=300, learning_rate=4e-3),
        gratings_training=_with(training, steps=300, learning_rate=4e-3, watch="accuracy"),
        decoder=DecoderConfig(channels=(32, 32, 16, 16), last_channels=8),
        movie_tuning=FineTuning(optimizer="adamw"),
        movie_training=_with(
            training, steps=300, batch=16, learning_rate=2e-3, weight_decay=1e-2, watch="ssim",
            clip=1.0,
        ),
    )


def _with(training: Training, **changes: object) -> Training:
    return dataclasses.replace(training, **changes)
