"""CaImAn's HDF5 files (`cnmf.save`): components, their traces and their quality.

    estimates/   F_dff, C, YrA, S  (components, frames)
                 A                 sparse footprints: data, indices, indptr, shape (pixels, N)
                 idx_components    accepted components; SNR_comp, r_values, cnn_preds
    params/data/ fr (Hz), dims (pixels)

What CaImAn does not have it writes as the text "NoneType" in place of an array.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.hdf5 import (
    DAMAGE,
    check_size,
    get,
    opened,
    read_array,
    read_traces,
)
from calm_jax.recordings.formats.interchange import HDF5_MAGIC, magic
from calm_jax.recordings.formats.peek import Peek
from calm_jax.recordings.missing import mark_missing
from calm_jax.recordings.session import NeuronTable, Session

TRACES = ("dff", "raw", "C", "S")
OPTIONS = {
    "traces": "dff (F_dff), raw (C + YrA), C (denoised) or S (deconvolved); default the first "
    "of dff, raw and C that the file holds",
    "accepted": "true (default): only idx_components; false: all components",
    "rate": "frames per second (Hz); needed where params/data/fr does not tell it",
}
_QUALITY = {"SNR_comp": "snr", "r_values": "r_value", "cnn_preds": "cnn_prediction"}
_BLOCK = 1 << 22  # samples worked on at a time


def recognises(path: str | Path) -> bool:
    """True for an HDF5 file with CaImAn's estimates; never raises."""
    path = Path(path)
    if not path.is_file() or magic(path) != HDF5_MAGIC:
        return False
    try:
        with opened(path) as file:
            estimates = get(file, "estimates")
            return isinstance(estimates, h5py.Group) and any(
                get(estimates, name) is not None for name in ("C", "F_dff", "A")
            )
    except (RecordingError, *DAMAGE):
        return False


def read_caiman(
    path: str | Path,
    *,
    traces: str | None = None,
    accepted: bool = True,
    rate: float | None = None,
) -> Session:
    """Reads a CaImAn file; the options are those of `OPTIONS`.

    The neuron table has `accepted`, and where the file tells them `snr`, `r_value`,
    `cnn_prediction` and the centre of mass `x`, `y` (and `z`) in pixels. Ids are the numbers
    of the components. NaN is missing. Memory: the traces once, and blocks of them.

    Raises:
      RecordingError: naming the file and the field.
    """
    path = Path(path)
    with opened(path) as file:
        plan = _plan(file, traces, accepted, rate)
        values = read_traces(plan.first, plan.first.name, transposed=True, keep=plan.keep)
        if plan.kind == "raw":
            _add(values, _matrix(plan.estimates, "YrA", plan.first.shape), plan.keep)
        valid = mark_missing(values)
        columns: dict[str, np.ndarray] = {"accepted": plan.good[plan.keep]}
        more = _quality(plan.estimates, plan.keep.size) | _places(file, plan.keep.size)
        columns |= {name: column[plan.keep] for name, column in more.items()}
        return Session(
            traces=values,
            rate=plan.rate,
            valid=valid,
            neurons=NeuronTable(np.flatnonzero(plan.keep).astype(str), columns),
            unit=plan.unit,
            session=path.stem,
            notes=tuple(plan.notes),
        )


