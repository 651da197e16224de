"""Low-dimensional dynamics: do forecasts move along the true principal components?

CalM section 6: principal components (20) of true traces; true and forecast activity are
projected on them; Pearson correlation per component over the frames of all trials, against
the same with forecasts given to other trials. The paper fits the components on true TEST
traces, which describes the test; those of training traces (`fit_on`) are the stricter choice,
for they were fixed before the test was seen. The result says which was taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from calm_jax.analysis import components as pca
from calm_jax.analysis.checks import numbers
from calm_jax.errors import AnalysisError

COMPONENTS = 20  # CalM section 6


@dataclasses.dataclass(frozen=True, eq=False)
class Dynamics:
    """Forecasts of several methods along true components.

    Attributes:
      fitted: "train" or "test": the traces the components were fitted on.
      components: k, fewer than asked for where the data have fewer (`asked`).
      ratio: (k,) share of the variance of those traces.
      share: (k,) share of the variance of the true frames scored.
      truth: (K, H, k), scores: method -> (K, H, k), in the unit of the traces; NaN where masked.
      r: method -> (k,) Pearson over all frames; 0 for a constant forecast, NaN for constant truth.
      null: method -> (S, k), with forecasts given to other trials.
      p: method -> (k,) one-sided.
      explained: method -> (k,) 1 - sum (x - y)^2 / sum (x - mean x)^2.
      trials: K. frames: valid frames scored.
    """

    fitted: str
    components: int
    asked: int
    ratio: np.ndarray
    share: np.ndarray
    truth: np.ndarray
    scores: Mapping[str, np.ndarray]
    r: Mapping[str, np.ndarray]
    null: Mapping[str, np.ndarray]
    p: Mapping[str, np.ndarray]
    explained: Mapping[str, np.ndarray]
    trials: int
    frames: int


def dynamics(
    truth: np.ndarray,
    forecasts: Mapping[str, np.ndarray],
    *,
    components: int = COMPONENTS,
    mask: np.ndarray | None = None,
    fit_on: np.ndarray | None = None,
    shuffles: int = 100,
    seed: int = 0,
) -> Dynamics:
    """Projects forecasts on the components of true traces and correlates them.

    Args:
      truth: (K, H, N) true frames of K trials or windows. forecasts: method -> (K, H, N).
      mask: (K, H) frames that count; a frame with a neuron that is not finite never does.
      fit_on: (T, N) true training traces in the same unit; None: the true frames themselves.
      shuffles: pairings of forecasts with other trials; none with a single trial.

    Raises:
      AnalysisError: one neuron, other shapes, or traces that do not vary.
    """
    what = "low-dimensional dynamics"
    truth = numbers(truth, what)
    forecasts = {m: numbers(p, f"{what}, forecast of {m}") for m, p in forecasts.items()}
    if truth.ndim != 3 or truth.size == 0:
        raise AnalysisError("another shape", where=what, found=truth.shape,
                            expected="(trials, frames, neurons)")  # fmt: skip
    for method, pred in forecasts.items():
        if np.shape(pred) != truth.shape:
            raise AnalysisError("another shape", where=f"{what}, forecast of {method}",
                                found=np.shape(pred), expected=truth.shape)  # fmt: skip
    k_trials, _, n = truth.shape
    valid = np.isfinite(truth).all(-1)
    if mask is not None:
        valid &= np.asarray(mask, bool)
    for pred in forecasts.values():
        valid &= np.isfinite(pred).all(-1)
    frames = int(valid.sum())
    if n < 2 or frames < 3:
        raise AnalysisError("too little to find components in", where=what,
                            found=f"{n} neurons, {frames} valid frames",
                            expected="at least 2 and 3")  # fmt: skip
    source = truth[valid] if fit_on is None else numbers(fit_on, what)
    if fit_on is not None:
        if source.ndim != 2 or source.shape[1] != n:
            raise AnalysisError("training traces of other neurons", where=what,
                                found=source.shape, expected=f"(frames, {n})")  # fmt: skip
        source = source[np.isfinite(source).all(1)]
    fitted = pca.fit(source, components, fewer=True, seed=seed, what=what, rows="frames",
                     columns="neurons")  # fmt: skip
    k = len(fitted.axes)
    x = _projected(fitted, truth, valid)
    scores = {m: _projected(fitted, np.asarray(p), valid) for m, p in forecasts.items()}
    flat = x[valid]
    total = float(np.var(truth[valid].astype(np.float64), axis=0).sum())
    share = flat.var(0) / total if total > 0 else np.full(k, np.nan)
    pairings = _pairings(k_trials, shuffles, seed)
    r, null, p, explained = {}, {}, {}, {}
    for method, y in scores.items():
        r[method] = _pearson(flat, y[valid])
        null[method] = np.array(
            [_pearson(*_paired(x, y[order], valid, valid[order])) for order in pairings]
        ).reshape(-1, k)
        count = (null[method] >= r[method]).sum(0)
        p[method] = (1 + count) / (1 + len(pairings)) if len(pairings) else np.full(k, np.nan)
        rest = ((flat - y[valid]) ** 2).sum(0)
        spread = ((flat - flat.mean(0)) ** 2).sum(0)
        explained[method] = 1 - rest / np.where(spread > 0, spread, np.nan)
    kind = "test" if fit_on is None else "train"
    return Dynamics(kind, k, components, fitted.ratio, share, x, scores, r, null, p, explained,
                    k_trials, frames)  # fmt: skip


def _projected(fitted: pca.Components, x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    out = np.full((*valid.shape, len(fitted.axes)), np.nan)
    out[valid] = pca.project(fitted, x[valid])
    return out


def _pairings(trials: int, shuffles: int, seed: int) -> list[np.ndarray]:
    """Permutations of the trials in which none keeps its place."""
    if trials < 2:
        return []
    rng = np.random.default_rng(seed)
    out = []
    while len(out) < shuffles:
        # A cycle through all trials in random order: Sattolo's permutations have no fixed point.
        order = rng.permutation(trials)
        pairing = np.empty(trials, np.int64)
        pairing[order] = np.roll(order, 1)
        out.append(pairing)
    return out


def _paired(
    x: np.ndarray, y: np.ndarray, known_x: np.ndarray, known_y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    both = known_x & known_y
    return x[both], y[both]


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation per column. Shapes: (n, k), (n, k) -> (k,)."""
    if len(x) < 2:
        return np.full(x.shape[1], np.nan)
    dx, dy = x - x.mean(0), y - y.mean(0)
    sx, sy = np.linalg.norm(dx, axis=0), np.linalg.norm(dy, axis=0)
    real = sy > 1e-12 * np.linalg.norm(y, axis=0)
    r = np.where(real, (dx * dy).sum(0) / np.where(real & (sx > 0), sx * sy, 1), 0.0)
    return np.where(sx > 0, r, np.nan)
