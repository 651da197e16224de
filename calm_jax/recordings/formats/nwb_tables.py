"""Tables of NWB 2 files: ROIs, trials and other intervals."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.hdf5 import attribute_text, get, read_array
from calm_jax.recordings.session import Intervals, NeuronTable, Trials

WIDEST = 16  # values of one row of a column
ACCEPTED = ("accepted", "iscell", "is_cell")
REJECTED = ("rejected",)
IDS = "neuron_id"  # text ids, as `nwb_writer` writes them; NWB's own are whole numbers
MASKS = ("image_mask", "pixel_mask", "voxel_mask")


def table_columns(
    group: h5py.Group, where: str, notes: list[str], skip: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """The columns of a DynamicTable that have one number, text or short vector a row.

    Others (lists of variable length, references, images) are passed over with a note.

    Raises:
      RecordingError: for a column that cannot be read, or of another length.
    """
    rows = table_rows(group, where)
    out, left = {}, []
    for name in _column_names(group):
        if name in skip:
            continue
        data = get(group, name)
        if not isinstance(data, h5py.Dataset):
            left.append(f"{name} (absent)")
            continue
        kind = attribute_text(data, "neurodata_type")
        text = h5py.check_string_dtype(data.dtype) is not None
        index = get(group, f"{name}_index")
        if index is not None and attribute_text(index, "neurodata_type") == "VectorIndex":
            left.append(f"{name} (lists)")
        elif kind == "DynamicTableRegion" or (data.dtype.hasobject and not text):
            left.append(f"{name} (references)")
        elif not text and data.dtype.kind not in "fiub":
            left.append(f"{name} (records)")
        elif data.ndim > 2 or (data.ndim == 2 and data.shape[1] > WIDEST):
            left.append(f"{name} (shape {data.shape})")
        else:
            values = read_array(data, f"{where}/{name}", kinds="fiubU")
            if values.ndim == 0 or values.shape[0] != rows:
                raise RecordingError(
                    "column of the wrong length",
                    where=f"{where}/{name}",
                    found=f"shape {values.shape}",
                    expected=f"{rows} rows",
                )
            out[name] = values
    if left:
        notes.append(f"{where}: columns left out: {', '.join(left)}")
    return out


def table_rows(group: h5py.Group, where: str) -> int:
    """The number of rows of a DynamicTable, from its `id`."""
    ids = get(group, "id")
    if not isinstance(ids, h5py.Dataset) or ids.ndim != 1:
        raise RecordingError("a table without ids", where=where, expected="id, one per row")
    return int(ids.shape[0])


def _column_names(group: h5py.Group) -> list[str]:
    names = group.attrs.get("colnames")
    if names is None or not np.size(names):  # hdmf writes none for a table without rows
        return [n for n in group if isinstance(n, str) and n != "id" and not n.endswith("_index")]
    return [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n)
            for n in np.atleast_1d(names)]  # fmt: skip


# --- ROIs -------------------------------------------------------------------------


def read_rois(
    table: Any, rois: Any, where: str, neurons: int, accepted: bool, notes: list[str]
) -> tuple[NeuronTable, np.ndarray]:
    """The neurons of a series and which of them are kept.

    Args:
      table: PlaneSegmentation, or None.
      rois: the DynamicTableRegion of the series, or None.
      where: of the series.
      neurons: of the traces.
      accepted: drop the ROIs that the table marks as rejected.

    Returns:
      the table of the kept neurons, and keep (neurons,) bool.

    Raises:
      RecordingError: when rois points outside the table, or every ROI is rejected.
    """
    rows = np.arange(neurons)
    if isinstance(rois, h5py.Dataset):
        rows = read_array(rois, f"{where}/rois", ndim=1, kinds="iu").astype(np.int64)
    if not isinstance(table, h5py.Group):
        notes.append(f"{where}: no ROI table; neurons are numbered")
        return NeuronTable(np.arange(neurons).astype(str)), np.ones(neurons, bool)
    place = (table.name or "").lstrip("/")
    total = table_rows(table, place)
    if rows.size and (rows.min() < 0 or rows.max() >= total):
        raise RecordingError(
            "rois points outside its table",
            where=f"{where}/rois",
            found=f"row {int(rows.max() if rows.max() >= total else rows.min())}",
            expected=f"0 to {total - 1} of {place}",
        )
    columns = table_columns(table, place, notes, skip=MASKS)
    columns = {k: v[rows] for k, v in columns.items()}
    ids = read_array(get(table, "id"), f"{place}/id", kinds="iuU").astype(str)[rows]
    named = columns.get(IDS)
    if named is not None and named.dtype.kind == "U" and np.unique(named).size == neurons:
        ids = columns.pop(IDS)
    if np.unique(ids).size != ids.size:
        notes.append(f"{place}/id: not unique; neurons are numbered by their row")
        ids = rows.astype(str) if np.unique(rows).size == rows.size else np.arange(neurons)
    keep = np.ones(neurons, bool)
    if accepted:
        keep = _accepted(columns, place, notes)
        keep = np.ones(neurons, bool) if keep is None else keep
        if not keep.any():
            raise RecordingError(
                "every ROI is marked as rejected",
                where=place,
                found=f"{neurons} ROIs",
                remedy="accepted=false reads them all.",
            )
        if not keep.all():
            notes.append(
                f"{neurons - int(keep.sum())} of {neurons} ROIs are marked as rejected and were "
                "left out (accepted=false keeps them)"
            )
    return NeuronTable(ids, columns).take(keep), keep


def _accepted(columns: dict[str, np.ndarray], where: str, notes: list[str]) -> np.ndarray | None:
    """(N,) bool from the first column of flags; None where there is none."""
    for name, values in columns.items():
        flags = values[:, 0] if values.ndim == 2 and values.shape[1] else values
        good, bad = name.lower() in ACCEPTED, name.lower() in REJECTED
        if not (good or bad) or flags.ndim != 1:
            continue
        if flags.dtype.kind not in "fiub" or not np.isin(flags, (0, 1)).all():
            notes.append(f"{where}/{name}: not flags of 0 and 1; no ROI was left out by it")
            continue
        return flags.astype(bool) if good else ~flags.astype(bool)
    return None


# --- intervals ----------------------------------------------------------------------


def read_intervals(group: h5py.Group, where: str, notes: list[str]) -> Intervals:
    """A TimeIntervals table; rows without finite start and stop are left out with a note.

    Raises:
      RecordingError: without start_time and stop_time.
    """
    edges = []
    for name in ("start_time", "stop_time"):
        data = get(group, name)
        edges.append(read_array(data, f"{where}/{name}", ndim=1).astype(np.float64))
    start, stop = edges
    if start.shape != stop.shape:
        raise RecordingError(
            "as many stops as starts are needed", where=where, found=stop.size, expected=start.size
        )
    skip = ("start_time", "stop_time", "timeseries", "tags")
    columns = table_columns(group, where, notes, skip)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(start) & np.isfinite(stop) & (stop >= start)
    if not good.all():
        notes.append(
            f"{where}: {int((~good).sum())} of {good.size} rows have no finite start and stop "
            "and were left out"
        )
    for name, values in columns.items():
        if values.shape[0] != start.size:
            raise RecordingError(
                "column of the wrong length", where=f"{where}/{name}", expected=start.size
            )
    return Intervals(start[good], stop[good], {k: v[good] for k, v in columns.items()})


def trials_on_frames(
    table: Intervals, times: np.ndarray, rate: float, notes: list[str]
) -> Trials | None:
    """Trials in seconds as frame ranges; None, with a note, where they are none.

    A frame belongs to a trial that holds its time; a thousandth of a frame is allowed for
    rounding. Trials that are not wholly within the recording are left out with a note.

    Args:
      times: (T,) seconds. rate: Hz.
    """
    if not len(table):
        return None
    period = 1.0 / rate
    order = np.argsort(table.start, kind="stable")
    begin, end = table.start[order], table.stop[order]
    start = np.searchsorted(times, begin - 1e-3 * period)
    stop = np.searchsorted(times, end - 1e-3 * period)
    inside = (begin > times[0] - 1.01 * period) & (end < times[-1] + 2.01 * period)
    good = inside & (stop > start)
    order, start, stop = order[good], start[good], stop[good]
    if not good.any():
        notes.append("no trial lies within the recording: they are kept as intervals")
        return None
    if (start[1:] < stop[:-1]).any():
        notes.append("trials overlap: they are kept as intervals, not as trials")
        return None
    if not good.all():
        notes.append(
            f"{int((~good).sum())} of {good.size} trials hold no frame or lie outside the "
            "recording: all are kept as intervals, the others as trials"
        )
    return Trials(start, stop, {k: v[order] for k, v in table.columns.items()})


def plain_id(value: str) -> tuple[str, bool]:
    """An id without path separators and control characters; True where it was changed."""
    out = re.sub(r"[/\\\x00-\x1f\x7f]+", "_", value)
    return (out if out.strip() else ""), out != value
