"""The stimulus tables of Brain Observatory files, as intervals.

A table lies in `stimulus/presentation/<name>_stimulus` and has one row per presentation:
`data` with `features` (gratings), with frame numbers of a movie or image set (-1 = blank),
or with +1 and -1 for the start and end of spontaneous activity; and `frame_duration` (R, 2),
the imaging frames at its start and end. Files without it have `timestamps` (R,), seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.hdf5 import children, get, read_array, text
from calm_jax.recordings.session import Intervals

PRESENTATION = "stimulus/presentation"
LONG = 3  # times the usual length: a row that runs on to the next block


def read_stimuli(
    file: h5py.File, times: np.ndarray, rate: float, notes: list[str]
) -> dict[str, Intervals]:
    """Every stimulus table: name -> Intervals in seconds, sorted by start.

    A row starts at the time of its first imaging frame and stops at that of the frame the
    file names as its end. Movies and images have the columns `frame` and `repeat` (number of
    times the frame was shown before), gratings those of the file.

    Args:
      times: (T,) seconds of the imaging frames. rate: Hz.
      notes: takes what was mended, one line each.

    Raises:
      RecordingError: naming the table.
    """
    out = {}
    for name, group in tables(file):
        made = _table(group, f"{PRESENTATION}/{name}_stimulus", name, times, rate, notes)
        if made is not None:
            out[name] = made
    return out


def tables(file: h5py.File) -> Iterator[tuple[str, h5py.Group]]:
    """Name (without `_stimulus`) and group of each table."""
    parent = get(file, PRESENTATION)
    if isinstance(parent, h5py.Group):
        for name, group in children(parent):
            if isinstance(group, h5py.Group):
                yield name.removesuffix("_stimulus"), group


def stimulus_counts(file: h5py.File) -> dict[str, int]:
    """Name -> rows of each table (for spontaneous activity: of its markers)."""
    out = {}
    for name, group in tables(file):
        data = get(group, "data")
        if isinstance(data, h5py.Dataset) and data.ndim:
            out[name] = int(data.shape[0])
    return out


def _table(
    group: h5py.Group,
    where: str,
    name: str,
    times: np.ndarray,
    rate: float,
    notes: list[str],
) -> Intervals | None:
    data = read_array(get(group, "data"), f"{where}/data", kinds="fiu")
    start, stop, usual = _edges(group, where, data.shape[0] if data.ndim else 0, times, rate)
    rows = min(data.shape[0], start.size)
    if rows != data.shape[0] or rows != start.size:
        notes.append(
            f"{name}: {data.shape[0]} rows, {start.size} times; the first {rows} are used"
        )
        data, start, stop = data[:rows], start[:rows], stop[:rows]
    events = data.ndim == 1 and rows and set(np.unique(data).tolist()) <= {-1, 1}
    if name.startswith("spontaneous") and events:
        first, last = np.flatnonzero(data == 1), np.flatnonzero(data == -1)
        if first.size != last.size or (stop[last] < start[first]).any():
            notes.append(f"{name}: starts and ends do not pair; left out")
            return None
        # Both markers name imaging frames in the first column.
        return Intervals(start[first], np.maximum(start[last], start[first]))
    columns = _columns(group, where, name, data)
    if columns is None:
        notes.append(f"{name}: a table of shape {data.shape} is not known; left out")
        return None
    # The order first, so that the length of a row is told from the row that follows.
    order = np.argsort(start, kind="stable")
    if (order != np.arange(rows)).any():
        notes.append(f"{name}: rows out of order were sorted by time")
    known = order[np.isfinite(start[order]) & np.isfinite(stop[order])]
    if known.size < rows:
        notes.append(f"{name}: {rows - known.size} rows lie outside the recording; left out")
    start, stop = start[known], stop[known]
    columns = {k: v[known] for k, v in columns.items()}
    if usual is None and rows:
        usual = float(np.median(stop - start)) if known.size else 0.0
    long = (stop - start) > LONG * max(usual or 0.0, 1.5 / rate)
    if long.any():
        notes.append(f"{name}: {int(long.sum())} rows that ran on were cut to the usual length")
        stop = np.where(long, start + (usual or 0.0), stop)
    backward = stop < start
    if backward.any():
        notes.append(f"{name}: {int(backward.sum())} rows ended before they started")
        stop = np.where(backward, start + (usual or 0.0), stop)
    if "frame" in columns:
        columns["repeat"] = _repeats(columns["frame"])
        frames = columns["frame"][columns["frame"] >= 0]
        if frames.size and np.unique(np.unique(frames, return_counts=True)[1]).size > 1:
            notes.append(f"{name}: some frames were shown more often than others")
    return Intervals(start, stop, columns)


def _edges(
    group: h5py.Group, where: str, rows: int, times: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Start and stop (s) of each row, NaN outside the recording; the usual length if known."""
    frames = get(group, "frame_duration")
    if frames is not None:
        pairs = read_array(frames, f"{where}/frame_duration", ndim=2, kinds="fiu")
        if pairs.shape[1] != 2:
            if pairs.size <= 1:
                raise RecordingError(
                    "the values were stripped from this file",
                    where=f"{where}/frame_duration",
                    found=f"shape {pairs.shape}",
                    expected="(rows, 2), imaging frames",
                    remedy="Download the whole file.",
                )
            raise RecordingError(
                "not pairs of imaging frames",
                where=f"{where}/frame_duration",
                found=f"shape {pairs.shape}",
                expected="(rows, 2)",
            )
        start, stop = _time_of(pairs[:, 0], times), _time_of(pairs[:, 1], times)
        # A row that ends after the last frame of the traces ends with the recording.
        end = times[-1] + 1.0 / rate
        stop = np.where(np.isnan(stop) & (pairs[:, 1] >= times.size), end, stop)
        return start, stop, None
    start = read_array(get(group, "timestamps"), f"{where}/timestamps", ndim=1, kinds="fiu")
    start = start.astype(np.float64)
    if start.size < 2:
        return start, start + 1.0 / rate, None
    order = np.argsort(start, kind="stable")
    usual = float(np.median(np.diff(start[order])))
    stop = np.full(start.size, np.nan)
    stop[order] = np.append(start[order][1:], start[order][-1] + usual)
    return start, stop, usual


