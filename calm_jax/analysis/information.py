"""How much a neuron's signal offers a learner: Fisher information and temporal structure.

POYO-SSL sections 3.3.2 and C. For a quasi-Gaussian signal of variance s^2 a frame holds the
Fisher information I = 1 / s^2 about its mean, and n independent frames bound the variance
of any unbiased estimate by 1 / (n I) (Cramer and Rao). Both have units, (trace unit)^-2
and (trace unit)^2: they compare signals in ONE unit, dF/F in the paper. After z-scoring
they are 1 for every neuron and say nothing. I rewards a quiet signal, whatever the reason for
its quiet; a constant trace has none (NaN here).

Neighbouring frames are not independent: `independent` counts T / (1 + 2 sum_k rho_k)
frames (Bartlett 1946; Geyer's initial positive sequence 1992 ends the sum).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.analysis.checks import frame_ranges, known_traces
from calm_jax.analysis.spectrum import autocorrelation
from calm_jax.errors import AnalysisError

BINS = 64  # of the histogram behind the entropy
_SECONDS = 1.0  # lags of the temporal regularity, and windows of its consistency


@dataclasses.dataclass(frozen=True, eq=False)
class Information:
    """What a learner is offered by each of N neurons; NaN for a constant trace.

    Attributes:
      variance: (N,) in unit^2. fisher: (N,) 1 / variance, per frame. bound: (N,) of a frame.
      frames: (N,) valid frames. independent: (N,) as many independent ones.
      entropy: (N,) bits. regularity: (N,) in [0, 1].
      skewness, kurtosis: (N,), kurtosis 3 for a Gaussian.
      autocorrelation: (L + 1, N) at lags 0..L frames. rate: frames per second.
    """

    variance: np.ndarray
    fisher: np.ndarray
    bound: np.ndarray
    frames: np.ndarray
    independent: np.ndarray
    entropy: np.ndarray
    regularity: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray
    autocorrelation: np.ndarray
    rate: float


def fisher(variance: np.ndarray) -> np.ndarray:
    """Fisher information of a frame about the mean of a Gaussian, I = 1 / s^2 (section 3.3.2).

    Shapes: variance (...) in unit^2 -> (...) in unit^-2; NaN where the variance is 0.
    """
    variance = np.asarray(variance, np.float64)
    return np.where(variance > 0, 1 / np.where(variance > 0, variance, 1), np.nan)


def cramer_rao(information: np.ndarray, samples: np.ndarray | int = 1) -> np.ndarray:
    """Least variance of an unbiased estimate from n independent samples, 1 / (n I).

    Kay 1993. One sample gives the bound of Fig. S3c. Unit: that of the trace, squared.
    """
    return 1 / (np.asarray(samples) * np.asarray(information, np.float64))


def neuron_information(
    traces: np.ndarray,
    *,
    rate: float,
    mask: np.ndarray | None = None,
    ranges: np.ndarray | None = None,
    lags: int | None = None,
    bins: int = BINS,
) -> Information:
    """All per-neuron quantities of one recording.

    Args:
      traces: (T, N), dF/F. mask: (T, N) valid samples; NaN never counts.
      rate: frames per second. ranges: (K, 2) frames that follow each other, such as trials.
      lags: of the autocorrelation; None: 5 s, at most a quarter of the longest range.

    Raises:
      AnalysisError: nothing valid, or ranges shorter than 8 frames.
    """
    what = "information"
    values, known = known_traces(traces, mask, what)
    ranges = frame_ranges(ranges, len(values), what)
    inside = np.zeros(len(values), bool)
    for start, stop in ranges:
        inside[start:stop] = True
    known &= inside[:, None]
    longest = int((ranges[:, 1] - ranges[:, 0]).max())
    if longest < 8:
        raise AnalysisError("ranges too short", where=what, found=f"{longest} frames",
                            expected="at least 8")  # fmt: skip
    if lags is None:
        lags = max(min(round(5 * rate), longest // 4), 2)
    count, mean, moments = _moments(values, known)
    # Below, rounding of the mean (or of the fourth power) is all that varies.
    varies = moments[0] > np.maximum(1e-12 * (mean**2 + moments[0]), 1e-60)
    variance = np.where(varies, moments[0], 0)
    real = variance > 0
    information = fisher(variance)
    safe = np.where(real, variance, 1)
    acf = autocorrelation(traces, lags, mask=known, ranges=ranges)
    short = max(min(round(_SECONDS * rate), lags), 1)
    return Information(
        variance=np.where(count > 0, variance, np.nan),
        fisher=information,
        bound=cramer_rao(information),
        frames=count,
        independent=independent_frames(acf, count),
        entropy=entropy(values, bins=bins, mask=known),
        regularity=temporal_regularity(traces, acf[1 : short + 1], mask=known, ranges=ranges),
        skewness=np.where(real, moments[1] / safe**1.5, np.nan),
        kurtosis=np.where(real, moments[2] / safe**2, np.nan),
        autocorrelation=acf,
        rate=float(rate),
    )


def independent_frames(acf: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Frames that hold as much about the mean as T correlated ones, T / (1 + 2 sum_k rho_k).

    The sum ends before the first pair rho_2j + rho_2j+1 that is not positive (Geyer 1992); the
    result lies in [1, T]. Biased upwards when the autocorrelation outlasts the lags given.

    Shapes: acf (L + 1, N) at lags 0..L, frames (N,) -> (N,).
    """
    pairs = acf[: len(acf) // 2 * 2].reshape(-1, 2, acf.shape[1]).sum(1)
    kept = np.cumprod(pairs > 0, 0)
    factor = 2 * np.sum(pairs * kept, 0) - acf[0]  # 1 + 2 sum over lags above 0
    frames = np.asarray(frames, np.float64)
    out = frames / np.maximum(factor, 1)
    return np.where(np.isnan(acf[0]), np.nan, np.maximum(out, np.minimum(frames, 1)))


def temporal_regularity(
    traces: np.ndarray,
    acf: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    ranges: np.ndarray | None = None,
) -> np.ndarray:
    """Regularity in [0, 1]: the mean of autocorrelation and consistency.

    Section C.3 names "the signal's autocorrelation and consistency" without an equation. Here
    the first is the mean of max(rho_k, 0) over the lags given, the second 1 / (1 + v), v the
    coefficient of variation of the SD in windows of twice as many frames: 1 for a signal that
    varies as much everywhere, towards 0 for rare bursts.

    Shapes: traces (T, N), acf (L, N) at lags 1..L -> (N,); NaN for a constant trace.
    """
    values, known = known_traces(traces, mask, "temporal regularity")
    ranges = frame_ranges(ranges, len(values), "temporal regularity")
    width = max(2 * len(acf), 4)
    windows = [(a, a + width) for x, y in ranges for a in range(x, y - width + 1, width)]
    if not windows:
        windows = [tuple(r) for r in ranges]
    sd = np.full((len(windows), values.shape[1]), np.nan)
    for i, (a, b) in enumerate(windows):
        count, _, moments = _moments(values[a:b], known[a:b], highest=2)
        sd[i] = np.where(count > 1, np.sqrt(moments[0]), np.nan)
    there = ~np.isnan(sd)
    count = there.sum(0)
    mean = np.where(there, sd, 0).sum(0) / np.maximum(count, 1)
    spread = np.sqrt(np.where(there, (sd - mean) ** 2, 0).sum(0) / np.maximum(count, 1))
    real = (mean > 0) & ~np.isnan(acf[0])
    consistency = 1 / (1 + spread / np.where(real, mean, 1))
    memory = np.mean(np.maximum(acf, 0), 0)
    return np.where(real, (memory + consistency) / 2, np.nan)


def entropy(traces: np.ndarray, *, bins: int = BINS, mask: np.ndarray | None = None) -> np.ndarray:
    """Entropy of each neuron's histogram, H = -sum_b p_b log2 p_b, in bits (Shannon 1948).

    Bins of equal width span the neuron's own range: H does not depend on offset or
    unit, is log2(bins) for a uniform signal and low for rare bursts. From T frames it is
    too low by about (bins used - 1) / (2 T ln 2) bits.

    Shapes: traces (T, N) -> (N,); NaN for a constant trace.
    """
    values, known = known_traces(traces, mask, "entropy")
    t, n = values.shape
    low = np.where(known, values, np.inf).min(0)
    high = np.where(known, values, -np.inf).max(0)
    real = high - low > 1e-12 * np.maximum(np.abs(low), np.abs(high))
    out = np.full(n, np.nan)
    chosen = np.flatnonzero(real)
    step = max(1, 2**22 // t)
    for start in range(0, len(chosen), step):
        these = chosen[start : start + step]
        scaled = (values[:, these] - low[these]) / (high[these] - low[these])
        at = np.minimum((scaled * bins).astype(np.int64), bins - 1)
        at += np.arange(len(these)) * bins
        counts = np.bincount(at[known[:, these]], minlength=bins * len(these))
        share = counts.reshape(-1, bins) / counts.reshape(-1, bins).sum(1, keepdims=True)
        out[these] = -np.sum(share * np.log2(np.where(share > 0, share, 1)), 1)
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """Condition number of a covariance: largest over smallest eigenvalue.

    Attributes:
      value: median over the draws. draws: (S,) of random subsets of `neurons` neurons.
      frames: used.
    """

    value: float
    draws: np.ndarray
    neurons: int
    frames: int


def condition_number(
    traces: np.ndarray,
    *,
    neurons: int | None = None,
    draws: int = 20,
    mask: np.ndarray | None = None,
    seed: int = 0,
) -> Condition:
    """Condition number of the covariance between neurons (Fig. S3i).

    It grows with the number of neurons: groups are compared on subsets of one size.

    Args:
      traces: (T, N); frames where any neuron is not known, and constant neurons, are left out.
      neurons: in a subset; None: all, at most 200 and a quarter of the frames.

    Raises:
      AnalysisError: fewer than two varying neurons, or not more frames than neurons.
    """
    what = "condition number"
    values, known = known_traces(traces, mask, what)
    there = known.mean(0) > 0.5
    values, known = values[:, there], known[:, there]
    values = values[known.all(1)]
    sd = values.std(0) if len(values) > 1 else np.zeros(values.shape[1])
    values = values[:, sd > 1e-9 * np.abs(values).max(0, initial=0)]
    t, n = values.shape
    wanted = min(n, 200, t // 4) if neurons is None else neurons
    if wanted < 2 or wanted > n or t <= wanted:
        raise AnalysisError(
            "the covariance cannot be inverted", where=what,
            found=f"{n} varying neurons, {t} complete frames",
            expected=f"at least {max(wanted, 2)} and more than {max(wanted, 2)}",
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    draws = 1 if wanted == n else draws
    found = np.empty(draws)
    for i in range(draws):
        chosen = values[:, rng.choice(n, wanted, replace=False)].astype(np.float64)
        eigenvalues = np.linalg.eigvalsh(np.cov(chosen.T))
        least = max(eigenvalues[0], 1e-15 * eigenvalues[-1])  # what float64 can tell
        found[i] = eigenvalues[-1] / least
    return Condition(float(np.median(found)), found, wanted, t)


def _moments(
    values: np.ndarray, known: np.ndarray, highest: int = 4
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Valid frames (N,), means (N,) and central moments 2 to `highest`, each (N,), over T."""
    t, n = values.shape
    count = known.sum(0)
    mean = np.zeros(n)
    out = [np.zeros(n) for _ in range(2, highest + 1)]
    step = max(1, 2**20 // max(t, 1))
    for start in range(0, n, step):
        part = slice(start, start + step)
        some, safe = known[:, part], np.maximum(count[part], 1)
        x = np.where(some, values[:, part], 0).astype(np.float64)
        mean[part] = x.sum(0) / safe
        d = np.where(some, x - mean[part], 0)
        power = d
        for moment in out:
            power = power * d
            moment[part] = power.sum(0) / safe
    return count, mean, out
