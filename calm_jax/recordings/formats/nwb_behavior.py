"""Behaviour and intervals in NWB 2 files, each series on its own clock."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence

import h5py

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.hdf5 import attribute_number, attribute_text, get, read_array
from calm_jax.recordings.formats.nwb_series import Clock, Typed, read_clock
from calm_jax.recordings.formats.nwb_tables import read_intervals, table_rows
from calm_jax.recordings.session import Channel, Intervals

CHANNELS = ("TimeSeries", "SpatialSeries", "AnnotationSeries")  # and subtypes by name
ROOTS = ("/processing/", "/acquisition/")
UNKNOWN_UNITS = ("unknown", "n.a.", "n/a", "na", "none", "no unit", "arbitrary")
LARGEST = 1 << 30  # bytes of one channel; raw analogue signals are left out
# calm_jax's own files say in `comments` what NWB has no field for.
CATEGORICAL = "categorical"


def own_outputs(path: str) -> bool:
    """True for what calm_jax added to a file: predictions are not behaviour."""
    return path.startswith("/processing/calm_jax")


def behavior_groups(groups: Sequence[Typed]) -> list[tuple[str, Typed]]:
    """Name and group of each series that is a channel of behaviour.

    A channel has the name of its series, or its path where two series share the name.
    """
    wanted = [
        g
        for g in groups
        if g.path.startswith(ROOTS)
        and not own_outputs(g.path)
        and (g.type in CHANNELS or g.type.endswith("SpatialSeries"))
    ]
    return _named(wanted)


def interval_groups(groups: Sequence[Typed]) -> list[tuple[str, Typed]]:
    """Name and group of each table of intervals and each IntervalSeries."""
    return _named(
        [
            g
            for g in groups
            if (g.type.endswith("TimeIntervals") or g.type == "IntervalSeries")
            and not own_outputs(g.path)
        ]
    )


def _named(groups: Sequence[Typed]) -> list[tuple[str, Typed]]:
    counts = Counter(g.name for g in groups)
    out = []
    for g in groups:
        name = g.name
        if counts[name] > 1:
            name = ".".join(g.path.strip("/").split("/")[1:])
        out.append((name, g))
    return out


def read_channels(
    groups: Sequence[Typed], frames: int, clock: Clock, notes: list[str]
) -> dict[str, Channel]:
    """The behaviour of a file; what cannot be read as a channel is told in the notes.

    A channel sampled on the clock of the frames has no times of its own.
    """
    out = {}
    for name, g in behavior_groups(groups):
        where = g.path.lstrip("/")
        with _told(where, notes):
            out[name] = _channel(g, where, frames, clock)
    return out


def _channel(g: Typed, where: str, frames: int, clock: Clock) -> Channel:
    data = get(g.group, "data")
    values = read_array(data, f"{where}/data", kinds="fiubU", largest=LARGEST)
    if values.ndim == 0 or values.ndim > 2:
        raise RecordingError("not a channel of numbers", where=where, found=f"shape {values.shape}")
    own = read_clock(g.group, where, values.shape[0])
    if own is None:
        raise RecordingError("no rate and no time stamps", where=where)
    on_frames = values.shape[0] == frames and own.same(clock)
    kind = "continuous"
    if values.dtype.kind in "Ub" or attribute_text(g.group, "comments") == CATEGORICAL:
        kind = "categorical"
    elif values.dtype.kind in "fiu":
        scale = attribute_number(data, "conversion", 1.0)
        offset = attribute_number(data, "offset", 0.0)
        if (scale, offset) != (1.0, 0.0):
            values = values * scale + offset
    unit = attribute_text(data, "unit")
    return Channel(
        values,
        kind,
        times=None if on_frames else own.stamps(values.shape[0]),
        unit="" if unit.lower() in UNKNOWN_UNITS else unit,
    )


def read_all_intervals(groups: Sequence[Typed], notes: list[str]) -> dict[str, Intervals]:
    """Every table of intervals and every IntervalSeries, by name."""
    out = {}
    for name, g in interval_groups(groups):
        where = g.path.lstrip("/")
        with _told(where, notes):
            if g.type == "IntervalSeries":
                out[name] = _from_edges(g.group, where)
            else:
                out[name] = read_intervals(g.group, where, notes)
    return out


def count_intervals(groups: Sequence[Typed]) -> dict[str, int]:
    """Rows of each table of intervals, without reading them."""
    out = {}
    for name, g in interval_groups(groups):
        if g.type != "IntervalSeries":
            out[name] = table_rows(g.group, g.path.lstrip("/"))
        else:
            data = get(g.group, "data")
            out[name] = data.shape[0] // 2 if isinstance(data, h5py.Dataset) else 0
    return out


def _from_edges(group: h5py.Group, where: str) -> Intervals:
    """An IntervalSeries: at each time stamp an interval starts (> 0) or stops (< 0)."""
    edges = read_array(get(group, "data"), f"{where}/data", ndim=1)
    times = read_array(get(group, "timestamps"), f"{where}/timestamps", ndim=1)
    if edges.shape != times.shape or edges.size % 2:
        raise RecordingError(
            "interval edges and their times do not pair up",
            where=where,
            found=f"{edges.size} edges, {times.size} times",
        )
    if edges.dtype.kind not in "fi" or (edges[::2] <= 0).any() or (edges[1::2] >= 0).any():
        raise RecordingError(
            "interval edges must be starts (> 0) and stops (< 0) in turn", where=where
        )
    return Intervals(times[::2], times[1::2], {"value": edges[::2]})


@contextlib.contextmanager
def _told(where: str, notes: list[str]) -> Iterator[None]:
    """Turns an unusable part into a note: the traces beside it are still worth reading."""
    try:
        yield
    except RecordingError as e:
        text = str(e)
        notes.append(f"left out: {text if where in text else f'{where}: {text}'}")
