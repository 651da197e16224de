"""Session, the one data type: every format is read into it, every model reads from it.

T frames, N neurons; time first. Numpy only, immutable, validated on construction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from calm_jax.errors import RecordingError

BEHAVIOR_KINDS = ("continuous", "categorical")


def _frozen(array: np.ndarray) -> np.ndarray:
    """A read-only view of `array`; the caller's own array stays writable."""
    view = array.view()
    view.flags.writeable = False
    return view


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
        out[str(name)] = _frozen(array)
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
        object.__setattr__(self, "start", _frozen(start))
        object.__setattr__(self, "stop", _frozen(stop))
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
        start = np.asarray(self.start, np.float64)
        stop = np.asarray(self.stop, np.float64)
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
        object.__setattr__(self, "start", _frozen(start))
        object.__setattr__(self, "stop", _frozen(stop))
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
        object.__setattr__(self, "values", _frozen(values))
        if self.times is not None:
            times = np.asarray(self.times, np.float64)
            if times.shape != values.shape[:1]:
                raise RecordingError(
                    "behaviour times and values differ in length",
                    found=f"{times.shape} times, {values.shape} values",
                )
            if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
                raise RecordingError(
                    "behaviour times must be finite and increase"
                )
            object.__setattr__(self, "times", _frozen(times))


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
        object.__setattr__(self, "id", _frozen(ids))
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


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """One recording of one population, with all that was recorded beside it.

    Attributes:
      traces: (T, N) float32. Invalid samples hold 0.
      rate: frames per second (Hz). Give this or `timestamps`; from time stamps it
        is one over their median difference.
      timestamps: (T,) float64 seconds, strictly increasing, or None for frames
        at 0, 1/rate, 2/rate, ...
      valid: (T,) or (T, N) bool, False where a sample is missing; None = all valid.
      trials: frame ranges; empty where the recording has none.
      intervals: name -> Intervals, seconds on the clock of `times`.
      behavior: name -> Channel.
      neurons: the neuron table; ids default to "0", "1", ...
      unit: of the traces, for example "dF/F" or "z".
      animal, session: ids, never empty.
      notes: what a reader had to decide, one line each; shown by `calm-jax info`.

    Raises:
      RecordingError: for anything that does not fit together; it names the field.
    """

    traces: np.ndarray
    rate: float | None = None
    timestamps: np.ndarray | None = None
    valid: np.ndarray | None = None
    trials: Trials = dataclasses.field(
        default_factory=lambda: Trials(np.zeros(0, int), np.zeros(0, int))
    )
    intervals: Mapping[str, Intervals] = dataclasses.field(default_factory=dict)
    behavior: Mapping[str, Channel] = dataclasses.field(default_factory=dict)
    neurons: NeuronTable | None = None
    unit: str = "a.u."
    animal: str = "unknown"
    session: str = "unknown"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        traces = np.asarray(self.traces)
        if traces.ndim != 2 or traces.dtype.kind not in "fiub":
            raise RecordingError(
                "traces must be a matrix of numbers",
                where="traces",
                found=f"{traces.dtype} of shape {traces.shape}",
                expected="(frames, neurons)",
            )
        frames, neurons = traces.shape
        if neurons == 0 or frames == 0:
            raise RecordingError(
                "zero neurons" if neurons == 0 else "zero frames",
                where="traces",
                found=f"shape {traces.shape}",
                expected="(frames, neurons), at least 1 x 1",
            )
        valid = self._checked_valid(frames, neurons)
        put("valid", valid)
        put("traces", _frozen(self._checked_traces(traces, valid)))
        self._check_clock(frames, put)
        if len(self.trials) and (
            self.trials.start[0] < 0 or self.trials.stop[-1] > frames
        ):
            raise RecordingError(
                "a trial lies outside the recording",
                where="trial_start, trial_stop",
                found=f"frames [{self.trials.start[0]}, {self.trials.stop[-1]})",
                expected=f"within [0, {frames})",
            )
        for name, channel in self.behavior.items():
            if channel.times is None and channel.values.shape[0] != frames:
                raise RecordingError(
                    "behaviour of another length than the traces",
                    where=f"behavior/{name}",
                    found=f"{channel.values.shape[0]} samples",
                    expected=f"{frames}, one per frame",
                    remedy="Give it its own times if it was sampled on another clock.",
                )
        table = self.neurons
        if table is None:
            table = NeuronTable(np.arange(neurons).astype(str))
        if len(table) != neurons:
            raise RecordingError(
                "the neuron table does not fit the traces",
                where="neuron",
                found=f"{len(table)} rows",
                expected=f"{neurons}, one per neuron",
            )
        put("neurons", table)
        put("intervals", MappingProxyType(dict(self.intervals)))
        put("behavior", MappingProxyType(dict(self.behavior)))
        for name in ("animal", "session"):
            if not str(getattr(self, name)).strip():
                raise RecordingError("empty id", where=name)
            put(name, str(getattr(self, name)))
        put("notes", tuple(self.notes))

    def _checked_valid(self, frames: int, neurons: int) -> np.ndarray | None:
        if self.valid is None:
            return None
        valid = np.asarray(self.valid)
        if valid.shape not in ((frames,), (frames, neurons)):
            raise RecordingError(
                "the validity mask does not fit the traces",
                where="valid",
                found=f"shape {valid.shape}",
                expected=f"({frames},) or ({frames}, {neurons})",
            )
        valid = valid.astype(bool)
        return None if valid.all() else _frozen(valid)

    def _checked_traces(
        self, traces: np.ndarray, valid: np.ndarray | None
    ) -> np.ndarray:
        """Float32 traces with 0 at invalid samples; finite everywhere else."""
        with np.errstate(over="ignore", invalid="ignore"):
            out = np.asarray(traces, np.float32)
        mask = None
        if valid is not None:
            mask = valid if valid.ndim == 2 else valid[:, None]
        # Row blocks keep the temporary masks small for recordings of many GB.
        step = max(1, (1 << 24) // max(1, out.shape[1]))
        for a in range(0, out.shape[0], step):
            bad = ~np.isfinite(out[a : a + step])
            if mask is not None:
                bad &= mask[a : a + step]
            if bad.any():
                t, n = (int(x[0]) for x in np.nonzero(bad))
                raise RecordingError(
                    f"traces are {'NaN' if np.isnan(out[a + t, n]) else 'infinite'}",
                    where="traces",
                    found=f"frame {a + t}, neuron {n} is the first of {int(bad.sum())}",
                    expected="finite values wherever `valid` is True",
                    remedy="Mark missing samples False in `valid`, or drop the neuron.",
                )
        if mask is not None:
            out = np.where(mask, out, np.float32(0))
        return out

    def _check_clock(self, frames: int, put: Any) -> None:
        if self.timestamps is not None:
            times = np.asarray(self.timestamps, np.float64)
            if times.shape != (frames,):
                raise RecordingError(
                    "as many time stamps as frames are needed",
                    where="timestamps",
                    found=f"shape {times.shape}",
                    expected=f"({frames},)",
                )
            if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
                raise RecordingError(
                    "time stamps must be finite and strictly increasing (seconds)",
                    where="timestamps",
                )
            put("timestamps", _frozen(times))
        rate = self.rate
        if rate is None and self.timestamps is not None and frames > 1:
            rate = float(1.0 / np.median(np.diff(self.timestamps)))
        if rate is None:
            raise RecordingError(
                "no frame rate",
                where="rate",
                remedy="Give `rate` in Hz or `timestamps` in seconds.",
            )
        rate = float(rate)
        if not np.isfinite(rate) or rate <= 0:
            raise RecordingError(
                "the frame rate must be positive",
                where="rate",
                found=f"{rate} Hz",
                expected="frames per second, for example 30.0",
            )
        put("rate", rate)

    @property
    def n_frames(self) -> int:
        return int(self.traces.shape[0])

    @property
    def n_neurons(self) -> int:
        return int(self.traces.shape[1])

    @property
    def seconds(self) -> float:
        """Length of the recording in seconds, the last frame included."""
        return float(self.times[-1] - self.times[0] + 1.0 / self.rate)

    @property
    def times(self) -> np.ndarray:
        """(T,) float64, the time of each frame in seconds."""
        if self.timestamps is not None:
            return self.timestamps
        return np.arange(self.n_frames) / self.rate

    @property
    def mask(self) -> np.ndarray:
        """(T, N) bool view, True where a sample is valid."""
        if self.valid is None:
            return np.broadcast_to(np.True_, self.traces.shape)
        valid = self.valid if self.valid.ndim == 2 else self.valid[:, None]
        return np.broadcast_to(valid, self.traces.shape)

    def replace(self, **changes: Any) -> Session:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def frames(self, start: int, stop: int) -> Session:
        """Frames [start, stop), with everything else cut to match.

        Time stays on the clock of the whole recording. Only trials that lie
        wholly inside are kept; intervals are kept where they overlap.

        Raises:
          RecordingError: when the range is empty or leaves the recording.
        """
        if not 0 <= start < stop <= self.n_frames:
            raise RecordingError(
                "no such range of frames",
                found=f"[{start}, {stop})",
                expected=f"a range within [0, {self.n_frames})",
            )
        times = self.times[start:stop]
        keep = (self.trials.start >= start) & (self.trials.stop <= stop)
        trials = Trials(
            self.trials.start[keep] - start,
            self.trials.stop[keep] - start,
            {k: v[keep] for k, v in self.trials.columns.items()},
        )
        behavior = {}
        for name, channel in self.behavior.items():
            if channel.times is None:
                values, own = channel.values[start:stop], None
            else:
                inside = (channel.times >= times[0]) & (
                    channel.times < times[-1] + 1.0 / self.rate
                )
                values, own = channel.values[inside], channel.times[inside]
            behavior[name] = dataclasses.replace(
                channel, values=values, times=own
            )
        # A slice that starts at frame 0 of a regular clock is still on that clock.
        stamps = None if self.timestamps is None and start == 0 else times
        return self.replace(
            traces=self.traces[start:stop],
            timestamps=stamps,
            valid=None if self.valid is None else self.valid[start:stop],
            trials=trials,
            intervals={
                k: v.between(times[0], times[-1] + 1.0 / self.rate)
                for k, v in self.intervals.items()
            },
            behavior=behavior,
        )

    def take_neurons(
        self, index: Sequence[int] | np.ndarray | slice
    ) -> Session:
        """The neurons at `index` (integers, a boolean mask or a slice)."""
        if not isinstance(index, slice):
            index = np.asarray(index)
        valid = self.valid
        if valid is not None and valid.ndim == 2:
            valid = valid[:, index]
        return self.replace(
            traces=self.traces[:, index],
            valid=valid,
            neurons=self.neurons.take(index),
        )
