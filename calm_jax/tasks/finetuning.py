"""What tasks on stimulus presentations share: windows as tokens, start weights, freezing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from calm_jax import config as configs
from calm_jax.errors import ConfigError
from calm_jax.models import mlp_encoder
from calm_jax.models import population_encoder as encoders
from calm_jax.models.mlp_encoder import MlpConfig
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.recordings import population_tokens as tokens
from calm_jax.recordings.stimuli import Shown, window_frames
from calm_jax.tasks.latent_masking import Units
from calm_jax.training.lamb import lamb, one_cycle, sparse_path
from calm_jax.training.precision import compute_dtype
from calm_jax.training.state import named, with_leaves

TABLES = ("units", "sessions")  # of the encoder: rows of animals
INPUT = ("value_map", "latents", "encoder")  # of the encoder: before its blocks


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Where training starts and what of the encoder it leaves alone."""

    # "all": all but tables of units, sessions and tasks and the query decoder; a third:
    # of the blocks, the first with what stands before them (Fig. S6 of POYO-SSL).
    freeze: Literal["none", "all", "first", "middle", "last"] = "none"
    # Tables of units and sessions: "fresh" for other animals than those pretrained on,
    # "kept" where both used the same store.
    rows: Literal["fresh", "kept"] = "fresh"
    optimizer: Literal["lamb", "adamw"] = "lamb"  # LAMB with one-cycle schedule, as POYO+


def frozen(path: str, freeze: str, depth: int) -> bool:
    """Whether the parameter at "encoder/..." stays as it is.

    Args:
      depth: self-attention blocks of the encoder.
    """
    parts = path.split("/")
    if freeze == "none" or parts[0] != "encoder":
        return False
    if freeze == "all":
        return parts[1] in INPUT or parts[1] == "blocks"
    thirds = np.array_split(np.arange(depth), 3)
    own = thirds[("first", "middle", "last").index(freeze)]
    if parts[1] == "blocks":
        return int(parts[2]) in own
    return freeze == "first" and parts[1] in INPUT


def transferred(params: dict, pretrained: dict, *, rows: str, fresh: tuple[str, ...]) -> dict:
    """`params` with the weights of a pretrained encoder.

    Args:
      params: {"encoder": ..., ...} at the start. pretrained: of a training state with an
        entry "encoder" (latent masking, gratings, movie).
      rows: see `FineTuning`. fresh: further parts of the encoder that are not taken over.

    Raises:
      ConfigError: when a weight is missing or has another shape.
    """
    given = named(pretrained.get("encoder", {}))
    taken = {}
    for path, leaf in named(params["encoder"]).items():
        part = path.split("/")[0]
        if part in fresh or (part in TABLES and rows == "fresh"):
            continue
        found = given.get(path)
        if found is None or np.shape(found) != np.shape(leaf):
            raise ConfigError(
                "the pretrained encoder does not fit",
                where=f"encoder/{path}",
                found="none" if found is None else f"shape {np.shape(found)}",
                expected=f"shape {np.shape(leaf)}",
                remedy="Use the encoder's sizes of the pretraining"
                + (", or rows = 'fresh' for other animals." if part in TABLES else "."),
            )
        taken[path] = jnp.asarray(found, leaf.dtype)
    return {**params, "encoder": with_leaves(params["encoder"], taken)}


