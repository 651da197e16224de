"""Builder of `interchange`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calm_jax.recordings.formats import read, sessions_in
from calm_jax.recordings.session import Session
from data.session_builder import SessionBuilder, source_of


def files(source: str) -> list[Path]:
    """The recordings at `source`, in the order they are stored in."""
    return sessions_in(source)


class Interchange(SessionBuilder):
    """One session per file of the folder that the user names; see README.md."""

    TITLE = "Recordings of the user's own, one file per session."

    def count(self) -> int:
        return len(files(source_of(self)))

    def sessions(self) -> Iterator[Session]:
        for path in files(source_of(self)):
            yield read(path)
