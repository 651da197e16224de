"""Principal components, shared by the analyses.

x = mean + sum_k score_k axis_k + rest, axes orthonormal, in order of the variance they
explain (Pearson 1901). Signs are free: the entry of largest size of an axis is positive.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.analysis.checks import table
from calm_jax.errors import AnalysisError

_EXACT = 1500  # the smaller side of a table up to which all components are computed
_NOTHING = 1e-12  # of the total variance: no component


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """Principal axes of a table (n, D).

    Attributes:
      mean: (D,). axes: (k, D), orthonormal rows.
      variance: (k,) of the scores, in the squared unit of the table, divided by n - 1.
      ratio: (k,) share of the total variance. n: rows it was fitted on.
    """

    mean: np.ndarray
    axes: np.ndarray
    variance: np.ndarray
    ratio: np.ndarray
    n: int


def fit(
    x: np.ndarray,
    components: int,
    *,
    fewer: bool = False,
    seed: int = 0,
    what: str = "PCA",
    rows: str = "rows",
    columns: str = "columns",
) -> Components:
    """The first principal components of a table.

    Exact up to 1,500 rows or columns, beyond that randomised (Halko et al. 2011) by `seed`.

    Args:
      x: (n, D). fewer: where fewer directions carry variance, give those.
      what, rows, columns: the words of the message.

    Raises:
      AnalysisError: nothing varies; fewer directions than asked for, unless `fewer`.
    """
    x = table(x, what, rows, columns)
    n, d = x.shape
    mean = x.mean(0, dtype=np.float64)
    total = _sum_of_squares(x, mean)
    most = min(n - 1, d)
    if fewer:
        components = min(components, most)
    if components > most:
        raise AnalysisError(
            f"{components} components cannot be fitted", where=what,
            found=f"{n} {rows} and {d} {columns}",
            expected=f"more than {components} {rows} and at least as many {columns}",
        )  # fmt: skip
    if total <= 1e-24 * n * float(mean @ mean) or total == 0:
        raise AnalysisError(f"nothing varies between the {rows}", where=what)
    axes, squares = _axes(x - mean.astype(x.dtype), components, seed)
    real = squares > _NOTHING * total
    if real.sum() < components and not fewer:
        raise AnalysisError(
            f"{components} components cannot be fitted", where=what,
            found=f"variance in {int(real.sum())} directions only",
        )  # fmt: skip
    axes, squares = axes[real].astype(np.float64), squares[real]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    axes = axes * np.sign(largest)
    return Components(mean, axes, squares / (n - 1), squares / total, n)


def project(fitted: Components, x: np.ndarray) -> np.ndarray:
    """Scores: shapes x (..., D) -> (..., k), in the unit of the table."""
    return (x @ fitted.axes.T.astype(np.asarray(x).dtype)) - fitted.axes @ fitted.mean


def _sum_of_squares(x: np.ndarray, mean: np.ndarray) -> float:
    """Sum of squares about the mean, by blocks of rows."""
    rows = max(1, 2**22 // x.shape[1])
    return float(sum(np.sum((x[i : i + rows] - mean) ** 2) for i in range(0, len(x), rows)))


def _axes(x: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading axes (k, D) of a centred table and their sums of squares (k,)."""
    n, d = x.shape
    if min(n, d) > _EXACT and k <= _EXACT // 4:
        from sklearn.utils.extmath import randomized_svd

        _, s, axes = randomized_svd(x, k, n_iter=5, random_state=seed)
        return axes, s.astype(np.float64) ** 2
    if max(n, d) < 4 * min(n, d):  # nearly square, and small enough: no squaring
        _, s, axes = np.linalg.svd(x.astype(np.float64), full_matrices=False)
        return axes[:k], s[:k] ** 2
    if d <= n:
        values, vectors = np.linalg.eigh(_gram(x.T))
        return vectors[:, ::-1].T[:k], np.maximum(values[::-1][:k], 0)
    values, vectors = np.linalg.eigh(_gram(x))
    values, vectors = np.maximum(values[::-1][:k], 0), vectors[:, ::-1][:, :k]
    axes = vectors.T @ x.astype(np.float64)
    norm = np.linalg.norm(axes, axis=1, keepdims=True)
    return axes / np.where(norm > 0, norm, 1), values


def _gram(x: np.ndarray) -> np.ndarray:
    """x x^T in float64, by blocks of the long side. Shapes: (a, b) -> (a, a)."""
    out = np.zeros((len(x), len(x)))
    step = max(1, 2**23 // len(x))
    for start in range(0, x.shape[1], step):
        block = x[:, start : start + step].astype(np.float64)
        out += block @ block.T
    return out
