"""What the networks share: a Task over (context, target) windows of a population.

A network is an `nnx.Module` called as `net(x, given, key) -> (B, H, N)` with contexts
x (B, C, N) and a `Given`. `baselines.tuning` trains it on MSE by the one loop.

Networks whose weights belong to the neurons of one population (`per_session`) get one
model per session. Those models are trained in lock-step, stacked along an axis that is
mapped over: no weight, gradient or moment is shared, and all compile as one program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from calm_jax import losses
from calm_jax.baselines import windows as W
from calm_jax.errors import RecordingError
from calm_jax.recordings.batches import Prepared, Windows, bucket, window_batch
from calm_jax.recordings.splits import Splits

_VALIDATION = 240  # windows, over all sessions


class Given(NamedTuple):
    """What a network knows beside the context.

    Attributes:
      neuron: (B, N) rows in a table of the neurons of all sessions, 0 in the padding.
      session: (B,) index. real: (B, N) bool, False in the padding.
    """

    neuron: Array
    session: Array
    real: Array


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes that the recordings give.

    Attributes:
      context, horizon: frames. neurons: width of a padded population.
      rows: neurons of all sessions. sessions: how many.
    """

    context: int
    horizon: int
    neurons: int
    rows: int
    sessions: int


Make = Callable[..., nnx.Module]  # make(sizes, rngs=..., **settings)