class Presented:
    """The base of tasks that read windows around stimulus presentations.

    A subclass sets `heads`, `fresh` and `_build(key) -> nnx.Module` with an attribute `encoder`,
    and gives `_shown(part)`; then it calls `_ready()`. See `Gratings`, `MovieReconstruction`.
    """

    fresh: tuple[str, ...] = ()
    labelled = True  # what is asked for is a class of the one head
    heads: dict[str, tuple[int, int]]

    def __init__(
        self,
        encoder: EncoderConfig | MlpConfig,
        training: configs.Training,
        prepared: Any,
        *,
        seed: int,
        steps: int,
        units: Units,
        tuning: FineTuning,
        pretrained: dict | None,
    ) -> None:
        self.encoder, self.training, self.prepared = encoder, training, prepared
        self.seed, self.steps, self.units, self.tuning = seed, steps, units, tuning
        self._dropout = dataclasses.asdict(units)
        self.store, self.pretrained = prepared.store, pretrained
        self.plain = isinstance(encoder, MlpConfig)
        if self.plain and (pretrained is not None or tuning.freeze != "none"):
            raise ConfigError(
                "the MLP encoder is not pretrained: nothing can be taken over or frozen",
                where="encoder",
            )
        if tuning.freeze in ("first", "middle", "last") and encoder.depth < 3:
            raise ConfigError(
                "too few blocks for thirds",
                where="freeze",
                found=f"{encoder.depth} blocks",
                expected="at least 3",
            )
        if tuning.freeze != "none" and pretrained is None:
            raise ConfigError(
                "a random encoder would be frozen",
                where="freeze",
                remedy="Give pretrained weights, or set freeze to 'none'.",
            )
        index = prepared.splits.training_index
        self._times = {i: np.asarray(self.store.session(i).times) for i in index}
        self._frames = {
            i: window_frames(self.store.sessions[i].rate, encoder.window) for i in index
        }
        most = lambda kept: 64 * -(-max(self._frames[i] * kept(i) for i in index) // 64)
        count = lambda i: self.store.sessions[i].n_neurons
        # Two shapes in all: training with unit dropout, evaluation with every unit.
        self.tokens = most(lambda i: min(count(i), max(units.maximum, units.minimum)))
        self.tokens_all = most(count)
        self._dtype = compute_dtype(training.precision)
        if not self.plain:
            self._omega = tokens.frequencies(encoder.head_width, encoder.t_min, encoder.t_max)
        else:
            self._omega = np.zeros(1)
        self._order = functools.lru_cache(maxsize=4)(self._drawn)
        if tuning.optimizer == "lamb":  # without these two the loop takes AdamW
            self.optimizer = _lamb
            self.learning_rate = functools.partial(_rate, self)

    def _ready(self) -> None:
        """Reads the presentations of the parts and makes the functions that are compiled."""
        self.shown = {part: self._shown(part) for part in ("train", "valid", "test")}
        for part in ("train", "valid"):
            if not len(self.shown[part]):
                raise ConfigError(
                    f"no {part} presentation has room for a window",
                    where="encoder.window",
                    found=f"{self.encoder.window} s",
                )
        self._graph = nnx.graphdef(jax.eval_shape(self._build, jax.random.key(0)))

    # -- model ---------------------------------------------------------------------

    def _make_encoder(self, key: Array) -> nnx.Module:
        if self.plain:
            return mlp_encoder.init(
                self.encoder, key, units=self.store.n_neurons, dtype=self._dtype
            )
        return encoders.init(
            self.encoder,
            key,
            units=self.store.n_neurons,
            sessions=len(self.store.sessions),
            heads=self.heads,
            dtype=self._dtype,
        )

    def init(self, key: Array) -> tuple[dict, dict]:
        """(params, {}), the encoder's from the pretrained ones where they were given."""
        params = self.untrained(key)
        if self.pretrained is not None:
            params = transferred(
                params, self.pretrained, rows=self.tuning.rows, fresh=self.fresh
            )
        return params, {}

    def untrained(self, key: Array) -> dict:
        """The parameters as training from scratch starts with them."""
        return nnx.to_pure_dict(nnx.split(self._build(key))[1])

    def model(self, params: dict) -> nnx.Module:
        """The model of a training state."""
        return nnx.merge(self._graph, nnx.State(params))

    def decays(self, path: str) -> bool:
        """AdamW decays matrices, not embeddings, norms or biases; LAMB everything."""
        return path.endswith("kernel")

    def trains(self, path: str) -> bool:
        """All that is not frozen."""
        return self.plain or not frozen(path, self.tuning.freeze, self.encoder.depth)

    def event(self, step: int) -> None:
        """Nothing happens on the host."""

    # -- batches -------------------------------------------------------------------

    def _drawn(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.shown["train"]))

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Rows `part` of `parts` of training batch `step`, with unit dropout."""
        size, n = self.training.batch, len(self.shown["train"])
        at = step * size + np.arange(size * part // parts, size * (part + 1) // parts)
        rows = np.array([self._order(int(a // n))[a % n] for a in at])
        rngs = [np.random.default_rng([self.seed, int(a), 1]) for a in at]
        return self._collated(self.shown["train"].take(rows), rngs)

    def batches(self, shown: Shown) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """Batches of `shown` in order without dropout, and how many rows of each are real."""
        size = self.training.batch
        for a in range(0, len(shown), size):
            rows = np.minimum(np.arange(a, a + size), len(shown) - 1)
            yield self._collated(shown.take(rows), None), min(size, len(shown) - a)

    def spaced(self, shown: Shown, limit: int | None) -> Shown:
        """At most `limit` rows, evenly spaced."""
        if limit is None or len(shown) <= limit:
            return shown
        return shown.take(np.linspace(0, len(shown) - 1, limit).round().astype(int))

    def _collated(self, shown: Shown, rngs: list | None) -> dict[str, np.ndarray]:
        samples = [
            self._sample(shown, k, None if rngs is None else rngs[k]) for k in range(len(shown))
        ]
        length = self.tokens_all if rngs is None else self.tokens
        heads = self.heads if self.labelled else {}
        out = tokens.collate(samples, self._omega, heads, tokens=(length,), queries=(1,))
        if self.plain:
            bins = np.zeros((len(samples), length), np.int32)
            for b, s in enumerate(samples):
                step = self.encoder.window / self.encoder.bins
                bins[b, : len(s.times)] = np.clip(s.times // step, 0, self.encoder.bins - 1)
            keep = ("values", "units", "mask")
            out = {**{k: out[k] for k in keep}, "bins": bins}
        return out

    def _sample(self, shown: Shown, k: int, rng: np.random.Generator | None) -> tokens.Sample:
        i, start = int(shown.session[k]), int(shown.start[k])
        if rng is not None:
            start = self._moved(i, start, rng)
        stop = start + self._frames[i]
        z, mask = self.prepared.window(i, start, stop)
        kept = np.arange(z.shape[1])
        if rng is not None:
            kept = tokens.kept_units(rng, z.shape[1], **self._dropout)
        times = self._times[i][start:stop] - self._times[i][start]
        rows = self.store.neuron_offset(i) + 1 + kept
        parts = tokens.window_tokens(z[:, kept], mask[:, kept], times, rows)
        [name] = self.heads
        return tokens.Sample(
            *parts,
            sessions=np.array([i + 1], np.int32),
            tasks=np.array([1], np.int32),
            query_times=np.array([shown.query[k]]),
            targets={name: np.array([shown.label[k]], np.int32)} if self.labelled else {},
            weights=np.ones(1, np.float32),
        )

    def _moved(self, i: int, start: int, rng: np.random.Generator) -> int:
        """The first frame of a training window; a subclass may move it within its range."""
        return start


def _lamb(training: configs.Training, steps: int) -> optax.GradientTransformation:
    """LAMB as POYO+ uses it, after clipping where `training.clip` is set."""
    made = lamb(
        lambda step: one_cycle(step, steps, training.learning_rate)[0],
        beta1=lambda step: one_cycle(step, steps, training.learning_rate)[1],
        weight_decay=training.weight_decay,
        sparse=lambda path: path.startswith("encoder/")
        and sparse_path(path.removeprefix("encoder/")),
    )
    clip = [] if training.clip is None else [optax.clip_by_global_norm(training.clip)]
    return optax.chain(*clip, made)


def _rate(task: Presented, step: int) -> float:
    return float(one_cycle(step, task.steps, task.training.learning_rate)[0])
