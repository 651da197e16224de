"""Builders of any folder of recordings, nested or not, in the formats they name."""

from __future__ import annotations

from pathlib import Path

from calm_jax.recordings.formats import options_from, read, recordings_below
from calm_jax.recordings.session import Session
from data.session_builder import SessionBuilder, SessionsConfig, named_source


class FolderBuilder(SessionBuilder, skip_registration=True):
    """One session per recording below the folder that the user names.

    An animal that the files do not name is the first folder below the source, where
    recordings lie in folders by animal; a note says so.
    """

    FORMATS: tuple[str, ...] = ()  # names in `calm_jax.recordings.formats.FORMATS`

    @classmethod
    def sources(cls, config: SessionsConfig) -> list[Path]:
        source = named_source(cls.name, config.source)
        return recordings_below(source, cls.FORMATS)

    @classmethod
    def session(cls, source: Path, config: SessionsConfig) -> Session:
        session = read(source, **options_from(config.read))
        above = source.relative_to(config.source).parts[:-1] if config.source else ()
        if session.animal != "unknown" or not above:
            return session
        note = f"animal {above[0]!r}: the name of the folder"
        return session.replace(animal=above[0], notes=(*session.notes, note))
