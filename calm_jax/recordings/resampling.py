"""Traces at another frame rate: one anti-aliasing filter for gaps, jitter and trials alike.

With h a low-pass filter, x the samples at times t_i, d_i the time that each stands for and
m_i = 1 where it was measured, the value at a new time t is

    y(t) = sum_i h(t - t_i) d_i m_i x_i / sum_i h(t - t_i) d_i m_i

so that a missing sample weighs nothing, an uneven clock needs no step of its own and a
constant stays what it is (normalised convolution, Knutsson and Westin 1993). h is a sinc of
cutoff 0.443 r under a Kaiser window (beta 5.65) of 16 / r seconds to either side, r being the
lower of the two rates: what lies below 0.387 r stays within 0.2 %, what lies above r / 2
falls to 0.2 % or less (Kaiser 1974).
"""

from __future__ import annotations

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.missing import apply_policy
from calm_jax.recordings.session import Channel, Session, Trials

HALF = 16.0  # of the filter, in periods of the lower rate
BETA = 5.65
CUTOFF = 0.5 - 52.05 / (14.36 * 2 * HALF) / 2  # of the lower rate
ENOUGH = 0.45  # of the filter's weight that must lie on measured samples
_ROWS = 128  # new frames made at a time


def resample(
    session: Session, rate: float, *, causal: bool = False, bridge_s: float = 0.0
) -> Session:
    """The session at `rate` Hz on a regular clock that starts at its first frame.

    Trials and gaps of the clock bound the filter: a trial is made of its own frames alone. A
    new frame is valid where at least 45 % of the filter's weight lies on measured samples.
    Trials keep their times and get new frames; one that is shorter than a new frame is
    dropped and noted. Intervals are in seconds and stay. Behaviour on the frames keeps its
    samples, on a clock of its own: `align_behavior` brings it back. A session that has this
    rate and no time stamps is returned as it is.

    Not causal by default: a new frame depends on up to 16 / min(rates) seconds after it.

    Args:
      causal: the mean of the samples in the period before each new frame instead, itself
        included. It looks back only, lags by half a period, and suppresses less: 3.9 dB at
        half the new rate, all at the new rate.
      bridge_s: gaps of at most so many seconds get values on a line for the filter to work
        on; they count as missing nevertheless.

    Raises:
      RecordingError: a rate that is no rate or more than a hundred times the present one, or
        a clock with gaps much longer than the recording.
    """
    old, times = session.rate, session.times
    if not isinstance(rate, int | float) or not 0 < rate <= 100 * old:
        raise RecordingError(
            "the rate to resample to is out of range",
            where="rate",
            found=rate,
            expected=f"Hz, above 0, at most {100 * old:g}",
        )
    if session.timestamps is None and abs(rate - old) <= 1e-9 * old:
        return session
    count = (times[-1] - times[0]) * rate + 1e-6
    if count > 20 * session.n_frames * max(1.0, rate / old) + 1000:
        raise RecordingError(
            "the clock has gaps much longer than the recording",
            where="timestamps",
            found=f"{session.n_frames} frames in {times[-1] - times[0]:.6g} s",
            remedy="Split the recording at the gaps (Session.frames) and resample the parts.",
        )
    new = times[0] + np.arange(int(count) + 1) / rate
    place = _places(times, new, old)
    edges = np.unique(np.concatenate([session.trials.start, session.trials.stop]))
    mask, filled, traces = session.valid, session.valid, session.traces
    if mask is not None and bridge_s > 0:
        # Values on a line in short gaps; the filter takes them for samples.
        traces, _ = apply_policy(traces, "interpolate", mask, int(bridge_s * old))
        filled = session.mask | (traces != 0)
    values, valid = resample_array(
        traces, times, new, old, rate,
        mask=filled, measured=mask, causal=causal,
        part=np.searchsorted(edges, np.arange(session.n_frames), "right"),
        new_part=np.searchsorted(edges, np.floor(place), "right"),
    )  # fmt: skip
    trials, notes = _trials(session.trials, place)
    look = "looks back only" if causal else f"looks {HALF / min(rate, old):.3g} s ahead"
    notes.append(f"resampled from {old:g} Hz to {rate:g} Hz with a filter that {look}")
    behavior = {
        name: c if c.times is not None else Channel(c.values, c.kind, times, c.unit)
        for name, c in session.behavior.items()
    }
    return session.replace(
        traces=values,
        rate=float(rate),
        timestamps=None if times[0] == 0 else new,
        valid=valid,
        trials=trials,
        behavior=behavior,
        notes=(*session.notes, *notes),
    )


