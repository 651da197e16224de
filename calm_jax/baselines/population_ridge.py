"""Population ridge: all neurons' context -> all neurons' horizon, one map per session."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from calm_jax.baselines import windows as W
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

ALPHAS = tuple(10.0 ** np.arange(1.0, 6.01, 0.5))


def fit(
    prepared: Prepared,
    splits: Splits,
    context: int,
    horizon: int,
    *,
    alphas: Sequence[float] = ALPHAS,
    limit: int = 2000,
    keep: int = 4,
) -> PopulationRidge:
    """A forecaster that fits a session the first time it is asked about it.

    At most about `limit` training windows per session (evenly strided origins), and
    `keep` fitted sessions are held in memory.
    """
    return PopulationRidge(prepared, context, horizon, alphas, limit, keep)


class PopulationRidge:
    """y = W x + b, W = argmin |Y - X W|^2 + alpha |W|^2 on centred windows, per session.

    Solved in whichever of (windows, features) is fewer:
    W = X^T (X X^T + alpha)^-1 Y = (X^T X + alpha)^-1 X^T Y, by one eigendecomposition
    for all alphas; alpha by the error on the validation part. Longer horizons are
    rolled out.

    Attributes:
      alphas: session -> the alpha chosen, of the sessions fitted so far.
    """

    def __init__(
        self,
        prepared: Prepared,
        context: int,
        horizon: int,
        grid: Sequence[float],
        limit: int,
        keep: int,
    ) -> None:
        self._prepared, self._context, self._horizon = prepared, context, horizon
        self._grid, self._limit, self._keep = tuple(grid), limit, keep
        self._maps: OrderedDict[int, tuple[np.ndarray, ...]] = OrderedDict()
        self.alphas: dict[int, float] = {}

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
        factors, bias = self._maps[session][:-1], self._maps[session][-1]
        neurons = context.shape[2]

        def step(x: np.ndarray, _: np.ndarray) -> np.ndarray:
            y = x.reshape(len(x), -1)
            for factor in factors:
                y = y @ factor
            return (y + bias).reshape(len(x), self._horizon, neurons)

        return W.roll(step, context, mask, self._horizon, horizon)

    def _fit(self, i: int) -> tuple[np.ndarray, ...]:
        """Factors whose product is the map, and its bias."""
        sizes = (self._context, self._horizon)
        flat = lambda x: np.ascontiguousarray(x.reshape(len(x), -1), np.float32)
        x, y = map(flat, W.stacked(self._prepared, i, "train", *sizes, self._limit))
        limit = max(1, self._limit // 4)
        x_valid, y_valid = map(flat, W.stacked(self._prepared, i, "valid", *sizes, limit))
        mean_x, mean_y = x.mean(0), y.mean(0)
        x -= mean_x
        y -= mean_y
        x_valid -= mean_x
        y_valid -= mean_y
        dual = len(x) <= x.shape[1]
        s, u = scipy.linalg.eigh(x @ x.T if dual else x.T @ x, overwrite_a=True)
        s = np.maximum(s, 0)
        # W = base @ u @ diag(1 / (s + alpha)) @ right; base is the identity in the primal.
        right = u.T @ (y if dual else x.T @ y)
        inside = (x_valid @ x.T if dual else x_valid) @ u
        errors = [
            np.mean(np.square((inside / (s + np.float32(a))) @ right - y_valid)) for a in self._grid
        ]
        alpha = float(self._grid[int(np.argmin(errors))])
        self.alphas[i] = alpha
        solved = (u / (s + np.float32(alpha))) @ right
        # Windows and their weights where these are smaller to keep than the map.
        whole = x.shape[1] * solved.shape[1] <= x.size + solved.size
        if dual:
            factors = (x.T @ solved,) if whole else (x.T, solved)
        else:
            factors = (solved,)
        bias = mean_x
        for factor in factors:
            bias = bias @ factor
        return (*factors, mean_y - bias)
