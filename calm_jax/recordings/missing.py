"""Missing samples: NaN becomes a mask; short gaps may be bridged for a filter."""

from __future__ import annotations

import numpy as np

from calm_jax.errors import RecordingError

POLICIES = ("mask", "interpolate", "refuse")
_BLOCK = 1 << 22  # samples worked on at a time


def mark_missing(traces: np.ndarray) -> np.ndarray | None:
    """Sets NaN samples to 0, in place, and tells where they were; None where there are none.

    Shapes: traces (T, N) float -> (T,) bool where whole frames are missing, else (T, N),
    True where a sample is there. Infinite values stay: they are errors, not gaps.
    """
    frames, neurons = traces.shape
    rows = max(1, _BLOCK // max(1, neurons))
    valid: np.ndarray | None = None
    for a in range(0, frames, rows):
        block = traces[a : a + rows]
        gone = np.isnan(block)
        if gone.any():
            if valid is None:
                valid = np.ones((frames, neurons), bool)
            valid[a : a + rows] = ~gone
            block[gone] = 0
    if valid is None:
        return None
    some = valid.any(1)
    return some if (valid.all(1) == some).all() else valid


def apply_policy(
    traces: np.ndarray,
    policy: str = "mask",
    mask: np.ndarray | None = None,
    longest: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Traces with their missing samples treated by a policy, and the mask of real samples.

    `mask` sets missing samples to 0. `interpolate` draws a line over gaps of at most
    `longest` frames between two valid samples and sets the others to 0: the filled values are
    there for filters, and the mask still says that they were not measured. It looks ahead to
    the end of the gap. `refuse` is an error where anything is missing. Nothing is extrapolated.

    Shapes: traces (T, N), NaN where missing; mask (T, N) or (T,) bool or None ->
    (T, N) float32 and (T, N) bool.

    Raises:
      RecordingError: an unknown policy, or a missing sample under `refuse`.
    """
    check_policy(policy)
    out = np.array(traces, np.float32)
    valid = ~np.isnan(out)
    if mask is not None:
        valid &= mask[:, None] if mask.ndim == 1 else mask
    if policy == "refuse" and not valid.all():
        t, n = (int(x[0]) for x in np.nonzero(~valid))
        raise RecordingError(
            "samples are missing",
            where="traces",
            found=f"{int((~valid).sum())}, the first in frame {t}, neuron {n}",
            expected="none, as nan=refuse asks",
        )
    out[~valid] = 0
    if policy == "interpolate" and longest > 0:
        for n in np.flatnonzero(~valid.all(0)):
            _bridge(out[:, n], valid[:, n], longest)
    return out, valid


def check_policy(policy: str) -> None:
    """Raises a RecordingError for an unknown policy."""
    if policy not in POLICIES:
        raise RecordingError(
            "no such policy for missing samples",
            where="nan",
            found=repr(policy),
            expected=" or ".join(POLICIES),
        )


def _bridge(trace: np.ndarray, valid: np.ndarray, longest: int) -> None:
    """Fills gaps of at most `longest` samples between valid ones, in place."""
    at = np.flatnonzero(valid)
    if at.size < 2:
        return
    gone = np.flatnonzero(~valid)
    after = np.searchsorted(at, gone)
    inside = (after > 0) & (after < at.size)
    gone, after = gone[inside], after[inside]
    short = at[after] - at[after - 1] - 1 <= longest
    gone = gone[short]
    trace[gone] = np.interp(gone, at, trace[at])
