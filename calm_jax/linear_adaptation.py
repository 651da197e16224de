"""The linear path of a read-out, adapted by ridge regression towards where it stands.

y = f(x) + X (W - W0), where f is the trained model, W0 its linear path and X the last
changes of a trace from its last value. As the path is linear, the least squares of
|y - f(x) - X D|^2 + alpha |D|^2 over D = W - W0 are exact and in closed form: for large
alpha nothing moves. Alpha is chosen by cross-validation over blocks of time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from calm_jax.adaptation_data import Given
from calm_jax.baselines.windows import Forecaster, origins

LAGS = 12  # last changes whose weights may move
FOLDS = 4  # blocks of time
ALPHAS = tuple(10.0 ** np.arange(-3.0, 4.01, 0.5))  # times the mean diagonal of the Gram matrix
_SAMPLES = 100_000  # windows x neurons of a session, for 12 weights a step ahead


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
    """What is added to the linear path.

    Attributes:
      delta: (LAGS, frames) added to the rows of the changes x_{-13} .. x_{-2}; 0 where nothing
        was taken.
      alpha: chosen; infinite where nothing was taken.
      gain: error of cross-validation with the correction, over that without it.
      windows: how many it was fitted to.
    """

    delta: np.ndarray
    alpha: float
    gain: float
    windows: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Windows:
    """Windows of one session: changes x (W, n, LAGS), residuals y (W, n, F), origins (W,)."""

    x: np.ndarray
    y: np.ndarray
    origin: np.ndarray


def fit(model: Forecaster, given: Given, context: int, frames: int) -> Correction:
    """The correction that the minutes support.

    The blocks are consecutive quarters of the windows of every session; a window trains
    when its target shares no frame with those of the block that is scored. A correction is
    taken where it lowers the mean error over blocks and raises it in none of them, at the
    alpha with the least mean error; else the model stays as it is.

    Args:
      model: forecasts in the unit of the minutes. frames: F, those of the read-out.
    """
    lags = min(LAGS, context - 1)
    parts = [
        _windows(model, given, i, context, frames, lags) for i in range(len(given.spans))
    ]
    parts = [p for p in parts if len(p.origin) >= FOLDS]
    count = sum(len(p.origin) for p in parts)
    nothing = Correction(np.zeros((lags, frames), np.float32), np.inf, 1.0, count)
    if not parts:
        return nothing
    ratios = np.array([_fold(parts, k, frames) for k in range(FOLDS)])
    # A block with no training windows left says nothing for a correction.
    allowed = (ratios <= 1).all(0) & (ratios.mean(0) < 1)
    if not allowed.any():
        return nothing
    k = int(np.argmin(np.where(allowed, ratios.mean(0), np.inf)))
    gram, cross = _moments([(p.x, p.y) for p in parts])
    delta = _solve(gram, cross, ALPHAS[k])
    return Correction(delta.astype(np.float32), ALPHAS[k], float(ratios.mean(0)[k]), count)


def _fold(parts: list[_Windows], k: int, frames: int) -> np.ndarray:
    """(alphas,) error in block `k` with the correction, over that without; NaN if untrained."""
    train, score = [], []
    for p in parts:
        edges = np.linspace(0, len(p.origin), FOLDS + 1).astype(int)
        here = slice(edges[k], edges[k + 1])
        low, high = p.origin[here][0], p.origin[here][-1]
        apart = (p.origin + frames <= low) | (p.origin >= high + frames)
        train.append((p.x[apart], p.y[apart]))
        score.append((p.x[here], p.y[here]))
    before = sum(float(np.square(y).sum()) for _, y in score)
    if not any(len(x) for x, _ in train) or before == 0:
        return np.full(len(ALPHAS), np.nan)
    gram, cross = _moments(train)
    out = []
    for alpha in ALPHAS:
        delta = _solve(gram, cross, alpha)
        out.append(sum(float(np.square(y - x @ delta).sum()) for x, y in score) / before)
    return np.array(out)


def _moments(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of x^T x and x^T y in float64."""
    flat = [(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])) for x, y in pairs]
    gram = sum((x.T @ x).astype(np.float64) for x, _ in flat)
    return gram, sum((x.T @ y).astype(np.float64) for x, y in flat)


def _solve(gram: np.ndarray, cross: np.ndarray, alpha: float) -> np.ndarray:
    size = len(gram)
    ridge = alpha * np.trace(gram) / size + 1e-12
    return np.linalg.solve(gram + ridge * np.eye(size), cross)


def _windows(
    model: Any, given: Given, i: int, context: int, frames: int, lags: int
) -> _Windows:
    """Every window of a session's minutes; one with an invalid sample counts for nothing."""
    prepared, keep = given.prepared, ~given.prepared.scalers.constant[i]
    ranges = [(int(a), int(b)) for a, b in given.spans[i] if b - a >= context + frames]
    room = sum(b - a - context - frames + 1 for a, b in ranges)
    stride = max(1, -(-room * int(keep.sum()) // _SAMPLES))
    changes, residuals, where = [], [], []
    for a, b in ranges:
        z, mask = prepared.range(i, a, b)
        o = origins(a, b, context, frames, stride)
        cut = lambda y, first, size, o=o, a=a: np.stack(  # noqa: E731
            [y[k - a + first : k - a + first + size] for k in o]
        )
        x, seen = cut(z, -context, context), cut(mask, -context, context)
        y, there = cut(z, 0, frames), cut(mask, 0, frames)
        ok = (seen.all(1) & there.all(1))[:, keep, None]
        miss = (y - model(x, i, seen, frames)).transpose(0, 2, 1)[:, keep]
        moved = (x[:, -lags - 1 : -1] - x[:, -1:]).transpose(0, 2, 1)[:, keep]
        changes.append(np.where(ok, moved, 0))
        residuals.append(np.where(ok, miss, 0))
        where.append(o)
    if not where:
        none = np.zeros((0, int(keep.sum()), 0), np.float32)
        return _Windows(none, none, np.zeros(0, np.int64))
    return _Windows(*(np.concatenate(v) for v in (changes, residuals, where)))


def applied(kernel: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The linear path (context, frames) with a correction; its last row stays."""
    out = np.array(kernel)
    lags = min(len(delta), len(out) - 1)
    out[len(out) - 1 - lags : len(out) - 1] += delta[len(delta) - lags :]
    return out
