"""The traces in an NWB 2 file: which RoiResponseSeries, which way round, on which clock."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.hdf5 import (
    attribute_number,
    attribute_text,
    get,
    read_array,
    referenced,
    walk,
)

ORIENTATIONS = ("time,neurons", "neurons,time")
AXES = "axes: time, neurons"  # in `comments`, as `nwb_writer` writes: a square matrix is told
# Names that tools give to what is not the fluorescence of a cell; never read unasked.
KINDS = (
    ("spikes", re.compile(r"deconv|spks|spike|event", re.I)),
    ("neuropil", re.compile(r"neuropil|background|fneu", re.I)),
    ("denoised", re.compile(r"denois", re.I)),
    ("dF/F", re.compile(r"d(elta)?_?f_?(over)?_?f|dff|df/f|f_dff", re.I)),
)
MOVIES = ("TwoPhotonSeries", "OnePhotonSeries", "ImageSeries")


@dataclasses.dataclass(frozen=True, eq=False)
class Typed:
    """One group of the file with its `neurodata_type`."""

    path: str
    group: h5py.Group
    type: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One RoiResponseSeries.

    Attributes:
      path: in the file, without the leading "/".
      kind: "dF/F", "fluorescence", "denoised", "neuropil" or "spikes", by type and name of
        container and series.
      plane: name of the imaging plane, or of the ROI table where that is not told.
      container: name of the group it lies in; container_type: its neurodata_type.
    """

    path: str
    group: h5py.Group
    kind: str
    plane: str
    container: str
    container_type: str
    table: Any = None
    rois: Any = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        try:
            data = get(self.group, "data")
        except RecordingError:
            return None
        return data.shape if isinstance(data, h5py.Dataset) else None

    def __str__(self) -> str:
        return f"{self.path} {self.shape or 'without values in this file'}"


@dataclasses.dataclass(frozen=True, eq=False)
class Clock:
    """When samples were taken: `rate` (Hz) and `start` (s), or `times` (S,) in seconds."""

    rate: float | None
    start: float = 0.0
    times: np.ndarray | None = None

    def stamps(self, samples: int) -> np.ndarray:
        """(samples,) seconds."""
        if self.times is not None:
            return self.times
        return self.start + np.arange(samples) / self.rate

    def same(self, other: Clock) -> bool:
        if (self.times is None) != (other.times is None):
            return False
        if self.times is not None:
            return np.array_equal(self.times, other.times)
        return (self.rate, self.start) == (other.rate, other.start)


def typed_groups(file: h5py.File, external: list[str]) -> list[Typed]:
    """All groups with a `neurodata_type`, in the order of the file; each once."""
    out = []
    for path, item in walk(file, external=external, skip=("/specifications",)):
        if isinstance(item, h5py.Group):
            kind = attribute_text(item, "neurodata_type")
            if kind:
                out.append(Typed(path, item, kind))
    return out


def find_series(groups: Sequence[Typed], external: Sequence[str] = ()) -> list[Series]:
    """Every RoiResponseSeries and subtype, wherever it lies.

    Raises:
      RecordingError: where there is none; it says what the file holds instead.
    """
    types = {g.path: g.type for g in groups}
    found = []
    for g in groups:
        if not g.type.endswith("RoiResponseSeries"):
            continue
        parent = g.path.rpartition("/")[0]
        container, container_type = parent.rpartition("/")[2], types.get(parent, "")
        rois = _quietly(g.group, "rois")
        table = referenced(rois, "table") if rois is not None else None
        plane = _quietly(table, "imaging_plane") if isinstance(table, h5py.Group) else None
        named = plane if plane is not None else table
        found.append(
            Series(
                path=g.path.lstrip("/"),
                group=g.group,
                kind=_kind(g.name, container, container_type),
                plane=(named.name or "").rpartition("/")[2] if named is not None else "",
                container=container,
                container_type=container_type,
                table=table,
                rois=rois,
            )
        )
    if not found:
        held = [f"{g.path.lstrip('/')} ({g.type})" for g in groups if g.type in MOVIES]
        if not held:
            kinds = sorted({g.type for g in groups if g.type.endswith("Series")})
            held = kinds or ["no series at all"]
        held += [f"{p.lstrip('/')} (a link to another file, not followed)" for p in external]
        movie = any(g.type in MOVIES[:2] for g in groups)
        raise RecordingError(
            "no RoiResponseSeries",
            found=", ".join(held[:8]),
            expected="traces of cells: a RoiResponseSeries, as in DfOverF or Fluorescence",
            remedy="Extract the cells of the movie first, for example with Suite2p or CaImAn."
            if movie
            else None,
        )
    return found


