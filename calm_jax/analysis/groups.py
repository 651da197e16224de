"""Groups of neurons compared as material for a learner (POYO-SSL Table 2 and section C.3).

Per group of n neurons with T_i frames each: Fisher information = mean of 1 / s_i^2; effective
data size = sum_i T_i / s_i^2, the raw size weighted by its quality; efficiency = effective
over raw size. The paper's efficiency (34.41) is not its Fisher information (64.51), as
it would be with as many frames for every neuron and these definitions; how it weighted is
not said.

The composite score is a weighted mean of five factors, each divided by that of the best
group, so that 1 is "best in everything" and the RATIO of two groups is what is
compared (the paper: 2.85): fidelity 1 / Cramer-Rao bound (.3), stability 1 / condition
number (.25), temporal regularity (.2), entropy (.15), favourable statistics
1 / (1 + |skewness| + |kurtosis - 3|) (.1). Weights are published, the scaling is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from calm_jax.analysis.information import Information
from calm_jax.errors import AnalysisError

WEIGHTS = {
    "fidelity": 0.3,
    "stability": 0.25,
    "regularity": 0.2,
    "entropy": 0.15,
    "statistics": 0.1,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Groups side by side; every array is (G,) and in the order of `names`.

    Attributes:
      names: (G,) text. neurons: that vary. constant: neurons left out.
      fisher: mean over neurons, unit^-2. bound: mean Cramer-Rao bound of a frame, unit^2.
      raw: neuron frames. effective: sum T_i / s_i^2. efficiency: effective / raw.
      independent: neuron frames, counted as independent ones.
      regularity, entropy: means. skewness, kurtosis: medians.
      condition: of the covariance, NaN where not given.
      factors: name of WEIGHTS -> (G,), relative to the best group.
      score: weighted mean of the factors. weights: those used: without condition numbers
        the others keep their proportions.
    """

    names: np.ndarray
    neurons: np.ndarray
    constant: np.ndarray
    fisher: np.ndarray
    bound: np.ndarray
    raw: np.ndarray
    effective: np.ndarray
    efficiency: np.ndarray
    independent: np.ndarray
    regularity: np.ndarray
    entropy: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray
    condition: np.ndarray
    factors: Mapping[str, np.ndarray]
    score: np.ndarray
    weights: Mapping[str, float]


def compare(
    information: Information,
    groups: np.ndarray,
    conditions: Mapping[str, float] | None = None,
) -> Groups:
    """Compares groups of neurons.

    Args:
      information: of N neurons. groups: (N,) text, such as cell lines; "" is left out.
      conditions: group -> condition number on subsets of ONE size; the score leaves
        stability out unless every group has one.

    Raises:
      AnalysisError: fewer than two groups with a neuron that varies.
    """
    what = "groups of neurons"
    groups = np.asarray(groups).astype(str)
    if groups.shape != information.fisher.shape:
        raise AnalysisError("another number of neurons", where=what, found=groups.shape,
                            expected=information.fisher.shape)  # fmt: skip
    real = np.isfinite(information.fisher)
    names = np.unique(groups[real & (groups != "")])
    if len(names) < 2:
        raise AnalysisError("a comparison needs two groups", where=what,
                            found=f"{len(names)} with a neuron that varies")  # fmt: skip
    chosen = [real & (groups == name) for name in names]

    def over(values: np.ndarray, of=np.nanmean) -> np.ndarray:
        return np.array([of(values[c]) if np.isfinite(values[c]).any() else np.nan
                         for c in chosen])  # fmt: skip

    frames = information.frames.astype(np.float64)
    raw = over(frames, np.sum)
    effective = over(frames * information.fisher, np.sum)
    out = {
        "fisher": over(information.fisher),
        "bound": over(information.bound),
        "regularity": over(information.regularity),
        "entropy": over(information.entropy),
        "skewness": over(information.skewness, np.nanmedian),
        "kurtosis": over(information.kurtosis, np.nanmedian),
        "condition": np.array([float((conditions or {}).get(n, np.nan)) for n in names]),
    }
    factors, weights, score = composite(out)
    return Groups(
        names=names,
        neurons=np.array([int(c.sum()) for c in chosen]),
        constant=np.array([int(((groups == n) & ~real).sum()) for n in names]),
        raw=raw, effective=effective, efficiency=effective / raw,
        independent=over(information.independent, np.nansum),
        factors=factors, score=score, weights=weights, **out,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Ratio:
    """Ratio of the means of two groups (Table 2: 1.93 for Fisher information).

    Attributes:
      value: mean of the first over mean of the second. low, high: 95 % interval over neurons
        drawn with replacement within each group. n: neurons of each.
    """

    value: float
    low: float
    high: float
    n: tuple[int, int]


def ratio(
    values: np.ndarray,
    groups: np.ndarray,
    first: str,
    second: str,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Ratio:
    """Ratio of a positive quantity between two groups, with a bootstrap interval.

    The interval takes neurons as independent; those of one animal are not quite, and few animals
    make it too narrow.

    Args:
      values: (N,), such as Fisher information; NaN is left out. groups: (N,) text.

    Raises:
      AnalysisError: a group with fewer than two values, or a mean of 0.
    """
    what = "ratio of two groups"
    values, groups = np.asarray(values, np.float64), np.asarray(groups).astype(str)
    pair = [values[(groups == name) & np.isfinite(values)] for name in (first, second)]
    for name, some in zip((first, second), pair):
        if len(some) < 2:
            raise AnalysisError(f"too few neurons of {name}", where=what, found=len(some),
                                expected="at least 2")  # fmt: skip
    if pair[1].mean() == 0:
        raise AnalysisError(f"the mean of {second} is 0", where=what)
    rng = np.random.default_rng(seed)
    drawn = [
        np.array([some[rng.integers(0, len(some), len(some))].mean() for _ in range(draws)])
        for some in pair
    ]
    usable = drawn[1] != 0
    low, high = np.quantile(drawn[0][usable] / drawn[1][usable], [0.025, 0.975])
    return Ratio(float(pair[0].mean() / pair[1].mean()), float(low), float(high),
                 (len(pair[0]), len(pair[1])))  # fmt: skip


def composite(
    measures: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, float], np.ndarray]:
    """Factors relative to the best group, the weights used, and the score (section C.3).

    Args:
      measures: bound, condition, regularity, entropy, skewness, kurtosis -> (G,).
    """
    tails = np.abs(measures["skewness"]) + np.abs(measures["kurtosis"] - 3)
    absolute = {
        "fidelity": 1 / measures["bound"],
        "stability": 1 / measures["condition"],
        "regularity": measures["regularity"],
        "entropy": measures["entropy"],
        "statistics": 1 / (1 + tails),
    }
    used = {k: v for k, v in absolute.items() if np.isfinite(v).all() and np.max(v) > 0}
    factors = {k: v / np.max(v) for k, v in used.items()}
    total = sum(WEIGHTS[k] for k in used)
    weights = {k: WEIGHTS[k] / total for k in used}
    score = sum(weights[k] * factors[k] for k in used)
    return factors, weights, score
