"""Allen Brain Observatory, Visual Coding 2-photon: NWB 1.0 files, read with h5py.

    processing/brain_observatory_pipeline/
      DfOverF/imaging_plane_1/           data (N, T), timestamps (T,) s
      Fluorescence/imaging_plane_1/      and .._demixed_signal, .._neuropil_response
      ImageSegmentation/                 cell_specimen_ids, roi_ids (N,)
      BehavioralTimeSeries/running_speed EyeTracking/.., PupilTracking/..
    stimulus/presentation/               see `allen_stimuli.py`
    stimulus/templates/                  the movies and images, see `movie_template`
    general/                             session type, container, Cre line, area, depth

Faults that such files have are mended with a note: counts of frames that are off by a few,
rows out of order, last frames that run on to the next block.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.allen_stimuli import read_stimuli, stimulus_counts
from calm_jax.recordings.formats.hdf5 import (
    get,
    opened,
    read_array,
    read_rows,
    read_text,
    read_traces,
)
from calm_jax.recordings.formats.interchange import HDF5_MAGIC, magic
from calm_jax.recordings.formats.peek import Peek
from calm_jax.recordings.session import Channel, NeuronTable, Session

PIPELINE = "processing/brain_observatory_pipeline"
# Kind of traces -> where they lie, and the unit.
TRACES = {
    "dff": (("DfOverF/imaging_plane_1",), "dF/F"),
    "fluorescence": (("Fluorescence/imaging_plane_1",), "a.u."),
    "demixed": (("Fluorescence/imaging_plane_1_demixed_signal",), "a.u."),
    "neuropil": (("Fluorescence/imaging_plane_1_neuropil_response",), "a.u."),
}
OPTIONS = {"traces": "dff (default), fluorescence, demixed or neuropil"}
# Name of the channel -> where it lies, unit.
BEHAVIOR = {
    "running_speed": ("BehavioralTimeSeries/running_speed", "cm/s"),
    "pupil_location": ("EyeTracking/pupil_location", "cm"),
    "pupil_location_spherical": ("EyeTracking/pupil_location_spherical", "degrees"),
    "pupil_size": ("PupilTracking/pupil_size", "pixels"),
}
FEW = 8  # frames by which counts may be off


def recognises(path: str | Path) -> bool:
    """True for an NWB 1.0 file of the Brain Observatory."""
    path = Path(path)
    if not path.is_file() or magic(path) != HDF5_MAGIC:
        return False
    try:
        with opened(path) as file:
            version = read_text(file, "nwb_version")
            return version.startswith("NWB-1") and isinstance(get(file, PIPELINE), h5py.Group)
    except RecordingError:
        return False


def read_allen(path: str | Path, traces: str = "dff") -> Session:
    """Reads one session of the Brain Observatory.

    The neuron table has `cell_line` ("RORB IRES2 CRE"), `area`, `depth` (um), `container`
    and `roi`; a neuron's id is its cell specimen id, the same in all sessions of one
    container. Stimuli become intervals, running and pupil behaviour on their own clocks.

    Args:
      traces: one of `TRACES`.

    Raises:
      RecordingError: naming the file and the field.
    """
    path = Path(path)
    with opened(path) as file:
        notes: list[str] = []
        data, where, unit = _series(file, traces)
        times, transposed = _clock(file, data, where, notes)
        values = read_traces(data, where, transposed=transposed)[: times.size]
        valid = None
        missing = ~np.isfinite(values)
        if missing.any():
            valid = ~missing
            notes.append(f"{missing.mean():.2%} of the traces are NaN: marked as missing")
        del missing
        about = _about(file)
        rate = 1.0 / float(np.median(np.diff(times)))
        return Session(
            traces=values,
            timestamps=times,
            valid=valid,
            intervals=read_stimuli(file, times, rate, notes),
            behavior=_behavior(file, notes),
            neurons=_neurons(file, values.shape[1], about, notes),
            unit=unit,
            animal=about["animal"],
            session=about["session"] or path.stem,
            notes=(*_told(about), *notes),
        )


def peek_allen(path: str | Path, traces: str = "dff") -> Peek:
    """What `read_allen` would give, from headers and time stamps.

    Raises:
      RecordingError: naming the file and the field.
    """
    path = Path(path)
    with opened(path) as file:
        notes: list[str] = []
        data, where, unit = _series(file, traces)
        times, transposed = _clock(file, data, where, notes)
        about = _about(file)
        return Peek(
            session=about["session"] or path.stem,
            animal=about["animal"],
            unit=unit,
            neurons=data.shape[1] if transposed is False else data.shape[0],
            frames=times.size,
            rate=1.0 / float(np.median(np.diff(times))),
            behavior=tuple(
                n for n, (at, _) in BEHAVIOR.items() if get(file, f"{PIPELINE}/{at}/data")
            ),
            intervals=stimulus_counts(file),
            notes=(*_told(about), *notes),
        )


def movie_template(
    path: str | Path, name: str, frames: slice | None = None
) -> np.ndarray:
    """(frames, height, width) uint8, the images of a stimulus as they lie in the file.

    Args:
      name: of the stimulus, such as "natural_movie_one" or "natural_scenes".
      frames: some of them only; nothing else is read then.

    Raises:
      RecordingError: when the file has no such template; it lists those that it has.
    """
    with opened(path) as file:
        where = f"stimulus/templates/{name}_image_stack/data"
        data = get(file, where)
        if not isinstance(data, h5py.Dataset):
            group = get(file, "stimulus/templates")
            have = sorted(group) if isinstance(group, h5py.Group) else []
            raise RecordingError(
                f"no images of {name!r}",
                where=f"stimulus/templates/{name}_image_stack",
                found=", ".join(n.removesuffix("_image_stack") for n in have) or "none",
            )
        if frames is None:
            images = read_array(data, where, ndim=3)
        else:
            if data.ndim != 3 or data.dtype.kind not in "fiu":
                raise RecordingError("not images", where=where, found=f"shape {data.shape}")
            first, last, step = frames.indices(data.shape[0])
            images = read_rows(data, first, max(first, last))[::step]
        if images.dtype == np.uint8:
            return images
        low, high = images.min(initial=0), images.max(initial=0)
        if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 255):
            raise RecordingError("grey levels outside 0 to 255", where=where)
        return np.rint(images).astype(np.uint8)


def cell_line(genotype: str) -> str:
    """The Cre line of a genotype, as Table S3 of POYO-SSL writes it.

    "Rorb-IRES2-Cre/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/wt" -> "RORB IRES2 CRE".
    """
    driver = genotype.split(";")[0].split("/")[0]
    return " ".join(re.split(r"[-_\s]+", driver.strip())).upper()


def _series(file: h5py.File, traces: str) -> tuple[h5py.Dataset, str, str]:
    if traces not in TRACES:
        raise RecordingError(
            "unknown kind of traces", where="traces", found=repr(traces), expected=", ".join(TRACES)
        )
    places, unit = TRACES[traces]
    where = f"{PIPELINE}/{places[0]}/data"
    data = get(file, where)
    if not isinstance(data, h5py.Dataset):
        have = [
            k for k, (p, _) in TRACES.items() if get(file, f"{PIPELINE}/{p[0]}/data") is not None
        ]
        raise RecordingError(
            f"no traces of the kind {traces!r}",
            where=where,
            found=", ".join(have) or "none of " + ", ".join(TRACES),
            remedy="Choose one of these with --read traces=NAME." if have else None,
        )
    if data.ndim != 2 or data.dtype.kind not in "fiu":
        raise RecordingError(
            "traces must be a matrix of numbers",
            where=where,
            found=f"{data.dtype} of shape {data.shape}",
            expected="(neurons, frames)",
        )
    return data, where, unit


def _clock(
    file: h5py.File, data: h5py.Dataset, where: str, notes: list[str]
) -> tuple[np.ndarray, bool]:
    """The times of the frames that are used (s), and whether data is (N, T)."""
    group = where.removesuffix("/data")
    times = read_array(get(file, f"{group}/timestamps"), f"{group}/timestamps", ndim=1, kinds="fiu")
    times = times.astype(np.float64)
    told = _number(get(file, f"{group}/num_samples"))
    if times.size < 2 or max(data.shape) < 2:
        raise RecordingError(
            "the values were stripped from this file: there is nothing to read",
            where=where,
            found=f"traces of shape {data.shape}, {times.size} time stamps",
            expected="(neurons, frames)" + (f" with {told} frames" if told else ""),
            remedy="Download the whole file.",
        )
    off = [abs(n - times.size) for n in data.shape]
    if min(off) > FEW:
        raise RecordingError(
            "traces and time stamps do not fit",
            where=where,
            found=f"shape {data.shape} beside {times.size} time stamps",
            expected="(neurons, frames)",
        )
    transposed = off[1] <= FEW  # as these files are; else the frames lie on the first axis
    if not transposed:
        notes.append("the traces of the file are (frames, neurons)")
    frames = data.shape[1] if transposed else data.shape[0]
    if frames != times.size:
        notes.append(
            f"{frames} frames beside {times.size} time stamps: the last of the longer were left out"
        )
        times = times[:frames]
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise RecordingError(
            "time stamps must be finite and strictly increasing (seconds)",
            where=f"{group}/timestamps",
        )
    return times, transposed


def _number(data: Any) -> int | None:
    if isinstance(data, h5py.Dataset) and data.shape == () and data.dtype.kind in "iu":
        return int(read_array(data, data.name))
    return None


def _about(file: h5py.File) -> dict[str, str]:
    """Ids and descriptions, empty where the file has none."""
    first = lambda *paths: next((t for p in paths if (t := read_text(file, p))), "")  # noqa: E731
    genotype = first("general/subject/genotype", "general/specimen_name")
    plane = "general/optophysiology/imaging_plane_1"
    return {
        "animal": first("general/subject/subject_id", "general/specimen_name") or "unknown",
        "session": first("general/ophys_experiment_id", "general/session_id"),
        "container": first("general/experiment_container_id"),
        "session type": first("general/session_type"),
        "genotype": genotype,
        "line": cell_line(genotype),
        "area": first("general/targeted_structure", f"{plane}/location"),
        "depth": first(f"{plane}/imaging depth", f"{plane}/imaging_depth"),
        "age": first("general/subject/age"),
        "sex": first("general/subject/sex"),
        "indicator": first(f"{plane}/indicator"),
    }


def _told(about: dict[str, str]) -> list[str]:
    names = ("container", "session type", "genotype", "area", "depth", "age", "sex", "indicator")
    return [f"{name} {about[name]}" for name in names if about[name]]


def _neurons(
    file: h5py.File, count: int, about: dict[str, str], notes: list[str]
) -> NeuronTable:
    at = f"{PIPELINE}/ImageSegmentation"
    columns: dict[str, np.ndarray] = {}
    found = {}
    for name in ("cell_specimen_ids", "roi_ids"):
        data = get(file, f"{at}/{name}")
        if data is None:
            continue
        values = read_array(data, f"{at}/{name}", ndim=1, kinds="iuU")
        if values.size != count:
            notes.append(f"{name}: {values.size} of them for {count} traces; left out")
        else:
            found[name] = values.astype(str)
    ids = found.get("cell_specimen_ids", found.get("roi_ids", np.arange(count).astype(str)))
    if np.unique(ids).size != count:
        notes.append("cell specimen ids that repeat were numbered")
        seen: dict[str, int] = {}
        numbered = []
        for name in ids.tolist():
            k = seen[name] = seen.get(name, -1) + 1
            numbered.append(f"{name}#{k}" if k else name)
        ids = np.array(numbered)
        if np.unique(ids).size != count:
            ids = np.char.add(np.char.add(ids, "@"), np.arange(count).astype(str))
    if "roi_ids" in found:
        columns["roi"] = found["roi_ids"]
    for column, key in (("cell_line", "line"), ("area", "area"), ("container", "container")):
        if about[key]:
            columns[column] = np.full(count, about[key])
    depth = re.match(r"\s*(\d+(?:\.\d+)?)\s*(?:microns|um|$)", about["depth"])
    if depth:
        columns["depth"] = np.full(count, float(depth[1]), np.float32)
    return NeuronTable(ids, columns)


def _behavior(file: h5py.File, notes: list[str]) -> dict[str, Channel]:
    """Running and pupil on their own clocks; a channel that is no good is left out, and said so."""
    out = {}
    for name, (place, unit) in BEHAVIOR.items():
        at = f"{PIPELINE}/{place}"
        data, clock = get(file, f"{at}/data"), get(file, f"{at}/timestamps")
        if data is None:
            continue
        try:
            values = read_array(data, f"{at}/data", kinds="fiu").astype(np.float32)
            times = read_array(clock, f"{at}/timestamps", ndim=1, kinds="fiu").astype(np.float64)
            if values.ndim > 1 and abs(values.shape[0] - times.size) > FEW:
                values = values.T  # (dimensions, samples)
            if abs(values.shape[0] - times.size) > FEW:
                raise RecordingError(f"{values.shape[0]} samples, {times.size} time stamps")
            length = min(values.shape[0], times.size)
            known = np.isfinite(times[:length])
            out[name] = Channel(values[:length][known], times=times[:length][known], unit=unit)
        except RecordingError as e:
            notes.append(f"{name} was left out: {e}")
    return out
