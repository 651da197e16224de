"""poyo_ssl: pretraining on predictable cells, gratings and movie, at a size for two CPU cores.

Data: eight lines of the simulated Allen-like data set, 2 animals each. Four lines are predictable
by the knee of Algorithm S1 and pretrain; half of the animals of the others are fine-tuned on.
Sizes and steps are far below the published ones, and what a few hundred steps ask for differs
(AdamW, distances of normalised latents, tokens in which activity scales the embedding, frames
that start at the mean frame: docs/movies.md); the method of the paper at its size is
poyo_ssl_full. Expected and cost: docs/results.md.
"""

from __future__ import annotations

import dataclasses

from calm_jax.config import Data, Training
from calm_jax.models.movie_decoder import DecoderConfig
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.models.siamese import Masking
from calm_jax.tasks.finetuning import FineTuning
from calm_jax.tasks.latent_masking import Units
from calm_jax.visual.experiment import VisualExperiment
from calm_jax.visual_config import TABLE


def experiment() -> VisualExperiment:
    """POYO-SSL on the small simulation."""
    training = Training(
        batch=32, precision="float32", weight_decay=1e-3, learning_rate=4e-3, log_every=50,
        eval_every=200, eval_batches=8, clip=1.0, checkpoint_seconds=600.0, keep=1,
    )  # fmt: skip
    return VisualExperiment(
        name="poyo_ssl",
        purpose="POYO-SSL on a simulated Allen-like data set",
        data=Data(name="simulated_visual", visual=TABLE),
        encoder=EncoderConfig(
            width=32, depth=3, head_width=16, cross_heads=2, self_heads=2, latents_per_step=2,
            latent_step=0.25, embedding_scale=0.03, value_gain=10.0, query_gain=10.0,
            token="modulated", forward_dropout=0.1, block_dropout=0.0, attention_dropout=0.0,
        ),
        units=Units(minimum=30),
        # Normalised distances are of order 1, the paper's are not told. At weight 1 two of three
        # seeds made views agree by forgetting the stimulus.
        masking=Masking(normalised=True, masking_weight=0.1),
        pretraining=_with(training, steps=800),
        pretraining_optimizer="adamw",
        gratings_tuning=FineTuning(optimizer="adamw"),
        gratings_training=_with(training, steps=500, watch="accuracy"),
        decoder=DecoderConfig(channels=(32, 32, 16, 16), last_channels=4, pixel_bias=True),
        movie_tuning=FineTuning(optimizer="adamw"),
        movie_training=_with(
            training, steps=2000, batch=16, eval_every=200, eval_batches=4, watch="ssim"
        ),
    )


def _with(training: Training, **changes: object) -> Training:
    return dataclasses.replace(training, **changes)
