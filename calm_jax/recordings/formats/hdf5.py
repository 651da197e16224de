"""Reading HDF5 files of unknown origin: what all readers of such files share.

A file may be cut short, altered or made to harm. Nothing outside it is ever opened (no
external links, no external or virtual storage), loops of links end, no array is allocated
that the file cannot fill, and every fault is a `RecordingError` that names file and field.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from calm_jax.errors import CalmError, RecordingError
from calm_jax.recordings.formats import hdf5_guard
from calm_jax.recordings.formats.hdf5_links import (
    DAMAGE,
    children,
    damaged,
    get,
    link,
    referenced,
    walk,
)
from calm_jax.recordings.formats.located import located

__all__ = [
    "DAMAGE", "NUMBERS", "attribute_number", "attribute_text", "check_size", "children",
    "damaged", "get", "link", "memory", "opened", "read_array", "read_rows", "read_text",
    "read_traces", "referenced", "text", "walk",
]  # fmt: skip

NUMBERS = "fiub"  # dtype kinds: float, integers, boolean
BLOCK = 16 << 20  # bytes read at a time
STRIP = 32  # neurons turned at a time: three times as fast as all at once
LARGEST = 64 << 30  # bytes of one array in memory
# Deflate packs at most 1032 to 1: an array that claims more is not in the file.
RATIO = 2000
SMALL = 64 << 20  # bytes that may be allocated whatever the file holds


@contextlib.contextmanager
def opened(path: str | Path, file: BinaryIO | None = None) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading; faults met inside name the file.

    Args:
      path: the file, also as it is named in errors.
      file: an open binary file to read in place of `path`, such as a remote one; it is not
        looked through by `hdf5_guard`.

    Raises:
      RecordingError: for a file that is no HDF5 file, and for whatever h5py raises inside.
    """
    with located(path):
        try:
            # A lock is not to be had on many network and read-only file systems.
            source = {"name": path if file is None else file, "mode": "r"}
            if file is None:
                source["locking"] = "best-effort"
                hdf5_guard.check(path)
            with h5py.File(**source) as opened_file:
                yield opened_file
        except CalmError:
            raise
        except DAMAGE as e:
            raise damaged(e) from e
        except MemoryError as e:
            raise RecordingError("the recording does not fit into memory") from e


# --- values ----------------------------------------------------------------------


def check_size(
    data: h5py.Dataset, where: str, largest: int = LARGEST, itemsize: int | None = None
) -> None:
    """Refuses a data set that lies outside the file or is larger than file or memory.

    Args:
      largest: most bytes it may take in memory, where a value takes `itemsize` bytes
        (default: as many as in the file).

    Raises:
      RecordingError: naming the field.
    """
    try:
        plist = data.id.get_create_plist()
        outside = plist.get_external_count() or (
            data.is_virtual and any(s.file_name != "." for s in data.virtual_sources())
        )
        count = int(np.prod(data.shape or (), dtype=object))
        logical, held = count * data.dtype.itemsize, count * (itemsize or data.dtype.itemsize)
        chunk = int(np.prod(data.chunks or (), dtype=object)) * data.dtype.itemsize
        stored, virtual = int(data.id.get_storage_size()), bool(data.is_virtual)
    except DAMAGE as e:
        raise damaged(e, where) from e
    if outside:
        raise RecordingError(
            "values stored in another file, which is never opened",
            where=where,
            remedy="Copy them into this file, for example with h5repack.",
        )
    largest = min(largest, memory())
    if held > largest or chunk > largest:
        raise RecordingError(
            "more values than this machine can hold",
            where=where,
            found=f"shape {data.shape} of {data.dtype}, {max(held, chunk) / 2**30:.3g} GiB",
            expected=f"at most {largest / 2**30:.3g} GiB",
        )
    if max(logical, chunk) > SMALL and not virtual and max(logical, chunk) > RATIO * stored:
        raise RecordingError(
            "the values are not in the file",
            where=where,
            found=f"shape {data.shape} of {data.dtype} declared, {stored} bytes stored",
            remedy="Copy or write the file again.",
        )


def memory() -> int:
    """Bytes of memory this machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return LARGEST


def read_array(
    data: Any,
    where: str,
    *,
    ndim: int | None = None,
    kinds: str = NUMBERS,
    largest: int = LARGEST,
) -> np.ndarray:
    """All values of a data set; text comes as numpy text.

    Args:
      where: the field, as it is named in errors.
      ndim: number of axes it must have.
      kinds: dtype kinds it may have; "U" stands for all text.
      largest: most bytes it may hold.

    Raises:
      RecordingError: for something else, or values that cannot be read.
    """
    if not isinstance(data, h5py.Dataset):
        raise RecordingError(
            "not an array", where=where, found="nothing" if data is None else "a group"
        )
    try:
        is_text, dtype, shape = _is_text(data), data.dtype, data.shape
    except DAMAGE as e:
        raise damaged(e, where) from e
    kind = "U" if is_text else "O" if dtype.hasobject else dtype.kind
    if kind not in kinds or shape is None or (ndim is not None and len(shape) != ndim):
        wanted = "text" if kinds == "U" else "numbers" + (" or text" if "U" in kinds else "")
        raise RecordingError(
            f"not an array of {wanted}",
            where=where,
            found="no values" if shape is None else f"{_kind(kind, dtype)} of shape {shape}",
            expected=f"{wanted} of {ndim} axes" if ndim is not None else wanted,
        )
    check_size(data, where, largest)
    try:
        if is_text:
            return np.asarray(data.asstr(errors="replace")[()]).astype(str)
        return np.asarray(data[()])
    except DAMAGE as e:
        raise damaged(e, where) from e
    except MemoryError as e:
        raise RecordingError("it does not fit into memory", where=where) from e


def read_rows(data: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) of a data set, in its own dtype.

    Raises:
      RecordingError: when they cannot be read.
    """
    try:
        return np.asarray(data[start:stop])
    except DAMAGE as e:
        raise damaged(e, data.name) from e


