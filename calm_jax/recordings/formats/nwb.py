"""NWB 2: calcium traces with trials, intervals, behaviour and the ROI table, read by h5py.

Every decision that the file leaves open is a note of the Session or a question. `nwb_plan`
decides what to read; `nwb_series` (traces), `nwb_tables` (ROIs, intervals) and
`nwb_behavior` know the parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from calm_jax.recordings.formats import hdf5_guard
from calm_jax.recordings.formats.hdf5 import (
    attribute_number,
    attribute_text,
    get,
    opened,
    read_traces,
)
from calm_jax.recordings.formats.nwb_behavior import (
    behavior_groups,
    count_intervals,
    read_all_intervals,
    read_channels,
)
from calm_jax.recordings.formats.nwb_plan import Plan, plan
from calm_jax.recordings.formats.nwb_tables import trials_on_frames
from calm_jax.recordings.formats.peek import Peek
from calm_jax.recordings.session import Intervals, NeuronTable, Session, Trials

SUFFIXES = (".nwb",)
OPTIONS = {
    "series": "name or path of the RoiResponseSeries to read, or of its container",
    "orientation": "'time,neurons' or 'neurons,time', where the file leaves it open",
    "accepted": "false keeps the ROIs that are marked as rejected too",
    "planes": "names or numbers of the imaging planes to read; default: all",
    "rate": "frames per second (Hz), where the file has neither rate nor time stamps",
}
INVALID = "invalid_times"  # intervals that NWB sets apart as not to be analysed


def recognises(path: str | Path) -> bool:
    """True for an HDF5 file whose `nwb_version` starts with 2."""
    try:
        if not Path(path).is_file() or not h5py.is_hdf5(path):
            return False
        hdf5_guard.check(path)
        with h5py.File(path, "r", locking="best-effort") as file:
            return attribute_text(file, "nwb_version").startswith("2")
    except Exception:  # whatever a damaged file makes h5py raise: it is not known to be NWB
        return False


def read_nwb(path: str | Path, **options: Any) -> Session:
    """Reads the traces of an NWB 2 file with everything beside them.

    Args:
      options: as in OPTIONS.

    Raises:
      RecordingError: naming file and field.
    """
    with opened(path) as file:
        return session_in(file, Path(path).stem, **options)


def peek_nwb(path: str | Path, **options: Any) -> Peek:
    """What an NWB 2 file holds, without reading traces and behaviour; options as `read_nwb`.

    Raises:
      RecordingError: naming file and field.
    """
    with opened(path) as file:
        return peek_in(file, Path(path).stem, **options)


def read_from(file: BinaryIO, name: str, stem: str, **options: Any) -> Session:
    """As `read_nwb`, from an open binary file that errors call `name`."""
    with opened(name, file) as nwb:
        return session_in(nwb, stem, **options)


def peek_from(file: BinaryIO, name: str, stem: str, **options: Any) -> Peek:
    """As `peek_nwb`, from an open binary file that errors call `name`."""
    with opened(name, file) as nwb:
        return peek_in(nwb, stem, **options)


# --- Session and Peek ------------------------------------------------------------------


def session_in(file: h5py.File, stem: str, **options: Any) -> Session:
    """The Session in an open NWB 2 file; `stem` is its id where the file has none."""
    p = plan(file, stem, **options)
    notes = p.notes
    intervals = read_all_intervals(p.groups, notes)
    times = p.clock.stamps(p.frames)
    trials = _trials(intervals, times, p.rate, notes)
    behavior = read_channels(p.groups, p.frames, p.clock, notes)
    traces = _read_planes(p)
    valid = missing(traces)
    if INVALID in intervals and len(intervals[INVALID]):
        valid = _without(intervals[INVALID], times, traces, valid, notes)
    regular = p.clock.times is None
    return Session(
        traces=traces,
        rate=p.rate,
        timestamps=None if regular and p.clock.start == 0 else times,
        valid=valid,
        trials=trials,
        intervals=intervals,
        behavior=behavior,
        neurons=_neurons(p, notes),
        unit=p.unit,
        animal=p.animal,
        session=p.session,
        notes=tuple(notes),
    )


def peek_in(file: h5py.File, stem: str, **options: Any) -> Peek:
    """What an open NWB 2 file holds."""
    p = plan(file, stem, **options)
    counts = count_intervals(p.groups)
    return Peek(
        session=p.session,
        animal=p.animal,
        unit=p.unit,
        neurons=sum(len(x.neurons) for x in p.planes),
        frames=p.frames,
        rate=p.rate,
        trials=counts.pop("trials", 0),
        behavior=tuple(name for name, _ in behavior_groups(p.groups)),
        intervals=counts,
        notes=tuple(p.notes),
    )


def _trials(
    intervals: dict[str, Intervals], times: np.ndarray, rate: float, notes: list[str]
) -> Trials:
    """Trials where the table is one of frame ranges; it leaves `intervals` if all of it is."""
    table = intervals.get("trials")
    made = None if table is None else trials_on_frames(table, times, rate, notes)
    if made is None:
        return Trials(np.zeros(0, int), np.zeros(0, int))
    if len(made) == len(table):
        del intervals["trials"]
    return made


def _read_planes(p: Plan) -> np.ndarray:
    """(T, N) float32: the traces of all planes, read into one array."""
    out = np.empty((p.frames, sum(len(x.neurons) for x in p.planes)), np.float32)
    first = 0
    for x in p.planes:
        data = get(x.series.group, "data")
        read_traces(
            data,
            f"{x.series.path}/data",
            transposed=x.transposed,
            keep=x.keep,
            scale=attribute_number(data, "conversion", 1.0),
            offset=attribute_number(data, "offset", 0.0),
            out=out[:, first : first + len(x.neurons)],
        )
        first += len(x.neurons)
    return out


def missing(traces: np.ndarray) -> np.ndarray | None:
    """The mask of NaN samples, which are set to 0 in place; None where there are none.

    Returns:
      valid (T,) where only whole frames are missing, else (T, N).
    """
    valid = None
    step = max(1, (1 << 22) // traces.shape[1])
    for a in range(0, traces.shape[0], step):
        bad = np.isnan(traces[a : a + step])
        if bad.any():
            if valid is None:
                valid = np.ones(traces.shape, bool)
            valid[a : a + step] = ~bad
            traces[a : a + step][bad] = 0
    if valid is None:
        return None
    first = valid[:, 0]
    whole = all(
        (valid[a : a + step] == first[a : a + step, None]).all()
        for a in range(0, traces.shape[0], step)
    )
    return first.copy() if whole else valid


def _without(
    table: Intervals,
    times: np.ndarray,
    traces: np.ndarray,
    valid: np.ndarray | None,
    notes: list[str],
) -> np.ndarray | None:
    """The mask with the frames of `invalid_times` taken out."""
    out = np.ones(times.size, bool) if valid is None else valid
    bad = np.zeros(times.size, bool)
    for start, stop in zip(table.start, table.stop):
        bad[np.searchsorted(times, start) : np.searchsorted(times, stop, "right")] = True
    if not bad.any():
        return valid
    out[bad] = False
    traces[bad] = 0
    notes.append(f"{INVALID}: {int(bad.sum())} frames are masked as missing")
    return out


def _neurons(p: Plan, notes: list[str]) -> NeuronTable:
    """One table of the neurons of all planes; ids get the name of their plane."""
    if len(p.planes) == 1:
        return p.planes[0].neurons
    names = [x.series.plane or x.series.path for x in p.planes]
    if len(set(names)) < len(names):
        names = [x.series.path for x in p.planes]
    ids = [f"{name}:{i}" for name, x in zip(names, p.planes) for i in x.neurons.id]
    columns: dict[str, np.ndarray] = {}
    for name in p.planes[0].neurons.columns:
        parts = [x.neurons.columns.get(name) for x in p.planes]
        if any(v is None or v.shape[1:] != parts[0].shape[1:] for v in parts):
            notes.append(f"neuron/{name}: not a column of every plane; left out")
        elif len({v.dtype.kind == "U" for v in parts}) == 1:
            columns[name] = np.concatenate(parts)
    columns.setdefault("plane", np.repeat(names, [len(x.neurons) for x in p.planes]))
    return NeuronTable(np.array(ids), columns)
