"""Population change: what each neuron's autoregression leaves, from changes of the population.

    y = AR(own context) + B (Pᵀ(last frame - mean of the context) - m)

P are principal components of the training frames. The features hold changes only: slow drift,
which throws a regression of levels off, is not among them. One map per session. K and alpha
are chosen on the last fifth of the training windows, with a twentieth left out before it, and
not on the validation part: weights of several methods are fitted there (`calm_jax.stacking`),
and a map tuned on the same windows would be trusted too much. Where no map is better than
none, the autoregression stands alone.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from calm_jax.baselines import autoregression
from calm_jax.baselines import windows as W
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

COMPONENTS = (20, 60, 200)
ALPHAS = tuple(10.0 ** np.arange(1.0, 6.01, 0.5))
_FRAMES = 6000  # that the components are of
_FIT, _TEST = 0.75, 0.8  # shares of the training windows: the choice fits before, tests behind


def fit(
    prepared: Prepared,
    splits: Splits,
    context: int,
    horizon: int,
    *,
    base: W.Forecaster | None = None,
    components: Sequence[int] = COMPONENTS,
    alphas: Sequence[float] = ALPHAS,
    limit: int = 4000,
    keep: int = 8,
) -> PopulationChange:
    """A forecaster that fits a session the first time it is asked about it.

    At most about `limit` training windows per session (evenly strided origins), and
    `keep` fitted sessions are held in memory. `base` is an autoregression fitted before.
    """
    base = base or autoregression.fit(prepared, splits, context, horizon)
    return PopulationChange(prepared, base, context, horizon, components, alphas, limit, keep)


@dataclasses.dataclass(frozen=True, eq=False)
class _Map:
    """parts (N, K), mean (K,), weights (K, horizon N); K = 0: the autoregression alone."""

    parts: np.ndarray
    mean: np.ndarray
    weights: np.ndarray


class PopulationChange:
    """B = argmin |R - F B|^2 + alpha |B|^2: F the centred features, R the residuals.

    Longer horizons are rolled out.

    Attributes:
      chosen: session -> (K, alpha), of the sessions fitted so far; K = 0 for no map.
    """

    def __init__(
        self,
        prepared: Prepared,
        base: W.Forecaster,
        context: int,
        horizon: int,
        components: Sequence[int],
        grid: Sequence[float],
        limit: int,
        keep: int,
    ) -> None:
        self._prepared, self._base = prepared, base
        self._context, self._horizon = context, horizon
        self._components, self._grid = tuple(components), tuple(grid)
        self._limit, self._keep = limit, keep
        self._maps: OrderedDict[int, _Map] = OrderedDict()
        self.chosen: dict[int, tuple[int, float]] = {}

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
        own = self._maps[session]

        def step(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
            change = (_features(x, own.parts) - own.mean) @ own.weights
            made = self._base(x, session, seen, self._horizon)
            return made + change.reshape(made.shape)

        return W.roll(step, context, mask, self._horizon, horizon)

    def _fit(self, i: int) -> _Map:
        """The map of a session; components and alpha by the last training windows."""
        x, y = W.stacked(self._prepared, i, "train", self._context, self._horizon, self._limit)
        seen = np.ones(x.shape, bool)
        rest = (y - self._base(x, i, seen, self._horizon)).reshape(len(y), -1)
        frames = x[:: max(1, x.shape[0] * x.shape[1] // _FRAMES)].reshape(-1, x.shape[2])
        _, _, parts = scipy.linalg.svd(frames - frames.mean(0), full_matrices=False)
        most = min(max(self._components), len(parts))
        parts = parts[:most].T
        f = _features(x, parts)
        self.chosen[i] = k, alpha = self._choose(f, rest, most)
        parts, f = parts[:, :k], f[:, :k]
        mean = f.mean(0)
        return _Map(parts, mean, _Ridge(f - mean, rest).weights(alpha))

    def _choose(self, f: np.ndarray, rest: np.ndarray, most: int) -> tuple[int, float]:
        """(K, alpha) with the least error on the last training windows; (0, 0) for no map."""
        a, b = int(_FIT * len(f)), int(_TEST * len(f))
        best, found = float(np.mean(np.square(rest[b:]))), (0, 0.0)
        if a < 2:
            return found
        for k in sorted({min(k, most) for k in self._components}):
            # Components are nested: the first k features are those of k components.
            mean = f[:a, :k].mean(0)
            ridge = _Ridge(f[:a, :k] - mean, rest[:a])
            for alpha in self._grid:
                made = ridge.forecast(f[b:, :k] - mean, alpha)
                error = float(np.mean(np.square(made - rest[b:])))
                if error < best:
                    best, found = error, (k, float(alpha))
        return found


class _Ridge:
    """(FᵀF + alpha)⁻¹ FᵀR for every alpha, by one eigendecomposition."""

    def __init__(self, f: np.ndarray, rest: np.ndarray) -> None:
        s, self._u = scipy.linalg.eigh(f.T @ f) if f.shape[1] else (np.zeros(0), np.zeros((0, 0)))
        self._s = np.maximum(s, 0)
        self._right = self._u.T @ (f.T @ rest)

    def weights(self, alpha: float) -> np.ndarray:
        return ((self._u / (self._s + alpha)) @ self._right).astype(np.float32)

    def forecast(self, f: np.ndarray, alpha: float) -> np.ndarray:
        return ((f @ self._u) / (self._s + alpha)) @ self._right


def _features(x: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """(B, K): components of the last frame less the mean of the context."""
    return (x[:, -1] - x.mean(1)) @ parts
