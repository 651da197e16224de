"""Movie reconstruction: the frame that was shown, from a window of the population (eq. 2)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from calm_jax import config as configs
from calm_jax import movie_losses
from calm_jax.errors import ConfigError
from calm_jax.layers.basic import split_key
from calm_jax.models import alexnet, mlp_encoder, movie_decoder
from calm_jax.models import population_encoder as encoders
from calm_jax.models.mlp_encoder import MlpConfig
from calm_jax.models.movie_decoder import DecoderConfig, MovieDecoder
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.movie_losses import MovieLoss
from calm_jax.recordings import stimuli
from calm_jax.recordings.stimuli import Shown
from calm_jax.tasks.finetuning import FineTuning, Presented
from calm_jax.tasks.latent_masking import Units
from calm_jax.training import exchange


class MovieModel(nnx.Module):
    """An encoder of the population and a decoder of frames."""

    def __init__(self, encoder: nnx.Module, decoder: MovieDecoder) -> None:
        self.encoder, self.decoder = encoder, decoder


def reconstruct(model: MovieModel, batch: dict[str, Array], *, key: Array | None = None) -> Array:
    """Frames (B, height, width) float32 in [0, 1] that the queries of a batch ask for; pure.

    The latent vector is what the query (session and task embedding, time of the frame) reads
    from the latents; with the MLP encoder its output. `key` switches dropout on.
    """
    if isinstance(model.encoder, mlp_encoder.MlpEncoder):
        z = mlp_encoder.encode(model.encoder, batch)
    else:
        a, b, c = split_key(key, 3)
        latents = encoders.process(
            model.encoder, encoders.encode(model.encoder, batch, key=a), key=b
        )
        z = encoders.decode(model.encoder, latents, batch, key=c)[:, 0]
    return movie_decoder.frames(model.decoder, z)


class MovieReconstruction(Presented):
    """The Task: one window and one frame of the movie per row, the loss of eq. 2.

    Args:
      encoder, decoder, loss, movie, units, tuning: options. training: as usual; `watch` is
        `loss` or another metric of `evaluate`.
      prepared: on the splits of `stimuli.movie_split` with the same `movie`.
      frames: (F, height, width) float32 in [0, 1], `movies.movie_frames`.
      seed: of order and unit dropout. steps: of the whole training.
      pretrained: params with an entry "encoder", or None to start from scratch.
      weights: a torchvision checkpoint of AlexNet for the perceptual term; None = the
        extra where it is installed, else the term is off and `notify` is told so.

    Raises:
      ConfigError: when options, weights or presentations do not fit.
      WeightsError: when `weights` holds none.
    """

    name = "movie"
    # Pretraining knows no movie: its query and the (unused) read-out start anew.
    fresh = ("tasks", "readouts")
    labelled = False

    def __init__(
        self,
        encoder: EncoderConfig | MlpConfig,
        decoder: DecoderConfig,
        loss: MovieLoss,
        movie: stimuli.Movie,
        training: configs.Training,
        prepared: Any,
        frames: np.ndarray,
        *,
        seed: int,
        steps: int,
        units: Units = Units(),  # noqa: B008  (frozen)
        tuning: FineTuning = FineTuning(optimizer="adamw"),  # noqa: B008
        pretrained: dict | None = None,
        weights: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(
            encoder, training, prepared, seed=seed, steps=steps, units=units, tuning=tuning,
            pretrained=pretrained,
        )  # fmt: skip
        movie_decoder.check(decoder)
        movie_losses.check(loss)
        self.decoder, self.options, self.movie = decoder, loss, movie
        self.frames = np.asarray(frames, np.float32)
        if self.frames.shape[1:] != (decoder.height, decoder.width):
            raise ConfigError(
                "the frames have another size than the decoder",
                where="decoder.height, decoder.width",
                found=f"frames {self.frames.shape}",
                expected=f"(frames, {decoder.height}, {decoder.width})",
            )
        self.heads = {self.name: (1, 1)}
        self._ready()
        most = max(int(s.label.max(initial=-1)) for s in self.shown.values())
        if most >= len(self.frames):
            raise ConfigError(
                "the recordings name frames that the movie does not have",
                where=f"movie.name {movie.name!r}",
                found=f"frame {most} of {len(self.frames)}",
            )
        own, notice = alexnet.find(weights, loss.perceptual)
        if notice is not None:
            (notify or (lambda text: print(text, file=sys.stderr)))(notice)
        self.features = None if own is None else alexnet.features(own, loss.perceptual_layer)
        self._reconstruct = jax.jit(lambda params, batch: reconstruct(self.model(params), batch))
        self._score = jax.jit(self._scores)

    def _build(self, key: Array) -> MovieModel:
        a, b = jax.random.split(key)
        made = movie_decoder.init(self.decoder, b, latent=self.encoder.width, dtype=self._dtype)
        if self.decoder.pixel_bias:
            movie_decoder.start_at(made, self.mean_frame())
        return MovieModel(self._make_encoder(a), made)

    def mean_frame(self) -> np.ndarray:
        """(height, width) float32, the mean over the windows of the training part."""
        label = self.shown["train"].label
        often = np.bincount(label, minlength=len(self.frames)) / len(label)
        return np.tensordot(often, self.frames, 1).astype(np.float32)

    def _shown(self, part: str) -> Shown:
        return stimuli.movie_shown(
            self.store, self.prepared.splits, self.movie, self.encoder.window, part
        )

    def _collated(self, shown: Shown, rngs: list | None) -> dict[str, np.ndarray]:
        return {**super()._collated(shown, rngs), "frame": self.frames[shown.label]}

    def loss(
        self, params: dict, extra: dict, batch: dict, key: Array, step: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """Eq. 2 of a batch: (loss, (extra, parts))."""
        network = lambda params, rows, key: reconstruct(self.model(params), rows, key=key)
        x = exchange.rows(network, params, batch, key, trains=self.trains)
        value, parts = movie_losses.movie_loss(x, batch["frame"], self.options, self.features)
        return jnp.mean(value), (extra, {k: jnp.mean(v) for k, v in parts.items()})

    def _scores(self, params: dict, batch: dict) -> dict[str, Array]:
        x, y = reconstruct(self.model(params), batch), batch["frame"]
        value, parts = movie_losses.movie_loss(x, y, self.options, self.features)
        mse = jnp.mean(jnp.square(x - y), (-2, -1))
        r = movie_losses.pixel_correlation(x, y)
        return {**parts, "eq2": value, "mse": mse, "correlation": r}

    def evaluate(self, params: dict, extra: dict) -> dict[str, float]:
        """On validation frames: eq. 2 (`eq2`) with its parts, `mse`, `correlation`.

        At most `eval_batches` x `batch` windows, evenly spaced. `loss` is eq. 2, or the
        metric named by `training.watch`; ssim and correlation count negative.
        """
        shown = self.spaced(
            self.shown["valid"], self.training.eval_batches * self.training.batch
        )
        found = []
        for batch, real in self.batches(shown):
            one = jax.device_get(self._score(params, batch))
            found.append({k: np.asarray(v)[:real] for k, v in one.items()})
        out = {k: float(np.concatenate([f[k] for f in found]).mean()) for k in found[0]}
        watched = "eq2" if self.training.watch == "loss" else self.training.watch
        sign = -1.0 if watched in ("ssim", "correlation") else 1.0
        return {**out, "loss": sign * out[watched]}

    def reconstructions(self, params: dict, shown: Shown) -> Iterator[np.ndarray]:
        """Frames (b, height, width) float32 of `shown` in order, a batch at a time, all units."""
        for batch, real in self.batches(shown):
            yield np.asarray(self._reconstruct(params, batch))[:real]
