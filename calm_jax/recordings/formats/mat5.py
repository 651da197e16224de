"""MATLAB 5 to 7 files: the full matrices of real numbers in them, and the names of the rest.

A file is a header of 128 bytes and one element per variable, as it is or deflated. An element
is a tag (type, bytes), its data, and padding to 8 bytes; up to 4 bytes of data lie in the tag
itself. A matrix has the elements flags, dimensions, name and numbers, columns first. Source:
"MAT-File Format", MathWorks, level 5. scipy's reader for these files takes types from the file
for places in a table without looking, which one flipped bit turns into a crash.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from calm_jax.errors import RecordingError

HEADER = 128
MATRIX, COMPRESSED = 14, 15
# Type of stored numbers -> dtype; a matrix of doubles may be stored as small integers.
STORED = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
# Class of a full numeric matrix -> dtype of its values; the others are cells, text, ...
CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
COMPLEX, LOGICAL = 0x0800, 0x0200
RATIO = 1100  # deflate packs at most 1032 to 1
BLOCK = 1 << 20  # bytes unpacked at a time
COUNT, NAME = 100_000, 4096  # variables of a file, bytes of a name


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One variable of the file.

    Attributes:
      shape: as MATLAB shows it.
      numeric: True for a full matrix of real numbers; only these can be loaded.
      stored: dtype of the numbers in the file.
      dtype: of the values.
      offset: of the numbers; in the file, or in what the deflated element unpacks to.
      deflated: where the deflated bytes lie in the file, (offset, bytes); None as they are.
    """

    shape: tuple[int, ...]
    numeric: bool
    stored: np.dtype | None = None
    dtype: np.dtype | None = None
    offset: int = 0
    deflated: tuple[int, int] | None = None


def is_mat5(path: Path) -> bool:
    """True for a file that is not laid out as MATLAB 4 (whose first number has a zero byte)."""
    with open(path, "rb") as file:
        start = file.read(4)
    return len(start) == 4 and 0 not in start


def matrices(path: Path) -> dict[str, Matrix]:
    """Name -> variable; only headers are read.

    Raises:
      RecordingError: for a file that is cut short, or whose elements do not fit together.
      OSError: when it cannot be read.
    """
    size = path.stat().st_size
    out: dict[str, Matrix] = {}
    with open(path, "rb") as file:
        order = _order(file.read(HEADER))
        at = HEADER
        while at < size:
            file.seek(at)
            kind, count = struct.unpack(order + "II", _exactly(file.read, 8))
            at += 8
            if count > size - at:
                raise _damaged(f"an element of {count} bytes, {size - at} left")
            if len(out) >= COUNT:
                raise _damaged(f"more than {COUNT} variables")
            if kind == COMPRESSED:
                name, found = _deflated(file, order, at, count)
            elif kind == MATRIX:
                name, found = _matrix(file.read, order, at, count, None)
            else:
                raise _damaged(f"an element of type {kind}")
            if name:  # without one: what MATLAB keeps for objects
                out[name] = found
            at += count
    return out


def load(path: Path, name: str, matrix: Matrix, transposed: bool) -> np.ndarray:
    """The values or, for two axes, their transpose; float32 where both axes are longer than one.

    Deflated numbers are unpacked some columns at a time: memory holds the result once.

    Raises:
      RecordingError: naming the variable.
    """
    if not matrix.numeric:
        raise RecordingError("not a full matrix of real numbers", where=name)
    big = len(matrix.shape) == 2 and min(matrix.shape) > 1
    turn = transposed and len(matrix.shape) == 2
    shape = matrix.shape[::-1] if turn else matrix.shape
    try:
        out = np.empty(shape, np.float32 if big else matrix.dtype)
        if not math.prod(shape):
            return out
        columns = out.T if not turn else out  # (columns, rows): in the order of the file
        with np.errstate(over="ignore", invalid="ignore"):
            if matrix.deflated is None:
                held = np.memmap(path, matrix.stored, "r", matrix.offset, columns.shape)
                columns[...] = held
                return out
            line = math.prod(columns.shape[1:]) * matrix.stored.itemsize
            step = max(1, BLOCK // max(1, line))
            with open(path, "rb") as file:
                take = _unpacked(file, *matrix.deflated)
                _exactly(take, matrix.offset)
                for a in range(0, len(columns), step):
                    block = columns[a : a + step]
                    data = _exactly(take, len(block) * line)
                    block[...] = np.frombuffer(data, matrix.stored).reshape(block.shape)
                while take(BLOCK):  # at the end the checksum is compared
                    pass
        return out
    except MemoryError as e:
        raise RecordingError("it does not fit into memory", where=name) from e
    except (RecordingError, OSError, ValueError, zlib.error) as e:
        found = getattr(e, "found", None) or str(e)
        raise _damaged(found, name) from e


def _order(header: bytes) -> str:
    """Byte order as of `struct`."""
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128], "")
    version = struct.unpack(order + "H", header[124:126])[0] if order else None
    if version != 0x0100:
        raise _damaged(f"version {header[124:128]!r}", None)
    return order


