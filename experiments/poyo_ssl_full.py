"""poyo_ssl_full: the sizes and schedules of POYO-SSL, for GPUs.

Data: the full-sized simulation, or Allen Brain Observatory sessions:
`--data.name allen_visual_coding --data.source FOLDER` (the movie is then read from the files).
Encoder of the movie model (width 1024, 6 blocks), 1 s windows, LAMB at 3.125e-5 x batch.
The paper does not tell its numbers of steps; these are ours. Not run by us.
"""

from __future__ import annotations

import dataclasses

from calm_jax.config import Data
from calm_jax.models.movie_decoder import DecoderConfig
from calm_jax.models.population_encoder import MOVIE
from calm_jax.models.siamese import Masking
from calm_jax.tasks.finetuning import FineTuning
from calm_jax.tasks.latent_masking import Units
from calm_jax.visual.experiment import VisualExperiment
from calm_jax.visual_config import FULL
from experiments import poyo_ssl


def experiment() -> VisualExperiment:
    """POYO-SSL at its published size."""
    base = poyo_ssl.experiment()
    rate = 3.125e-5  # times the batch
    training = dataclasses.replace(
        base.pretraining, precision="auto", batch=128, learning_rate=rate * 128, steps=20_000,
        eval_every=500, eval_batches=32, weight_decay=1e-4, clip=None,
    )  # fmt: skip
    return dataclasses.replace(
        base,
        name="poyo_ssl_full",
        purpose="POYO-SSL at its published size",
        data=Data(name="simulated_visual", visual=FULL),
        encoder=MOVIE,
        units=Units(),
        masking=Masking(),
        pretraining=training,
        pretraining_optimizer="lamb",
        gratings_tuning=FineTuning(),
        gratings_training=dataclasses.replace(training, watch="accuracy"),
        decoder=DecoderConfig(),
        movie_training=dataclasses.replace(
            base.movie_training, precision="auto", batch=64, learning_rate=1e-3, steps=40_000,
            eval_every=1000, eval_batches=32, weight_decay=1e-2, clip=1.0,
        ),
    )
