"""Recordings brought to a common form: one frame rate, one clock, one way with what is missing.

`condition` is what data sets are built with; the parts stand in `resampling`, `missing`,
`baselines` and here. What looks ahead in time says so: a forecast from such traces has seen
that much of its future at the borders of its context.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.baselines import dff, running_baseline
from calm_jax.recordings.missing import apply_policy, check_policy, mark_missing
from calm_jax.recordings.resampling import resample, resample_array
from calm_jax.recordings.session import Channel, Session

__all__ = [
    "align_behavior", "apply_policy", "condition", "dff", "mark_missing", "resample",
    "resample_array", "running_baseline",
]  # fmt: skip

KINDS = ("linear", "nearest", "previous", "mean")
BRIDGE_S = 0.5  # seconds, the longest gap that nan="interpolate" bridges for the filter


def condition(
    session: Session, rate: float | None = None, nan: str = "mask", *, causal: bool = False
) -> Session:
    """The session at a common rate, with its missing samples treated by a policy.

    Behaviour that was sampled on the frames is brought to the new ones: continuous channels
    by their mean over a frame when the rate falls and along a line when it rises, categorical
    ones by the previous sample. Channels with a clock of their own keep it.

    Args:
      rate: Hz, or None to leave it; see `resample`.
      nan: "mask" keeps samples missing; "interpolate" lets the resampling filter work on a
        line over gaps of at most half a second, which stay marked as missing; "refuse" is an
        error where a sample is missing.
      causal: resample without looking ahead; behaviour then by the previous sample.

    Raises:
      RecordingError: as `resample`; an unknown policy; missing samples under "refuse".
    """
    check_policy(nan)
    if nan == "refuse" and session.valid is not None:
        raise RecordingError(
            "samples are missing",
            where=f"session {session.session}",
            found=f"{1 - session.valid.mean():.2%} of the samples",
            expected="none, as nan=refuse asks",
        )
    if rate is None:
        return session
    on_frames = [name for name, c in session.behavior.items() if c.times is None]
    out = resample(
        session, rate, causal=causal, bridge_s=BRIDGE_S if nan == "interpolate" else 0.0
    )
    if out is session or not on_frames:
        return out
    kind = "previous" if causal else "mean" if rate < session.rate else "linear"
    return align_behavior(out, kind, on_frames)


def align_behavior(
    session: Session,
    kind: str = "linear",
    names: Iterable[str] | None = None,
    *,
    longest_s: float | None = None,
) -> Session:
    """Behaviour channels with a clock of their own, brought to the imaging frames.

    At a frame of time t: `linear` lies on the line between the samples around t, `nearest`
    takes the nearest sample, `previous` the last one at or before t, `mean` the mean of the
    samples in [t, t + 1 / rate). A line or a mean of labels means nothing: categorical
    channels take `previous` instead, and the notes say so.

    Nothing is extrapolated: before the first and after the last sample a frame is missing
    (for `previous`, later than one sample after the last), and so is one whose samples are.
    Only `previous` is causal; `linear` and `nearest` look up to one behaviour sample ahead,
    `mean` one frame.

    Args:
      names: channels; default all that have a clock of their own.
      longest_s: gaps between samples longer than this are missing; default no limit.

    Raises:
      RecordingError: an unknown kind or channel.
    """
    if kind not in KINDS:
        raise RecordingError(
            "no such interpolation", where="kind", found=repr(kind), expected=" or ".join(KINDS)
        )
    own = [name for name, c in session.behavior.items() if c.times is not None]
    wanted = own if names is None else list(names)
    channels, notes = dict(session.behavior), []
    for name in wanted:
        channel = channels.get(name)
        if channel is None:
            raise RecordingError(
                "no such behaviour channel", where=f"behavior/{name}", expected=", ".join(channels)
            )
        if channel.times is None:
            continue
        how = kind
        if channel.kind == "categorical" and kind in ("linear", "mean"):
            how = "previous"
        channels[name] = _aligned(channel, session.times, session.rate, how, longest_s)
        notes.append(
            f"behavior/{name}: brought to the frames, {how}"
            + ("" if how == kind else f" in place of {kind}: it is categorical")
        )
    return session.replace(behavior=channels, notes=(*session.notes, *notes))


def _aligned(
    channel: Channel, frames: np.ndarray, rate: float, kind: str, longest: float | None
) -> Channel:
    times, values = channel.times, channel.values
    if not times.size:
        return Channel(_blank(values, frames.size), channel.kind, unit=channel.unit)
    if kind == "mean":
        stop = np.minimum(frames + 1 / rate, np.append(frames[1:], np.inf))
        return Channel(_means(values, times, frames, stop), channel.kind, unit=channel.unit)
    before = np.clip(np.searchsorted(times, frames, "right") - 1, 0, None)
    after = np.minimum(before + 1, times.size - 1)
    inside = (frames >= times[0]) & (frames <= times[-1])
    apart = times[after] - times[before]
    if kind == "previous":
        period = float(np.median(np.diff(times))) if times.size > 1 else 0.0
        inside = (frames >= times[0]) & (frames <= times[-1] + period)
        source, away = before, frames - times[before]
    elif kind == "nearest":
        source = np.where(times[after] - frames < frames - times[before], after, before)
        away = np.abs(frames - times[source])
    else:
        source, away = before, np.where(frames > times[before], apart, 0)
    if longest is not None:
        inside &= away <= longest
    out = _blank(values, frames.size)
    out[inside] = values[source[inside]]
    if kind == "linear":
        weight = np.zeros(frames.size)
        np.divide(frames - times[before], apart, out=weight, where=apart > 0)
        between = inside & (weight > 0)  # a frame on a sample needs no neighbour
        w = weight[between].reshape(-1, *[1] * (values.ndim - 1))
        left, right = (values[i[between]].astype(np.float64) for i in (before, after))
        out[between] = (1 - w) * left + w * right
    return Channel(out, channel.kind, unit=channel.unit)


def _blank(values: np.ndarray, frames: int) -> np.ndarray:
    """Missing values of the kind of a channel, one per frame."""
    shape = (frames, *values.shape[1:])
    if values.dtype.kind == "f":
        return np.full(shape, np.nan, values.dtype)
    if values.dtype.kind in "US":
        return np.zeros(shape, values.dtype)
    return np.full(shape, -1, np.int64 if values.dtype.kind == "u" else values.dtype)


def _means(
    values: np.ndarray, times: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> np.ndarray:
    """Mean of the samples that are there in each [start, stop); NaN where there are none."""
    flat = values.reshape(times.size, -1).astype(np.float64)
    there = np.isfinite(flat)
    zero = np.zeros((1, flat.shape[1]))
    sums = np.concatenate([zero, np.cumsum(np.where(there, flat, 0), 0)])
    counts = np.concatenate([zero, np.cumsum(there, 0)])
    a, b = (np.searchsorted(times, x, "left") for x in (start, stop))
    n = counts[b] - counts[a]
    out = np.full(n.shape, np.nan)
    np.divide(sums[b] - sums[a], n, out=out, where=n > 0)
    return out.reshape(start.size, *values.shape[1:])
