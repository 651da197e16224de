"""Training a behaviour decoder: the Task of the one loop (spec section 5).

    L = mean over targets of  MSE (continuous)  or  weighted cross-entropy (classes)

over the frames whose labels are known. What reads the population is a `Network`: a head
on frozen features, the head with its backbone, or a baseline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from calm_jax import config, losses
from calm_jax.recordings.batches import Windows, bucket
from calm_jax.recordings.splits import Splits
from calm_jax.recordings.targets import Target
from calm_jax.training.state import named, with_leaves


class Network(Protocol):
    """What turns inputs into outputs; `params` and `extra` are nested dictionaries.

    Attributes:
      hop: frames per step of the inputs. unfold: F, frames per step of the outputs.
      align: frames, windows begin at a multiple of it within their range.
      history: frames of a window that only serve as the past of those after them.
      early: first frames of a window that need a step before it.
    """

    hop: int
    unfold: int
    align: int
    history: int
    early: int

    def init(self, key: Array) -> tuple[dict, dict]:
        """(params, extra)."""

    def steps(self, params: dict, extra: dict, batch: dict, key: Array | None) -> Array:
        """(B, S, F, O) from `inputs` (B, T / hop, N, ...), `neuron` and `real` (B, N),
        `table_neuron` (B, N) and `table_session` (B,)."""

    def frames(self, params: dict, y: Array, length: Array) -> Array:
        """(B, S, F, O), length (B,) -> (B, S * F, O)."""

    def decays(self, path: str) -> bool:
        """Whether weight decay applies."""


@dataclasses.dataclass(frozen=True, eq=False)
class Populations:
    """Inputs by range, and the rows of their neurons.

    Attributes:
      splits: the ranges.
      read: (session, start, stop) -> (steps, N, ...) of a whole range.
      offset: (S + 1,) first row of each session in the decoder's own neuron table.
      table: per session the rows (N,) and the row of the session in the backbone's tables.
    """

    splits: Splits
    read: Callable[[int, int, int], np.ndarray]
    offset: np.ndarray
    table: tuple[tuple[np.ndarray, int], ...]

    @property
    def sessions(self) -> tuple[int, ...]:
        """Indices of all sessions."""
        return tuple(range(len(self.table)))


class Behavior:
    """The Task of decoding `targets` from `populations`.

    Args:
      start: parameters by path that a decoder begins with, beside the initial ones.
      seed: of windows. steps: of the whole training.
    """

    name = "behavior"

    def __init__(
        self,
        network: Network,
        populations: Populations,
        targets: Sequence[Target],
        settings: config.Decoding,
        *,
        seed: int,
        start: dict[str, np.ndarray] | None = None,
    ):
        self.network, self.data, self.targets = network, populations, tuple(targets)
        self.settings, self.seed, self.start = settings, seed, start or {}
        counts = np.diff(populations.offset)
        self.neurons = bucket(int(counts.max()), 8)
        devices = jax.device_count()
        self.rows = -(-settings.training.batch // devices) * devices
        splits = populations.splits
        ranges = splits.ranges("train", populations.sessions)
        known = [any(t.known[i][a:b].any() for t in targets) for i, a, b in ranges]
        ranges = ranges[np.array(known)]
        longest = int((ranges[:, 2] - ranges[:, 1]).max())
        self.frames = bucket(min(settings.window, longest), max(network.align, network.hop))
        self._windows = Windows(ranges, self.frames, seed)
        self._starts = {i: np.sort(ranges[ranges[:, 0] == i, 1]) for i in populations.sessions}
        self._stops = {(int(i), int(a)): int(b) for i, a, b in ranges}
        self._weights = [class_weights(t, splits, settings.balanced) for t in self.targets]
        self._valid = splits.ranges("valid", populations.sessions)
        self._steps = jax.jit(lambda p, e, b: network.steps(p, e, b, None))
        self._frames = jax.jit(network.frames)

    # -- parameters ----------------------------------------------------------------

    def init(self, key: Array) -> tuple[dict, dict]:
        """(params, extra) of the network, with what was given put in."""
        params, extra = self.network.init(key)
        own = named(params)
        given = {k: jnp.asarray(v, own[k].dtype) for k, v in self.start.items() if k in own}
        return with_leaves(params, given), extra

    def decays(self, path: str) -> bool:
        """As the network wants it."""
        return self.network.decays(path)

    def trains(self, path: str) -> bool:
        """Everything, or the rows of neurons only."""
        return not self.settings.rows_only or path.endswith("rows")

    def event(self, step: int) -> None:
        """Nothing happens between steps."""

    # -- batches -------------------------------------------------------------------

    def _population(self, i: int, rows: int) -> dict[str, np.ndarray]:
        """Rows of the neurons of session `i`, repeated for `rows` windows."""
        own, session = self.data.table[i]
        n = own.size
        neuron = np.zeros(self.neurons, np.int32)
        table = np.full(self.neurons, -1, np.int32)
        real = np.arange(self.neurons) < n
        neuron[:n], table[:n] = self.data.offset[i] + np.arange(n), own
        tile = lambda x: np.tile(x, (rows, 1))  # noqa: E731
        return {
            "neuron": tile(neuron),
            "real": tile(real),
            "table_neuron": tile(table),
            "table_session": np.full(rows, session, np.int32),
        }

    def _window(self, x: np.ndarray, at: int) -> np.ndarray:
        """Steps of the window that begins `at` frames into a range, padded."""
        hop = self.network.hop
        part = x[at // hop : (at + self.frames) // hop]
        out = np.zeros((self.frames // hop, self.neurons, *x.shape[2:]), np.float32)
        out[: len(part), : x.shape[1]] = part
        return out

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Rows `part` of `parts` of training batch `step`, padded to one shape."""
        session, start, _ = self._windows.at(step, self.rows, part, parts)
        made = []
        for i, a in zip(session.tolist(), start.tolist()):
            starts = self._starts[i]
            first = int(starts[np.searchsorted(starts, a, "right") - 1])
            last = self._stops[i, first]
            a -= (a - first) % max(self.network.align, self.network.hop)
            length = min(self.frames, last - a)
            row = {k: v[0] for k, v in self._population(i, 1).items()}
            row["inputs"] = self._window(self.data.read(i, first, last), a - first)
            row["length"] = np.int32(length)
            row["labels"] = np.zeros((self.frames, len(self.targets)), np.float32)
            row["known"] = np.zeros(row["labels"].shape, bool)
            for k, t in enumerate(self.targets):
                row["labels"][:length, k] = t.values[i][a : a + length]
                row["known"][:length, k] = t.known[i][a : a + length]
            if a > first:  # frames that wait for a step before the window
                row["known"][: self.network.early] = False
            made.append(row)
        return {k: np.stack([m[k] for m in made]) for k in made[0]}

    # -- loss ----------------------------------------------------------------------

    def loss(
        self, params: dict, extra: dict, batch: dict, key: Array, step: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """Loss of a batch of windows: (loss, (extra, metrics))."""
        y = self.network.steps(params, extra, batch, key)
        y = self.network.frames(params, y, batch["length"])
        return self._loss(y, batch["labels"], batch["known"]), (extra, {})

    def _loss(self, y: Array, labels: Array, known: Array) -> Array:
        """Mean over targets; y (..., O), labels and known (..., targets)."""
        terms, first = [], 0
        for k, (t, weights) in enumerate(zip(self.targets, self._weights)):
            out, label, there = y[..., first : first + t.outputs], labels[..., k], known[..., k]
            first += t.outputs
            if t.classes is None:
                terms.append(losses.masked_mse(out[..., 0], label, there))
                continue
            index = jnp.where(there, label, 0).astype(jnp.int32)
            nll = -jnp.take_along_axis(jax.nn.log_softmax(out), index[..., None], -1)[..., 0]
            w = jnp.where(there, jnp.asarray(weights)[index], 0.0)
            terms.append((w * nll).sum() / jnp.maximum(w.sum(), 1e-6))
        return jnp.stack(terms).mean()

    # -- prediction and evaluation -------------------------------------------------

    def predict(self, params: dict, extra: dict, i: int, start: int, stop: int) -> np.ndarray:
        """(stop - start, O) outputs of a whole range of session `i`."""
        x, frames = self.data.read(i, start, stop), stop - start
        hop, f, past = self.network.hop, self.network.unfold, self.network.history
        align = max(self.network.align, hop)
        past = min(past, self.frames - align) // align * align
        begins = list(range(0, max(frames - past, 1), self.frames - past))
        kept = []
        for at in range(0, len(begins), self.rows):
            part = begins[at : at + self.rows]
            inputs = np.stack([self._window(x, a) for a in part])
            pad = self.rows - len(part)
            inputs = np.pad(inputs, ((0, pad), *[(0, 0)] * (inputs.ndim - 1)))
            batch = {"inputs": inputs, **self._population(i, self.rows)}
            y = np.asarray(self._steps(params, extra, batch))[: len(part)]
            cut = [past // f if a else 0 for a in part]
            kept += [row[c:] for row, c in zip(y, cut)]
        y = np.concatenate(kept)
        # Few lengths: a compilation serves all ranges up to the next multiple.
        size = bucket(frames, 256)
        y = np.pad(y[: size // f], ((0, max(size // f - len(y), 0)), (0, 0), (0, 0)))
        return np.asarray(self._frames(params, y[None], np.array([frames], np.int32)))[0, :frames]

    def evaluate(self, params: dict, extra: dict) -> dict[str, float]:
        """The loss on the validation part, every frame of it."""
        y, labels, known = [], [], []
        for i, a, b in self._valid.tolist():
            if not any(t.known[i][a:b].any() for t in self.targets):
                continue
            y.append(self.predict(params, extra, i, a, b))
            labels.append(np.stack([t.values[i][a:b] for t in self.targets], -1))
            known.append(np.stack([t.known[i][a:b] for t in self.targets], -1))
        arrays = (jnp.asarray(np.concatenate(v)) for v in (y, labels, known))
        return {"loss": float(self._loss(*arrays))}


def network_size(targets: Sequence[Target]) -> int:
    """Outputs of all targets together."""
    return sum(t.outputs for t in targets)


def class_weights(target: Target, splits: Splits, balanced: bool) -> np.ndarray | None:
    """(C,) one over the share of each class in the training frames, mean one over frames;
    ones where classes are to weigh by their frequency, None for numbers."""
    if target.classes is None:
        return None
    count = np.zeros(len(target.classes))
    for i, parts in enumerate(splits.parts):
        for a, b in parts["train"].tolist():
            k = target.known[i][a:b]
            count += np.bincount(target.values[i][a:b][k].astype(int), minlength=count.size)
    if not balanced:
        return np.ones(count.size, np.float32)
    share = count / count.sum() * (count > 0).sum()
    return np.where(count > 0, 1 / np.maximum(share, 1e-9), 0).astype(np.float32)
