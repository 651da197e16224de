"""`.npy` files: the header is checked against the file before anything is mapped or read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import pickles
from calm_jax.recordings.formats.interchange import DAMAGE, magic
from calm_jax.recordings.formats.located import located

MAGIC = b"\x93NUMPY"
MAX_PICKLE = 1 << 30  # bytes


def is_npy(path: str | Path) -> bool:
    """True for a file that starts as a `.npy` file does."""
    return magic(path).startswith(MAGIC)


def open_npy(path: str | Path, what: str = "numbers") -> np.ndarray:
    """The numbers in a `.npy` file as a read-only memory map: nothing is read yet.

    Args:
      what: the file should hold, for the error.

    Raises:
      RecordingError: no such file, damaged, shorter than its header says, or no numbers.
    """
    path = Path(path)
    with located(path):
        dtype, shape, fortran, offset = _header(path)
        if dtype.kind not in "biuf":
            raise RecordingError(
                "an array of Python objects" if dtype.hasobject else "an array of no numbers",
                found=f"{dtype} of shape {shape}",
                expected=what,
            )
        needed, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - offset
        if needed > there:
            raise RecordingError(
                "the file is cut short, or its header is damaged",
                found=f"{there} bytes of data",
                expected=f"{needed} bytes, {dtype} of shape {shape}",
                remedy="Copy or write the file again.",
            )
        if not needed:
            return np.zeros(shape, dtype)
        order = "F" if fortran else "C"
        try:
            return np.memmap(path, dtype, "r", offset, shape, order).view(np.ndarray)
        except DAMAGE as e:
            raise RecordingError("the file cannot be read", found=str(e)) from e


def load_objects(path: str | Path) -> Any:
    """What a `.npy` file of Python objects holds, as plain data; see `pickles.loads`.

    One axis of objects is a list, none the object itself; a file of numbers gives the array.

    Raises:
      RecordingError: no such file, damaged, or a pickle that names anything but numpy's types.
    """
    path = Path(path)
    with located(path):
        dtype, shape, _, offset = _header(path)
        if not dtype.hasobject:
            return np.array(open_npy(path))
        size = path.stat().st_size - offset
        if size > MAX_PICKLE:
            raise RecordingError(
                "too large for a pickle", found=f"{size} bytes", expected=f"at most {MAX_PICKLE}"
            )
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                value = pickles.loads(file.read())
        except OSError as e:
            raise RecordingError("the file cannot be read", found=str(e)) from e
        if len(shape) > 1 or (shape and not (isinstance(value, list) and len(value) == shape[0])):
            raise RecordingError(
                "a damaged array of objects", found=type(value).__name__, expected=f"shape {shape}"
            )
        return value


def _header(path: Path) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    if not path.is_file():
        raise RecordingError("no such file")
    try:
        with open(path, "rb") as file:
            return header_of(file)
    except OSError as e:
        raise RecordingError("the file cannot be read", found=str(e)) from e


def header_of(file: BinaryIO) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """dtype, shape, Fortran order and the offset of the data, of an open `.npy` file.

    Raises:
      RecordingError: for another file, a damaged header or an array of records.
    """
    try:
        shape, fortran, dtype = _parsed(file)
        offset = file.tell()
    except (*DAMAGE, RecursionError) as e:
        found = str(e).split("\n")[0][:120] or type(e).__name__
        raise RecordingError(
            "no .npy file, or its header is damaged",
            found=found,
            remedy="Copy or write the file again.",
        ) from e
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape) or len(shape) > 32:
        raise RecordingError("the header is damaged", found=f"shape {str(shape)[:60]}")
    if dtype.subdtype is not None or (dtype.kind != "O" and dtype.hasobject):
        raise RecordingError("an array of records", found=str(dtype)[:60], expected="numbers")
    return dtype, shape, bool(fortran), offset


def _parsed(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version in ((2, 0), (3, 0)):  # 3.0 differs in the names of fields, which are refused
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version[0]}.{version[1]} of the .npy format")
