"""Errors met inside a file are told with the name of the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from calm_jax.errors import RecordingError


@contextlib.contextmanager
def located(path: str | Path) -> Iterator[None]:
    """Puts `path` before the field that a `RecordingError` from inside names."""
    try:
        yield
    except RecordingError as e:
        if e.where is not None and str(e.where).startswith(str(path)):
            raise
        raise RecordingError(
            e.what,
            where=path if e.where is None else f"{path}: {e.where}",
            found=e.found,
            expected=e.expected,
            remedy=e.remedy,
        ) from e
