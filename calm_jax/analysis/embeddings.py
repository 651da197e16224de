"""Neuron embeddings: linear discriminants of tuning classes, and coding directions.

CalM section 6: embeddings are reduced to 50 principal components; linear discriminant
analysis (Fisher 1936) separates four classes, the sign of the cue d' times the sign of the
choice d', along two discriminants; the best cue and the best choice direction of that
plane enclose an angle; shuffled labels and held-out sessions are the controls.

With scores z whitened over all neurons (mean 0, covariance I), the discriminants are the
eigenvectors of the between-class covariance sum_c (n_c / n) m_c m_c^T. Its eigenvalues are
the shares eta^2 in [0, 1] of the variance along them that lies between classes (squared
canonical correlations; within-class eigenvalues are eta^2 / (1 - eta^2)). The whitening does
not know the labels, so a shuffle costs the class means only. `separation` is their sum:
the trace of Pillai (1955) over the discriminants kept.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.analysis import components as pca
from calm_jax.analysis.checks import labels as classes_of
from calm_jax.analysis.checks import p_value, table
from calm_jax.errors import AnalysisError

COMPONENTS = 50  # CalM section 6


@dataclasses.dataclass(frozen=True, eq=False)
class Lda:
    """Linear discriminants, and how far they separate the classes.

    Attributes:
      mean: (D,). axes: (D, L): coordinates are (x - mean) @ axes, of variance 1 over the
        neurons fitted. components: principal components used.
      classes: (C,) of the labels. centroids: (C, L), of the neurons fitted.
      shares: (L,) eta^2 of each discriminant. separation: their sum.
      null: (S,) the separation with shuffled labels. p: one-sided.
      coordinates: (N, L) of all neurons given. index: (N,) their class, -1 for none.
      n: neurons with a label.
    """

    mean: np.ndarray
    axes: np.ndarray
    components: int
    classes: np.ndarray
    centroids: np.ndarray
    shares: np.ndarray
    separation: float
    null: np.ndarray
    p: float
    coordinates: np.ndarray
    index: np.ndarray
    n: int


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """A fitted LDA on neurons it has not seen.

    Attributes:
      coordinates: (N, L). index: (N,) class among those of the LDA, -1 for none.
      accuracy: of the nearest centroid, mean over the classes that occur. chance: 1 / C.
      null: (S,) with shuffled labels. p: one-sided. n: neurons with a label.
    """

    coordinates: np.ndarray
    index: np.ndarray
    accuracy: float
    chance: float
    null: np.ndarray
    p: float
    n: int


@dataclasses.dataclass(frozen=True, eq=False)
class Angle:
    """Angle between the directions that code two quantities best.

    Attributes:
      degrees: in [0, 180]; 90 for independent codes.
      low, high: 95 % interval over neurons drawn with replacement.
      first, second: (L,) unit vectors, along which the quantities grow.
      r: correlation of each quantity with the position along its direction. n: neurons.
    """

    degrees: float
    low: float
    high: float
    first: np.ndarray
    second: np.ndarray
    r: tuple[float, float]
    n: int


def sign_classes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The four classes 2 [first > 0] + [second > 0]; -1 where either is 0 or not known.

    Shapes: first, second (N,), such as the d' of cue and of choice -> (N,) int64.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    known = ~(np.isnan(first) | np.isnan(second)) & (first != 0) & (second != 0)
    return np.where(known, 2 * (first > 0) + (second > 0), -1)


def lda(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    components: int = COMPONENTS,
    discriminants: int = 2,
    shuffles: int = 1000,
    seed: int = 0,
) -> Lda:
    """Linear discriminants of embeddings, with a null of shuffled labels.

    At most `components` principal components are used: fewer where the embeddings have
    fewer dimensions or there are less than three neurons for each.

    Args:
      x: (N, D) one embedding per neuron. labels: (N,); "", NaN and negative are left out
        of the fit, yet get coordinates.

    Raises:
      AnalysisError: fewer than two classes of two neurons, or embeddings that do not vary.
    """
    x = table(x, "LDA of embeddings", "neurons", "dimensions")
    classes, index = classes_of(labels, len(x), "LDA of embeddings")
    labelled = index >= 0
    counts = np.bincount(index[labelled], minlength=len(classes))
    if counts.min() < 2:
        name = classes[int(counts.argmin())]
        raise AnalysisError(f"too few neurons of class {name!s}", where="LDA of embeddings",
                            found=int(counts.min()), expected="at least 2")  # fmt: skip
    n = int(labelled.sum())
    fitted = pca.fit(x[labelled], min(components, max(n // 3, 1)), fewer=True, seed=seed,
                     what="LDA of embeddings", rows="neurons", columns="dimensions")  # fmt: skip
    components = len(fitted.axes)
    whiten = fitted.axes.T / np.sqrt(fitted.variance * (n - 1) / n)  # (D, P)
    z = (x[labelled] - fitted.mean) @ whiten
    index_z = index[labelled]
    kept = min(discriminants, len(classes) - 1, components)
    _, shares, directions = _discriminants(z, index_z, counts, kept)
    rng = np.random.default_rng(seed)
    null = np.array(
        [
            _discriminants(z, rng.permutation(index_z), counts, kept)[1].sum()
            for _ in range(shuffles)
        ]
    )
    axes = whiten @ directions.T
    largest = np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0)
    axes = axes * np.sign(largest)  # signs are free: fixed, so that figures repeat
    coordinates = (x - fitted.mean) @ axes
    one_hot = np.eye(len(classes))[index_z]
    centroids = one_hot.T @ coordinates[labelled] / counts[:, None]
    return Lda(
        fitted.mean, axes, components, classes, centroids, shares, float(shares.sum()), null,
        p_value(float(shares.sum()), null), coordinates, index, n,
    )  # fmt: skip


def lda_project(model: Lda, x: np.ndarray) -> np.ndarray:
    """Coordinates along the discriminants of a fitted LDA. Shapes: x (N, D) -> (N, L)."""
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != len(model.mean):
        raise AnalysisError("embeddings of another width", where="LDA of held-out sessions",
                            found=x.shape, expected=("neurons", len(model.mean)))  # fmt: skip
    return (x - model.mean) @ model.axes


def lda_apply(
    model: Lda, x: np.ndarray, labels: np.ndarray, *, shuffles: int = 1000, seed: int = 0
) -> HeldOut:
    """A fitted LDA on other neurons: each is given the class of the nearest centroid.

    Coordinates have the same scale in all directions (whitened over all neurons), so that
    the nearest is that of Euclid.

    Args:
      x: (N, D). labels: (N,), of the classes of the LDA; "", NaN and negative left out.

    Raises:
      AnalysisError: another width, or no neuron of a class of the LDA.
    """
    coordinates = lda_project(model, table(x, "LDA of held-out sessions", "neurons", "dimensions"))
    labels = np.asarray(labels)
    index = np.full(len(coordinates), -1)
    for i, name in enumerate(model.classes):
        index[labels == name] = i
    labelled = index >= 0
    if not labelled.any():
        raise AnalysisError("no neuron has a class of the fitted sessions",
                            where="LDA of held-out sessions",
                            expected=f"one of {model.classes.tolist()}")  # fmt: skip
    distance = ((coordinates[:, None] - model.centroids[None]) ** 2).sum(-1)
    given = distance.argmin(1)[labelled]
    true = index[labelled]
    rng = np.random.default_rng(seed)
    accuracy = _balanced(true, given)
    null = np.array([_balanced(rng.permutation(true), given) for _ in range(shuffles)])
    return HeldOut(coordinates, index, accuracy, 1 / len(model.classes), null,
                   p_value(accuracy, null), int(labelled.sum()))  # fmt: skip


def coding_angle(
    coordinates: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Angle:
    """Angle between the directions of a plane along which two quantities are coded best.

    The best direction maximises the correlation with the position along it: w ~ C^-1 c, C
    the covariance of the coordinates and c theirs with the quantity. The interval takes the
    plane as it is: in one fitted on the same neurons it is too narrow; held-out neurons
    (`lda_project`) have no such flaw.

    Args:
      coordinates: (N, L), such as those of an LDA. first, second: (N,) such as the d' of
        cue and of choice; neurons where either is not finite are left out.

    Raises:
      AnalysisError: fewer than L + 2 neurons, or quantities that do not vary.
    """
    what = "coding directions"
    coordinates = table(coordinates, what, "neurons", "axes").astype(np.float64)
    pair = np.stack([np.asarray(first, float), np.asarray(second, float)], 1)
    if pair.shape[0] != len(coordinates):
        raise AnalysisError("another number of neurons", where=what, found=len(pair),
                            expected=len(coordinates))  # fmt: skip
    known = np.isfinite(pair).all(1)
    coordinates, pair = coordinates[known], pair[known]
    n, width = coordinates.shape
    if width < 2:
        raise AnalysisError("an angle needs two discriminants", where=what, found=width)
    if n < width + 2:
        raise AnalysisError("too few neurons", where=what, found=n, expected=f"{width + 2}")
    if (np.ptp(pair, 0) == 0).any():
        raise AnalysisError("a quantity is the same in all neurons", where=what)
    degrees, w, r = _angle(coordinates, pair)
    rng = np.random.default_rng(seed)
    drawn = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(0, n, n)
        drawn[i] = _angle(coordinates[rows], pair[rows])[0]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Angle(degrees, float(low), float(high), w[:, 0], w[:, 1], r, n)


def _discriminants(
    z: np.ndarray, index: np.ndarray, counts: np.ndarray, kept: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class means (C, P), eta^2 (L,) and directions (L, P) of whitened scores z (n, P)."""
    sums = np.zeros((len(counts), z.shape[1]))
    for c in range(len(counts)):
        sums[c] = z[index == c].sum(0)
    weighted = sums / np.sqrt(counts * len(z))[:, None]  # sqrt(n_c / n) m_c
    _, s, directions = np.linalg.svd(weighted, full_matrices=False)
    return sums / counts[:, None], s[:kept] ** 2, directions[:kept]


def _angle(x: np.ndarray, pair: np.ndarray) -> tuple[float, np.ndarray, tuple[float, float]]:
    """Degrees, unit directions (L, 2) and the correlations along them."""
    x = x - x.mean(0)
    pair = pair - pair.mean(0)
    w = np.linalg.lstsq(x, pair, rcond=None)[0]
    norm = np.linalg.norm(w, axis=0)
    if (norm == 0).any():
        return np.nan, w, (np.nan, np.nan)
    w = w / norm
    along = x @ w
    size = np.linalg.norm(along, axis=0) * np.linalg.norm(pair, axis=0)
    r = (along * pair).sum(0) / np.where(size > 0, size, np.nan)
    degrees = np.degrees(np.arccos(np.clip(w[:, 0] @ w[:, 1], -1, 1)))
    return float(degrees), w, (float(r[0]), float(r[1]))


def _balanced(true: np.ndarray, given: np.ndarray) -> float:
    """Accuracy, the mean over the classes that occur."""
    right = np.bincount(true, given == true)
    count = np.bincount(true)
    return float(np.mean(right[count > 0] / count[count > 0]))
