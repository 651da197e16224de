"""Common factors: a few components that many neurons share, and what is each neuron's own.

    x - m = L f + e,   f = Lᵀ (x - m)

L (N, K) are principal components of the training frames. Factors f, averages over the whole
population, are known far better than any trace; they and the rest e are forecast apart, each by
one linear map of the context that all factors (brought to variance 1) and all neurons share, and
put together again with the same L: a dynamic factor model (Geweke 1977; Stock and Watson 2002)
with few numbers to learn, N K of which come from simultaneous frames. A regression of every
neuron's future on the factors (`population_change`) has to learn as many for each step ahead.

One model per session. As L is orthonormal, squared errors of factors and rest add up, so that
everything is fitted and judged by second moments. K and the maps are chosen as for
`population_change`, on the last fifth of the training frames and not on the validation part,
where weights of several methods are fitted (`calm_jax.stacking`). K = 0 is among the choices, and
taken, with a strong ridge, where the training part is too short to be divided.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from calm_jax.baselines import moments
from calm_jax.baselines import windows as W
from calm_jax.baselines.shared_linear import ALPHAS
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

COMPONENTS = (0, 1, 2, 3, 5, 8, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128)
_FRAMES = 6000  # that the components are of
_SLACK = 1e-3  # the fewest components whose error is within this share of the least
_FIT, _TEST = 0.75, 0.8  # shares of the training frames: the choice fits before, tests behind

Ranges = list[tuple[np.ndarray, np.ndarray]]  # traces (T, N) and mask of each


def fit(
    prepared: Prepared,
    splits: Splits,
    context: int,
    horizon: int,
    *,
    components: Sequence[int] = COMPONENTS,
    alphas: Sequence[float] = ALPHAS,
    keep: int = 8,
) -> CommonFactors:
    """A forecaster that fits a session the first time it is asked about it; `keep` fitted
    sessions are held in memory."""
    return CommonFactors(prepared, context, horizon, components, alphas, keep)


@dataclasses.dataclass(frozen=True, eq=False)
class _Map:
    """weights (context, horizon), of changes from the last frame or of levels."""

    weights: np.ndarray
    changes: bool

    def __call__(self, x: np.ndarray) -> np.ndarray:
        last = x[:, -1:] if self.changes else np.float32(0)
        return np.einsum("btn,th->bhn", x - last, self.weights, optimize=True) + last


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
    """mean (N,), parts L (N, K), maps of factors and of the rest."""

    mean: np.ndarray
    parts: np.ndarray
    shared: _Map | None
    own: _Map

    def __call__(self, x: np.ndarray) -> np.ndarray:
        f = (x - self.mean) @ self.parts
        rest = x - self.mean - f @ self.parts.T
        made = self.own(rest) + self.mean
        return made if self.shared is None else made + self.shared(f) @ self.parts.T


class CommonFactors:
    """Longer horizons are rolled out.

    Attributes:
      chosen: session -> K, of the sessions fitted so far.
    """

    def __init__(
        self,
        prepared: Prepared,
        context: int,
        horizon: int,
        components: Sequence[int],
        alphas: Sequence[float],
        keep: int,
    ) -> None:
        self._prepared, self._context, self._horizon = prepared, context, horizon
        self._components, self._alphas, self._keep = tuple(components), tuple(alphas), keep
        self._models: OrderedDict[int, _Model] = OrderedDict()
        self.chosen: dict[int, int] = {}

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N).

        Raises:
          RecordingError: when the session's training part holds no window.
        """
        if session not in self._models:
            self._models[session] = self._fit(session)
            if len(self._models) > self._keep:
                self._models.popitem(last=False)
        self._models.move_to_end(session)
        own = self._models[session]
        return W.roll(lambda x, seen: own(x), context, mask, self._horizon, horizon)

    def _fit(self, i: int) -> _Model:
        size = self._context + self._horizon
        whole = [
            (z.astype(np.float32), mask & ~self._prepared.scalers.constant[i])
            for z, mask in (
                self._prepared.range(i, a, b) for a, b in self._prepared.splits.parts[i]["train"]
            )
            if len(z) >= size
        ]
        if not whole:
            raise W.too_short(self._prepared, i, "train", self._context, self._horizon)
        frames = sum(len(z) for z, _ in whole)
        early = _cut(whole, 0, int(_FIT * frames), size)
        late = _cut(whole, int(_TEST * frames), frames, size)
        k, shared, own = 0, (1.0, False), (1.0, False)
        if early and late:
            k, shared, own = self._choose(early, late)
        self.chosen[i] = k
        mean, parts = _components(whole, k)
        a, b, _ = self._moments(whole, mean, parts)
        return _Model(
            mean, parts, self._map(a, *shared) if k else None, self._map(b, *own)
        )

    def _choose(self, early: Ranges, late: Ranges) -> tuple[int, tuple, tuple]:
        """(K, (alpha, changes) of the factors, the same of the rest) with the least error of
        what was fitted on `early` in the windows of `late`."""
        mean, parts = _components(early, max(self._components))
        tried = []
        for k in sorted({min(k, parts.shape[1]) for k in self._components}):
            fitted = self._moments(early, mean, parts[:, :k])
            seen = self._moments(late, mean, parts[:, :k])
            # Each factor weighs as 1 where the map is learned, by its variance where it is judged.
            shared = self._best(fitted[0], seen[2]) if k else (0.0, (1.0, False))
            own = self._best(fitted[1], seen[1])
            tried.append((shared[0] + own[0], (k, shared[1], own[1])))
        enough = min(error for error, _ in tried) * (1 + _SLACK)
        return next(found for error, found in tried if error <= enough)

    def _moments(
        self, ranges: Ranges, mean: np.ndarray, parts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Second moments (S, S) of windows: of factors of variance 1, of the rest, of factors."""
        size, k = self._context + self._horizon, parts.shape[1]
        unit, rest, plain = (np.zeros((size, size)) for _ in range(3))
        for z, mask in ranges:
            f = (z - mean) @ parts
            e = z - mean - f @ parts.T
            rest += moments.of_windows(e, mask, size)[:size, :size]
            if k:
                plain += moments.of_windows(f, np.ones(f.shape, bool), size)[:size, :size]
        if k:
            square = sum(np.square((z - mean) @ parts).sum(0) for z, _ in ranges)
            scale = np.sqrt(np.maximum(square / sum(len(z) for z, _ in ranges), 1e-12))
            for z, _ in ranges:
                f = (z - mean) @ parts / scale
                unit += moments.of_windows(f, np.ones(f.shape, bool), size)[:size, :size]
        return unit, rest, plain

    def _best(self, fitted: np.ndarray, seen: np.ndarray) -> tuple[float, tuple[float, bool]]:
        """(squared error summed over the windows of `seen`, (alpha, changes))."""
        best, found = np.inf, (1.0, False)
        for changes in (False, True):
            for alpha in self._alphas:
                made = self._map(fitted, alpha, changes)
                c = _change(self._context, self._horizon, changes)
                both = np.vstack([-made.weights, np.eye(self._horizon)])
                error = float(np.trace(both.T @ (c @ seen @ c.T) @ both))
                if error < best:
                    best, found = error, (float(alpha), changes)
        return best, found

    def _map(self, fitted: np.ndarray, alpha: float, changes: bool) -> _Map:
        n, c = self._context, _change(self._context, self._horizon, changes)
        a = c @ fitted @ c.T
        ridge = alpha * np.trace(a[:n, :n]) / n * np.eye(n)
        w = np.linalg.lstsq(a[:n, :n] + ridge, a[:n, n:], rcond=None)[0]
        return _Map(w.astype(np.float32), changes)


def _change(context: int, horizon: int, changes: bool) -> np.ndarray:
    """(context, target) -> the same, less the last value of the context where asked."""
    out = np.eye(context + horizon)
    if changes:
        out[:, context - 1] -= 1
    return out


def _cut(ranges: Ranges, start: int, stop: int, size: int) -> Ranges:
    """Frames `start` to `stop`, counted over all ranges; pieces of `size` frames at least."""
    out, before = [], 0
    for z, mask in ranges:
        a, b = max(start - before, 0), min(stop - before, len(z))
        if b - a >= size:
            out.append((z[a:b], mask[a:b]))
        before += len(z)
    return out


def _components(ranges: Ranges, most: int) -> tuple[np.ndarray, np.ndarray]:
    """mean (N,) and at most `most` principal components (N, K) of at most `_FRAMES` frames."""
    x = np.concatenate([z for z, _ in ranges])
    mean = x.mean(0)
    d = (x - mean)[:: -(-len(x) // _FRAMES)]
    k = min(most, min(d.shape) // 2)
    if k == 0:
        return mean, np.zeros((d.shape[1], 0), np.float32)
    wide = d.shape[1] > len(d)  # the smaller of both Gram matrices
    gram = d @ d.T if wide else d.T @ d
    _, u = scipy.linalg.eigh(gram, subset_by_index=(len(gram) - k, len(gram) - 1))
    parts = d.T @ u[:, ::-1] if wide else u[:, ::-1]
    return mean, np.linalg.qr(parts)[0].astype(np.float32)