def _deflated(file: BinaryIO, order: str, at: int, count: int) -> tuple[str, Matrix]:
    take = _unpacked(file, at, count)
    try:
        kind, inner = struct.unpack(order + "II", _exactly(take, 8))
        if kind != MATRIX:
            raise _damaged(f"an element of type {kind}")
        if inner > RATIO * count + 1024:
            raise _damaged(f"{count} bytes for {inner} declared")
        return _matrix(take, order, 8, inner, (at, count))
    except zlib.error as e:
        raise _damaged(str(e)) from e


def _matrix(
    take: Callable[[int], bytes],
    order: str,
    at: int,
    count: int,
    deflated: tuple[int, int] | None,
) -> tuple[str, Matrix]:
    """Name and header of a matrix whose elements take `count` bytes from `at` on."""
    if not count:
        return "", Matrix((), False)
    elements = _Elements(take, order, at, count)
    kind, data = elements.small(16)
    if kind != 6 or len(data) != 8:
        raise _damaged(f"flags of type {kind}, {len(data)} bytes")
    flags = struct.unpack(order + "I", data[:4])[0]
    if flags & 0xFF == 17:  # MATLAB's opaque objects have no dimensions
        return "", Matrix((), False)
    kind, data = elements.small(4 * 32)
    if kind != 5 or len(data) % 4 or len(data) < 8:
        raise _damaged(f"dimensions of type {kind}, {len(data)} bytes")
    shape = struct.unpack(order + "i" * (len(data) // 4), data)
    if min(shape) < 0:
        raise _damaged(f"shape {shape}")
    kind, data = elements.small(NAME)
    if kind not in (1, 2, 16):
        raise _damaged(f"a name of type {kind}")
    name = data.decode("utf-8", "replace")
    if flags & 0xFF not in CLASSES or flags & COMPLEX:
        return name, Matrix(shape, False)
    kind, size = elements.tag()
    if kind not in STORED:
        raise _damaged(f"numbers of type {kind}", name)
    stored = np.dtype(STORED[kind]).newbyteorder(order)
    if size != math.prod(shape) * stored.itemsize:
        raise _damaged(f"{size} bytes of {stored} for shape {shape}", name)
    dtype = np.dtype(bool if flags & LOGICAL else CLASSES[flags & 0xFF])
    return name, Matrix(shape, True, stored, dtype, elements.at, deflated)


class _Elements:
    """The elements inside a matrix, one after the other."""

    def __init__(self, take: Callable[[int], bytes], order: str, at: int, count: int) -> None:
        self._take, self._order, self.at, self._stop = take, order, at, at + count

    def tag(self) -> tuple[int, int]:
        """Type and bytes of the next element; `at` is where its data begin."""
        first = struct.unpack(self._order + "I", self._bytes(4))[0]
        if first >> 16:  # the data lie in the tag
            kind, size = first & 0xFFFF, first >> 16
            if size > 4 or self._stop - self.at < 4:
                raise _damaged(f"{size} bytes in the tag of an element")
            return kind, size
        size = struct.unpack(self._order + "I", self._bytes(4))[0]
        if size > self._stop - self.at:
            raise _damaged(f"an element of {size} bytes, {self._stop - self.at} left")
        return first, size

    def small(self, most: int) -> tuple[int, bytes]:
        """Type and data of the next element."""
        start = self.at
        kind, size = self.tag()
        if size > most:
            raise _damaged(f"{size} bytes, at most {most} expected")
        data = self._bytes(size)
        rest = -(self.at - start) % 8
        self._bytes(min(rest, self._stop - self.at))
        return kind, data

    def _bytes(self, count: int) -> bytes:
        if count > self._stop - self.at:
            raise _damaged(f"{count} bytes needed, {self._stop - self.at} left")
        self.at += count
        return _exactly(self._take, count)


def _unpacked(file: BinaryIO, at: int, count: int) -> Callable[[int], bytes]:
    """A function n -> the next n bytes of a deflated element, or fewer at its end."""
    blocks = _blocks(file, at, count)
    held = bytearray()

    def take(n: int) -> bytes:
        while len(held) < n:
            block = next(blocks, b"")
            if not block:
                break
            held.extend(block)
        out = bytes(held[:n])
        del held[:n]
        return out

    return take


def _blocks(file: BinaryIO, at: int, count: int) -> Iterator[bytes]:
    """The element unpacked, at most BLOCK bytes at a time."""
    unpack = zlib.decompressobj()
    first = 4096  # a header needs no more
    while not unpack.eof:
        data = unpack.unconsumed_tail
        if not data:
            file.seek(at)
            data = file.read(min(first, count))
            first, at, count = 1 << 20, at + len(data), count - len(data)
            if not data:
                return
        block = unpack.decompress(data, BLOCK)
        if block:
            yield block


def _exactly(take: Callable[[int], bytes], count: int) -> bytes:
    data = take(count)
    if len(data) != count:
        raise _damaged(f"{len(data)} bytes, {count} needed")
    return data


def _damaged(found: object, where: str | None = None) -> RecordingError:
    return RecordingError(
        "the file is damaged or cut short" if where is None else "the field cannot be read",
        where=where,
        found=found,
        remedy="Copy or write the file again.",
    )
