"""One recording as an experiment wants it: read with options, brought to a common rate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from calm_jax.recordings.formats import options_from, read
from calm_jax.recordings.session import Session


def load_session(
    path: str | Path, options: Iterable[str] = (), rate: float | None = None
) -> Session:
    """Reads a recording; `rate` (Hz) resamples it, causally, with a note that says so.

    Args:
      options: of the reader, `name=value` (docs/formats.md).

    Raises:
      RecordingError: for a recording, or an option, that cannot be used.
    """
    return at_rate(read(path, **options_from(options)), rate)


def at_rate(session: Session, rate: float | None) -> Session:
    """The session at `rate` Hz, or as it is for None.

    The filter looks back only: one that looks ahead would put the future into the context of
    a forecast. It is the weaker one of `resample`.
    """
    if rate is None:
        return session
    from calm_jax.recordings.conditioning import condition  # scipy.signal: half a second

    return condition(session, rate=rate, causal=True)
