"""Autoregression: every neuron's future from its own last frames, one map per neuron."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from calm_jax.baselines import windows as W
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

ORDERS = (1, 2, 4, 8, 24, 10_000)  # frames looked at; beyond the context all of it
ALPHAS = tuple(10.0 ** np.arange(-4.0, 1.1))  # times the mean diagonal of the Gram matrix
_NEURONS = 256  # fitted at a time: bounds the memory
_SAMPLES = 1 << 22  # values of a chunk of windows


def fit(
    prepared: Prepared,
    splits: Splits,
    context: int,
    horizon: int,
    *,
    orders: Sequence[int] = ORDERS,
    alphas: Sequence[float] = ALPHAS,
    limit: int = 20_000,
) -> Autoregression:
    """A forecaster that fits a session the first time it is asked about it.

    At most about `limit` training windows per session (evenly strided origins).
    """
    return Autoregression(prepared, context, horizon, orders, alphas, limit)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What validation chose for the neurons of a session.

    Attributes:
      order: p, frames looked at. alpha: of the ridge.
      direct: one regression per step ahead; else the one-step regression is iterated.
      difference: of differences from the last value, so that a drifting trace is followed.
      error: validation MSE, mean over neurons.
    """

    order: int
    alpha: float
    direct: bool
    difference: bool
    error: float


