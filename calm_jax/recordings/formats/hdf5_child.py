"""Looks through HDF5 files in a process of its own: `hdf5_guard` starts it and waits.

On a damaged file the HDF5 library may never come back or end its process, inside a call
that Python cannot interrupt. What it decodes (links, attributes, types, chunk indices, heaps
of text) is decoded here first; errors are no matter here, the reader meets and tells them.

Lines of JSON in, a path each; out come "." as a sign of life and "done". Run as a file, and
imports h5py and numpy alone: it starts in the time they take.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable

import h5py

with contextlib.suppress(ImportError):  # not on every system; `hdf5_guard` has a limit too
    import resource

SECONDS = 3  # of processor time for one object
MEMORY = 4 << 30  # bytes it may map
COUNT, DEPTH = 100_000, 32  # objects looked at, and how deep: as the readers go
SMALL = 1 << 20  # bytes: chunks of a data set that takes fewer are all unpacked
CHUNK = 64 << 20  # bytes: a larger chunk is not unpacked
TEXTS, SLICE = 1 << 22, 1 << 16  # texts read of one data set, and at a time


def look(path: str, alive: Callable[[], None]) -> None:
    """Decodes what a reader decodes, apart from large arrays of numbers."""
    with h5py.File(path, "r", locking="best-effort") as file:
        seen: set[tuple[int, int]] = set()
        stack = [(file["/"], 0)]
        while stack and len(seen) < COUNT:
            item, depth = stack.pop()
            with contextlib.suppress(Exception):
                info = h5py.h5o.get_info(item.id)
                if (info.fileno, info.addr) in seen:
                    continue
                seen.add((info.fileno, info.addr))
            alive()
            _attributes(item)
            if isinstance(item, h5py.Dataset):
                with contextlib.suppress(Exception):
                    _data(item, alive)
            elif isinstance(item, h5py.Group) and depth < DEPTH:
                with contextlib.suppress(Exception):
                    stack += [(x, depth + 1) for x in _members(item, alive)]


def _attributes(item: h5py.HLObject) -> None:
    names = []
    with contextlib.suppress(Exception):
        names = list(item.attrs) if h5py.h5a.get_num_attrs(item.id) else []
    for name in names:
        with contextlib.suppress(Exception):
            value = item.attrs[name]
            if isinstance(value, h5py.Reference) and value:
                item.file[value].name  # noqa: B018  what it points to is decoded


def _members(group: h5py.Group, alive: Callable[[], None]) -> list[h5py.HLObject]:
    found, links = [], group.id.links
    for raw in group.id:
        alive()
        with contextlib.suppress(Exception):
            if links.get_info(raw).type == h5py.h5l.TYPE_HARD:  # nothing outside is opened
                found.append(group[raw])
            else:
                links.get_val(raw)
    return found


def _data(data: h5py.Dataset, alive: Callable[[], None]) -> None:
    plist = data.id.get_create_plist()
    if plist.get_external_count() or data.is_virtual:
        return  # another file, or this one by another way; the reader refuses or resolves it
    stored, shape, dtype = data.id.get_storage_size(), data.shape, data.dtype
    count = math.prod(shape or ())
    if shape is None or not count:
        return
    if dtype.hasobject:
        if len(shape) == 0:
            data[()]
        else:
            rows = max(1, SLICE * shape[0] // count)
            for a in range(0, min(shape[0], max(1, TEXTS * shape[0] // count)), rows):
                data[a : a + rows]
                alive()
    elif data.chunks is None:
        return  # bytes as they lie in the file: nothing is decoded
    elif count * dtype.itemsize <= SMALL:
        data[()]
    elif stored and math.prod(data.chunks) * dtype.itemsize <= CHUNK:
        data[(0,) * len(shape)]
        data[tuple(n - 1 for n in shape)]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(NameError, ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        least = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (least, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    last = -math.inf

    def alive() -> None:
        """Says so a few times a second, and has SECONDS more for what comes next."""
        nonlocal last
        if time.monotonic() - last < 0.2:
            return
        last = time.monotonic()
        answers.write(".\n")
        answers.flush()
        with contextlib.suppress(NameError, ValueError, OSError):
            _, most = resource.getrlimit(resource.RLIMIT_CPU)
            soft = math.ceil(time.process_time()) + SECONDS
            limit = soft if most == resource.RLIM_INFINITY else min(soft, most)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, most))

    for line in sys.stdin:
        last = -math.inf
        with contextlib.suppress(Exception):
            look(json.loads(line), alive)
        answers.write("done\n")
        answers.flush()


if __name__ == "__main__":
    main()
