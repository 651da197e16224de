"""Can a linear classifier tell the animal, session or area from an embedding?

CalM section 6 reports .930 for the animal from session embeddings and .224 from neuron
embeddings, with confusion matrices. Here: linear discriminant analysis with equal priors,

    argmax_c  m_c^T S^-1 x - m_c^T S^-1 m_c / 2,

S the pooled covariance within classes, shrunk to a multiple of I by the coefficient of
Ledoit and Wolf (2004) of all training rows. Everything is fitted on the training folds.
Accuracy is balanced: the mean over classes of the share told right, 1 / C by chance.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.analysis.checks import labels as classes_of
from calm_jax.analysis.checks import p_value, some, table
from calm_jax.errors import AnalysisError


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """A cross-validated linear classification.

    Attributes:
      classes: (C,). confusion: (C, C) counts, true class by class given, over all folds.
      accuracy: balanced. chance: 1 / C. majority: share of the largest class.
      null: (S,) accuracies with shuffled labels. p: one-sided.
      n: rows used, of `given` with a label. folds: in use.
      left_out: names of classes with too few rows.
    """

    classes: np.ndarray
    confusion: np.ndarray
    accuracy: float
    chance: float
    majority: float
    null: np.ndarray
    p: float
    n: int
    given: int
    folds: int
    left_out: tuple[str, ...]


def classify(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = 5,
    most: int = 20_000,
    shuffles: int = 20,
    seed: int = 0,
) -> Classification:
    """Cross-validated linear classification of rows, stratified by class.

    With `groups` (sessions, say) no group is in both training and test rows: an animal is
    then told from sessions that were not seen, not from what neurons of one session share.
    Classes with fewer than two rows (groups) are left out and named.

    Args:
      x: (n, D) embeddings of neurons or sessions. labels: (n,); "", NaN and negative are
        left out. groups: (n,) text or numbers. most: rows used, drawn by `seed`.
      shuffles: label permutations, over groups where they are given.

    Raises:
      AnalysisError: fewer than two classes have two rows (groups).
    """
    what = "linear classification"
    x = table(x, what, "rows", "dimensions")
    _, index = classes_of(labels, len(x), what)
    names = np.unique(np.asarray(labels)[index >= 0])
    unit = np.arange(len(x)) if groups is None else np.unique(groups, return_inverse=True)[1]
    kind = "row" if groups is None else "group"
    per_class = np.array([len(np.unique(unit[index == c])) for c in range(len(names))])
    usable = np.flatnonzero(per_class >= 2)
    left_out = tuple(str(names[c]) for c in np.flatnonzero(per_class < 2))
    if len(usable) < 2:
        found = ", ".join(f"{name!s}: {k}" for name, k in list(zip(names, per_class))[:6])
        raise AnalysisError(f"fewer than two classes have two {kind}s each", where=what,
                            found=found)  # fmt: skip
    rows = np.flatnonzero(np.isin(index, usable))
    given = len(rows)
    rows = rows[some(len(rows), most, seed)]
    classes = names[usable]
    y = np.searchsorted(usable, index[rows])
    z, unit = x[rows].astype(np.float64), np.unique(unit[rows], return_inverse=True)[1]
    folds = int(min(folds, per_class[usable].min()))
    if folds < 2 or len(np.unique(y)) < len(classes):
        raise AnalysisError("too few rows of a class", where=what, found=len(rows))
    parts = _parts(y, unit, folds, seed, grouped=groups is not None)
    plans = [_Fold(z, parts == f) for f in range(folds)]
    confusion = sum(plan.confusion(y, len(classes)) for plan in plans)
    rng = np.random.default_rng(seed)
    null = np.empty(shuffles)
    for i in range(shuffles):
        shuffled = _shuffled(y, unit, rng, grouped=groups is not None)
        null[i] = _accuracy(sum(plan.confusion(shuffled, len(classes)) for plan in plans))
    accuracy = _accuracy(confusion)
    majority = float(np.bincount(y).max() / len(y))
    return Classification(
        classes, confusion, accuracy, 1 / len(classes), majority, null, p_value(accuracy, null),
        len(rows), given, folds, left_out,
    )  # fmt: skip


class _Fold:
    """A fold: what does not depend on the labels is computed once."""

    def __init__(self, x: np.ndarray, test: np.ndarray) -> None:
        from sklearn.covariance import ledoit_wolf_shrinkage

        self.test = test
        train = x[~test]
        sd = train.std(0)
        scale = np.where(sd > 1e-12 * np.abs(train).max(0), sd, np.inf)  # constant: left out
        mean = train.mean(0)
        self.train, self.held = (train - mean) / scale, (x[test] - mean) / scale
        self.total = self.train.T @ self.train / len(train)
        self.shrinkage = float(ledoit_wolf_shrinkage(self.train, assume_centered=True))

    def confusion(self, y: np.ndarray, classes: int) -> np.ndarray:
        """Counts (C, C) on the rows held out. Shapes: y (n,)."""
        inside, outside = y[~self.test], y[self.test]
        counts = np.bincount(inside, minlength=classes)
        sums = np.stack([self.train[inside == c].sum(0) for c in range(classes)])
        means = sums / np.maximum(counts, 1)[:, None]
        share = counts / len(inside)
        within = self.total - (means * share[:, None]).T @ means
        size = np.trace(within) / len(within)
        # A pinch of I keeps S regular where classes do not vary at all.
        shrunk = (1 - self.shrinkage) * within
        shrunk[np.diag_indices(len(shrunk))] += self.shrinkage * size + 1e-9
        weights = np.linalg.solve(shrunk, means.T)
        scores = self.held @ weights - 0.5 * (means.T * weights).sum(0)
        scores[:, counts == 0] = -np.inf  # a shuffle may leave a class without training rows
        out = np.zeros((classes, classes), np.int64)
        np.add.at(out, (outside, scores.argmax(1)), 1)
        return out


def _parts(y: np.ndarray, unit: np.ndarray, folds: int, seed: int, *, grouped: bool) -> np.ndarray:
    """The fold (n,) of each row: stratified by class, groups kept whole."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    part = np.empty(len(y), np.int64)
    rows = np.zeros(len(y))
    for f, (_, test) in enumerate(splitter.split(rows, y, unit if grouped else None)):
        part[test] = f
    return part


def _shuffled(
    y: np.ndarray, unit: np.ndarray, rng: np.random.Generator, *, grouped: bool
) -> np.ndarray:
    """Labels permuted over rows, or over groups (of which each has one label) as a whole."""
    if not grouped:
        return rng.permutation(y)
    first = np.unique(unit, return_index=True)[1]
    if np.array_equal(y[first][unit], y):
        return rng.permutation(y[first])[unit]
    return rng.permutation(y)


def _accuracy(confusion: np.ndarray) -> float:
    """Balanced accuracy of counts (C, C)."""
    count = confusion.sum(1)
    return float(np.mean(np.diag(confusion)[count > 0] / count[count > 0]))
