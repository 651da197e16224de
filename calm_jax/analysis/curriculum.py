"""A curriculum, simulated: the order of samples in training (POYO-SSL appendix D).

The paper defines difficulty by "local variance, distance to the manifold centre, and local
density" and simulates four orders, without equations. Here:

- difficulty: mean of the ranks of (1) the variance of the k nearest samples, (2) the distance
  from the mean, (3) the mean distance to the k nearest (low density);
- task: predict the next frame's scores from this frame's, y = W x + b, on principal components
  of unit variance on average, by stochastic gradient descent on the squared error, W = 0 at first
  but for a small random start;
- easy to hard, hard to easy: sorted by difficulty; random: shuffled each pass; mixed: every
  batch half from the easy and half from the hard half;
- after every batch the R^2 on held-out frames: performance is the last tenth's mean,
  stability 1 / (1 + SD of the steps R^2_i+1 - R^2_i).

All orders see the same samples as often, from the same starts. The training is simulated; the
gradient steps are real. Whether easy to hard is best is for the data to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from calm_jax.analysis import components as pca
from calm_jax.analysis.checks import frame_ranges, some, table
from calm_jax.analysis.neighbours import local_variance, nearest
from calm_jax.errors import AnalysisError

ORDERS = ("easy_to_hard", "hard_to_easy", "random", "mixed")


@dataclasses.dataclass(frozen=True, eq=False)
class Difficulty:
    """Difficulty of samples.

    Attributes:
      total: (n,) mean rank in [0, 1]; 1 is hardest. variance: (n,) of the neighbours, unit^2.
      distance: (n,) from the mean. sparsity: (n,) mean distance to the neighbours, unit.
    """

    total: np.ndarray
    variance: np.ndarray
    distance: np.ndarray
    sparsity: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Curriculum:
    """Learning curves under four orders.

    Attributes:
      samples: (E,) seen at each point of the curves.
      skill: order -> (R, E) R^2 on held-out frames, R repeats with different starts.
      performance, stability: order -> (R,).
      ceiling: R^2 of least squares on the same samples.
      train, test: samples. components: k.
    """

    samples: np.ndarray
    skill: Mapping[str, np.ndarray]
    performance: Mapping[str, np.ndarray]
    stability: Mapping[str, np.ndarray]
    ceiling: float
    train: int
    test: int
    components: int


def difficulty(samples: np.ndarray, *, neighbours: int = 10) -> Difficulty:
    """Difficulty of each sample among the others.

    Shapes: samples (n, D) -> arrays (n,).

    Raises:
      AnalysisError: not more samples than neighbours.
    """
    samples = table(samples, "difficulty", "samples", "dimensions", least=neighbours + 1)
    distance, index = nearest(samples, neighbours)
    parts = (
        local_variance(samples, index),
        np.linalg.norm(samples - samples.mean(0), axis=1),
        distance.mean(1),
    )
    return Difficulty(np.mean([_rank(p) for p in parts], axis=0), *parts)


def order(kind: str, hardness: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Indices (n,) of one pass over the samples in one of `ORDERS`.

    Shapes: hardness (n,).
    """
    n = len(hardness)
    ascending = np.argsort(hardness, kind="stable")
    if kind == "easy_to_hard":
        return ascending
    if kind == "hard_to_easy":
        return ascending[::-1]
    if kind == "random":
        return rng.permutation(n)
    if kind != "mixed":
        raise AnalysisError("unknown order", where="curriculum", found=kind,
                            expected=", ".join(ORDERS))  # fmt: skip
    easy, hard = rng.permutation(ascending[: n // 2]), rng.permutation(ascending[n // 2 :])
    out, half = [], max(batch // 2, 1)
    for start in range(0, len(hard), half):
        out += [easy[start : start + half], hard[start : start + half]]
    return np.concatenate(out)


def curriculum(
    traces: np.ndarray,
    *,
    components: int = 20,
    ranges: np.ndarray | None = None,
    passes: int = 1,
    batch: int = 16,
    rate: float | None = None,
    repeats: int = 10,
    most: int = 4000,
    seed: int = 0,
) -> Curriculum:
    """Simulates training on frames of population activity in four orders.

    The last fifth of the frame pairs is held out; components and scale come from the rest.

    Args:
      traces: (T, N); ranges: (K, 2) frames that follow each other. most: pairs for training.
      passes: over the samples; the sorted orders repeat. batch: samples of a step.
      rate: of the gradient steps; None: half of where steps on the worst batch would diverge.
      repeats: starts, and shuffles of the random orders.

    Raises:
      AnalysisError: too few frames, or traces that do not vary.
    """
    what = "curriculum"
    traces = table(traces, what, "frames", "neurons", least=2)
    ranges = frame_ranges(ranges, len(traces), what)
    first = np.concatenate([np.arange(a, b - 1) for a, b in ranges])
    cut = int(0.8 * len(first))
    if cut < 4 * batch or len(first) - cut < 10:
        raise AnalysisError("too few pairs of frames", where=what, found=len(first),
                            expected=f"at least {max(5 * batch, 50)}")  # fmt: skip
    # A frame that ends a training pair may start a held-out one: one pair is left out.
    train, test = first[: cut - 1], first[cut:]
    train = train[some(len(train), most, seed)]
    test = test[some(len(test), most, seed)]
    fitted = pca.fit(traces[train], components, fewer=True, seed=seed, what=what, rows="frames",
                     columns="neurons")  # fmt: skip
    scale = float(np.sqrt(fitted.variance.mean()))
    x, y, x_test, y_test = (
        pca.project(fitted, traces[at]) / scale for at in (train, train + 1, test, test + 1)
    )
    if not (y_test.std(0) > 0).any():
        raise AnalysisError("the held-out frames do not vary", where=what, found=len(test))
    hardness = difficulty(x, neighbours=10).total
    steps = passes * (len(x) // batch)
    if rate is None:
        rate = _steady(x, hardness, batch)
    starts = np.random.default_rng(seed).normal(0, 0.01, (repeats, x.shape[1] + 1, x.shape[1]))
    skill = {}
    for kind in ORDERS:
        plans = np.stack([_plan(kind, hardness, batch, passes, [seed, r]) for r in range(repeats)])
        skill[kind] = _learn(starts, x, y, x_test, y_test, plans, rate)
    tail = max(steps // 10, 1)
    return Curriculum(
        samples=np.arange(1, steps + 1) * batch,
        skill=skill,
        performance={k: v[:, -tail:].mean(1) for k, v in skill.items()},
        stability={k: 1 / (1 + np.diff(v, axis=1).std(1)) for k, v in skill.items()},
        ceiling=_least_squares(x, y, x_test, y_test),
        train=len(train), test=len(test), components=x.shape[1],
    )  # fmt: skip


def _steady(x: np.ndarray, hardness: np.ndarray, batch: int) -> float:
    """1 / the largest eigenvalue of x^T x / batch in any batch of equal difficulty.

    Steps of up to twice that do not diverge on it, for the orders that meet such batches.
    """
    at = np.argsort(hardness)[: len(x) // batch * batch].reshape(-1, batch)
    inputs = np.concatenate([x, np.ones((len(x), 1))], 1)[at]
    return float(batch / np.linalg.norm(inputs, 2, (1, 2)).max() ** 2)


def _plan(kind: str, hardness: np.ndarray, batch: int, passes: int, seed: list[int]) -> np.ndarray:
    """Samples (steps, batch) of every step; the rest of a pass is left out."""
    rng = np.random.default_rng(seed)
    count = len(hardness) // batch
    whole = [order(kind, hardness, batch, rng)[: count * batch] for _ in range(passes)]
    return np.concatenate(whole).reshape(-1, batch)


def _learn(
    starts: np.ndarray, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray,
    plans: np.ndarray, rate: float,
) -> np.ndarray:  # fmt: skip
    """R^2 (R, steps) on the held-out frames after every step of gradient descent.

    The held-out error is a quadratic form of the weights: its moments are taken once.
    """

    def ones(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a, np.ones((len(a), 1))], 1)

    x, held = ones(x), ones(x_test)
    square, cross = held.T @ held, held.T @ y_test
    total = np.sum((y_test - y_test.mean(0)) ** 2)
    power = np.sum(y_test**2)
    w = starts.copy()  # (R, k + 1, k)
    out = np.empty(plans.shape[:2])
    for step in range(plans.shape[1]):
        chosen = plans[:, step]  # (R, batch)
        inputs = x[chosen]
        rest = inputs @ w - y[chosen]
        w -= rate * (inputs.transpose(0, 2, 1) @ rest) / plans.shape[2]
        error = np.sum(w * (square @ w), (1, 2)) - 2 * np.sum(w * cross, (1, 2)) + power
        out[:, step] = 1 - error / total
    return out


def _least_squares(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    mean_x, mean_y = x.mean(0), y.mean(0)
    w = np.linalg.lstsq(x - mean_x, y - mean_y, rcond=None)[0]
    rest = (x_test - mean_x) @ w + mean_y - y_test
    return float(1 - np.sum(rest**2) / np.sum((y_test - y_test.mean(0)) ** 2))


def _rank(values: np.ndarray) -> np.ndarray:
    """Ranks in [0, 1], ties at their mean."""
    from scipy import stats

    return (stats.rankdata(values) - 1) / max(len(values) - 1, 1)
