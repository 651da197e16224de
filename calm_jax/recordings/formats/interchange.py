"""The interchange file: one Session as named arrays in an `.npz` or an HDF5 file.

The fields are those of `fields.py`. The kind of file is told by its content, a file is
written whole or not at all, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import RecordingError, writing
from calm_jax.recordings.formats import hdf5_guard
from calm_jax.recordings.formats.fields import from_fields, to_fields
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.session import Session

SUFFIXES = (".npz", ".h5", ".hdf5")
# What numpy, zipfile and h5py raise for files that are cut short or have wrong bytes.
DAMAGE = (
    OSError, EOFError, ValueError, TypeError, KeyError, IndexError, RuntimeError, MemoryError,
    OverflowError, SyntaxError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")

def magic(path: str | Path) -> bytes:
    """The first eight bytes of a file; empty for what is not a readable file."""
    try:
        with open(path, "rb") as f:
            return f.read(8)
    except OSError:
        return b""


def recognises(path: str | Path) -> bool:
    """True for a zip archive or an HDF5 file, whatever its name."""
    start = magic(path)
    return start.startswith(ZIP_MAGIC) or start == HDF5_MAGIC


def read_interchange(path: str | Path, *, mapped: bool = False) -> Session:
    """Reads an interchange file; the kind of file is told by its content.

    A missing `animal` is "unknown", a missing `session` the name of the file.

    Args:
      mapped: traces that lie in an HDF5 file as float32 in one piece are mapped, not read
        into memory: for a Session that is let go of before anything may change the file.

    Raises:
      RecordingError: naming the file and the field.
    """
    path = Path(path)
    with located(path):
        start = magic(path)
        if start == HDF5_MAGIC:
            with _hdf5(path) as file:
                traces = valid = None
                if mapped and (traces := _mapped(path, file)) is not None and "valid" in file:
                    valid = h5_array(file, "valid")
                return read_group(file, traces=traces, valid=valid, session=path.stem)
        if start.startswith(ZIP_MAGIC):
            return _read_npz(path)
        raise RecordingError(
            "not an interchange file",
            found=f"{path.stat().st_size} bytes of something else" if path.is_file() else "no file",
            expected="an .npz archive or an HDF5 file",
            remedy="Write it with numpy.savez or h5py, fields as in the guide.",
        )


def write_interchange(session: Session, path: str | Path) -> None:
    """Writes a Session to an `.npz` or `.h5` file, whole or not at all.

    Raises:
      RecordingError: for another suffix, or a Session that the format cannot hold.
      RunError: when the disk is full or the folder is not writable.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise RecordingError(
            "unknown kind of interchange file", where=path, expected=" or ".join(SUFFIXES)
        )
    with located(path), writing(path):
        fields = to_fields(session)
        part = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            if path.suffix == ".npz":
                with open(part, "wb") as f:
                    np.savez(f, **fields)
            else:
                with h5py.File(part, "w") as f:
                    _put(f, fields)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_group(group: h5py.Group, session: Session, traces: bool = True) -> None:
    """Writes a Session into an empty HDF5 group; `traces=False` leaves traces and mask out."""
    _put(group, to_fields(session, traces))


def read_group(
    group: h5py.Group,
    *,
    traces: np.ndarray | None = None,
    valid: np.ndarray | None = None,
    session: str = "unknown",
) -> Session:
    """The Session in an HDF5 group; traces and mask that lie elsewhere are given.

    Raises:
      RecordingError: naming the field.
    """
    names: list[str] = []
    try:
        group.visititems(lambda name, item: names.append(name) if _is_data(item) else None)
        # h5py hands names that are no UTF-8 over as bytes.
        names = [n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names]
    except DAMAGE as e:
        raise damaged(e) from e
    return from_fields(names, lambda n: h5_array(group, n), traces, valid, session)


def _put(group: h5py.Group, fields: Mapping[str, np.ndarray]) -> None:
    for name, value in fields.items():
        value = np.asarray(value)
        try:
            if value.dtype.kind == "U":
                text = h5py.string_dtype("utf-8")
                group.create_dataset(name, data=value.astype(object), dtype=text)
            else:
                group.create_dataset(name, data=value)
        except (TypeError, ValueError, UnicodeError) as e:
            raise RecordingError(
                "values that HDF5 cannot hold", where=name, found=f"{value.dtype}: {e}"
            ) from e


@contextlib.contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    hdf5_guard.check(path)
    try:
        file = h5py.File(path, "r")
    except DAMAGE as e:
        raise damaged(e) from e
    with file:
        yield file


def _mapped(path: Path, file: h5py.File) -> np.ndarray | None:
    """(T, N) float32 traces as a read-only map; None where they do not lie so in the file."""
    try:
        data = file["traces"]
        if not isinstance(data, h5py.Dataset) or data.dtype != np.dtype("<f4") or data.ndim != 2:
            return None
        offset, plain = data.id.get_offset(), data.chunks is None and not data.external
        if not plain or not offset or offset % 4 or not data.size:
            return None
        if offset + data.nbytes > path.stat().st_size:
            return None  # cut short, which reading tells
        return np.memmap(path, np.float32, "r", offset, data.shape).view(np.ndarray)
    except DAMAGE:
        return None  # reading tells what is wrong


def _is_data(item: Any) -> bool:
    return isinstance(item, h5py.Dataset)


def h5_array(group: h5py.Group, name: str) -> np.ndarray:
    """One dataset, text as str; objects are refused."""
    try:
        data = group[name]
        if h5py.check_string_dtype(data.dtype) is not None and data.dtype.kind == "O":
            return np.asarray(data.asstr()[()]).astype(str)
        return _plain(np.asarray(data[()]), name)
    except DAMAGE as e:
        raise damaged(e, name) from e


def _read_npz(path: Path) -> Session:
    try:
        archive = np.load(path, allow_pickle=False)
    except DAMAGE as e:
        raise damaged(e) from e

    def get(name: str) -> np.ndarray:
        try:
            array = archive[name]
        except DAMAGE as e:
            if "allow_pickle" in str(e):
                raise RecordingError(
                    "an array of Python objects",
                    where=name,
                    expected="numbers, booleans or text",
                    remedy="Pickles are never loaded: save the field with a plain dtype.",
                ) from e
            raise damaged(e, name) from e
        if not isinstance(array, np.ndarray):  # a member that is no .npy file
            raise RecordingError("not an array", where=name, expected="an .npy member")
        return _plain(array, name)

    with archive:
        return from_fields(list(archive.files), get, session=path.stem)


def _plain(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.hasobject:
        raise RecordingError(
            "an array of Python objects", where=name, expected="numbers, booleans or text"
        )
    return array


def damaged(e: Exception, name: str | None = None) -> RecordingError:
    """The error for what numpy or h5py raised from a file or one of its fields."""
    return RecordingError(
        "the file is damaged or cut short" if name is None else "the field cannot be read",
        where=name,
        found=str(e) or type(e).__name__,
        remedy="Copy or write the file again.",
    )