def read_traces(
    data: h5py.Dataset,
    where: str,
    *,
    transposed: bool = False,
    keep: np.ndarray | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Traces as one (T, N) float32 array; beside it memory holds one block at a time.

    Args:
      data: (T, N) numbers, or (N, T) when `transposed`; (T,) is one neuron.
      keep: (N,) bool, neurons to read; default all.
      scale, offset: traces = values * scale + offset.
      out: (T, kept N) float32 to read into, such as some columns of a larger array.

    Raises:
      RecordingError: for other values, or more of them than file or memory hold.
    """
    if data.dtype.kind not in NUMBERS or len(data.shape or ()) not in (1, 2):
        raise RecordingError(
            "not a matrix of numbers", where=where, found=f"{data.dtype} of shape {data.shape}"
        )
    check_size(data, where, itemsize=4)
    shape = data.shape if data.ndim == 2 else (data.shape[0], 1)
    frames, neurons = shape[::-1] if transposed else shape
    keep = np.ones(neurons, bool) if keep is None else np.asarray(keep, bool)
    kept, every = np.flatnonzero(keep), bool(keep.all())
    if out is None:
        try:
            out = np.empty((frames, kept.size), np.float32)
        except MemoryError as e:
            raise RecordingError("the traces do not fit into memory", where=where) from e
    plain = every and not transposed and scale == 1.0 and offset == 0.0
    for (a, b), (c, d) in _tiles(data, transposed):
        try:
            if plain and data.dtype == np.float32 and data.ndim == 2 and out.flags.c_contiguous:
                data.read_direct(out, np.s_[a:b, c:d], np.s_[a:b, c:d])
                continue
            values = np.asarray(data[a:b, c:d] if data.ndim == 2 else data[a:b])
        except DAMAGE as e:
            raise damaged(e, where) from e
        values = values.reshape(b - a, d - c)
        if transposed:
            values, (a, b), (c, d) = values.T, (c, d), (a, b)
        if scale != 1.0 or offset != 0.0:
            values = values * np.float64(scale) + np.float64(offset)
        with np.errstate(over="ignore", invalid="ignore"):
            if every and transposed:
                for n in range(c, d, STRIP):
                    out[a:b, n : min(n + STRIP, d)] = values[:, n - c : min(n + STRIP, d) - c]
            elif every:
                out[a:b, c:d] = values
            else:
                first, last = np.searchsorted(kept, (c, d))
                out[a:b, first:last] = values[:, kept[first:last] - c]
    return out


def _tiles(
    data: h5py.Dataset, transposed: bool
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges of rows and columns of about BLOCK bytes, so that no chunk is read twice.

    They are long in time's other axis: whole frames of the result are written at once.
    """
    shape = (*data.shape, 1)[:2]
    chunks = (*(data.chunks or (1, 1024 if transposed else 1)), 1)[:2]
    along, across = (1, 0) if transposed else (0, 1)  # axes of time and of neurons
    line = shape[across] * data.dtype.itemsize
    steps = list(shape)
    steps[along] = max(1, BLOCK // max(1, line) // chunks[along]) * chunks[along]
    if steps[along] * line > 4 * BLOCK:  # long chunks: some neurons at a time
        line = steps[along] * data.dtype.itemsize
        steps[across] = max(1, BLOCK // line // chunks[across]) * chunks[across]
    for t in range(0, shape[along], steps[along]):
        for n in range(0, shape[across], steps[across]):
            time = (t, min(t + steps[along], shape[along]))
            neurons = (n, min(n + steps[across], shape[across]))
            yield (neurons, time) if transposed else (time, neurons)


def _is_text(data: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(data.dtype) is not None


def _kind(kind: str, dtype: np.dtype) -> str:
    return {"U": "text", "O": "objects or references", "V": "records"}.get(kind, str(dtype))


# --- text and attributes -----------------------------------------------------------


def text(value: Any) -> str:
    """Text from whatever h5py hands out for it: bytes, str or an array of one."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size == 1 else value.tolist()
    if isinstance(value, bytes | np.bytes_):
        return bytes(value).decode("utf-8", "replace").rstrip("\0")
    return str(value)


def attribute_text(obj: Any, name: str, default: str = "") -> str:
    """The text in an attribute; `default` where there is none."""
    try:
        value = obj.attrs.get(name)
    except DAMAGE:
        return default
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return text(value) if isinstance(value, str | bytes) else default


def attribute_number(obj: Any, name: str, default: float | None = None) -> float | None:
    """The number in an attribute; `default` where there is none.

    Raises:
      RecordingError: for something else than one finite number.
    """
    try:
        value = obj.attrs.get(name)
    except DAMAGE as e:
        raise damaged(e, f"{obj.name}@{name}") from e
    if value is None:
        return default
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise RecordingError(
            "not one finite number", where=f"{obj.name}@{name}", found=str(value)[:80]
        )
    return float(array.reshape(-1)[0])


def read_text(group: h5py.Group, path: str, default: str = "") -> str:
    """The text in a data set of one value below `group`; `default` where there is none."""
    data = get(group, path)
    if not isinstance(data, h5py.Dataset):
        return default
    values = read_array(data, f"{group.name.rstrip('/')}/{path}", kinds="U").reshape(-1)
    return str(values[0]) if values.size else default
