"""Which neurons inform which: directed couplings, and their agreement with a true one.

Everywhere C[i, j] is the influence of neuron j on neuron i, as J[i, j] of the simulation.
Only pairs of different neurons are scored. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy.stats import rankdata

from calm_jax.errors import AnalysisError

TOP = 0.10  # share of the pairs that count as strongly coupled


def mixing_tables(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The coupling that signed mixing applies, per head: C_h = N^(-1/2) q_h k_h^T.

    out_i = sum_h sum_j C_h[i, j] v_j^h (layers/mixing.py): C_h tells how much of the value
    of neuron j reaches neuron i.

    Args:
      query, key: (N, heads, rank).

    Returns:
      (heads, N, N) float32.
    """
    if query.ndim != 3 or query.shape != key.shape:
        raise AnalysisError(
            "queries and keys do not belong together",
            found=f"{query.shape} and {key.shape}",
            expected="two arrays (neurons, heads, rank)",
        )
    return np.einsum("ihr,jhr->hij", query, key) / np.sqrt(len(query), dtype=np.float32)


def weighted(tables: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """One signed table from those of all heads: sum_h gains_h C_h.

    A head has no sign of its own: that of C_h and that of what the head does with the values
    can be swapped. The gain of a head is what one unit of a neuron's last frame becomes in the
    forecast of the neuron that reads it, so that the sum has a sign.

    Shapes: tables (heads, N, N), gains (heads,) -> (N, N).
    """
    return np.tensordot(gains, tables, axes=1)


def lagged_correlation(
    ranges: Iterable[tuple[np.ndarray, np.ndarray]], lag: int, *, change: bool = False
) -> np.ndarray:
    """r[i, j] = Pearson correlation of x_i(t + lag) with x_j(t); lag 0 is the usual matrix.

    With `change`, of x_i(t + lag) - x_i(t) with x_j(t): what j says about where i goes.
    Pairs of frames never cross the edge of a range, and a frame counts where all neurons
    are valid.

    Args:
      ranges: traces (T, N) and masks (T, N) of each range. lag: frames, 0 or more.

    Returns:
      (N, N) float64, 0 for neurons that do not vary.

    Raises:
      AnalysisError: when no two frames are `lag` apart.
    """
    count, total = 0, None
    for traces, mask in ranges:
        if len(traces) <= lag:
            continue
        good = mask.all(1)
        keep = good[: len(good) - lag] & good[lag:]
        x = traces[: len(traces) - lag][keep].astype(np.float64)
        y = traces[lag:][keep].astype(np.float64)
        if change:
            y = y - x
        terms = [x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), y.T @ x]
        total = terms if total is None else [a + b for a, b in zip(total, terms, strict=True)]
        count += len(x)
    if count < 3:
        raise AnalysisError("too few valid frames", found=f"{count} pairs of frames {lag} apart")
    mx, my, xx, yy, yx = (t / count for t in total)
    sx, sy = (np.sqrt(np.maximum(s - m * m, 0)) for s, m in ((xx, mx), (yy, my)))
    scale = np.outer(sy, sx)
    alive = scale > 1e-12
    return np.where(alive, (yx - np.outer(my, mx)) / np.where(alive, scale, 1), 0.0)


def impulse_map(
    forecast: Callable[[np.ndarray], np.ndarray], context: int, neurons: int, batch: int = 64
) -> np.ndarray:
    """How a linear forecaster passes a unit at the last frame on: (horizon, N, N).

    W[h, i, j] = f(e_j)[h, i] - f(0)[h, i] with e_j = 1 at the last frame of neuron j: the
    weights themselves where f is linear.

    Args:
      forecast: (B, context, N) -> (B, horizon, N).
    """
    base = forecast(np.zeros((1, context, neurons), np.float32))[0]
    out = np.empty((len(base), neurons, neurons), np.float32)
    for first in range(0, neurons, batch):
        which = np.arange(first, min(first + batch, neurons))
        x = np.zeros((len(which), context, neurons), np.float32)
        x[np.arange(len(which)), -1, which] = 1
        out[:, :, which] = np.moveaxis(forecast(x) - base, 0, 2)
    return out


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """(N (N - 1),) the entries of pairs of different neurons, row by row."""
    n = len(matrix)
    return matrix[~np.eye(n, dtype=bool)].reshape(n * (n - 1))


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve (Mann-Whitney U / (n_pos n_neg)); ties count half.

    Shapes: score (M,), positive (M,) bool. NaN where one of the classes is empty.
    """
    n_pos = int(positive.sum())
    n_neg = positive.size - n_pos
    if not n_pos or not n_neg:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def agreement(
    estimate: np.ndarray, truth: np.ndarray, *, top: float = TOP, shuffles: int = 0, seed: int = 0
) -> dict[str, float]:
    """How an estimated coupling agrees with the true one, over pairs of different neurons.

    `r`: Pearson. `spearman`: of ranks. `auc_strong`: |estimate| finds the `top` share of |J|.
    `auc_sign`: the estimate tells positive from negative J among these strong pairs.
    `r_null_low`, `r_null_high`: middle 95 % of r when the neurons of the estimate are
    relabelled at random (rows and columns together), and `p` = (1 + number of shuffles with
    |r| at least as large) / (1 + shuffles).

    Args:
      estimate, truth: (N, N). shuffles: 0 leaves the null out. seed: of the shuffles.

    Raises:
      AnalysisError: for matrices of other shapes, or fewer than 3 neurons.
    """
    n = len(truth)
    if estimate.shape != truth.shape or truth.shape != (n, n) or n < 3:
        raise AnalysisError(
            "couplings that cannot be compared",
            found=f"{estimate.shape} and {truth.shape}",
            expected="two square matrices of at least 3 neurons",
        )
    x, y = off_diagonal(estimate).astype(np.float64), off_diagonal(truth).astype(np.float64)
    strength = np.abs(y)
    strong = strength >= np.quantile(strength, 1 - top)
    out = {
        "r": _r(x, y),
        "spearman": _r(rankdata(x), rankdata(y)),
        "auc_strong": auc(np.abs(x), strong),
        "auc_sign": auc(x[strong], y[strong] > 0),
    }
    if shuffles:
        rng = np.random.default_rng(seed)
        orders = (rng.permutation(n) for _ in range(shuffles))
        null = np.array([_r(off_diagonal(estimate[np.ix_(o, o)]), y) for o in orders])
        out["r_null_low"], out["r_null_high"] = map(float, np.quantile(null, (0.025, 0.975)))
        out["p"] = float((1 + (np.abs(null) >= abs(out["r"])).sum()) / (1 + shuffles))
    return out


def _r(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson; 0 for an estimate that is constant, NaN for a constant truth."""
    x, y = x - x.mean(), y - y.mean()
    sx, sy = np.sqrt((x * x).mean()), np.sqrt((y * y).mean())
    if not sy > 0:
        return float("nan")
    return float((x * y).mean() / (sx * sy)) if sx > 0 else 0.0
