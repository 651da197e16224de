"""The formats that recordings come in; `read` picks by content, not by name alone."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import (
    allen,
    arrays,
    brainsets,
    caiman,
    interchange,
    nwb,
    remote,
    suite2p,
)
from calm_jax.recordings.formats.peek import Peek, peek_interchange
from calm_jax.recordings.session import Session


@dataclasses.dataclass(frozen=True)
class Format:
    """One format: how it is told from others by its content, and how it is read.

    Attributes:
      name: as shown to the user.
      recognises: path (of a file or a folder) -> bool; never raises.
      read: (path, **options) -> Session.
      suffixes: a file with such a name is meant to be one, even when it is damaged.
      options: name -> what it is, of the keyword arguments that `read` takes.
      peek: (path, **options) -> Peek, what a large file holds, without its traces; takes the
        same options, or None where a format (or this file of it) has no quick way.
      general: in a folder its files count only where no other format is found, since tables
        and arrays often lie beside recordings.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[..., Session]
    suffixes: tuple[str, ...] = ()
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    peek: Callable[..., Peek | None] | None = None
    general: bool = False


# The first that recognises a path reads it: special formats before general ones.
FORMATS: list[Format] = [
    Format(
        "address",
        remote.recognises,
        remote.read_remote,
        ("https://", "dandi://"),  # shown to the user; no file ends so
        options=remote.OPTIONS,
        peek=remote.peek_remote,
    ),
    Format(
        "NWB 2", nwb.recognises, nwb.read_nwb, nwb.SUFFIXES, options=nwb.OPTIONS, peek=nwb.peek_nwb
    ),
    Format(
        "caiman",
        caiman.recognises,
        caiman.read_caiman,
        options=caiman.OPTIONS,
        peek=caiman.peek_caiman,
    ),
    Format(
        "suite2p",
        suite2p.recognises,
        suite2p.read_suite2p,
        options=suite2p.OPTIONS,
        peek=suite2p.peek_suite2p,
    ),
    Format(
        "Allen Brain Observatory",
        allen.recognises,
        allen.read_allen,
        (".nwb",),
        options=allen.OPTIONS,
        peek=allen.peek_allen,
    ),
    Format(
        "brainsets",
        brainsets.recognises,
        brainsets.read_brainsets,
        options=brainsets.OPTIONS,
        peek=brainsets.peek_brainsets,
    ),
    Format(
        "arrays",
        arrays.recognises,
        arrays.read_arrays,
        arrays.SUFFIXES,
        options=arrays.OPTIONS,
        peek=arrays.peek_arrays,
        general=True,
    ),
    Format(
        "interchange",
        interchange.recognises,
        interchange.read_interchange,
        interchange.SUFFIXES,
        peek=peek_interchange,
    ),
]


def read(path: str | Path, **options: Any) -> Session:
    """Reads one recording in any known format.

    Args:
      options: of the format, such as `series="DfOverF"` (docs/formats.md lists them).

    Raises:
      RecordingError: when nothing is there, the format is unknown, the content is wrong, or
        the format has no such option.
    """
    path = Path(path)
    known = format_of(path)
    check_options(known, path, options)
    try:
        return known.read(path, **options)
    except MemoryError as e:
        raise RecordingError("the recording does not fit into memory", where=path) from e


def peek_at(path: str | Path, **options: Any) -> Peek | None:
    """What a recording holds, without reading its traces; None where its format has no way.

    Raises:
      RecordingError: as `read`.
    """
    path = Path(path)
    known = format_of(path)
    check_options(known, path, options)
    return None if known.peek is None else known.peek(path, **options)


def check_options(known: Format, path: Path, options: Mapping[str, Any]) -> None:
    """Refuses options that the format does not have.

    Raises:
      RecordingError: with the nearest that it has.
    """
    for name in options:
        if name not in known.options:
            near = difflib.get_close_matches(name, known.options, 1)
            raise RecordingError(
                f"{known.name} has no option {name!r}",
                where=path,
                expected=", ".join(known.options) or "no option",
                remedy=f"Did you mean {near[0]!r}?" if near else None,
            )


