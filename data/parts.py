"""Parts: each session is written once it is read, and the store is put together from them.

A part is a folder with the records of one session (`0.records`, `1.records`, ...), the
rest of it (`side.h5`) and `part.json`. It gets its name when it is complete, so that an
interrupted build goes on with the sessions that have no part yet. Parts are made by one
process each, in any order; the store is put together in the order of the sources, and
does not depend on who made which part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core import example_parser, example_serializer

from calm_jax.recordings.session import Session
from calm_jax.recordings.store_writer import StoreWriter, records, write_side
from data import wire

SHARD_BYTES = 256 << 20
ALONE = 8  # a piece of at least SHARD_BYTES / ALONE is a shard as it is; others are merged
# Noise does not compress; without compression a record is read three times as fast.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Part:
    """One session on disk.

    Attributes:
      folder: where it lies.
      number: the place in the store that its records name.
      pieces: (records, bytes of them) of each file of records.
      row: animal, session and sizes, as in the index.
    """

    folder: Path
    number: int
    pieces: tuple[tuple[int, int], ...]
    row: dict[str, Any]


def find_part(folder: Path) -> Part | None:
    """The complete part in `folder`, or None."""
    try:
        about = json.loads((folder / "part.json").read_text())
        part = Part(
            folder,
            about["number"],
            tuple((int(n), int(b)) for n, b in about["pieces"]),
            about["row"],
        )
        for i, size in enumerate(about["files"]):
            if (folder / f"{i}.records").stat().st_size != size:
                return None
        return part
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_part(folder: Path, session: Session, number: int) -> Part:
    """Writes a session as a part, whole or not at all; memory holds one record more.

    Raises:
      OSError: when the disk is full.
    """
    made = folder.with_name(f".{folder.name}.{os.getpid()}")
    for old in (made, folder):
        shutil.rmtree(old, ignore_errors=True)
    try:
        made.mkdir(parents=True)
        pieces = _write_records(made, session, number)
        with h5py.File(made / "side.h5", "w", libver="latest") as file:
            write_side(file, session)
            row = json.loads(file.attrs["row"])
        sizes = [(made / f"{i}.records").stat().st_size for i in range(len(pieces))]
        about = {"number": number, "pieces": pieces, "files": sizes, "row": row}
        (made / "part.json").write_text(json.dumps(about))
        for path in made.iterdir():
            _to_disk(path)
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return Part(folder, number, tuple(pieces), row)


def assemble(parts: Sequence[Part], folder: Path, features: Any) -> tuple[list[int], int]:
    """Puts `shard-<i>.tmp` files into `folder`, and the sides into a StoreWriter's file.

    Large pieces are linked, small ones copied together. The parts stay as they are.

    Returns:
      the records of each shard, and the bytes of all records.
    """
    pieces = [
        (part.folder / f"{k}.records", i, part.number, n, size)
        for i, part in enumerate(parts)
        for k, (n, size) in enumerate(part.pieces)
    ]
    groups: list[list[tuple]] = []
    held = SHARD_BYTES
    for piece in pieces:
        if held >= SHARD_BYTES // ALONE:
            groups.append([])
            held = 0
        groups[-1].append(piece)
        held += piece[4]
    for g, group in enumerate(groups):
        target = folder / f"shard-{g}.tmp"
        path, i, number, _, _ = group[0]
        if len(group) == 1 and i == number:
            _link(path, target)
        else:
            _merge(group, target, features)
    lengths = [sum(piece[3] for piece in group) for group in groups]
    return lengths, sum(piece[4] for piece in pieces)


def write_sides(parts: Sequence[Part], writer: StoreWriter) -> None:
    """The sides of the sessions, in order."""
    for part in parts:
        with h5py.File(part.folder / "side.h5", "r") as file:
            writer.add(file)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """ArrayRecord tells of a full disk in a RuntimeError's text; here it is an OSError."""
    try:
        yield
    except RuntimeError as e:
        number = errno.ENOSPC if "No space left" in str(e) else errno.EIO
        raise OSError(number, str(e)) from e


def _write_records(folder: Path, session: Session, number: int) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    count, size, writer = 0, SHARD_BYTES, None
    try:
        for record in records(session, number):
            data = wire.record(record)
            with disk_errors():
                if size >= SHARD_BYTES:
                    if writer is not None:
                        writer.close()
                        pieces.append((count, size))
                    path = folder / f"{len(pieces)}.records"
                    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
                    count, size = 0, 0
                writer.write(data)
            count, size = count + 1, size + len(data)
        with disk_errors():
            writer.close()
    except BaseException:
        if writer is not None:
            with contextlib.suppress(RuntimeError):  # it fails again for the same reason
                writer.close()
        raise
    return [*pieces, (count, size)]


def _merge(group: Sequence[tuple], target: Path, features: Any) -> None:
    """Copies records into one file; those that name another session are mended."""
    parse = example_parser.ExampleParserNp(features.get_serialized_info()).parse_example
    serialize = _serializer(features)
    with disk_errors():
        writer = ArrayRecordWriter(str(target), WRITER_OPTIONS)
        try:
            for path, i, number, count, _ in group:
                reader = ArrayRecordReader(str(path))
                try:
                    for k in range(count):
                        [data] = reader.read([k])
                        if i != number:
                            data = serialize({**parse(data), "session": i})
                        writer.write(data)
                finally:
                    reader.close()
        finally:
            writer.close()


def _serializer(features: Any) -> Callable[[dict[str, Any]], bytes]:
    """Encoded record -> bytes, the same in every process (fields in order of their names)."""
    make = example_serializer.ExampleSerializer(features.get_serialized_info()).get_tf_example
    return lambda record: make(record).SerializeToString(deterministic=True)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # a file system without links
        shutil.copyfile(path, target)


def _to_disk(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())
