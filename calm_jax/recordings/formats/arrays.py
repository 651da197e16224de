"""Plain arrays: `.npy`, `.npz`, `.mat` (all versions), `.csv`, `.tsv` and `.zarr`.

Such a file holds numbers and nothing that says what they are: the frame rate (or a variable
with times) and the orientation are given, never guessed.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.arrays import ORIENTATIONS, build, no_orientation
from calm_jax.recordings.formats import tables
from calm_jax.recordings.formats.array_files import Variable, kind_of, variables
from calm_jax.recordings.formats.fields import SINGLE, TABLES
from calm_jax.recordings.formats.interchange import DAMAGE
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.formats.peek import Peek
from calm_jax.recordings.session import Session

SUFFIXES = (".npy", ".mat", ".csv", ".tsv", ".zarr")
OPTIONS = {
    "rate": "frames per second (Hz); needed without `time`",
    "orientation": "'time,neurons' or 'neurons,time'; needed, but for tables with a header",
    "variable": "which array, where a file holds several matrices",
    "time": "the variable or column with the time of each frame (s)",
    "unit": "of the traces, such as dF/F; default a.u.",
}


def recognises(path: str | Path) -> bool:
    """True for a file of plain arrays that is no interchange file; never raises."""
    path = Path(path)
    kind = kind_of(path)
    if kind != "npz":
        return bool(kind) or tables.is_table(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {n.removesuffix(".npy") for n in archive.namelist()}
    except DAMAGE:
        return False
    # With a name of its vocabulary it is meant as an interchange file, and told so.
    return not any(n in SINGLE or n.partition("/")[0] in TABLES for n in names)


def read_arrays(
    path: str | Path,
    *,
    rate: float | None = None,
    orientation: str | None = None,
    variable: str | None = None,
    time: Any = None,
    unit: str = "a.u.",
) -> Session:
    """Reads a matrix from a file of arrays; the options are those of `OPTIONS`.

    A header of a table names the neurons, and means one row per frame. NaN and empty cells
    are missing. Memory: the traces once (for npz and MATLAB 4 also as stored).

    Raises:
      RecordingError: naming what must be given, or the file and the field.
    """
    path = Path(path)
    with located(path):
        kind = _kind(path, orientation)
        if not kind:
            return _table(path, rate, orientation, time, unit)
        with variables(path, kind) as found:
            name, _, times = _plan(found, rate, orientation, variable, time)
            values = found[name].load(orientation == ORIENTATIONS[1])
        return build(values, rate, times, None, None, str(unit), "unknown", path.stem)


def peek_arrays(
    path: str | Path,
    *,
    rate: float | None = None,
    orientation: str | None = None,
    variable: str | None = None,
    time: Any = None,
    unit: str = "a.u.",
) -> Peek | None:
    """What a file of arrays holds, from its headers; None for a table of text, which has none.

    Args:
      rate, orientation, variable, time, unit: as `read_arrays`.

    Raises:
      RecordingError: as `read_arrays`.
    """
    path = Path(path)
    with located(path):
        kind = _kind(path, orientation)
        if not kind:
            return None
        with variables(path, kind) as found:
            _, (frames, neurons), times = _plan(found, rate, orientation, variable, time)
        # One silent neuron on the clock of the file, which is checked as in reading.
        few = build(
            np.zeros((1 if times is None else frames, 1), np.float32), rate, times, None,
            None, str(unit), "unknown", path.stem,
        )  # fmt: skip
        return Peek(
            session=few.session, animal=few.animal, unit=few.unit, neurons=neurons,
            frames=frames, rate=few.rate, notes=few.notes,
        )  # fmt: skip


def _kind(path: Path, orientation: Any) -> str:
    """The kind of file, empty for a table of text."""
    if orientation not in (None, *ORIENTATIONS):
        raise RecordingError(
            "no such orientation",
            where="option orientation",
            found=repr(orientation),
            expected=" or ".join(map(repr, ORIENTATIONS)),
        )
    kind = kind_of(path)
    if not kind and not tables.is_table(path):
        raise RecordingError(
            "no file of arrays, or a damaged one",
            expected="npy, npz, mat, zarr, or a table as text",
        )
    return kind


def _plan(
    found: dict[str, Variable], rate: Any, orientation: Any, variable: Any, time: Any
) -> tuple[str, tuple[int, int], np.ndarray | None]:
    """Name of the matrix, its (frames, neurons) and the time of each frame or None."""
    name = _chosen(found, variable, time)
    shape = found[name].shape
    if orientation is None:
        raise no_orientation(shape)
    shape = shape[::-1] if orientation == ORIENTATIONS[1] else shape
    times = None if time is None else _vector(found, time)
    _needs_clock(rate, times)
    if times is not None and times.size != shape[0]:
        other = ORIENTATIONS[1 - ORIENTATIONS.index(orientation)]
        raise RecordingError(
            "as many times as frames are needed",
            where=f"option time={time}",
            found=f"{times.size} times, {shape[0]} frames",
            remedy=f"Is it orientation={other}?" if times.size == shape[1] else None,
        )
    return name, shape, times


def _table(path: Path, rate: Any, orientation: str | None, time: Any, unit: str) -> Session:
    table = tables.read_table(path, time)
    values = table.values
    if table.names is not None or table.times is not None:
        if orientation == ORIENTATIONS[1]:
            raise RecordingError(
                "a table with a header or a time column has one row per frame",
                where="option orientation",
                found=repr(orientation),
                remedy="Transpose the table, or leave the header and the times out.",
            )
    elif orientation is None:
        raise no_orientation(values.shape)
    elif orientation == ORIENTATIONS[1]:
        values = values.T
    times = None if rate is not None and time is None else table.times
    _needs_clock(rate, times)
    return build(
        values, rate, times, None, table.names, str(unit), "unknown", path.stem, table.notes
    )


def _needs_clock(rate: Any, times: np.ndarray | None) -> None:
    if rate is None and times is None:
        raise RecordingError(
            "the frame rate is not known",
            where="option rate",
            remedy="Give rate=HZ, or time=NAME of the times in seconds "
            "(on the command line --read rate=HZ).",
        )


def _chosen(found: dict[str, Variable], asked: Any, time: Any) -> str:
    """The name of the matrix to read."""
    matrices = [
        n for n, v in found.items() if v.numeric and len(v.shape) == 2 and min(v.shape) > 0
    ]
    listed = ", ".join(f"{n or 'the array'} {found[n].shape}" for n in matrices[:12])
    if asked is not None:
        if asked not in matrices:
            raise RecordingError(
                "no such matrix", where=f"option variable={asked}", expected=listed or "none"
            )
        return str(asked)
    # MATLAB keeps vectors and numbers as matrices too.
    real = [n for n in matrices if min(found[n].shape) > 1 and n != time] or matrices
    if len(real) != 1:
        raise RecordingError(
            "several matrices" if real else "no matrix of real numbers",
            found=listed or ", ".join(f"{n} {v.shape}" for n, v in list(found.items())[:12]),
            remedy="Give variable=NAME." if real else None,
        )
    return real[0]


def _vector(found: dict[str, Variable], name: Any) -> np.ndarray:
    """(T,) float64, the variable with the times."""
    there = found.get(str(name))
    if there is None or not there.numeric or sum(n > 1 for n in there.shape) > 1:
        vectors = [n for n, v in found.items() if v.numeric and sum(k > 1 for k in v.shape) == 1]
        raise RecordingError(
            "no such vector",
            where=f"option time={name}",
            expected=", ".join(vectors[:12]) or "a vector of seconds",
        )
    return there.load(False).reshape(-1).astype(np.float64)
