"""What to read of an NWB 2 file, decided from its headers, tables and clocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.hdf5 import attribute_text, get, read_array, read_text
from calm_jax.recordings.formats.nwb_series import (
    Clock,
    Series,
    Typed,
    choose,
    find_series,
    is_transposed,
    read_clock,
    typed_groups,
)
from calm_jax.recordings.formats.nwb_tables import plain_id, read_rois
from calm_jax.recordings.session import NeuronTable


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """One series to read: which way round, which neurons, when."""

    series: Series
    transposed: bool
    neurons: NeuronTable
    keep: np.ndarray
    clock: Clock
    frames: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What to read; `rate` in Hz, ids and unit as in the Session."""

    groups: list[Typed]
    planes: list[Plane]
    rate: float
    unit: str
    animal: str
    session: str
    notes: list[str]

    @property
    def frames(self) -> int:
        return self.planes[0].frames

    @property
    def clock(self) -> Clock:
        return self.planes[0].clock


def plan(
    file: h5py.File,
    stem: str,
    *,
    series: Any = None,
    orientation: Any = None,
    accepted: bool = True,
    planes: Any = None,
    rate: float | None = None,
) -> Plan:
    """What to read of a file, from its headers, tables and clocks."""
    version = attribute_text(file, "nwb_version")
    if not version.startswith("2"):
        raise RecordingError(
            "not an NWB 2 file", where="nwb_version", found=version or "nothing", expected="2.x"
        )
    if not isinstance(accepted, bool):
        raise RecordingError("not true or false", where="accepted", found=repr(accepted))
    notes = [t for t in read_text(file, "general/notes").splitlines() if t.strip()]
    external: list[str] = []
    groups = typed_groups(file, external)
    if external:
        notes.append(f"links to other files are not followed: {', '.join(external[:5])}")
    chosen = choose(find_series(groups, external), series, planes, notes)
    made = [_plane(s, groups, orientation, accepted, rate, notes) for s in chosen]
    _same_clocks(made, notes)
    clock, frames = made[0].clock, made[0].frames
    hz = clock.rate
    if clock.times is not None and frames > 1:
        hz = float(1.0 / np.median(np.diff(clock.times)))
    if clock.times is not None and frames == 1:
        raise RecordingError("one frame with a time stamp has no rate", where=chosen[0].path)
    identity = read_text(file, "general/session_id") or read_text(file, "identifier")
    return Plan(
        groups=groups,
        planes=made,
        rate=hz,
        unit=_unit(chosen[0]),
        animal=_id(read_text(file, "general/subject/subject_id"), "unknown", "animal", notes),
        session=_id(identity, stem, "session", notes),
        notes=notes,
    )


def _plane(
    series: Series,
    groups: list[Typed],
    orientation: Any,
    accepted: bool,
    rate: float | None,
    notes: list[str],
) -> Plane:
    rois, table = series.rois, series.table
    if rois is not None and not (isinstance(rois, h5py.Dataset) and rois.ndim == 1):
        raise RecordingError("not a list of rows", where=f"{series.path}/rois")
    if table is None:
        tables = [g.group for g in groups if g.type.endswith("PlaneSegmentation")]
        table = tables[0] if len(tables) == 1 and rois is not None else None
    neurons = None if rois is None else rois.shape[0]
    transposed = is_transposed(series, orientation, neurons)
    shape = series.shape if len(series.shape) == 2 else (series.shape[0], 1)
    frames, neurons = shape[::-1] if transposed else shape
    if transposed:
        notes.append(f"{series.path}: stored as (neurons, time), read as (time, neurons)")
    if not frames or not neurons:
        raise RecordingError("no values", where=f"{series.path}/data", found=f"shape {shape}")
    clock = read_clock(series.group, series.path, frames)
    if clock is None:
        clock = _other_rate(series, rate, notes)
    elif rate is not None:
        raise RecordingError(
            "the file has its own clock", where="rate", found=f"rate={rate}",
            remedy="Leave the option out.",
        )  # fmt: skip
    rows, keep = read_rois(table, rois, series.path, neurons, accepted, notes)
    return Plane(series, transposed, rows, keep, clock, frames)


def _other_rate(series: Series, rate: float | None, notes: list[str]) -> Clock:
    """The clock of a series without one: as the user says, else that of the imaging plane."""
    if rate is None and isinstance(series.table, h5py.Group):
        data = get(series.table, "imaging_plane/imaging_rate")
        if isinstance(data, h5py.Dataset):
            rate = float(read_array(data, "imaging_rate", kinds="fiu").reshape(-1)[0])
            notes.append(f"{series.path}: no clock; the rate is that of its imaging plane")
    good = isinstance(rate, int | float) and np.isfinite(rate) and rate > 0
    if not good:
        raise RecordingError(
            "no frame rate" if rate is None else "the frame rate must be positive",
            where=series.path,
            found="neither starting_time with a rate nor timestamps" if rate is None else rate,
            remedy="Give it: rate=... (Hz).",
        )
    return Clock(float(rate))


def _same_clocks(planes: list[Plane], notes: list[str]) -> None:
    """Refuses planes that were not imaged frame by frame together.

    Raises:
      RecordingError: for other lengths, other rates, or a shift of a frame and more.
    """
    first = planes[0]
    if len(planes) > 1:
        names = ", ".join(p.series.plane or p.series.path for p in planes)
        notes.append(f"{len(planes)} imaging planes were put side by side: {names}")
    for p in planes[1:]:
        expected = f"as in {first.series.path}"
        remedy = "Read one plane at a time: planes=NAME."
        if p.frames != first.frames:
            raise RecordingError(
                "planes of different lengths", where=p.series.path,
                found=f"{p.frames} frames", expected=f"{first.frames}, {expected}", remedy=remedy,
            )  # fmt: skip
        shift = p.clock.stamps(p.frames) - first.clock.stamps(first.frames)
        steps = np.diff(first.clock.stamps(first.frames))
        period = float(np.median(steps)) if steps.size else 1.0 / (first.clock.rate or 1.0)
        largest = float(np.abs(shift).max())
        if largest >= period:
            raise RecordingError(
                "planes on different clocks", where=p.series.path,
                found=f"up to {largest:.6g} s apart", expected=expected, remedy=remedy,
            )  # fmt: skip
        if largest > 1e-6 * period:
            notes.append(
                f"{p.series.path}: imaged up to {largest:.3g} s beside {first.series.path}; "
                "its samples are put on the clock of the latter"
            )


def _unit(series: Series) -> str:
    data = get(series.group, "data")
    unit = attribute_text(data, "unit").strip("\0")
    if unit.strip().lower() in ("", "n.a.", "n/a", "na", "unknown", "none"):
        return "dF/F" if series.kind == "dF/F" else "a.u."
    if series.kind == "dF/F" and unit.strip().lower() in ("a.u.", "lumens", "normed"):
        return "dF/F"
    return unit


def _id(value: str, default: str, what: str, notes: list[str]) -> str:
    out, changed = plain_id(value)
    if changed and out:
        notes.append(f"{what}: {out!r} stands for {value!r}")
    return out or default