def _time_of(frames: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Seconds of imaging frames, NaN for numbers that are none of the recording."""
    known = np.isfinite(frames) & (frames >= 0) & (frames < times.size)
    out = np.full(frames.shape, np.nan)
    out[known] = times[np.rint(frames[known]).astype(np.int64).clip(0, times.size - 1)]
    return out


def _columns(
    group: h5py.Group, where: str, name: str, data: np.ndarray
) -> dict[str, np.ndarray] | None:
    features = get(group, "features")
    if data.ndim == 2 and features is not None:
        names = read_array(features, f"{where}/features", ndim=1, kinds="U")
        if names.size != data.shape[1] or np.unique(names).size != names.size:
            raise RecordingError(
                "as many names as columns are needed",
                where=f"{where}/features",
                found=f"{names.size} names for shape {data.shape}",
            )
        return {
            text(n).strip().lower().replace(" ", "_").replace("/", "_"): data[:, i]
            for i, n in enumerate(names.tolist())
        }
    if data.ndim == 1 or (data.ndim == 2 and data.shape[1] == 1):
        values = data.reshape(-1)
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            raise RecordingError("frame numbers must be whole", where=f"{where}/data")
        return {"frame": values.astype(np.int64)}
    return None


def _repeats(frame: np.ndarray) -> np.ndarray:
    """(R,) int, how many times each row's frame was shown before."""
    order = np.argsort(frame, kind="stable")
    ordered = frame[order]
    first = np.searchsorted(ordered, ordered, side="left")
    out = np.empty(frame.size, np.int64)
    out[order] = np.arange(frame.size) - first
    return out
