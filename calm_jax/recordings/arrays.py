"""Arrays and tables in memory as Sessions: numpy, xarray, pandas, pynapple by their look.

None of these packages is imported: an object is told by the attributes it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.missing import mark_missing
from calm_jax.recordings.session import NeuronTable, Session

ORIENTATIONS = ("time,neurons", "neurons,time")
TIME_NAMES = ("time", "times", "t", "timestamps", "timestamp", "time_s", "seconds")
FRAME_NAMES = ("frame", "frames", "sample", "samples")
NEURON_NAMES = (
    "neuron", "neurons", "cell", "cells", "roi", "rois", "unit", "units", "unit_id", "component",
    "components", "neuron_id", "cell_id", "roi_id",
)  # fmt: skip


def from_array(
    traces: Any,
    *,
    rate: float | None = None,
    orientation: str | None = None,
    times: Any = None,
    valid: Any = None,
    ids: Sequence[Any] | None = None,
    unit: str = "a.u.",
    animal: str = "unknown",
    session: str = "unknown",
) -> Session:
    """A Session from a matrix or table of traces.

    Args:
      traces: an array (numpy, or what numpy can view); an xarray DataArray, whose dimension
        and coordinate names tell the axes, the times and the ids; a pandas DataFrame (rows
        are frames, columns neurons, a numeric or time index the clock); a pynapple TsdFrame.
        NaN is missing.
      rate: Hz; this or `times`, unless the table has a clock. It comes before a clock that
        the table has.
      orientation: "time,neurons" or "neurons,time"; needed for plain arrays, never guessed.
      times: (T,) seconds, increasing.
      valid: bool, (T,) or of the shape of `traces`.
      ids: of the neurons.

    Raises:
      RecordingError: naming what is missing or does not fit.
    """
    if orientation not in (None, *ORIENTATIONS):
        raise RecordingError(
            "no such orientation", where="orientation", found=repr(orientation),
            expected=" or ".join(map(repr, ORIENTATIONS)),
        )  # fmt: skip
    values, told, clock, names = _looked_at(traces, orientation)
    orientation = told or orientation
    if values.ndim != 2:
        raise RecordingError(
            "no matrix", where="traces", found=f"shape {values.shape}", expected="two axes"
        )
    if orientation is None:
        raise no_orientation(values.shape)
    if orientation == ORIENTATIONS[1]:
        values = values.T
        if valid is not None and np.ndim(valid) == 2:
            valid = np.asarray(valid).T
    times = clock if times is None and rate is None else times
    if rate is None and times is None:
        raise RecordingError(
            "no frame rate",
            where="rate",
            remedy="Give rate= in Hz, or times= in seconds.",
        )
    ids = names if ids is None else [str(x) for x in ids]
    return build(values, rate, times, valid, ids, unit, animal, session)


def build(
    values: np.ndarray, rate: Any, times: Any, valid: Any, ids: Sequence[str] | None, unit: str,
    animal: str, session: str, notes: Sequence[str] = (),
) -> Session:  # fmt: skip
    """The Session of (T, N) values, NaN made missing; the array itself is left alone."""
    if values.dtype.kind not in "fiub":
        raise RecordingError(
            "no numbers", where="traces", found=f"{values.dtype}", expected="real numbers"
        )
    if rate is not None and (isinstance(rate, bool | str) or not np.isscalar(rate)):
        raise RecordingError("no number", where="rate", found=repr(rate)[:40], expected="Hz")
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.asarray(values, np.float32)
    gone = None
    if array.dtype.kind == "f" and np.isnan(np.min(array, initial=0)):
        array = array if array is not values and array.flags.owndata else array.copy()
        gone = mark_missing(array)
    notes = list(notes)
    if gone is not None:
        notes.append(f"{1 - gone.mean():.2%} of the samples are NaN and missing")
        if valid is not None:
            valid = np.asarray(valid, bool)
            valid = valid if valid.ndim == 2 else valid[:, None]
            valid = valid & (gone if gone.ndim == 2 else gone[:, None])
        else:
            valid = gone
    return Session(
        traces=array,
        rate=rate,
        timestamps=None if times is None else _seconds(times),
        valid=valid,
        neurons=None if ids is None else NeuronTable(np.array(ids, str)),
        unit=unit,
        animal=animal,
        session=session,
        notes=tuple(notes),
    )


def no_orientation(shape: tuple[int, ...]) -> RecordingError:
    """The error where nothing tells which axis is time."""
    return RecordingError(
        "which axis is time is not told",
        where="orientation",
        found=f"shape {shape}",
        remedy="Give orientation='time,neurons' or 'neurons,time' "
        "(on the command line --read orientation=time,neurons).",
    )


Looked = tuple[np.ndarray, str | None, Any, list[str] | None]


def _looked_at(x: Any, orientation: str | None) -> Looked:
    """Values, the orientation that their names tell, a clock and ids."""
    if all(hasattr(x, a) for a in ("dims", "coords", "values")):
        return _data_array(x, orientation)
    if all(hasattr(x, a) for a in ("iloc", "index", "columns")):
        turned = orientation == ORIENTATIONS[1]
        clock, names = (x.columns, x.index) if turned else (x.index, x.columns)
        return _table(x), orientation or ORIENTATIONS[0], _clock(clock), _names(names)
    if hasattr(x, "values") and hasattr(x, "columns"):
        clock = x.t if hasattr(x, "t") else x.times() if callable(x.times) else x.times
        if orientation == ORIENTATIONS[1]:
            raise RecordingError(
                "a TsdFrame has time first", where="orientation", found=repr(orientation)
            )
        return np.asarray(x.values), ORIENTATIONS[0], np.asarray(clock), _names(x.columns)
    try:
        return np.asarray(x), None, None, None
    except (TypeError, ValueError) as e:
        raise RecordingError("no array", where="traces", found=type(x).__name__) from e


def _data_array(x: Any, orientation: str | None) -> Looked:
    values, dims = np.asarray(x.values), [str(d) for d in x.dims]
    if values.ndim != 2:
        return values, None, None, None
    low = [d.lower() for d in dims]
    time = [i for i, d in enumerate(low) if d in TIME_NAMES + FRAME_NAMES]
    cell = [i for i, d in enumerate(low) if d in NEURON_NAMES]
    axis = time[0] if len(time) == 1 else 1 - cell[0] if len(cell) == 1 and not time else None
    told = None if axis is None else ORIENTATIONS[axis]
    if told is not None and orientation not in (None, told):
        raise RecordingError(
            "the names of the dimensions tell another orientation",
            where="orientation",
            found=f"{orientation!r} for dimensions {dims}",
            expected=repr(told),
        )
    told = told or orientation
    if told is None:
        return values, None, None, None
    axis = ORIENTATIONS.index(told)
    clock, ids = (
        np.asarray(x.coords[x.dims[i]].values) if x.dims[i] in x.coords else None
        for i in (axis, 1 - axis)
    )
    clock = clock if low[axis] in TIME_NAMES else None
    return values, told, clock, None if ids is None else _names(ids)


def _table(x: Any) -> np.ndarray:
    values = np.asarray(x.to_numpy() if hasattr(x, "to_numpy") else x.values)
    if values.dtype.kind not in "fiub":
        raise RecordingError(
            "a column of no numbers", where="traces", expected="one column of numbers per neuron"
        )
    return values


def _clock(index: Any) -> Any:
    """The index as a clock where it is one: times, or numbers that are no plain count."""
    values = np.asarray(index)
    if values.dtype.kind in "mM":
        return values
    named = str(getattr(index, "name", "")).lower() in TIME_NAMES
    return values if values.dtype.kind == "f" or (named and values.dtype.kind in "iu") else None


def _names(values: Any) -> list[str]:
    return [str(v) for v in np.asarray(values).tolist()]


def _seconds(times: Any) -> np.ndarray:
    """(T,) float64 seconds; dates and durations from the first of them."""
    times = np.asarray(times)
    if times.dtype.kind == "M":
        times = times - times[0] if times.size else times.astype("m8[ns]")
    if times.dtype.kind == "m":
        return times / np.timedelta64(1, "s")
    if times.dtype.kind not in "fiu":
        raise RecordingError("times that are no numbers", where="times", found=f"{times.dtype}")
    return times.astype(np.float64)
