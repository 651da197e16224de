"""The geometry of latent spaces (POYO-SSL section 3.4 and appendix H).

t-SNE for pictures; intrinsic dimension; Procrustes disparity and linear CKA between spaces;
how far neighbours in time are neighbours in the space. Whatever needs all pairs is computed
on at most `most` points, drawn by a stated seed.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.analysis.checks import some, table
from calm_jax.analysis.neighbours import nearest
from calm_jax.errors import AnalysisError


@dataclasses.dataclass(frozen=True, eq=False)
class Tsne:
    """A t-SNE map (van der Maaten and Hinton 2008).

    Attributes:
      points: (m, 2) without unit. index: (m,) rows of the input they stand for.
      divergence: final Kullback-Leibler divergence, nats. perplexity: used. n: rows given.
    """

    points: np.ndarray
    index: np.ndarray
    divergence: float
    perplexity: float
    seed: int
    n: int


@dataclasses.dataclass(frozen=True, eq=False)
class Dimension:
    """Intrinsic dimension.

    Attributes:
      value: over all points and numbers of neighbours. per_point: (m,). n: points used.
      duplicates: points left out because another is at the same place.
    """

    value: float
    per_point: np.ndarray
    n: int
    duplicates: int


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Temporal neighbourhood preservation.

    Attributes:
      score: mean Jaccard index. chance: its expectation for unordered points.
      per_point: (n,). k: neighbours. n: points.
    """

    score: float
    chance: float
    per_point: np.ndarray
    k: int
    n: int


