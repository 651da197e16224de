"""The errors a user meets: what is wrong, where, what was expected, what to do.

Every error a user can cause is a `CalmError`; the command line prints it as one
line and exits with status 2. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


class CalmError(Exception):
    """A problem in what the user gave; the message is one complete line.

    Args:
      what: what is wrong, in a few words.
      where: the file, folder, field or flag it was met in.
      found: what stands there.
      expected: what should stand there.
      remedy: what to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.where, self.found = what, where, found
        self.expected, self.remedy = expected, remedy
        text = what if where is None else f"{where}: {what}"
        if found is not None:
            text += f"; found {found}"
        if expected is not None:
            text += f"; expected {expected}"
        if remedy:
            text += f". {remedy}"
        super().__init__(" ".join(text.split()))


class RecordingError(CalmError):
    """A recording, or a file that should hold one, is not usable as it is."""


class SplitError(CalmError):
    """A split would leak between its parts, or leaves a part empty."""


class ConfigError(CalmError):
    """An experiment or one of its fields is wrong."""


class RunError(CalmError):
    """A run folder cannot be used, or a run cannot go on."""


class WeightsError(CalmError):
    """Weights made elsewhere cannot be read or do not fit."""


class AnalysisError(CalmError):
    """An analysis is not possible with these data; the message says why."""


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Turns a failed write below `path` into a `RunError` that names the remedy."""
    try:
        yield
    except OSError as e:
        # HDF5 and tensorflow-datasets give the reason in the text alone.
        full = any(x in str(e) for x in ("No space left on device", "Not enough disk space"))
        if full or e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                "the disk is full",
                where=path,
                remedy="Free some space and run the same command again: finished work is kept.",
            ) from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RunError(
                "no permission to write",
                where=path,
                remedy="Choose another folder.",
            ) from e
        if e.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise RunError(
                "cannot be written",
                where=path,
                found=e.strerror,
                remedy="Choose another name.",
            ) from e
        raise
