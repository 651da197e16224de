"""Population ridge: all neurons' recent frames -> all neurons' horizon, one map per session."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from calm_jax.baselines import windows as W
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

ALPHAS = tuple(10.0 ** np.arange(1.0, 6.01, 0.5))
# Numbers of last frames tried; longer than the context means the whole context. Few
# lags often win by far: every lag adds as many features as there are neurons.
LAGS = (1, 4, 16, 10_000)
_LARGEST = 1500  # rows or columns of the matrix that is decomposed
_VALIDATION = 500  # windows that choose alpha and lags


def fit(
    prepared: Prepared,
    splits: Splits,
    context: int,
    horizon: int,
    *,
    alphas: Sequence[float] = ALPHAS,
    lags: Sequence[int] = LAGS,
    limit: int = 4000,
    keep: int = 4,
) -> PopulationRidge:
    """A forecaster that fits a session the first time it is asked about it.

    At most about `limit` training windows per session (evenly strided origins), and
    `keep` fitted sessions are held in memory.
    """
    return PopulationRidge(prepared, context, horizon, alphas, lags, limit, keep)


class PopulationRidge:
    """y = W x + b, W = argmin |Y - X W|^2 + alpha |W|^2 on centred windows, per session.

    Solved in whichever of (windows, features) is fewer:
    W = X^T (X X^T + alpha)^-1 Y = (X^T X + alpha)^-1 X^T Y, by one eigendecomposition
    for all alphas. Alpha and the number of last frames in x are those with the least
    error on the validation part. Longer horizons are rolled out.

    Attributes:
      alphas, lags: session -> what was chosen, of the sessions fitted so far.
    """

    def __init__(
        self,
        prepared: Prepared,
        context: int,
        horizon: int,
        grid: Sequence[float],
        lags: Sequence[int],
        limit: int,
        keep: int,
    ) -> None:
        self._prepared, self._context, self._horizon = prepared, context, horizon
        self._grid, self._lags, self._limit, self._keep = tuple(grid), tuple(lags), limit, keep
        self._maps: OrderedDict[int, _Map] = OrderedDict()
        self.alphas: dict[int, float] = {}
        self.lags: dict[int, int] = {}

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N).

        Raises:
          RecordingError: when the session's parts hold no window.
        """
        if session not in self._maps:
            self._maps[session] = self._fit(session)
            if len(self._maps) > self._keep:
                self._maps.popitem(last=False)
        self._maps.move_to_end(session)
        chosen = self._maps[session]
        neurons = context.shape[2]

        def step(x: np.ndarray, _: np.ndarray) -> np.ndarray:
            y = x[:, -chosen.lags :].reshape(len(x), -1)
            for factor in chosen.factors:
                y = y @ factor
            return (y + chosen.bias).reshape(len(x), self._horizon, neurons)

        return W.roll(step, context, mask, self._horizon, horizon)

    def _fit(self, i: int) -> _Map:
        """The best map of a session over lags and alphas, by the error on validation."""
        sizes = (self._context, self._horizon)
        train = W.stacked(self._prepared, i, "train", *sizes, self._limit)
        valid = W.stacked(self._prepared, i, "valid", *sizes, _VALIDATION)
        best: _Map | None = None
        for lags in sorted({min(k, self._context) for k in self._lags}):
            found = _solve(train, valid, lags, self._grid)
            if best is None or found.error < best.error:
                best = found
        self.alphas[i], self.lags[i] = best.alpha, best.lags
        return best


@dataclasses.dataclass(frozen=True, eq=False)
class _Map:
    """y = x @ factors[0] @ ... + bias, x the last `lags` frames of all neurons."""

    factors: tuple[np.ndarray, ...]
    bias: np.ndarray
    lags: int
    alpha: float
    error: float


def _solve(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    lags: int,
    grid: Sequence[float],
) -> _Map:
    """Ridge from the last `lags` frames, alpha by the error on `valid`."""
    flat = lambda x: np.array(x.reshape(len(x), -1), np.float32)  # noqa: E731
    x, y = flat(train[0][:, -lags:]), flat(train[1])
    if min(x.shape) > _LARGEST:  # an eigendecomposition of this size is the whole cost
        every = -(-len(x) // _LARGEST)
        x, y = x[::every], y[::every]
    x_valid, y_valid = flat(valid[0][:, -lags:]), flat(valid[1])
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y, x_valid, y_valid = x - mean_x, y - mean_y, x_valid - mean_x, y_valid - mean_y
    dual = len(x) <= x.shape[1]
    s, u = scipy.linalg.eigh(x @ x.T if dual else x.T @ x, overwrite_a=True)
    s = np.maximum(s, 0)
    # W = left @ diag(1 / (s + alpha)) @ right
    left = x.T @ u if dual else u
    right = u.T @ y if dual else u.T @ (x.T @ y)
    inside = x_valid @ left
    errors = [np.mean(np.square((inside / (s + np.float32(a))) @ right - y_valid)) for a in grid]
    k = int(np.argmin(errors))
    left = left / (s + np.float32(grid[k]))
    # One matrix where that is the smaller thing to keep.
    whole = left.shape[0] * right.shape[1] <= left.size + right.size
    factors = (left @ right,) if whole else (left, right)
    bias = mean_x
    for factor in factors:
        bias = bias @ factor
    return _Map(factors, mean_y - bias, lags, float(grid[k]), float(errors[k]))