def options_from(texts: Iterable[str]) -> dict[str, Any]:
    """`name=value` texts of the command line as options: numbers, true and false, or text.

    Raises:
      RecordingError: for a text without `=`.
    """
    out: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise RecordingError(
                "an option without a value",
                where="--read",
                found=repr(text),
                expected="NAME=VALUE, such as rate=30",
            )
        try:
            out[name.strip()] = json.loads(value)
        except ValueError:
            out[name.strip()] = value
    return out


def format_of(path: Path) -> Format:
    """The format that a file or folder is in.

    Raises:
      RecordingError: when nothing is there or no format knows it.
    """
    _exists(path)
    for known in FORMATS:
        if known.recognises(path):
            return known
    for known in FORMATS:
        if path.is_file() and path.suffix in known.suffixes:
            return known
    raise RecordingError(
        "not a recording of a known format",
        where=path,
        found="a folder" if path.is_dir() else f"a file of {path.stat().st_size} bytes",
        expected=_names(FORMATS),
    )


def sessions_in(path: str | Path) -> list[Path]:
    """The recordings at `path`: itself, or those in the folder, sorted by name.

    Files of other kinds (notes, tables) and hidden files are passed over; a file whose
    name says that it is a recording is kept even where its content is damaged, so that
    reading it gives an error rather than a data set with a hole.

    Raises:
      RecordingError: when nothing is there, or the folder holds no recording.
    """
    path = Path(path)
    _exists(path)
    if path.is_file() or any(f.recognises(path) for f in FORMATS):
        return [path]
    found = _inside(path, [f for f in FORMATS if not f.general]) or _inside(path, FORMATS)
    if not found:
        raise RecordingError(
            "no recording in this folder",
            where=path,
            expected=_names(FORMATS),
        )
    return found


def _inside(path: Path, formats: list[Format]) -> list[Path]:
    """What a folder holds of some formats, sorted by name."""
    suffixes = {s for f in formats for s in f.suffixes}
    return [
        p
        for p in sorted(path.iterdir())
        if not p.name.startswith(".")
        and ((p.suffix in suffixes and p.is_file()) or any(f.recognises(p) for f in formats))
    ]


def recordings_below(path: str | Path, formats: Iterable[str]) -> list[Path]:
    """The recordings of some formats at `path` or anywhere below it, sorted by path.

    A folder that is a recording is not looked into. Hidden files and folders are passed over,
    and so are recordings of other formats; a damaged file is kept, as in `sessions_in`.

    Raises:
      RecordingError: when nothing is there, or no recording of these formats.
    """
    path, wanted = Path(path), [f for f in FORMATS if f.name in set(formats)]
    _exists(path)
    suffixes = {s for f in wanted for s in f.suffixes}
    found: list[Path] = []
    seen: set[Path] = set()  # folders may link to each other in a circle

    def look(at: Path) -> None:
        known = next((f for f in FORMATS if f.recognises(at)), None)
        # Of a damaged file often no more than the name is left.
        told = known is not None and (not at.suffix or at.suffix in known.suffixes)
        damaged = not told and at.is_file() and at.suffix in suffixes
        if known in wanted or damaged:
            found.append(at)
        elif known is None and at.is_dir() and at.resolve() not in seen:
            seen.add(at.resolve())
            _exists(at)
            for p in sorted(at.iterdir()):
                if not p.name.startswith("."):
                    look(p)

    look(path)
    if not found:
        raise RecordingError(
            "no recording in this folder" if path.is_dir() else "not a recording of these formats",
            where=path,
            expected=_names(wanted),
        )
    return found


def _names(formats: Iterable[Format]) -> str:
    return ", ".join(f.name + f" ({' '.join(f.suffixes)})" * bool(f.suffixes) for f in formats)


def _exists(path: Path) -> None:
    if remote.is_url(path):
        return  # asking the network is left to the reader
    if not path.exists():
        near = [p.name for p in path.parent.glob(f"{path.stem}*")] if path.parent.is_dir() else []
        raise RecordingError(
            "no such file or folder",
            where=path,
            remedy=f"Did you mean {near[0]!r}?" if near else "Check the path.",
        )
    if not os.access(path, os.R_OK):
        raise RecordingError("no permission to read", where=path)
