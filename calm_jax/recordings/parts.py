"""What a Session is made of beside its traces: trials, intervals, behaviour, neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from calm_jax.errors import RecordingError

BEHAVIOR_KINDS = ("continuous", "categorical")


def read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view of `array`; the caller's own array stays writable."""
    view = array.view()
    view.flags.writeable = False
    return view


def seconds(values: Any, where: str) -> np.ndarray:
    """Times as float64; text and objects are refused."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" and array.size:
        raise RecordingError("times must be numbers (seconds)", where=where, found=array.dtype)
    return array.astype(np.float64)


def _columns(
    columns: Mapping[str, Any], length: int, where: str
) -> Mapping[str, np.ndarray]:
    """Checked, read-only columns, each with `length` rows."""
    out: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        array = np.asarray(values)
        if array.dtype.hasobject:
            raise RecordingError(
                "column of Python objects",
                where=f"{where}/{name}",
                expected="numbers, booleans or text",
            )
        if array.ndim < 1 or array.shape[0] != length:
            raise RecordingError(
                "column of the wrong length",
                where=f"{where}/{name}",
                found=f"shape {array.shape}",
                expected=f"{length} rows",
            )
        out[str(name)] = read_only(array)
    return MappingProxyType(out)


@dataclasses.dataclass(frozen=True, eq=False)
class Trials:
    """Trials as frame ranges [start, stop), in order, not overlapping.

    Attributes:
      start: (R,) int64, first frame of each trial.
      stop: (R,) int64, one past the last frame of each trial.
      columns: per-trial values such as `cue` or `choice`, each with R rows.
    """

    start: np.ndarray
    stop: np.ndarray
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        start, stop = np.asarray(self.start), np.asarray(self.stop)
        for name, array in (("trial_start", start), ("trial_stop", stop)):
            if array.ndim != 1 or (
                array.size and not np.issubdtype(array.dtype, np.integer)
            ):
                raise RecordingError(
                    "trial edges must be whole frame numbers",
                    where=name,
                    found=f"{array.dtype} of shape {array.shape}",
                    expected="integers, one per trial",
                )
        if start.shape != stop.shape:
            raise RecordingError(
                "as many trial stops as starts are needed",
                where="trial_stop",
                found=stop.size,
                expected=start.size,
            )
        start, stop = start.astype(np.int64), stop.astype(np.int64)
        empty = np.flatnonzero(stop <= start)
        if empty.size:
            i = int(empty[0])
            raise RecordingError(
                f"trial {i} is empty",
                where="trial_start, trial_stop",
                found=f"frames [{start[i]}, {stop[i]})",
                expected="stop > start (stop is exclusive)",
                remedy="Remove the trial or mend its edges.",
            )
        over = np.flatnonzero(start[1:] < stop[:-1])
        if over.size:
            i = int(over[0])
            raise RecordingError(
                f"trials {i} and {i + 1} overlap or are out of order",
                where="trial_start, trial_stop",
                found=f"[{start[i]}, {stop[i]}) and [{start[i + 1]}, {stop[i + 1]})",
                expected="sorted trials that do not overlap (stop is exclusive)",
            )
        object.__setattr__(self, "start", read_only(start))
        object.__setattr__(self, "stop", read_only(stop))
        object.__setattr__(
            self, "columns", _columns(self.columns, start.size, "trial")
        )

    def __len__(self) -> int:
        return int(self.start.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Intervals:
    """Named stretches of time (stimuli, states), in seconds; they may overlap.

    Attributes:
      start, stop: (R,) float64, seconds on the clock of `Session.times`.
      columns: per-interval values such as `direction`, each with R rows.
    """

    start: np.ndarray
    stop: np.ndarray
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        start, stop = seconds(self.start, "start"), seconds(self.stop, "stop")
        if start.ndim != 1 or start.shape != stop.shape:
            raise RecordingError(
                "interval starts and stops must be two vectors of one length",
                where="intervals",
                found=f"shapes {start.shape} and {stop.shape}",
            )
        bad = np.flatnonzero(
            ~(np.isfinite(start) & np.isfinite(stop)) | (stop < start)
        )
        if bad.size:
            i = int(bad[0])
            raise RecordingError(
                f"interval {i} is not a stretch of time",
                where="intervals",
                found=f"{start[i]} s to {stop[i]} s",
                expected="finite times, stop >= start",
            )
        object.__setattr__(self, "start", read_only(start))
        object.__setattr__(self, "stop", read_only(stop))
        object.__setattr__(
            self, "columns", _columns(self.columns, start.size, "intervals")
        )

    def __len__(self) -> int:
        return int(self.start.size)

    def between(self, first: float, last: float) -> Intervals:
        """The intervals that overlap [first, last] seconds, kept whole."""
        keep = (self.stop >= first) & (self.start <= last)
        return Intervals(
            self.start[keep],
            self.stop[keep],
            {k: v[keep] for k, v in self.columns.items()},
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Channel:
    """One behaviour channel.

    Attributes:
      values: (S,) or (S, D). Continuous values are float32, NaN where missing;
        categorical values are integers (negative = missing) or text ("" = missing).
      kind: "continuous" or "categorical".
      times: (S,) seconds, or None when sampled on the imaging frames (S = T).
      unit: for example "m/s"; empty where not known.
    """

    values: np.ndarray
    kind: str = "continuous"
    times: np.ndarray | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if self.kind not in BEHAVIOR_KINDS:
            raise RecordingError(
                "unknown kind of behaviour channel",
                found=repr(self.kind),
                expected=" or ".join(BEHAVIOR_KINDS),
            )
        if values.dtype.hasobject or values.ndim not in (1, 2):
            raise RecordingError(
                "a behaviour channel must be an array of numbers or text",
                found=f"{values.dtype} of shape {values.shape}",
                expected="shape (samples,) or (samples, dimensions)",
            )
        if self.kind == "continuous":
            if values.dtype.kind not in "fiub":
                raise RecordingError(
                    "a continuous behaviour channel must hold numbers",
                    found=values.dtype,
                    remedy='Give text labels kind "categorical".',
                )
            values = values.astype(np.float32)
        elif values.dtype.kind == "b":
            values = values.astype(np.int8)
        object.__setattr__(self, "values", read_only(values))
        if self.times is not None:
            times = seconds(self.times, "times")
            if times.shape != values.shape[:1]:
                raise RecordingError(
                    "behaviour times and values differ in length",
                    found=f"{times.shape} times, {values.shape} values",
                )
            if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
                raise RecordingError(
                    "behaviour times must be finite and increase"
                )
            object.__setattr__(self, "times", read_only(times))


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronTable:
    """One row per neuron.

    Attributes:
      id: (N,) text, unique within the session.
      columns: such as `cell_line`, `plane`, `accepted`, `x`, `y`; each with N rows.
    """

    id: np.ndarray
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = np.asarray(self.id)
        ids = ids.astype(str) if ids.size else np.zeros(0, "<U1")
        if ids.ndim != 1:
            raise RecordingError(
                "neuron ids must be a vector",
                where="neuron/id",
                found=f"shape {ids.shape}",
            )
        unique, counts = np.unique(ids, return_counts=True)
        if unique.size != ids.size:
            raise RecordingError(
                "neuron ids must be unique within a session",
                where="neuron/id",
                found=f"{str(unique[counts > 1][0])!r} {counts.max()} times",
            )
        object.__setattr__(self, "id", read_only(ids))
        object.__setattr__(
            self, "columns", _columns(self.columns, ids.size, "neuron")
        )

    def __len__(self) -> int:
        return int(self.id.size)

    def take(self, index: np.ndarray) -> NeuronTable:
        """The rows at `index` (integers or a boolean mask)."""
        return NeuronTable(
            self.id[index], {k: v[index] for k, v in self.columns.items()}
        )
