"""Builder of `interchange`."""

from __future__ import annotations

from pathlib import Path

from calm_jax.recordings.formats import format_of, options_from, read, sessions_in
from calm_jax.recordings.formats.interchange import read_interchange
from calm_jax.recordings.session import Session
from data.session_builder import SessionBuilder, SessionsConfig, named_source


class Interchange(SessionBuilder):
    """One session per file of the folder that the user names; see README.md."""

    TITLE = "Recordings of the user's own, one file per session."

    @classmethod
    def sources(cls, config: SessionsConfig) -> list[Path]:
        return sessions_in(named_source(cls.name, config.source))

    @classmethod
    def session(cls, source: Path, config: SessionsConfig) -> Session:
        if not config.read and format_of(source).read is read_interchange:
            return read_interchange(source, mapped=True)  # written to its part, and let go of
        return read(source, **options_from(config.read))