class Forecasting:
    """The Task of forecasting `horizon` frames from `context` frames.

    Args:
      make: of the network. settings: its own part of a grid point.
      per_session: one model per session. batch: windows per step (per session).
      seed: of windows and initial weights.

    Raises:
      RecordingError: when a session has no window in its training or validation part.
    """

    name = "forecasting"

    def __init__(
        self,
        make: Make,
        settings: Mapping[str, Any],
        prepared: Prepared,
        splits: Splits,
        context: int,
        horizon: int,
        *,
        per_session: bool,
        batch: int,
        seed: int,
    ) -> None:
        self.prepared, self.per_session, self.seed = prepared, per_session, seed
        self.sessions = tuple(splits.training_index)
        sessions = prepared.store.sessions
        most = bucket(max(s.n_neurons for s in sessions), 8)
        self.sizes = Sizes(context, horizon, most, prepared.store.n_neurons, len(sessions))
        devices = jax.device_count()
        self.rows = -(-batch // devices) * devices
        self._windows = self._training_windows(splits)
        self._make = lambda rngs: make(self.sizes, rngs=rngs, **settings)
        self._graph = nnx.graphdef(jax.eval_shape(lambda: self._make(nnx.Rngs(0))))
        self.predict = jax.jit(self._predict)
        self._valid = [self._validation(splits, i) for i in self.sessions]

    def _training_windows(self, splits: Splits) -> list[Windows]:
        """One source of windows, or one per session."""
        size = self.sizes.context + self.sizes.horizon
        ranges = splits.ranges("train", self.sessions)
        ranges = ranges[ranges[:, 2] - ranges[:, 1] >= size]
        for i in self.sessions:
            if not (ranges[:, 0] == i).any():
                sizes = (self.sizes.context, self.sizes.horizon)
                raise W.too_short(self.prepared, i, "train", *sizes)
        if not self.per_session:
            return [Windows(ranges, size, self.seed)]
        return [Windows(ranges[ranges[:, 0] == i], size, self.seed) for i in self.sessions]

    def _validation(self, splits: Splits, i: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Session, contexts, targets and masks of the targets of evenly strided windows."""
        c, h = self.sizes.context, self.sizes.horizon
        limit = max(_VALIDATION // len(self.sessions), 8)
        stride = W.stride_for(self.prepared, i, "valid", c, h, limit)
        found = list(W.windows(self.prepared, i, "valid", c, h, stride))
        if not found:
            raise W.too_short(self.prepared, i, "valid", c, h)
        z, mask = (np.concatenate(x) for x in zip(*found))
        keep = mask[:, c:] & ~self.prepared.scalers.constant[i]
        return i, z[:, :c], z[:, c:], keep

    # -- model ---------------------------------------------------------------------

    def init(self, key: Array) -> tuple[dict, dict]:
        """(params, {}); per-session parameters have the session as their first axis.

        Not compiled as a whole: the points of a grid share what is compiled per shape.
        """
        new = lambda k: nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(k)), nnx.Param))  # noqa: E731
        if not self.per_session:
            return new(key), {}
        each = [new(k) for k in jax.random.split(key, len(self.sessions))]
        return jax.tree.map(lambda *x: jnp.stack(x), *each), {}

    def _apply(self, params: dict, x: Array, given: Given, key: Array | None) -> Array:
        return nnx.merge(self._graph, nnx.State(params))(x, given, key)

    def _predict(self, params: dict, x: Array, session: Array) -> Array:
        """Contexts (B, C, N) of one session, padded -> (B, H, N)."""
        store = self.prepared.store
        offsets = jnp.asarray([store.neuron_offset(i) for i in range(len(store.sessions))])
        counts = jnp.asarray([s.n_neurons for s in store.sessions])
        if self.per_session:
            k = jnp.argmax(jnp.asarray(self.sessions) == session)
            params = jax.tree.map(lambda p: p[k], params)
        place = jnp.arange(x.shape[2])
        real = place < counts[session]
        neuron = jnp.where(real, offsets[session] + place, 0).astype(jnp.int32)
        b = x.shape[0]
        given = Given(
            jnp.broadcast_to(neuron, (b, neuron.size)),
            jnp.full((b,), session, jnp.int32),
            jnp.broadcast_to(real, (b, real.size)),
        )
        return self._apply(params, x, given, None)

    def forecast(self, params: dict, context: np.ndarray, session: int) -> np.ndarray:
        """Contexts (B, C, N) -> (B, H, N), padded to one shape and cut again.

        Raises:
          RecordingError: for a session without a model of its own, where each has one.
        """
        if self.per_session and session not in self.sessions:
            raise RecordingError(
                "a method with one model per session was not trained on this one",
                where=f"session {self.prepared.splits.sessions[session]}",
                remedy="Leave the method out, or train on the session.",
            )
        b, c, n = context.shape
        out = np.empty((b, self.sizes.horizon, n), np.float32)
        for first in range(0, b, self.rows):
            part = context[first : first + self.rows]
            x = np.zeros((self.rows, c, self.sizes.neurons), np.float32)
            x[: len(part), :, :n] = part
            y = self.predict(params, x, np.int32(session))
            out[first : first + len(part)] = np.asarray(y)[: len(part), :, :n]
        return out

    # -- training ------------------------------------------------------------------

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Rows `part` of `parts` of batch `step`, windows first; then sessions, where each
        has its own model."""
        size = self.sizes.context + self.sizes.horizon
        drawn = [w.at(step, self.rows, part, parts) for w in self._windows]
        # (windows, sources) -> rows, all sources of a window together
        session, start, stop = (np.stack(x, 1).reshape(-1) for x in zip(*drawn))
        made = window_batch(
            self.prepared, session, start, stop, frames=size, neurons=self.sizes.neurons
        )
        for b, i in enumerate(session):
            constant = self.prepared.scalers.constant[int(i)]
            made["mask"][b, :, : constant.size] &= ~constant
        if not self.per_session:
            return made
        return {k: v.reshape(-1, len(drawn), *v.shape[1:]) for k, v in made.items()}

    def loss(
        self, params: dict, extra: dict, batch: dict, key: Array, step: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """Masked MSE of the target frames; the mean over sessions of per-session models."""
        c = self.sizes.context

        def one(params: dict, batch: dict, key: Array) -> Array:
            x, y = batch["traces"][:, :c], batch["traces"][:, c:]
            given = Given(batch["neuron"], batch["session"], batch["real"])
            return losses.masked_mse(self._apply(params, x, given, key), y, batch["mask"][:, c:])

        if self.per_session:
            keys = jax.random.split(key, len(self.sessions))
            value = jax.vmap(one, in_axes=(0, 1, 0))(params, batch, keys).mean()
        else:
            value = one(params, batch, key)
        return value, (extra, {})

    def evaluate(self, params: dict, extra: dict) -> dict[str, float]:
        """MSE on the validation windows, mean over sessions."""
        errors = []
        for i, x, y, keep in self._valid:
            with np.errstate(over="ignore"):  # infinite: the loop says that it diverged
                square = np.square(self.forecast(params, x, i) - y)
            errors.append(square.mean(where=keep) if keep.any() else 0.0)
        return {"loss": float(np.mean(errors))}

    def event(self, step: int) -> None:
        """Nothing happens between steps."""

    def decays(self, path: str) -> bool:
        """Weight decay on matrices only."""
        return path.endswith("kernel")

    def trains(self, path: str) -> bool:
        """Everything is trained."""
        return True


def anchored(x: Array, anchor: bool) -> tuple[Array, Array]:
    """(context less its last frame, that frame), or (context, 0): x (B, C, N)."""
    last = x[:, -1:] if anchor else jnp.zeros((), x.dtype)
    return x - last, last
