"""Autocorrelation and power spectrum of traces, within ranges of frames that follow each other."""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.analysis.checks import frame_ranges, known_traces
from calm_jax.errors import AnalysisError

_CELLS = 2**22  # of a block of neurons in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """Power spectral density.

    Attributes:
      frequency: (F,) in Hz. power: (F, N) in (trace unit)^2 / Hz, one-sided; NaN for a neuron
        that is not known throughout any segment.
      segments: (N,) averaged. length: frames of a segment.
    """

    frequency: np.ndarray
    power: np.ndarray
    segments: np.ndarray
    length: int


def autocorrelation(
    traces: np.ndarray,
    lags: int,
    *,
    mask: np.ndarray | None = None,
    ranges: np.ndarray | None = None,
) -> np.ndarray:
    """Autocorrelation of each neuron at lags 0..L frames.

        rho_k = mean over pairs (x_t - m)(x_t+k - m) / mean (x_t - m)^2,

    m the mean of all valid frames; pairs lie within one range and are known. This divides by
    the number of pairs: unbiased but for m, and noisy at lags near the length of a range.

    Shapes: traces (T, N), mask (T, N), ranges (K, 2) -> (L + 1, N); NaN for a constant
    trace, or a lag without a pair.

    Raises:
      AnalysisError: a lag below 1, or no range longer than the lags.
    """
    what = "autocorrelation"
    values, known = known_traces(traces, mask, what)
    ranges = frame_ranges(ranges, len(values), what)
    longest = int((ranges[:, 1] - ranges[:, 0]).max())
    if not 1 <= lags < longest:
        raise AnalysisError("lags do not fit in a range of frames", where=what, found=lags,
                            expected=f"1 to {longest - 1}")  # fmt: skip
    # Ranges one after the other with a gap of `lags` unknown frames: no pair crosses.
    lengths = ranges[:, 1] - ranges[:, 0]
    starts = np.concatenate([[0], np.cumsum(lengths + lags)[:-1]])
    source = np.concatenate([np.arange(a, b) for a, b in ranges])
    place = np.concatenate([s + np.arange(n) for s, n in zip(starts, lengths)])
    size = _quick_length(int(starts[-1] + lengths[-1]) + lags)
    n = values.shape[1]
    out = np.empty((lags + 1, n))
    step = max(1, _CELLS // size)
    for start in range(0, n, step):
        part = slice(start, start + step)
        there = known[source, part]
        x = np.where(there, values[source, part], 0).astype(np.float64)
        count = there.sum(0)
        centred = np.where(there, x - x.sum(0) / np.maximum(count, 1), 0)
        products = _correlated(centred, place, size, lags)
        pairs = np.rint(_correlated(there.astype(np.float64), place, size, lags))
        power = np.einsum("tn,tn->n", centred, centred) / np.maximum(count, 1)
        real = power > 1e-20 * np.square(np.abs(x).max(0))
        mean = products / np.where(pairs > 0, pairs, np.nan)
        out[:, part] = np.where(real, mean / np.where(real, power, 1), np.nan)
    return out


def power_spectrum(
    traces: np.ndarray,
    rate: float,
    *,
    mask: np.ndarray | None = None,
    ranges: np.ndarray | None = None,
    segment: int | None = None,
    window: str = "hann",
) -> Spectrum:
    """Power spectral density by Welch's method (1967), each segment within one range.

    Segments overlap by half and lose their mean; for each neuron those count that are known
    throughout. The density integrates to the variance.

    Args:
      traces: (T, N). rate: frames per second. window: a name of scipy.signal.get_window.
      segment: frames; None: 256, or the median length of the ranges if that is shorter.

    Raises:
      AnalysisError: no range as long as a segment, or segments of fewer than 4 frames.
    """
    from scipy import signal

    what = "power spectrum"
    values, known = known_traces(traces, mask, what)
    ranges = frame_ranges(ranges, len(values), what)
    lengths = ranges[:, 1] - ranges[:, 0]
    length = segment or int(min(256, np.median(lengths)))
    if length < 4 or length > lengths.max():
        raise AnalysisError("segments do not fit in a range of frames", where=what, found=length,
                            expected=f"4 to {int(lengths.max())} frames")  # fmt: skip
    hop = max(length // 2, 1)
    starts = np.concatenate([np.arange(a, b - length + 1, hop) for a, b in ranges])
    frames = starts[:, None] + np.arange(length)  # (S, L)
    frequency = np.fft.rfftfreq(length, 1 / rate)
    n = values.shape[1]
    power, segments = np.full((len(frequency), n), np.nan), np.zeros(n, np.int64)
    step = max(1, _CELLS // frames.size)
    for start in range(0, n, step):
        part = slice(start, start + step)
        whole = known[:, part][frames].all(1)  # (S, n)
        cut = values[:, part][frames].astype(np.float64)
        one = signal.periodogram(cut, rate, window=window, detrend="constant", axis=1)[1]
        segments[part] = count = whole.sum(0)
        total = np.einsum("sfn,sn->fn", one, whole.astype(np.float64))
        power[:, part] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return Spectrum(frequency, power, segments, length)


def low_frequency_share(spectrum: Spectrum, below: float) -> np.ndarray:
    """Share of the power at 0 < f <= `below` Hz, in [0, 1]. Shapes: -> (N,)."""
    f = spectrum.frequency
    some = spectrum.power[(f > 0) & (f <= below)].sum(0)
    total = spectrum.power[f > 0].sum(0)
    return np.where(total > 0, some / np.where(total > 0, total, 1), np.nan)


def _quick_length(n: int) -> int:
    from scipy import fft

    return fft.next_fast_len(n, real=True)


def _correlated(x: np.ndarray, place: np.ndarray, size: int, lags: int) -> np.ndarray:
    """sum_t x_t x_t+k at lags 0..L of x (t, n), put at `place` of `size` frames, 0 elsewhere."""
    spread = np.zeros((size, x.shape[1]))
    spread[place] = x
    transformed = np.fft.rfft(spread, axis=0)
    return np.fft.irfft(np.abs(transformed) ** 2, size, axis=0)[: lags + 1]
