"""Baselines of fluorescence in a running window, and dF/F over them.

Time first, (T, N). With `causal=True` a frame depends on itself and the frames before it
alone, as a forecast needs; otherwise a baseline looks ahead by as much as it looks back.
"""

from __future__ import annotations

import numpy as np

from calm_jax.errors import RecordingError

METHODS = ("maximin", "percentile")
_BLOCK = 1 << 22  # samples worked on at a time


def running_baseline(
    traces: np.ndarray,
    rate: float,
    method: str = "maximin",
    window_s: float = 60.0,
    percentile: float = 8.0,
    *,
    smooth_frames: float = 10.0,
    mask: np.ndarray | None = None,
    causal: bool = False,
) -> np.ndarray:
    """The slow baseline under every trace.

    `maximin`, the default of Suite2p: a Gaussian filter (SD `smooth_frames`), then the
    minimum and then the maximum in a running window. `percentile`: the `percentile`-th
    percentile in a running window; windows are mirrored at the ends of the recording.

    Not causal by default: centred windows look `window_s / 2` ahead (`maximin` twice that,
    and four SD of the Gaussian). `causal=True` looks back only: trailing windows of the same
    length, shorter at the start, and for `maximin` the half of the Gaussian that lies behind.

    Shapes: traces (T, N), mask (T, N) or (T,) bool or None for all valid -> (T, N) float32.
    Missing samples are bridged first, by a line between their neighbours (causal: by the
    last valid sample); a neuron without any valid sample has the baseline 0.

    Raises:
      RecordingError: an unknown method, or a window, rate or percentile out of range.
    """
    traces = np.asarray(traces)
    _check(method, rate, window_s, percentile, smooth_frames)
    frames, neurons = traces.shape
    # Mirrored, the recording shows all of itself to a window of twice its length.
    window = max(1, min(int(window_s * rate + 1e-9), 2 * frames + 1))
    out = np.empty((neurons, frames), np.float32).T  # filters run along time
    step = max(1, _BLOCK // max(1, frames))
    for a in range(0, neurons, step):
        block = np.ascontiguousarray(traces[:, a : a + step].T, np.float32)
        if mask is not None:
            seen = mask[:, None] if mask.ndim == 1 else mask[:, a : a + step]
            block = _bridged(block, np.broadcast_to(seen.T, block.shape), causal)
        if method == "maximin":
            found = _maximin(block, window, smooth_frames, causal)
        else:
            found = _percentile(block, window, percentile, causal)
        out[:, a : a + step] = found.T
    return out


def dff(
    traces: np.ndarray, baseline: np.ndarray, floor: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(F - F0) / F0 where the baseline F0 is at least `floor`; 0 and marked False elsewhere.

    Shapes: traces and baseline (T, N); floor a positive number or (N,), in their unit ->
    (T, N) float32 and (T, N) bool.

    Raises:
      RecordingError: for a floor that is not positive.
    """
    floor = np.asarray(floor, np.float32)
    if not (np.isfinite(floor) & (floor > 0)).all():
        raise RecordingError(
            "the floor of a baseline must be positive", where="floor", found=floor.min()
        )
    safe = np.asarray(baseline) >= floor
    out = np.subtract(traces, baseline, dtype=np.float32)
    np.divide(out, baseline, out=out, where=safe)
    out[~safe] = 0
    return out, safe


def _check(method: str, rate: float, window: float, percentile: float, smooth: float) -> None:
    if method not in METHODS:
        raise RecordingError(
            "no such baseline", where="baseline", found=repr(method), expected=" or ".join(METHODS)
        )
    limits = (
        ("rate", rate, 0 < rate < 1e9, "frames per second, positive"),
        ("window", window, 0 < window < 1e9, "seconds, positive"),
        ("percentile", percentile, 0 <= percentile <= 100, "0 to 100"),
        ("smooth_frames", smooth, 0 <= smooth <= 1e4, "frames, 0 to 10000"),
    )
    for name, value, good, expected in limits:
        if not good:
            raise RecordingError("out of range", where=name, found=value, expected=expected)


def _bridged(x: np.ndarray, seen: np.ndarray, causal: bool) -> np.ndarray:
    """x (N, T) with its missing samples filled from their neighbours."""
    at = np.arange(x.shape[1])
    out = x.copy()
    for row, good in zip(out, seen, strict=True):
        if good.all():
            continue
        if not good.any():
            row[:] = 0
        elif causal:
            last = np.maximum.accumulate(np.where(good, at, -1))
            row[:] = row[np.where(last < 0, np.argmax(good), last)]
        else:
            row[:] = np.interp(at, at[good], row[good])
    return out


def _maximin(x: np.ndarray, window: int, smooth: float, causal: bool) -> np.ndarray:
    import scipy.ndimage as ndi  # half a second: not for every reader

    if not causal:
        if smooth:
            x = ndi.gaussian_filter1d(x, smooth, axis=1)
        return ndi.maximum_filter1d(ndi.minimum_filter1d(x, window, axis=1), window, axis=1)
    if smooth:
        half = np.exp(-0.5 * (np.arange(int(4 * smooth) + 1) / smooth) ** 2)
        weights = np.concatenate([np.zeros(half.size - 1), half / half.sum()])
        x = ndi.convolve1d(x, weights, axis=1, mode="nearest")
    behind = (window - 1) // 2  # moves the window so that it ends at its frame
    x = ndi.minimum_filter1d(x, window, axis=1, mode="nearest", origin=behind)
    return ndi.maximum_filter1d(x, window, axis=1, mode="nearest", origin=behind)


def _percentile(x: np.ndarray, window: int, percentile: float, causal: bool) -> np.ndarray:
    import scipy.ndimage as ndi  # half a second: not for every reader

    if not causal:
        return np.stack([ndi.percentile_filter(row, percentile, window) for row in x])
    # The start has shorter windows, sorted as they grow; the rest lies inside the recording.
    out = np.empty_like(x)
    head = min(window, x.shape[1])
    for row, found in zip(x, out, strict=True):
        found[:] = ndi.percentile_filter(
            row, percentile, window, mode="nearest", origin=(window - 1) // 2
        )
        for t in range(head):
            found[t] = _rank(row[: t + 1], percentile)
    return out


def _rank(values: np.ndarray, percentile: float) -> float:
    """The sample at a percentile, by the rule of `scipy.ndimage.percentile_filter`."""
    at = values.size - 1 if percentile == 100 else int(values.size * percentile / 100)
    return float(np.partition(values, at)[at])
