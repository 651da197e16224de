"""Pretraining of POYO-SSL: latent siamese masking with weak labels (eq. 1), as a Task.

The labels are classes of stimulus presentations, drifting-grating directions in the paper.
They make this pretraining weakly supervised, not self-supervised, wherever their weight is
above 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from calm_jax import config as configs
from calm_jax.errors import ConfigError
from calm_jax.models import population_encoder as encoders
from calm_jax.models import siamese
from calm_jax.recordings import population_tokens as tokens
from calm_jax.recordings.batches import Windows
from calm_jax.training import exchange
from calm_jax.training.lamb import lamb, one_cycle, sparse_path
from calm_jax.training.precision import compute_dtype

LABEL = "grating"  # the read-out of the weak labels, task 1


@dataclasses.dataclass(frozen=True)
class Units:
    """Unit dropout: how many units a window keeps; see `population_tokens.kept_units`."""

    minimum: int = 10
    maximum: int = 300
    mode: int = 50
    tail: int = 100
    peak: float = 4.0


@dataclasses.dataclass(frozen=True)
class Labels:
    """Where the weak labels come from."""

    intervals: str = "drifting_gratings"  # presentations, one interval each
    column: str = "orientation"  # its values are the classes; NaN (a blank) gives no label


class LatentMasking:
    """The Task of pretraining the population encoder.

    A batch is `training.batch` windows of `encoder.window` seconds of training ranges, of all
    sessions. A window whose middle lies in a labelled presentation asks for its class; others
    ask nothing. The optimiser of the paper is LAMB with sparse rows and the one-cycle schedule
    (`training.learning_rate` constant for half of the steps, then a cosine); "adamw" breaks
    through in far fewer steps at small sizes (docs/movies.md).

    Args:
      encoder, masking, units, labels: options. training: `batch`, `learning_rate`,
        `weight_decay`, `clip`, `precision`, `eval_batches`.
      prepared: `Prepared` traces with their splits and scalers.
      seed: of windows and unit dropout. steps: of the whole training, for the schedule.
      optimizer: "lamb" or "adamw".

    Raises:
      ConfigError: when no training range is as long as a window; labels are asked for and
        there are none; options contradict each other.
    """

    name = "latent_masking"

    def __init__(
        self,
        encoder: encoders.EncoderConfig,
        masking: siamese.Masking,
        training: configs.Training,
        prepared: Any,
        *,
        seed: int,
        steps: int,
        units: Units = Units(),  # noqa: B008  (frozen)
        labels: Labels = Labels(),  # noqa: B008
        optimizer: Literal["lamb", "adamw"] = "lamb",
    ) -> None:
        self.encoder, self.masking, self.training = encoder, masking, training
        self.prepared, self.seed, self.steps, self.units = prepared, seed, steps, units
        self._dropout = dataclasses.asdict(units)
        self._how = optimizer
        if optimizer == "lamb":  # without these two the loop takes AdamW
            self.optimizer, self.learning_rate = self._lamb, self._rate
        siamese.check(masking, encoder)
        self.store = prepared.store
        self._times, self._marks = {}, {}
        self.classes = self._read(labels)
        if masking.label_weight > 0 and self.classes.size < 2:
            raise ConfigError(
                "no weak labels for the cross-entropy",
                where="labels",
                found=f"{self.classes.size} classes of {labels.intervals}/{labels.column}",
                remedy="Set masking.label_weight to 0, or name intervals that are there.",
            )
        self.heads = {LABEL: (1, max(int(self.classes.size), 2))}
        self._windows = {p: self._ranges(p) for p in ("train", "valid")}
        # Every batch is padded to one shape, that of its largest window.
        frames = max(self._frames(i) for i in prepared.splits.training_index)
        neurons = max(self._kept_at_most(i) for i in prepared.splits.training_index)
        self.tokens = 64 * -(-frames * neurons // 64)
        self._dtype = compute_dtype(training.precision)
        self._graph = nnx.graphdef(jax.eval_shape(self._init, jax.random.key(0)))
        self._omega = tokens.frequencies(encoder.head_width, encoder.t_min, encoder.t_max)
        self._score = jax.jit(self._scores)

    # -- recordings ----------------------------------------------------------------

    def _read(self, labels: Labels) -> np.ndarray:
        """The classes; fills the times and the presentations of every session."""
        found = []
        for i in self.prepared.splits.training_index:
            session = self.store.session(i)
            self._times[i] = np.asarray(session.times)
            shown = session.intervals.get(labels.intervals)
            if shown is None or labels.column not in shown.columns:
                continue
            value = np.asarray(shown.columns[labels.column], np.float64)
            keep = np.isfinite(value)
            self._marks[i] = (shown.start[keep], shown.stop[keep], value[keep])
            found.append(value[keep])
        return np.unique(np.concatenate(found)) if found else np.zeros(0)

    def _frames(self, i: int) -> int:
        return max(round(self.encoder.window * self.store.sessions[i].rate), 1)

    def _kept_at_most(self, i: int) -> int:
        count = self.store.sessions[i].n_neurons
        return count if count <= self.units.minimum else min(count, self.units.maximum)

    def _ranges(self, part: str) -> list[Windows]:
        """Windows of every training session that has a range of the length."""
        splits, out = self.prepared.splits, []
        for i in splits.training_index:
            ranges = splits.ranges(part, [i])
            ranges = ranges[ranges[:, 2] - ranges[:, 1] >= self._frames(i)]
            if len(ranges):
                out.append(Windows(ranges, self._frames(i), self.seed))
        if not out:
            raise ConfigError(
                f"no {part} range is as long as a window",
                where="encoder.window",
                found=f"{self.encoder.window} s",
            )
        return out

    # -- model ---------------------------------------------------------------------

    def _init(self, key: Array) -> siamese.Siamese:
        return siamese.init(
            self.encoder,
            key,
            units=self.store.n_neurons,
            sessions=len(self.store.sessions),
            heads=self.heads,
            dtype=self._dtype,
        )

    def init(self, key: Array) -> tuple[dict, dict]:
        """(params, {})."""
        return nnx.to_pure_dict(nnx.split(self._init(key))[1]), {}

    def model(self, params: dict) -> siamese.Siamese:
        """The model of a training state."""
        return nnx.merge(self._graph, nnx.State(params))

    def decays(self, path: str) -> bool:
        """LAMB decays everything that has a gradient, AdamW matrices."""
        return self._how == "lamb" or path.endswith("kernel")

    def trains(self, path: str) -> bool:
        """Everything is trained."""
        return True

    def _rate(self, step: int) -> float:
        return float(one_cycle(step, self.steps, self.training.learning_rate)[0])

    def _lamb(self, training: configs.Training, steps: int) -> optax.GradientTransformation:
        """LAMB as POYO+ uses it, after clipping where `training.clip` is set."""
        made = lamb(
            lambda step: one_cycle(step, steps, training.learning_rate)[0],
            beta1=lambda step: one_cycle(step, steps, training.learning_rate)[1],
            weight_decay=training.weight_decay,
            sparse=lambda path: sparse_path(path.removeprefix("encoder/")),
        )
        clip = [] if training.clip is None else [optax.clip_by_global_norm(training.clip)]
        return optax.chain(*clip, made)

    # -- loss ----------------------------------------------------------------------

    def loss(
        self, params: dict, extra: dict, batch: dict, key: Array, step: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """Eq. 1 of a batch: (loss, (extra, metrics))."""
        value, metrics, z = self._loss(params, batch, key, train=True)
        return value, (extra, {**metrics, **siamese.spread(jax.lax.stop_gradient(z))})

    def _network(
        self, params: dict, rows: tuple[dict, Array], keys: tuple
    ) -> tuple[Array, Array, dict[str, Array]]:
        """(Z, Z_masked, read-outs) of rows (batch, what is hidden) with keys of dropout."""
        model, (batch, blind), (drop, read) = self.model(params), rows, keys
        z, z_masked = siamese.views(model, batch, blind, key=drop)
        features = encoders.decode(model.encoder, z, batch, key=read)
        return z, z_masked, encoders.read_out(model.encoder, features)

    def _loss(
        self, params: dict, batch: dict, key: Array, *, train: bool
    ) -> tuple[Array, dict[str, Array], Array]:
        model, options = self.model(params), self.masking
        hide, drop, read = jax.random.split(key, 3)
        blind = siamese.hidden(options, self.encoder, batch["values"].shape[0], hide)
        z, z_masked, out = exchange.rows(
            self._network,
            params,
            (batch, blind),
            (drop, read) if train else (None, None),
            trains=self.trains,
        )
        apart = siamese.distance(options, z_masked, z, blind).astype(jnp.float32)
        _, each = encoders.loss(model.encoder, out, batch)
        entropy = each[LABEL].astype(jnp.float32)
        asked = batch["tasks"] == 1
        right = (jnp.argmax(out[LABEL], -1) == batch[f"target/{LABEL}"]) & asked
        count = jnp.sum(asked).astype(jnp.float32)
        metrics = {
            "distance": apart,
            "cross_entropy": entropy,
            "accuracy": jnp.sum(right).astype(jnp.float32) / jnp.maximum(count, 1),
            "labelled": count / asked.shape[0],
        }
        total = options.masking_weight * apart + options.label_weight * entropy
        return total, metrics, z

    # -- batches -------------------------------------------------------------------

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Rows `part` of `parts` of training batch `step`, as `population_tokens.collate`."""
        return self._rows("train", step, part, parts)

    def _rows(self, which: str, step: int, part: int, parts: int) -> dict[str, np.ndarray]:
        size, windows = self.training.batch, self._windows[which]
        counts = np.array([w.per_epoch for w in windows])
        samples = []
        for row in range(size * part // parts, size * (part + 1) // parts):
            at = step * size + row
            rng = np.random.default_rng([self.seed, at, which == "valid"])
            # Sessions by their number of windows; each goes through its own epochs.
            own = windows[rng.choice(len(windows), p=counts / counts.sum())]
            i, start, stop = (int(x[0]) for x in own.at(at, 1))
            samples.append(self._sample(i, start, stop, rng))
        return tokens.collate(
            samples, self._omega, self.heads, tokens=(self.tokens,), queries=(1,)
        )

    def _sample(self, i: int, start: int, stop: int, rng: np.random.Generator) -> tokens.Sample:
        z, mask = self.prepared.window(i, start, stop)
        kept = tokens.kept_units(rng, z.shape[1], **self._dropout)
        times = self._times[i][start:stop] - self._times[i][start]
        rows = self.store.neuron_offset(i) + 1 + kept
        parts = tokens.window_tokens(z[:, kept], mask[:, kept], times, rows)
        label = self._label(i, self._times[i][start] + self.encoder.window / 2)
        if label is None:
            return tokens.Sample(*parts)
        return tokens.Sample(
            *parts,
            sessions=np.array([i + 1], np.int32),
            tasks=np.array([1], np.int32),
            query_times=np.array([self.encoder.window / 2]),
            targets={LABEL: np.array([label], np.int32)},
            weights=np.ones(1, np.float32),
        )

    def _label(self, i: int, time: float) -> int | None:
        """The class that is shown at `time` (s on the clock of the session), or None."""
        if i not in self._marks:
            return None
        start, stop, value = self._marks[i]
        here = np.flatnonzero((start <= time) & (time < stop))
        return int(np.searchsorted(self.classes, value[here[0]])) if here.size else None

    def event(self, step: int) -> None:
        """Nothing happens on the host."""

    # -- evaluation ----------------------------------------------------------------

    def evaluate(self, params: dict, extra: dict) -> dict[str, float]:
        """Eq. 1 on validation windows without dropout, accuracy, and the collapse monitor.

        `loss`, `distance`, `cross_entropy`, `accuracy` (over labelled windows), `chance` =
        1 / classes, `majority` = the most frequent class; `variance`, `variance_least`,
        `participation`, `effective_rank` of the unmasked latents.
        """
        found, latents, shown = [], [], []
        for step in range(self.training.eval_batches):
            batch = self._rows("valid", step, 0, 1)
            key = jax.random.fold_in(jax.random.key(self.seed), step)
            value, z = self._score(params, batch, key)
            found.append(jax.tree.map(float, jax.device_get(value)))
            latents.append(np.asarray(z, np.float32))
            shown.append(batch[f"target/{LABEL}"][batch["tasks"] == 1])
        out = {k: float(np.mean([f[k] for f in found])) for k in found[0]}
        weight = np.array([f["labelled"] for f in found])
        for name in ("accuracy", "cross_entropy"):  # means over labelled windows
            values = np.array([f[name] for f in found])
            out[name] = float((values * weight).sum() / max(weight.sum(), 1e-12))
        m = self.masking
        out["loss"] = m.masking_weight * out["distance"] + m.label_weight * out["cross_entropy"]
        z = jnp.asarray(np.concatenate(latents))
        out |= {k: float(v) for k, v in siamese.spread(z).items()}
        out["effective_rank"] = float(siamese.effective_rank(z))
        labels = np.concatenate(shown)
        out["chance"] = 1.0 / self.heads[LABEL][1]
        out["majority"] = float(np.bincount(labels).max() / labels.size) if labels.size else 0.0
        return out

    def _scores(self, params: dict, batch: dict, key: Array) -> tuple[dict[str, Array], Array]:
        _, metrics, z = self._loss(params, batch, key, train=False)
        return metrics, z
