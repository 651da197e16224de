"""Tuning of single neurons to two classes of trials (cue, choice): d'.

    d' = (m_b - m_a) / sqrt((s_a^2 + s_b^2) / 2)

of the mean activity in an epoch of each trial, s^2 with n - 1 (Green and Swets 1966).
CalM keeps the neurons with |d'| > 0.5. Chance alone passes that threshold when trials are
few (the standard error is about sqrt(1/n_a + 1/n_b)), so the share under shuffled labels
stands beside the share found.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.analysis.checks import frame_ranges, known_traces, numbers, p_value
from calm_jax.analysis.checks import labels as classes_of
from calm_jax.errors import AnalysisError

THRESHOLD = 0.5  # of |d'|, CalM section 6


@dataclasses.dataclass(frozen=True, eq=False)
class Tuning:
    """d' of every neuron.

    Attributes:
      d: (N,) float64, without unit; above 0 where the activity is higher for the second
        class. NaN with fewer than two known trials of a class, or a constant neuron;
        infinite where only the classes differ.
      classes: the two classes (a, b). trials: (2, N) known trials of each.
    """

    d: np.ndarray
    classes: tuple
    trials: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """Share of selective neurons, and under shuffled labels.

    Attributes:
      share: of the n neurons with a d'. null: (S,) shares with labels shuffled over trials.
      p: one-sided. n: neurons.
    """

    share: float
    null: np.ndarray
    p: float
    n: int


def epoch_means(
    traces: np.ndarray, epochs: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """Mean activity of each neuron in each epoch; NaN where no frame is known.

    Shapes: traces (T, N) in any unit, epochs (K, 2) frames [start, stop), mask (T, N)
    -> (K, N) float64 in that unit.

    Raises:
      AnalysisError: an epoch that is empty or leaves the traces.
    """
    values, known = known_traces(traces, mask, "epoch means")
    epochs = frame_ranges(epochs, len(values), "epoch means")
    sums = np.stack([values[a:b].sum(0, dtype=np.float64) for a, b in epochs])
    counts = np.stack([known[a:b].sum(0) for a, b in epochs])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def d_prime(activity: np.ndarray, labels: np.ndarray, classes: tuple | None = None) -> Tuning:
    """d' of every neuron between two classes of trials.

    Args:
      activity: (K, N) mean activity per trial, NaN where not known.
      labels: (K,) text, numbers or bool; "", NaN and negative numbers are left out.
      classes: (a, b) to compare; needed where there are more than two.

    Raises:
      AnalysisError: fewer than two classes with two trials each, or more without `classes`.
    """
    activity, chosen, classes = _two_classes(activity, labels, classes)
    d, trials = _d(activity, chosen)
    return Tuning(d, classes, trials)


def selective(d: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Whether |d'| is above the threshold; False where it is not known. Shapes: (N,) -> (N,)."""
    return np.abs(np.nan_to_num(d, nan=0.0)) > threshold


def shuffled_share(
    activity: np.ndarray,
    labels: np.ndarray,
    *,
    classes: tuple | None = None,
    threshold: float = THRESHOLD,
    shuffles: int = 200,
    seed: int = 0,
) -> Share:
    """Share of selective neurons against labels shuffled over trials; arguments of `d_prime`.

    Neurons are shuffled together, so that what they share stays shared in the null.
    """
    activity, chosen, _ = _two_classes(activity, labels, classes)
    d, _ = _d(activity, chosen)
    n = int(np.count_nonzero(~np.isnan(d)))
    if n == 0:
        raise AnalysisError("no neuron has a d'", where="tuning",
                            found="constant traces or too few known trials")  # fmt: skip
    rng = np.random.default_rng(seed)
    null = np.empty(shuffles)
    for i in range(shuffles):
        null[i] = selective(_d(activity, rng.permutation(chosen))[0], threshold).sum() / n
    share = float(selective(d, threshold).sum() / n)
    return Share(share, null, p_value(share, null), n)


def _two_classes(
    activity: np.ndarray, labels: np.ndarray, classes: tuple | None
) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Trials of the two classes: activity (K', N), whether each is of the second, both classes."""
    activity = numbers(activity, "tuning").astype(np.float64)
    if activity.ndim != 2 or activity.shape[1] == 0:
        raise AnalysisError("another shape", where="tuning", found=activity.shape,
                            expected="(trials, neurons)")  # fmt: skip
    activity = np.where(np.isfinite(activity), activity, np.nan)
    names, index = classes_of(labels, len(activity), "tuning")
    if classes is not None:
        lost = [c for c in classes if c not in names]
        if len(classes) != 2 or lost:
            raise AnalysisError("two classes of the labels are needed", where="tuning",
                                found=classes, expected=f"two of {names.tolist()}")  # fmt: skip
        positions = [int(np.flatnonzero(names == c)[0]) for c in classes]
    elif len(names) > 2:
        raise AnalysisError("d' compares two classes", where="tuning",
                            found=f"{len(names)}: {names.tolist()}",
                            remedy="Name the two to compare.")  # fmt: skip
    else:
        positions = [0, 1]
    for position in positions:
        count = int(np.count_nonzero(index == position))
        if count < 2:
            raise AnalysisError(f"too few trials of {names[position]!s}", where="tuning",
                                found=count, expected="at least 2")  # fmt: skip
    kept = np.isin(index, positions)
    pair = tuple(names[positions].tolist())
    return activity[kept], index[kept] == positions[1], pair


def _d(activity: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d' (N,) and known trials (2, N) of activity (K, N) with the second class marked (K,)."""
    means, variances, counts, sizes = [], [], [], []
    for chosen in (~second, second):
        x = activity[chosen]
        known = ~np.isnan(x)
        count = known.sum(0)
        mean = np.where(known, x, 0).sum(0) / np.maximum(count, 1)
        rest = np.where(known, x - mean, 0)
        means.append(mean)
        variances.append((rest**2).sum(0) / np.maximum(count - 1, 1))
        counts.append(count)
        sizes.append(np.where(known, np.abs(x), 0).max(0, initial=0))
    trials = np.stack(counts)
    spread = np.sqrt((variances[0] + variances[1]) / 2)
    difference = means[1] - means[0]
    rounding = 1e-12 * np.maximum(*sizes)  # what a constant neuron leaves behind
    difference = np.where(np.abs(difference) > rounding, difference, 0)
    spread = np.where(spread > rounding, spread, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = difference / spread
    return np.where((trials >= 2).all(0), d, np.nan), trials