def _kind(name: str, container: str, container_type: str) -> str:
    for kind, pattern in KINDS:
        if pattern.search(name) or pattern.search(container):
            return kind
    return "dF/F" if container_type == "DfOverF" else "fluorescence"


def _quietly(group: Any, name: str) -> Any:
    try:
        return get(group, name)
    except RecordingError:
        return None


# --- which ------------------------------------------------------------------------


def choose(found: Sequence[Series], series: Any, planes: Any, notes: list[str]) -> list[Series]:
    """The series to read: one, or one of each imaging plane.

    Without `series`, dF/F goes before fluorescence, with a note; neuropil, spikes and
    denoised traces are only read when they are named.

    Raises:
      RecordingError: when it is not clear which; it lists them all with their shapes.
    """
    listed = "; ".join(map(str, found))
    pick = "Name one: series=NAME or its path (--read series=... on the command line)."
    if series is not None:
        taken = _named(found, str(series).strip("/"))
        if not taken:
            raise RecordingError(
                f"no series {str(series)!r}", where="series", found=listed, remedy=pick
            )
    else:
        taken = [s for s in found if s.kind == "dF/F"]
        others = [s for s in found if s.kind == "fluorescence"]
        taken = taken or others
        if not taken:
            raise RecordingError(
                "neither dF/F nor fluorescence: other traces are not read unasked",
                found="; ".join(f"{s} ({s.kind})" for s in found),
                remedy=pick,
            )
        left = [f"{s.path} ({s.kind})" for s in found if s not in taken]
        if left:
            notes.append(
                f"{taken[0].path} was read and not {', '.join(left)} (series= names another)"
            )
    if planes is not None:
        taken = _of_planes(taken, planes)
    tables = {s.table.name if s.table is not None else "" for s in taken}
    if len(taken) > 1 and len(tables) < len(taken):
        raise RecordingError(
            "several series, and it is not clear which to read",
            where="series",
            found="; ".join(map(str, taken)),
            remedy=pick,
        )
    return taken


def _named(found: Sequence[Series], name: str) -> list[Series]:
    """The series with this path, else name, else in a container of this name or type."""
    for matches in (
        lambda s: s.path == name,
        lambda s: s.path.rpartition("/")[2] == name,
        lambda s: name in (s.container, s.path.rpartition("/")[0]),
        lambda s: s.container_type == name,
    ):
        taken = [s for s in found if matches(s)]
        if taken:
            return taken
    return []


def _of_planes(taken: list[Series], planes: Any) -> list[Series]:
    names = planes if isinstance(planes, list | tuple) else str(planes).split(",")
    out = []
    for name in [str(n).strip() for n in names]:
        match = [s for s in taken if name in (s.plane, s.path, s.path.rpartition("/")[2])]
        if not match and name.isdigit() and int(name) < len(taken):
            match = [taken[int(name)]]
        if not match:
            raise RecordingError(
                f"no plane {name!r}",
                where="planes",
                expected=", ".join(f"{i} ({s.plane or s.path})" for i, s in enumerate(taken)),
            )
        out += [s for s in match if s not in out]
    return out


# --- which way round, and when ------------------------------------------------------