def resample_array(
    traces: np.ndarray,
    times: np.ndarray,
    new_times: np.ndarray,
    rate: float,
    new_rate: float,
    *,
    mask: np.ndarray | None = None,
    measured: np.ndarray | None = None,
    part: np.ndarray | None = None,
    new_part: np.ndarray | None = None,
    causal: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Traces at new times by the filter in the head of this file; see `resample`.

    Shapes: traces (T, N); times (T,) and new_times (K,) seconds, increasing; mask (T,) or
    (T, N) bool, the samples that are used; measured, alike, those that make a new frame
    valid (default: mask); part (T,) and new_part (K,) integers, only frames of an equal part
    are used -> (K, N) float32 and (K,) or (K, N) bool, None where all are valid.
    """
    frames, neurons = traces.shape
    lower = min(rate, new_rate)
    back = max(1.5 / rate, 1 / new_rate) if causal else HALF / lower
    ahead = 0.0 if causal else back
    spans = _spans(times, rate)
    measured = mask if measured is None else measured
    first = np.searchsorted(times, new_times - back, "left")
    last = np.searchsorted(times, new_times + ahead + 1e-9 / rate, "right")
    out = np.zeros((new_times.size, neurons), np.float32)
    wide = measured is not None and measured.ndim == 2
    valid = np.ones((new_times.size, neurons) if wide else new_times.size, bool)
    for k in range(0, new_times.size, _ROWS):
        rows = slice(k, min(k + _ROWS, new_times.size))
        a, b = int(first[rows.start]), int(last[rows.stop - 1])
        if a >= b:
            valid[rows] = False
            continue
        lag = new_times[rows, None] - times[None, a:b]
        if causal:
            weights = ((lag >= -1e-9 / rate) & (lag < back * (1 - 1e-9))) / back
        else:
            weights = _low_pass(lag, lower)
        weights = weights * spans[a:b]
        if part is not None:
            weights[new_part[rows, None] != part[None, a:b]] = 0
        weights = weights.astype(np.float32)
        x, used = np.asarray(traces[a:b], np.float32), _rows_of(mask, a, b)
        total = weights.sum(1, keepdims=True) if used is None else weights @ used
        if used is not None:
            x = np.where(used > 0, x, np.float32(0))
        seen = _rows_of(measured, a, b)
        share = weights.sum(1, keepdims=True) if seen is None else weights @ seen
        good = (share >= ENOUGH) & (total >= ENOUGH)
        np.divide(weights @ x, total, out=out[rows], where=good)
        valid[rows] = good if wide else good.all(1)
    return out, None if valid.all() else valid


def _rows_of(mask: np.ndarray | None, a: int, b: int) -> np.ndarray | None:
    """(b - a, 1 or N) float32 of a mask, None where all is True."""
    if mask is None or mask[a:b].all():
        return None
    rows = mask[a:b].astype(np.float32)
    return rows[:, None] if rows.ndim == 1 else rows


def _low_pass(lag: np.ndarray, rate: float) -> np.ndarray:
    """The filter at some lags (s), of unit area."""
    inside = np.clip(1 - (lag * rate / HALF) ** 2, 0, None)
    window = np.where(inside > 0, np.i0(BETA * np.sqrt(inside)), 0) / np.i0(BETA)
    cutoff = CUTOFF * rate
    return 2 * cutoff * np.sinc(2 * cutoff * lag) * window


def _spans(times: np.ndarray, rate: float) -> np.ndarray:
    """(T,) seconds that each sample stands for; a gap counts as one and a half frames."""
    steps = np.minimum(np.diff(times), 1.5 / rate)
    if not steps.size:
        return np.full(times.size, 1 / rate)
    return (np.append(steps[:1], steps) + np.append(steps, steps[-1:])) / 2


def _places(times: np.ndarray, new: np.ndarray, rate: float) -> np.ndarray:
    """(K,) the frame that each new time lies in; a half more where it lies in a gap after it."""
    frame = np.searchsorted(times, new + 1e-6 / rate, "right") - 1
    return frame + 0.5 * (new - times[frame] > 1.5 / rate)


def _trials(trials: Trials, place: np.ndarray) -> tuple[Trials, list[str]]:
    start = np.searchsorted(place, trials.start, "left")
    stop = np.searchsorted(place, trials.stop - 1, "right")
    keep = stop > start
    notes = []
    if not keep.all():
        notes.append(f"{int((~keep).sum())} trials are shorter than a new frame and dropped")
    columns = {k: v[keep] for k, v in trials.columns.items()}
    return Trials(start[keep], stop[keep], columns), notes
