"""Decoding of drifting gratings: the class of a presentation from the population (eq. 3)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from calm_jax import config as configs
from calm_jax.models import population_encoder as encoders
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.recordings import stimuli
from calm_jax.recordings.stimuli import Shown
from calm_jax.tasks.finetuning import FineTuning, Presented
from calm_jax.tasks.latent_masking import LABEL, Units
from calm_jax.training import exchange


class _Model(nnx.Module):
    """The encoder under the name that pretraining gives it."""

    def __init__(self, encoder: nnx.Module) -> None:
        self.encoder = encoder


class GratingsDecoding(Presented):
    """The Task: one window per presentation, one class, cross-entropy (eq. 3).

    The read-out is that of POYO+ (session and task embedding as a query, one linear map); with
    pretrained weights it starts from the read-out of the weak labels. A training window lies
    anywhere in the range of its presentation, an evaluated one in the middle.

    Args:
      encoder, gratings, units, tuning: options. training: as in `LatentMasking`; `watch` is
        `loss` or another metric of `evaluate`.
      prepared: on the splits of `stimuli.gratings_split`.
      seed: of order, windows and unit dropout. steps: of the whole training.
      pretrained: params with an entry "encoder", or None to start from scratch.
      values: classes that a pretrained read-out knows; None = those of the store.
      shuffled: labels of the training part are permuted within sessions: a control.

    Raises:
      ConfigError: when options, weights or presentations do not fit.
    """

    name = "gratings"

    def __init__(
        self,
        encoder: EncoderConfig,
        gratings: stimuli.Gratings,
        training: configs.Training,
        prepared: Any,
        *,
        seed: int,
        steps: int,
        units: Units = Units(),  # noqa: B008  (frozen)
        tuning: FineTuning = FineTuning(),  # noqa: B008
        pretrained: dict | None = None,
        values: np.ndarray | None = None,
        shuffled: bool = False,
    ) -> None:
        super().__init__(
            encoder, training, prepared, seed=seed, steps=steps, units=units, tuning=tuning,
            pretrained=pretrained,
        )  # fmt: skip
        self.gratings, self.shuffled = gratings, shuffled
        index = prepared.splits.training_index
        self.classes = stimuli.classes(self.store, gratings, index) if values is None else values
        self.heads = {LABEL: (1, int(self.classes.size))}
        self._ready()
        self._score = jax.jit(self._scores)

    def _build(self, key: Array) -> _Model:
        return _Model(self._make_encoder(key))

    def _shown(self, part: str) -> Shown:
        shown = stimuli.gratings_shown(
            self.store, self.prepared.splits, self.gratings, self.classes, self.encoder.window, part
        )
        if part == "train" and self.shuffled:
            label = shown.label.copy()
            for i in np.unique(shown.session):
                rows = np.flatnonzero(shown.session == i)
                rng = np.random.default_rng([self.seed, int(i), 8])
                label[rows] = label[rng.permutation(rows)]
            shown = Shown(shown.session, shown.start, shown.query, label, shown.repeat)
        return shown

    def _moved(self, i: int, start: int, rng: np.random.Generator) -> int:
        a, b = self.prepared.range_of(i, start)
        return int(rng.integers(a, b - self._frames[i] + 1))

    def loss(
        self, params: dict, extra: dict, batch: dict, key: Array, step: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """Cross-entropy of a batch: (loss, (extra, {accuracy}))."""
        network = lambda params, rows, key: encoders.outputs(
            self.model(params).encoder, rows, key=key
        )
        out = exchange.rows(network, params, batch, key, trains=self.trains)
        value, _ = encoders.loss(self.model(params).encoder, out, batch)
        right = jnp.argmax(out[LABEL], -1) == batch[f"target/{LABEL}"]
        metrics = {"accuracy": jnp.mean(right.astype(jnp.float32))}
        return value.astype(jnp.float32), (extra, metrics)

    def _scores(self, params: dict, batch: dict) -> Array:
        model = self.model(params).encoder
        return encoders.outputs(model, batch)[LABEL][:, 0].astype(jnp.float32)

    def logits(self, params: dict, shown: Shown) -> np.ndarray:
        """(R, C) float32 of presentations, all units."""
        found = [
            np.asarray(self._score(params, batch))[:real] for batch, real in self.batches(shown)
        ]
        return np.concatenate(found) if found else np.zeros((0, self.classes.size), np.float32)

    def evaluate(self, params: dict, extra: dict) -> dict[str, float]:
        """On validation presentations: `cross_entropy`, `accuracy`, `chance`, `majority`.

        At most `eval_batches` x `batch` of them, evenly spaced. `loss` is the metric named by
        `training.watch` (accuracy counts negative).
        """
        limit = self.training.eval_batches * self.training.batch
        shown = self.spaced(self.shown["valid"], limit)
        logits = self.logits(params, shown)
        logp = np.asarray(jax.nn.log_softmax(jnp.asarray(logits), -1))
        frequent = np.bincount(self.shown["train"].label).argmax()
        out = {
            "cross_entropy": float(-logp[np.arange(len(shown)), shown.label].mean()),
            "accuracy": float((logits.argmax(1) == shown.label).mean()),
            "chance": 1.0 / self.classes.size,
            "majority": float((shown.label == frequent).mean()),
        }
        watched = "cross_entropy" if self.training.watch == "loss" else self.training.watch
        sign = -1.0 if watched == "accuracy" else 1.0
        return {**out, "loss": sign * out[watched]}