def is_transposed(series: Series, orientation: Any, neurons: int | None) -> bool:
    """True where the values are (neurons, time), against the standard.

    Args:
      orientation: what the user says, or None.
      neurons: length of `rois`, or None where there is none.

    Raises:
      RecordingError: when it cannot be told, or no axis has that many neurons.
    """
    where = f"{series.path}/data"
    said = None
    if orientation is not None:
        words = orientation if isinstance(orientation, str) else ",".join(map(str, orientation))
        said = re.sub(r"[\s()\[\]]", "", words.lower())
        if said not in ORIENTATIONS:
            raise RecordingError(
                "unknown orientation",
                where="orientation",
                found=repr(orientation),
                expected=" or ".join(repr(o) for o in ORIENTATIONS),
            )
    shape = series.shape
    if shape is None or len(shape) not in (1, 2):
        raise RecordingError(
            "not a matrix of traces",
            where=where,
            found=f"shape {shape}" if shape is not None else "no values in this file",
            expected="(time, neurons)",
        )
    if len(shape) == 1:
        if neurons not in (None, 1):
            raise RecordingError(
                "one trace for several neurons",
                where=where,
                found=f"shape {shape} and {neurons} rois",
                expected="(time, neurons)",
            )
        return False
    stamps = _quietly(series.group, "timestamps")
    frames = stamps.shape[0] if isinstance(stamps, h5py.Dataset) and stamps.ndim == 1 else None
    fits = {
        o: (neurons is None or shape[1 - i] == neurons) and (frames is None or shape[i] == frames)
        for i, o in enumerate(ORIENTATIONS)
    }
    if said is not None:
        if not fits[said]:
            raise _no_fit(where, shape, neurons, frames, f"orientation={said!r}")
        return said == ORIENTATIONS[1]
    if not any(fits.values()):
        raise _no_fit(where, shape, neurons, frames, "shape")
    if all(fits.values()):
        if attribute_text(series.group, "comments") == AXES:
            return False
        reason = f"as many frames as neurons ({neurons})" if neurons else "no rois, no timestamps"
        raise RecordingError(
            f"it cannot be told which axis is time: {reason}",
            where=where,
            found=f"shape {shape}",
            expected="an answer: orientation='time,neurons' or orientation='neurons,time'",
        )
    return fits[ORIENTATIONS[1]]


def _no_fit(
    where: str, shape: tuple, neurons: int | None, frames: int | None, what: str
) -> RecordingError:
    beside = [f"{neurons} rois"] if neurons is not None else []
    beside += [f"{frames} timestamps"] if frames is not None else []
    return RecordingError(
        f"the {what} does not fit what stands beside it",
        where=where,
        found=f"shape {shape} and {' and '.join(beside)}",
        expected="(time, neurons), with one roi per neuron and one time stamp per frame",
    )


def read_clock(group: h5py.Group, path: str, samples: int) -> Clock | None:
    """The clock of a TimeSeries with so many samples; None where it has none.

    Raises:
      RecordingError: for time stamps that do not fit, are not finite or do not increase.
    """
    stamps = get(group, "timestamps")
    if stamps is not None:
        where = f"{path}/timestamps"
        times = read_array(stamps, where, ndim=1, kinds="fiu").astype(np.float64)
        if times.size != samples:
            raise RecordingError(
                "as many time stamps as samples are needed",
                where=where,
                found=f"{times.size} time stamps",
                expected=samples,
            )
        step = np.diff(times)
        bad = np.flatnonzero(~(step > 0)) + 1 if times.size > 1 else np.zeros(0, int)
        if not np.isfinite(times).all():
            bad = np.flatnonzero(~np.isfinite(times))
        if bad.size:
            i = int(bad[0])
            raise RecordingError(
                "time stamps must be finite and strictly increasing (seconds)",
                where=where,
                found=f"{times[i]} s at {i}, after {times[max(i - 1, 0)]} s; {bad.size} in all",
            )
        return Clock(None, times=times)
    start = get(group, "starting_time")
    if not isinstance(start, h5py.Dataset):
        return None
    rate = attribute_number(start, "rate")
    first = read_array(start, f"{path}/starting_time").reshape(-1)
    if rate is None or rate <= 0 or not first.size or not np.isfinite(first[0]):
        raise RecordingError(
            "the frame rate must be positive",
            where=f"{path}/starting_time",
            found=f"{first[:1].tolist()} s at {rate} Hz",
        )
    return Clock(rate, float(first[0]))
