"""Links of HDF5 files of unknown origin: followed within the file only, never in circles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import h5py

from calm_jax.errors import RecordingError

# What h5py and numpy raise on files that are cut short or altered.
DAMAGE = (
    OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, OverflowError,
    AttributeError, UnicodeError, NotImplementedError, AssertionError,
)  # fmt: skip
DEPTH, COUNT, LINKS = 32, 100_000, 16


def damaged(e: Exception, where: str | None = None) -> RecordingError:
    """The error for a file or a field that h5py cannot read."""
    text = str(e) or type(e).__name__
    remedy = "Copy or write the file again."
    if "filter" in text and ("not available" in text or "not registered" in text):
        remedy = "It is compressed with a filter that h5py lacks: pip install hdf5plugin."
    what = "the file is damaged or cut short" if where is None else "the field cannot be read"
    return RecordingError(what, where=where, found=text[:300], remedy=remedy)


def get(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | None:
    """The object at `path` below `group` (from the root with a leading "/"); None if absent.

    Soft links are followed within the file, step by step.

    Raises:
      RecordingError: when the path goes through an external link or too many soft ones.
    """
    here: Any = group.file if path.startswith("/") else group
    steps = [s for s in reversed(path.split("/")) if s not in ("", ".")]
    left = LINKS
    while steps:
        name = steps.pop()
        try:
            kind, value = link(here, name)
            if kind == "hard":
                here = here[name]
        except DAMAGE as e:
            raise damaged(e, path) from e
        if kind == "none":
            return None
        if kind == "external":
            raise RecordingError(
                "a link to another file, which is never followed",
                where=f"{(here.name or '').rstrip('/')}/{name}",
                found=value,
                remedy="Copy what it points to into this file.",
            )
        if kind == "soft":
            left -= 1
            if left < 0:
                raise RecordingError("links that lead in a circle", where=path)
            here = here.file if value.startswith("/") else here
            steps += [s for s in reversed(value.split("/")) if s not in ("", ".")]
    return here


def link(here: Any, name: str) -> tuple[str, str]:
    """Kind of a link ("hard", "soft", "external", "other", "none") and where it leads.

    h5py's own `name in group` and `group.get(name, getlink=True)` open the other file.
    """
    if not isinstance(here, h5py.Group):
        return "none", ""
    raw, links = name.encode("utf-8", "surrogateescape"), here.id.links
    if not links.exists(raw):
        return "none", ""
    kind = links.get_info(raw).type
    if kind == h5py.h5l.TYPE_HARD:
        return "hard", ""
    if kind == h5py.h5l.TYPE_SOFT:
        return "soft", links.get_val(raw).decode("utf-8", "surrogateescape")
    if kind == h5py.h5l.TYPE_EXTERNAL:
        return "external", ":".join(x.decode("utf-8", "replace") for x in links.get_val(raw))
    return "other", ""


def children(group: h5py.Group) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Name and object of each member that is a group or data set; links are resolved.

    External and broken links and members that cannot be opened are passed over: `get`
    tells what is wrong with one of them.
    """
    for name in _names(group):
        item = None
        with contextlib.suppress(RecordingError):
            item = get(group, name)
        if isinstance(item, h5py.Group | h5py.Dataset):
            yield name, item


def walk(
    group: h5py.Group, *, external: list[str] | None = None, skip: tuple[str, ...] = ()
) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Full path and object of everything below `group`, each object once, parents first.

    Only hard links are followed, so that no object appears twice.

    Args:
      external: takes the paths of external links, which are not followed.
      skip: full paths that are left out with all below them.

    Raises:
      RecordingError: for more than COUNT objects.
    """
    seen = {_identity(group)}
    stack = [(group, 0)]
    while stack:
        here, depth = stack.pop()
        below = []
        for name in _names(here):
            path = f"{(here.name or '').rstrip('/')}/{name}"
            if path in skip:
                continue
            try:
                kind, _ = link(here, name)
                if kind == "external" and external is not None:
                    external.append(path)
                if kind != "hard":
                    continue
                item = here[name]
                key = _identity(item)
            except DAMAGE:
                continue  # damaged or not a group or data set; whoever needs it is told by `get`
            if key in seen:
                continue
            seen.add(key)
            if len(seen) > COUNT:
                raise RecordingError("too many objects in the file", expected=f"at most {COUNT}")
            if isinstance(item, h5py.Group | h5py.Dataset):
                yield path, item
            if isinstance(item, h5py.Group) and depth < DEPTH:
                below.append((item, depth + 1))
        stack += reversed(below)


def referenced(obj: Any, attribute: str) -> h5py.Group | h5py.Dataset | None:
    """What the object reference in an attribute of `obj` points to; None if there is none."""
    try:
        reference = obj.attrs.get(attribute)
        if isinstance(reference, h5py.Reference) and reference:
            return obj.file[reference]
    except DAMAGE:
        pass
    return None


def _names(group: h5py.Group) -> list[str]:
    try:
        names = list(group.keys())
    except DAMAGE as e:
        raise damaged(e, group.name) from e
    return [n for n in names if isinstance(n, str)]


def _identity(item: Any) -> tuple[int, ...]:
    info = h5py.h5o.get_info(item.id)
    return (info.fileno, info.addr)
