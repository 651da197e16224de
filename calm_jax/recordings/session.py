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
from calm_jax.recordings.parts import (
    BEHAVIOR_KINDS,
    Channel,
    Intervals,
    NeuronTable,
    Trials,
    read_only,
    seconds,
)

__all__ = ["BEHAVIOR_KINDS", "Channel", "Intervals", "NeuronTable", "Session", "Trials"]


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
        put("traces", read_only(self._checked_traces(traces, valid)))
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
        valid = valid.astype(bool, copy=False)
        return None if valid.all() else read_only(valid)

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
        if mask is None:
            return out
        for a in range(0, out.shape[0], step):
            if ((out[a : a + step] != 0) & ~mask[a : a + step]).any():
                return np.where(mask, out, np.float32(0))
        return out  # cleared by the reader already: many GB are not copied

    def _check_clock(self, frames: int, put: Any) -> None:
        if self.timestamps is not None:
            times = seconds(self.timestamps, "timestamps")
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
            put("timestamps", read_only(times))
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