def tsne(x: np.ndarray, *, most: int = 1000, perplexity: float = 30.0, seed: int = 0) -> Tsne:
    """Two-dimensional t-SNE map, from a start at the principal components.

    More than 50 dimensions are reduced to 50 principal components first, as its authors do.

    Args:
      x: (n, D) latents. most: rows mapped. perplexity: lowered to (m - 1) / 3 where few.

    Raises:
      AnalysisError: fewer than 5 rows, or rows that do not vary.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    from calm_jax.analysis import components as pca

    x = table(x, "t-SNE", "rows", "dimensions", least=5)
    index = some(len(x), most, seed)
    chosen = x[index]
    fitted = pca.fit(chosen, 50, fewer=True, seed=seed, what="t-SNE")
    scores = pca.project(fitted, chosen).astype(np.float32)
    perplexity = float(min(perplexity, (len(scores) - 1) / 3))
    start = scores[:, :2] if scores.shape[1] > 1 else np.pad(scores, ((0, 0), (0, 1)))
    start = 1e-4 * start / max(float(start[:, 0].std()), 1e-30)
    model = TSNE(2, perplexity=perplexity, init=start, random_state=seed, n_jobs=1)
    with threadpool_limits(1):  # its threads wait for each other longer than they work
        points = model.fit_transform(scores)
    return Tsne(points, index, float(model.kl_divergence_), perplexity, seed, len(x))


def intrinsic_dimension(
    x: np.ndarray,
    *,
    low: int = 10,
    high: int = 20,
    average: str = "arithmetic",
    most: int = 5000,
    seed: int = 0,
) -> Dimension:
    """Maximum-likelihood intrinsic dimension (Levina and Bickel 2004).

        m_k(x) = [1 / (k - 2) sum_{j=1}^{k-1} log(T_k(x) / T_j(x))]^-1,

    T_j the distance to the j-th neighbour (their eq. 8 with the k - 2 that makes it
    unbiased), averaged over points and over k = low..high. "harmonic" averages the inverses over
    points, the maximum of the joint likelihood (MacKay and Ghahramani 2005), with k - 1.

    Args:
      x: (n, D).

    Raises:
      AnalysisError: not more than `high` different points.
    """
    what = "intrinsic dimension"
    if average not in ("arithmetic", "harmonic"):
        raise AnalysisError("unknown average", where=what, found=average,
                            expected="arithmetic or harmonic")  # fmt: skip
    if not 3 <= low <= high:
        raise AnalysisError("numbers of neighbours", where=what, found=(low, high),
                            expected="3 <= low <= high")  # fmt: skip
    x = table(x, what, "points", "dimensions", least=3)
    x = x[some(len(x), most, seed)].astype(np.float64)
    different = np.unique(x, axis=0)
    if len(different) <= high:
        raise AnalysisError("too few different points", where=what, found=len(different),
                            expected=f"more than {high}")  # fmt: skip
    # Points far from 0 lose digits when distances come from products: centre first.
    distance, _ = nearest(different - different.mean(0), high)
    log = np.log(np.maximum(distance, 1e-300))  # (n, high)
    sums = np.cumsum(log, 1)
    inverse = []
    for k in range(low, high + 1):
        rest = (k - 1) * log[:, k - 1] - sums[:, k - 2]  # sum of log T_k / T_j
        inverse.append(rest / (k - 2 if average == "arithmetic" else k - 1))
    inverse = np.maximum(np.stack(inverse), 1e-12)  # (K, n)
    per_point = 1 / inverse.mean(0) if average == "harmonic" else (1 / inverse).mean(0)
    value = np.mean(1 / inverse.mean(1)) if average == "harmonic" else np.mean(1 / inverse)
    return Dimension(float(value), per_point, len(different), len(x) - len(different))


def procrustes(a: np.ndarray, b: np.ndarray) -> float:
    """Procrustes disparity in [0, 1] (Dryden and Mardia 2016); 0: equal but for a similarity.

    Both are centred and scaled to unit norm; over rotations (with reflections) and scale, the least
    |a - s b R|^2 = 1 - (sum of the singular values of b^T a)^2. A narrower space is padded with 0.

    Shapes: a (n, D), b (n, E), rows correspond.

    Raises:
      AnalysisError: another number of rows, or one of them constant.
    """
    a, b = _pair(a, b, "Procrustes")
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    singular = np.linalg.svd(b.T @ a, compute_uv=False)
    return float(np.clip(1 - singular.sum() ** 2, 0, 1))


def cka(a: np.ndarray, b: np.ndarray, *, debiased: bool = False) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019); 1: equal but for a similarity.

        |b^T a|_F^2 / (|a^T a|_F |b^T b|_F)   of centred a, b,

    in [0, 1]. It is far above 0 for unrelated spaces with more dimensions than rows; `debiased`
    takes the unbiased estimate of HSIC (Song et al. 2012), about 0 for them, which can be negative.

    Shapes: a (n, D), b (n, E), rows correspond.

    Raises:
      AnalysisError: another number of rows, one of them constant, or (debiased) n < 4.
    """
    a, b = _pair(a, b, "CKA")
    if debiased:
        if len(a) < 4:
            raise AnalysisError("too few rows", where="CKA", found=len(a), expected="at least 4")
        norm = _hsic(a, a) * _hsic(b, b)
        if norm <= 0:
            raise AnalysisError("too few rows for the debiased estimate", where="CKA",
                                found=len(a))  # fmt: skip
        return float(_hsic(a, b) / np.sqrt(norm))
    if len(a) < max(a.shape[1], b.shape[1]):  # the smaller of the equal products
        ka, kb = a @ a.T, b @ b.T
        return float(np.sum(ka * kb) / (np.linalg.norm(ka) * np.linalg.norm(kb)))
    cross = np.sum((b.T @ a) ** 2)
    return float(cross / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def temporal_neighbourhood(
    points: np.ndarray,
    *,
    k: int = 10,
    frames: np.ndarray | None = None,
    sequence: np.ndarray | None = None,
) -> Neighbourhood:
    """Temporal neighbourhood preservation (appendix H): the paper has .2355 for its model.

    For each point the k nearest in time (of the same sequence) and the k nearest in the space
    (of all points): their Jaccard index |A n B| / |A u B|, averaged. The paper takes
    the t-SNE map as the space. Ties in time go to the earlier frame.

    Args:
      points: (n, D). frames: (n,) frame of each; None: 0, 1, 2, ...
      sequence: (n,) trial of each; None: one.

    Raises:
      AnalysisError: a sequence of at most k points.
    """
    what = "temporal neighbourhood"
    points = table(points, what, "points", "dimensions")
    n = len(points)
    frames = np.arange(n) if frames is None else np.asarray(frames)
    sequence = np.zeros(n, int) if sequence is None else np.unique(sequence, return_inverse=True)[1]
    sizes = np.bincount(sequence)
    if sizes.min() <= k:
        raise AnalysisError("too few points in a sequence", where=what, found=int(sizes.min()),
                            expected=f"more than {k}")  # fmt: skip
    in_time = np.empty((n, k), np.int64)
    for s in range(len(sizes)):
        rows = np.flatnonzero(sequence == s)
        rows = rows[np.argsort(frames[rows], kind="stable")]
        in_time[rows] = rows[_nearest_in_order(np.asarray(frames)[rows], k)]
    _, in_space = nearest(points - points.mean(0), k)
    # Each neighbour as point * n + neighbour: one sorted search finds the common ones.
    base = np.arange(n)[:, None] * n
    common = np.isin(base + in_time, base + in_space).sum(1)
    per_point = common / (2 * k - common)
    return Neighbourhood(float(per_point.mean()), jaccard_by_chance(n, k), per_point, k, n)


def jaccard_by_chance(n: int, k: int) -> float:
    """Expected Jaccard index of two random sets of k of the n - 1 other points.

    The number in common is hypergeometric: sum_m P(m) m / (2 k - m).
    """
    from scipy import stats

    m = np.arange(k + 1)
    return float(np.sum(stats.hypergeom.pmf(m, n - 1, k, k) * m / (2 * k - m)))


def _nearest_in_order(frames: np.ndarray, k: int) -> np.ndarray:
    """Positions (n, k) of the k nearest of ascending frames (n,): they form a window."""
    n = len(frames)
    offsets = np.concatenate([np.arange(-k, 0), np.arange(1, k + 1)])
    at = np.arange(n)[:, None] + offsets
    inside = (at >= 0) & (at < n)
    at = np.clip(at, 0, n - 1)
    gap = np.where(inside, np.abs(frames[at] - frames[:, None]).astype(float), np.inf)
    return np.take_along_axis(at, np.argsort(gap, 1, kind="stable")[:, :k], 1)


def _pair(a: np.ndarray, b: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Both centred, in float64."""
    a = table(a, what, "rows", "dimensions").astype(np.float64)
    b = table(b, what, "rows", "dimensions").astype(np.float64)
    if len(a) != len(b):
        raise AnalysisError("rows of two spaces must correspond", where=what,
                            found=f"{len(a)} and {len(b)} rows")  # fmt: skip
    out = []
    for x in (a, b):
        size = np.abs(x).max()
        x = x - x.mean(0)
        if np.abs(x).max() <= 1e-12 * size:
            raise AnalysisError("a space is a single point", where=what)
        out.append(x / np.abs(x).max())  # no overflow or underflow in the products
    return out[0], out[1]


def _hsic(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased HSIC of linear kernels (Song et al. 2012, eq. 5). Shapes: (n, D), (n, E)."""
    n = len(a)
    k, m = a @ a.T, b @ b.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    ones = k.sum() * m.sum() / ((n - 1) * (n - 2))
    product = np.sum(k * m) + ones - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return float(product / (n * (n - 3)))