class Autoregression:
    """AR(p): x_t = c + sum_k a_k x_{t-k} per neuron, by ridge regression in closed form.

    a = (G + alpha g I)^-1 c with the Gram matrix G of the neuron's own training windows
    and g its mean diagonal; the constant c is free. Four versions (direct or iterated, of
    levels or of differences from the last value), every order and every alpha compete;
    the least validation error of the session, mean over its neurons, wins. Windows with
    an invalid sample are left out. Longer horizons are rolled out.

    Attributes:
      choices: session -> `Choice`, of the sessions fitted so far.
    """

    def __init__(
        self,
        prepared: Prepared,
        context: int,
        horizon: int,
        orders: Sequence[int],
        alphas: Sequence[float],
        limit: int,
    ) -> None:
        self._prepared, self._context, self._horizon = prepared, context, horizon
        self._orders = sorted({min(p, context) for p in orders})
        self._alphas, self._limit = tuple(alphas), limit
        self._maps: dict[int, np.ndarray] = {}
        self.choices: dict[int, Choice] = {}

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N).

        Raises:
          RecordingError: when the session's parts hold no window.
        """
        if session not in self._maps:
            self._maps[session] = self._fit(session)
        w = self._maps[session]

        def step(x: np.ndarray, _: np.ndarray) -> np.ndarray:
            return np.einsum("btn,nth->bhn", x, w[:, :-1], optimize=True) + w[:, -1].T

        return W.roll(step, context, mask, self._horizon, horizon)

    def _fit(self, i: int) -> np.ndarray:
        """(N, context + 1, horizon) float32, the bias last."""
        n = self._prepared.scalers.mean[i].size
        parts = [range(k, min(k + _NEURONS, n)) for k in range(0, n, _NEURONS)]
        keep = ~self._prepared.scalers.constant[i]
        errors: dict[tuple, float] = {}
        for part in parts:
            train, valid = self._both(i, part)
            for key in self._versions():
                error = _errors(_maps(train, self._context, self._horizon, *key), valid)
                errors[key] = errors.get(key, 0.0) + float(error[keep[part]].sum())
        best = min(errors, key=errors.get)
        self.choices[i] = Choice(*best, errors[best] / max(int(keep.sum()), 1))
        found = []
        for part in parts:
            train = self._both(i, part)[0] if len(parts) > 1 else train
            found.append(_maps(train, self._context, self._horizon, *best))
        return np.concatenate(found).astype(np.float32)

    def _versions(self) -> list[tuple[int, float, bool, bool]]:
        flags = [(True, True), (True, False), (False, True), (False, False)]
        return [
            (p, a, direct, difference)
            for p in self._orders
            for a in self._alphas
            for direct, difference in flags
            if p > 1 or not difference  # the difference of the last value itself is 0
        ]

    def _both(self, i: int, neurons: range) -> tuple[np.ndarray, np.ndarray]:
        sizes = (self._context, self._horizon)
        return tuple(
            _moments(self._prepared, i, part, *sizes, self._limit, neurons)
            for part in ("train", "valid")
        )


def _moments(
    prepared: Prepared,
    i: int,
    part: str,
    context: int,
    horizon: int,
    limit: int,
    neurons: range,
) -> np.ndarray:
    """(n, D, D) sums of v v^T over windows, v = (context, target, 1) of one neuron."""
    size = context + horizon
    out = np.zeros((len(neurons), size + 1, size + 1))
    stride = W.stride_for(prepared, i, part, context, horizon, limit)
    some = False
    cut = slice(neurons.start, neurons.stop)
    for z, mask in W.windows(prepared, i, part, context, horizon, stride):
        some = True
        step = max(1, _SAMPLES // (size * len(neurons)))
        for k in range(0, len(z), step):
            ok = mask[k : k + step, :, cut].all(1)
            v = np.ones((*ok.shape, size + 1), np.float32)
            v[:, :, :size] = z[k : k + step, :, cut].transpose(0, 2, 1)
            v *= ok[:, :, None]
            v = v.transpose(1, 2, 0)  # (n, D, W)
            out += v @ v.transpose(0, 2, 1)
    if not some:
        raise W.too_short(prepared, i, part, context, horizon)
    return out


def _maps(
    moments: np.ndarray,
    context: int,
    horizon: int,
    order: int,
    alpha: float,
    direct: bool,
    difference: bool,
) -> np.ndarray:
    """(n, context + 1, horizon) maps of levels to levels, from the moments of training."""
    n, size = len(moments), moments.shape[1]
    change = np.eye(size)
    if difference:
        change[: size - 1, context - 1] -= 1
    # With differences the last frame itself says nothing and is left out.
    frames = np.arange(context - order, context - difference)
    rows = np.concatenate([frames, [size - 1]])
    ahead = np.arange(context, context + (horizon if direct else 1))
    if difference:
        x, y = change[rows], change[ahead]
        half = x @ moments
        gram, cross = half @ x.T, half @ y.T
    else:
        gram, cross = moments[:, rows[:, None], rows], moments[:, rows[:, None], ahead]
    ridge = np.zeros((n, len(rows)))
    ridge[:, :-1] = gram[:, range(len(frames)), range(len(frames))].mean(1)[:, None]
    # A neuron without a window, or one that is 0 throughout, has the map 0.
    empty = gram[:, -1, -1] == 0
    ridge = alpha * ridge + 1e-9 * np.maximum(ridge, 1e-9)
    ridge[:, -1] = empty
    w = np.linalg.solve(gram + ridge[:, :, None] * np.eye(len(rows)), cross)
    out = np.zeros((n, context + 1, w.shape[2]))
    out[:, np.concatenate([frames, [context]])] = w
    if difference:
        out[:, context - 1] = 1 - w[:, :-1].sum(1)
    return out if direct else _iterated(out[:, :, 0], horizon)


def _iterated(step: np.ndarray, horizon: int) -> np.ndarray:
    """(n, context + 1) one-step maps fed back on themselves -> (n, context + 1, horizon)."""
    n, context = step.shape[0], step.shape[1] - 1
    # Each frame as a linear function of (context, 1): the context itself, then the future.
    frames = np.zeros((n, context + horizon, context + 1))
    frames[:, :context] = np.eye(context + 1)[:context]
    order = context - int(np.argmax((step[:, :-1] != 0).any(0)))  # frames the map looks at
    for h in range(context, context + horizon):
        new = (step[:, None, context - order : -1] @ frames[:, h - order : h])[:, 0]
        new[:, -1] += step[:, -1]
        # An unstable map is cut off: it loses on validation anyway.
        frames[:, h] = np.clip(new, -1e6, 1e6)
    return frames[:, context:].transpose(0, 2, 1)


def _errors(maps: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """(n,) mean squared error of maps over the windows the moments are of."""
    n, inputs, horizon = maps.shape
    both = np.zeros((n, moments.shape[1], horizon))
    both[:, : inputs - 1], both[:, -1] = -maps[:, :-1], -maps[:, -1]
    both[:, inputs - 1 : -1] = np.eye(horizon)
    total = np.einsum("ndh,ndh->n", both, moments @ both)
    count = moments[:, -1, -1] * horizon
    return np.where(count > 0, total / np.maximum(count, 1), 0.0)
