"""What the analyses ask of their arrays, and the subsampling that bounds their cost."""

from __future__ import annotations

import numpy as np

from calm_jax.errors import AnalysisError

_LARGEST = 1e15  # beyond this, sums of squares in float32 overflow


def table(x: np.ndarray, what: str, rows: str, columns: str, *, least: int = 2) -> np.ndarray:
    """`x` (n, D) as floating point, checked: two axes, `least` rows, no NaN or infinity.

    Args:
      what, rows, columns: the words of the message.

    Raises:
      AnalysisError: where it is not so.
    """
    x = _two_axes(x, what, rows, columns)
    if x.shape[0] < least:
        raise AnalysisError(
            f"too few {rows}", where=what, found=x.shape[0], expected=f"at least {least}"
        )
    if x.shape[1] == 0:
        raise AnalysisError(f"no {columns}", where=what)
    bad = int(np.count_nonzero(~(np.abs(x) <= _LARGEST).all(1)))
    if bad:
        raise AnalysisError(
            f"NaN, infinite or huge values in {bad} of {x.shape[0]} {rows}",
            where=what,
            remedy=f"Leave these {rows} out.",
        )
    return x


def known_traces(
    traces: np.ndarray, mask: np.ndarray | None, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Traces (T, N) with 0 where nothing is known, and where something is known (T, N).

    NaN, infinities and values beyond 1e15 are not known.

    Raises:
      AnalysisError: for arrays of another shape, or nothing known at all.
    """
    traces = _two_axes(traces, what, "frames", "neurons")
    known = np.abs(traces) <= _LARGEST  # False for NaN too
    if mask is not None:
        mask = np.asarray(mask, bool)
        if mask.shape != traces.shape:
            raise AnalysisError(
                "mask and traces differ in shape", where=what, found=mask.shape,
                expected=traces.shape,
            )  # fmt: skip
        known &= mask
    if not known.any():
        raise AnalysisError("no valid frame in any trace", where=what)
    return np.where(known, traces, 0), known


def frame_ranges(ranges: np.ndarray | None, frames: int, what: str) -> np.ndarray:
    """Ranges (K, 2) of contiguous frames [start, stop); None is one range of all frames.

    Raises:
      AnalysisError: for an empty range, or one that leaves the frames.
    """
    if ranges is None:
        return np.array([[0, frames]])
    ranges = np.asarray(ranges, np.int64).reshape(-1, 2)
    wrong = (ranges[:, 0] < 0) | (ranges[:, 1] > frames) | (ranges[:, 0] >= ranges[:, 1])
    if wrong.any() or not len(ranges):
        first = ranges[wrong][0].tolist() if wrong.any() else "no range"
        raise AnalysisError(
            "a range of frames is not usable", where=what, found=first,
            expected=f"0 <= start < stop <= {frames}",
        )  # fmt: skip
    return ranges


def labels(values: np.ndarray, n: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Classes (C,) in sorted order and the index (n,) of each label; -1 for "", NaN, negative.

    Raises:
      AnalysisError: for another number of labels, or fewer than two classes.
    """
    values = np.asarray(values)
    if values.shape != (n,):
        raise AnalysisError("another number of labels", where=what, found=values.shape,
                            expected=(n,))  # fmt: skip
    if values.dtype.kind in "fiu":
        known = np.isfinite(values) & (values >= 0)
    elif values.dtype.kind == "b":
        known = np.ones(n, bool)
    else:
        values = values.astype(str)
        known = values != ""
    classes, inverse = np.unique(values[known], return_inverse=True)
    if len(classes) < 2:
        found = f"only {classes[0]!s}" if len(classes) else "no label"
        raise AnalysisError("a comparison needs two classes", where=what, found=found)
    index = np.full(n, -1)
    index[known] = inverse
    return classes, index


def some(n: int, most: int, seed: int) -> np.ndarray:
    """Indices (min(n, most),), ascending; a random subset by `seed` where n is too large."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def p_value(value: float, null: np.ndarray) -> float:
    """(1 + #{null >= value}) / (1 + S), one-sided; never 0 (Phipson and Smyth 2010)."""
    # Sums in another order differ in the last digits: equal counts as at least.
    close = 1e-9 * max(abs(value), 1e-300)
    return float((1 + np.count_nonzero(null >= value - close)) / (1 + len(null)))


def numbers(x: np.ndarray, what: str) -> np.ndarray:
    """`x` as float32 or float64.

    Raises:
      AnalysisError: it is no array of numbers.
    """
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise AnalysisError("not numbers", where=what, found=x.dtype)
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


def _two_axes(x: np.ndarray, what: str, rows: str, columns: str) -> np.ndarray:
    x = numbers(x, what)
    if x.ndim != 2:
        raise AnalysisError(
            "another shape", where=what, found=x.shape, expected=f"({rows}, {columns})"
        )
    return x
