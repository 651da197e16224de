"""One recording as an experiment wants it: read with options, brought to a common rate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from calm_jax.recordings.formats import options_from, read
from calm_jax.recordings.session import Session


def load_session(
    path: str | Path, options: Iterable[str] = (), rate: float | None = None
) -> Session:
    """Reads a recording; `rate` (Hz) resamples it, with a note that says so.

    Args:
      options: of the reader, `name=value` (docs/formats.md).

    Raises:
      RecordingError: for a recording, or an option, that cannot be used.
    """
    return at_rate(read(path, **options_from(options)), rate)


def at_rate(session: Session, rate: float | None) -> Session:
    """The session at `rate` Hz (anti-aliased), or as it is for None."""
    if rate is None:
        return session
    from calm_jax.recordings.conditioning import condition  # scipy.signal: half a second

    return condition(session, rate=rate)