def peek_caiman(path: str | Path, **options: Any) -> Peek:
    """What a CaImAn file holds, without its traces and footprints; options as `read_caiman`.

    Raises:
      RecordingError: naming the file and the field.
    """
    path = Path(path)
    with opened(path) as file:
        plan = _plan(file, **options)
        return Peek(
            session=path.stem,
            animal="unknown",
            unit=plan.unit,
            neurons=int(plan.keep.sum()),
            frames=int(plan.first.shape[1]),
            rate=plan.rate,
            notes=tuple(plan.notes),
        )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is read: `first` is F_dff, C or S; `good` and `keep` are (components,) bool."""

    estimates: h5py.Group
    kind: str
    first: h5py.Dataset
    rate: float
    good: np.ndarray
    keep: np.ndarray
    notes: list[str]

    @property
    def unit(self) -> str:
        return {"dff": "dF/F", "S": "deconvolved (a.u.)"}.get(self.kind, "fluorescence (a.u.)")


def _plan(
    file: h5py.File, traces: str | None = None, accepted: bool = True, rate: float | None = None
) -> _Plan:
    if traces not in (None, *TRACES):
        raise RecordingError(
            "no such traces", where="option traces", found=repr(traces), expected=", ".join(TRACES)
        )
    if not isinstance(accepted, bool):
        raise RecordingError(
            "neither true nor false", where="option accepted", found=repr(accepted)
        )
    estimates = get(file, "estimates")
    if not isinstance(estimates, h5py.Group):
        raise RecordingError("no CaImAn file", expected="the group estimates")
    notes: list[str] = []
    kind = _kind(estimates, traces, notes)
    first = _matrix(estimates, {"dff": "F_dff", "raw": "C"}.get(kind, kind))
    components = first.shape[0]
    hz = _rate(file, rate, notes)
    good = _accepted(estimates, components, notes)
    keep = good if accepted else np.ones(components, bool)
    if not keep.any():
        raise RecordingError(
            "no accepted component",
            where="estimates/idx_components",
            remedy="Give accepted=false to read all components.",
        )
    if not keep.all():
        notes.append(
            f"{int((~keep).sum())} of {components} components are not accepted and left "
            "out; accepted=false keeps them"
        )
    return _Plan(estimates, kind, first, hz, good, keep, notes)


def _data(group: Any, name: str) -> h5py.Dataset | None:
    """A data set with at least one axis; None for what is absent or a placeholder."""
    found = get(group, name)
    if not isinstance(found, h5py.Dataset) or not found.shape:
        return None
    return found


def _kind(estimates: h5py.Group, asked: str | None, notes: list[str]) -> str:
    """What to read; each says what it is, and C alone says so loudly."""
    have = {n for n in ("F_dff", "C", "YrA", "S") if _data(estimates, n) is not None}
    needs = {"dff": {"F_dff"}, "raw": {"C", "YrA"}, "C": {"C"}, "S": {"S"}}
    if asked is not None:
        if not needs[asked] <= have:
            raise RecordingError(
                "the file has no such traces",
                where=f"option traces={asked}",
                found=f"estimates with {', '.join(sorted(have)) or 'none'}",
                expected=" and ".join(sorted(needs[asked])),
            )
        kind = asked
    else:
        kind = next((k for k in ("dff", "raw", "C") if needs[k] <= have), "")
        if not kind:
            raise RecordingError(
                "no traces",
                where="estimates",
                found=", ".join(sorted(have)) or "neither F_dff nor C",
                expected="F_dff, or C with YrA",
            )
    notes.append(
        {
            "dff": "traces are CaImAn's F_dff",
            "raw": "traces are C + YrA: fluorescence, not dF/F (the file has no F_dff)"
            if "F_dff" not in have
            else "traces are C + YrA: fluorescence, not dF/F",
            "C": "ATTENTION: traces are CaImAn's denoised C alone: the output of a model with "
            "smooth decays and no noise, easier to forecast than a recording"
            + ("" if asked else "; the file has neither F_dff nor YrA"),
            "S": "traces are CaImAn's deconvolved activity S",
        }[kind]
    )
    return kind


def _matrix(
    estimates: h5py.Group, name: str, shape: tuple[int, ...] | None = None
) -> h5py.Dataset:
    data = _data(estimates, name)
    where = f"estimates/{name}"
    if data is None or len(data.shape) != 2 or 0 in data.shape or data.dtype.kind not in "fiub":
        raise RecordingError(
            "no matrix of numbers",
            where=where,
            found="nothing" if data is None else f"{data.dtype} of shape {data.shape}",
            expected="(components, frames)",
        )
    if shape is not None and data.shape != shape:
        raise RecordingError(
            "traces that do not fit C", where=where, found=f"{data.shape}", expected=f"{shape}"
        )
    return data


def _add(values: np.ndarray, more: h5py.Dataset, keep: np.ndarray) -> None:
    """Adds the kept rows of `more` (N, T) to values (T, kept), some neurons at a time."""
    rows = np.flatnonzero(keep)
    step = max(1, _BLOCK // values.shape[0])
    check_size(more, more.name, itemsize=4)
    for a in range(0, rows.size, step):
        some = np.zeros(keep.size, bool)
        some[rows[a : a + step]] = True
        low, high = int(rows[a]), int(rows[min(a + step, rows.size) - 1]) + 1
        try:
            block = np.asarray(more[low:high], np.float32)
        except DAMAGE as e:
            raise RecordingError(
                "the field cannot be read", where=more.name, found=str(e)[:200]
            ) from e
        values[:, a : a + step] += block[some[low:high]].T


def _rate(file: h5py.File, given: Any, notes: list[str]) -> float:
    if given is not None:
        ok = isinstance(given, int | float) and not isinstance(given, bool)
        if not ok or not 0 < given < 1e6:
            raise RecordingError(
                "out of range", where="option rate", found=repr(given), expected="Hz, positive"
            )
    found = get(file, "params/data/fr")
    told = None
    if isinstance(found, h5py.Dataset) and found.dtype.kind in "fiu" and found.size == 1:
        told = float(read_array(found, "params/data/fr").reshape(-1)[0])
    if given is not None:
        if told is not None and not math.isclose(told, given, rel_tol=1e-3):
            notes.append(f"rate={given:g} Hz was given; params/data/fr says {told:g} Hz")
        return float(given)
    if told is None or not 0 < told < 1e6:
        raise RecordingError(
            "the frame rate is not known",
            where="params/data/fr",
            found="nothing" if told is None else told,
            remedy="Give rate=HZ, frames per second (on the command line --read rate=HZ).",
        )
    return told


def _accepted(estimates: h5py.Group, components: int, notes: list[str]) -> np.ndarray:
    """(N,) bool; all True where CaImAn evaluated nothing."""
    data = _data(estimates, "idx_components")
    if data is None:
        notes.append(f"components were not evaluated: all {components} count as accepted")
        return np.ones(components, bool)
    where = "estimates/idx_components"
    index = read_array(data, where, ndim=1, kinds="iuf", largest=1 << 30)
    if not np.isin(index, np.arange(components)).all():
        raise RecordingError(
            "components that do not exist",
            where=where,
            found=f"up to {index.max()}",
            expected=f"0 to {components - 1}",
        )
    out = np.zeros(components, bool)
    out[index.astype(int)] = True
    return out


def _quality(estimates: h5py.Group, components: int) -> dict[str, np.ndarray]:
    out = {}
    for name, column in _QUALITY.items():
        data = _data(estimates, name)
        if data is None or data.dtype.kind not in "fiub" or not data.size:
            continue  # a placeholder, or CaImAn did not evaluate
        values = read_array(data, f"estimates/{name}", largest=1 << 30).reshape(-1)
        if values.size != components:
            raise RecordingError(
                "a quality that does not fit the components",
                where=f"estimates/{name}",
                found=values.size,
                expected=components,
            )
        out[column] = values.astype(np.float32)
    return out


def _places(file: h5py.File, components: int) -> dict[str, np.ndarray]:
    """Centres of mass `x`, `y` (`z`) (N,) float32 of the footprints; empty where unknown.

    A is compressed by column, and its pixels count down the rows first (Fortran order).
    """
    footprints = get(file, "estimates/A")
    dims = next(
        (
            d
            for d in (_data(file, n) for n in ("dims", "estimates/dims", "params/data/dims"))
            if d is not None and d.dtype.kind in "iuf" and d.size in (2, 3)
        ),
        None,
    )
    if not isinstance(footprints, h5py.Group) or dims is None:
        return {}
    part = lambda name, kinds: read_array(  # noqa: E731
        get(footprints, name), f"estimates/A/{name}", ndim=1, kinds=kinds
    )
    pixels = [int(x) for x in read_array(dims, dims.name).reshape(-1)]
    weights, index, edges = part("data", "fiu"), part("indices", "iu"), part("indptr", "iu")
    shape = [int(x) for x in part("shape", "iu")]
    whole = math.prod(pixels)
    fits = (
        min(pixels) > 0 and shape == [whole, components] and edges.size == components + 1
        and edges[0] == 0 and edges[-1] == index.size == weights.size
        and (np.diff(edges.astype(np.int64)) >= 0).all()
        and (not index.size or (int(index.min()) >= 0 and int(index.max()) < whole))
        and np.isfinite(weights).all()
    )  # fmt: skip
    if not fits:
        raise RecordingError(
            "footprints that do not fit",
            where="estimates/A",
            found=f"shape {shape}, {index.size} entries",
            expected=f"({whole}, {components}), columns one after the other",
            remedy="Save the file again with cnmf.save.",
        )
    column = np.repeat(np.arange(components), np.diff(edges.astype(np.int64)))
    mass = np.bincount(column, weights, components)
    out = {}
    for name, place in zip(("y", "x", "z"), np.unravel_index(index, pixels, order="F"),
                           strict=False):  # fmt: skip
        total = np.bincount(column, weights * place, components)
        centre = np.full(components, np.nan)
        np.divide(total, mass, out=centre, where=mass > 0)
        out[name] = centre.astype(np.float32)
    return out
