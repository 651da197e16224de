"""Builds the store of a data set once, and finds it again.

A store lies in `<store>/<name>/<fingerprint>/<version>`; the fingerprint is of all
that it is made from: the fields of the simulation, or name, size and time of every
source file. The builder writes beside the final folder and renames it at the end, so
a folder of that name is always complete.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fcntl
import hashlib
import importlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from calm_jax import config
from calm_jax.errors import CalmError, ConfigError, RecordingError, writing
from calm_jax.recordings.store import open_store


def data_sets() -> list[str]:
    """The names of the data sets in `data/`."""
    package = importlib.import_module("data")
    return sorted(
        p.parent.name for folder in package.__path__ for p in Path(folder).glob("*/builder.py")
    )


def build(
    data: config.Data,
    console: Console | None = None,
    *,
    workers: int | None = None,
    skip_unreadable: bool = False,
    existing: bool = False,
) -> Path:
    """The folder of the store of `data`, built unless it stands there already.

    An interrupted build leaves nothing that looks complete, and keeps the sessions that
    were read: the same call goes on with the others. Of two processes that build from the
    same source, one builds and the other waits for it.

    Args:
      data: which data set, from where, kept where.
      console: where progress is shown; standard error by default.
      workers: recordings read at a time, each in a process of its own; None = this process
        alone. The store is the same for any number.
      skip_unreadable: leave out recordings that cannot be read; whoever uses the store is
        told which.
      existing: build nothing.

    Raises:
      ConfigError: for an unknown data set, or one without the source it needs.
      RecordingError: for a source that cannot be read; it names file and field. With
        `existing`, when the store does not stand there.
      RunError: when the disk is full or the folder is not writable.
    """
    console = console or Console(stderr=True)
    if data.name not in data_sets():
        near = difflib.get_close_matches(data.name, data_sets(), 1)
        raise ConfigError(
            f"no data set {data.name!r}",
            where="data.name",
            expected=", ".join(data_sets()),
            remedy=f"Did you mean {near[0]!r}?" if near else None,
        )
    # absl, which tensorflow-datasets logs to, takes over the root logger when imported.
    logging.getLogger("absl").setLevel(logging.ERROR)
    module = importlib.import_module(f"data.{data.name}.builder")
    shared = importlib.import_module("data.session_builder")
    [cls] = [
        c
        for c in vars(module).values()
        if isinstance(c, type)
        and issubclass(c, shared.SessionBuilder)
        and c.__module__ == module.__name__
    ]
    root = Path(data.store)
    settings = shared.SessionsConfig(
        name="any",
        simulation=data.simulation,
        visual=data.visual,
        source=data.source,
        read=tuple(data.read),
        rate=data.rate,
    )
    sources = cls.sources(settings)
    more = shared.settings_texts(settings)
    if all(isinstance(x, Path) for x in sources):
        settings.name = shared.files_fingerprint(sources, *more)
        origin = str(Path(data.source).resolve())
    else:
        origin = config.fingerprint(getattr(data, cls.FIELD))
        settings.name = shared.files_fingerprint([], origin, *more) if more else origin
    builder = cls(data_dir=str(root), config=settings)
    folder = Path(builder.data_dir)
    if existing and not folder.is_dir():
        raise RecordingError("no store of these recordings", where=folder)
    if not folder.is_dir():
        # Parts are kept by source, not by store: when one file of many is mended, the
        # others need not be read again.
        mark = hashlib.sha256(origin.encode()).hexdigest()[:12]
        unfinished = root / data.name / f"unfinished.{mark}"
        builder.workers = workers or 1
        builder.skip_unreadable = skip_unreadable
        builder.unfinished = unfinished
        with writing(root), _alone(unfinished), _alone(folder.parent):
            if not folder.is_dir():
                for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
                    shutil.rmtree(left)  # of a build that was killed
                # Nothing is downloaded, but tensorflow-datasets makes the folders for it.
                with _progress(builder, data.name, console), tempfile.TemporaryDirectory() as empty:
                    builder.download_and_prepare(download_dir=empty, file_format="array_record")
            for part in unfinished.iterdir():
                if part.is_dir():  # all but the lock, which others may be waiting for
                    shutil.rmtree(part)
    open_store(folder)  # a damaged one is told here, not in the middle of a run
    if (folder / shared.LEFT_OUT).is_file():
        left_out = json.loads((folder / shared.LEFT_OUT).read_text())
        console.print(f"{folder}: built without {len(left_out)} recordings", soft_wrap=True)
        for text in left_out:
            console.print(f"left out: {text}", highlight=False, markup=False, soft_wrap=True)
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder`; the system lets go of it even when the process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress(builder: Any, name: str, console: Console) -> Iterator[None]:
    """A bar on a terminal, a line at the start and at the end otherwise."""
    if console.is_terminal:
        text = TextColumn("{task.description}")
        with Progress(
            text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as bar:
            task = bar.add_task(f"building {name}, sessions", total=None)
            builder.progress = lambda done, total: bar.update(task, completed=done, total=total)
            yield
    else:
        console.print(f"building {name}", highlight=False)
        yield
        console.print(f"built {builder.data_dir}", highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """`python -m calm_jax.recordings.build NAME [--source PATH] [--store FOLDER]`."""
    parser = argparse.ArgumentParser(prog="make data", description="Build the store of a data set.")
    parser.add_argument("name", help="one of: " + ", ".join(data_sets()))
    parser.add_argument("--source", help="folder or file with the recordings")
    parser.add_argument("--store", default=config.Data.store, help="where stores are kept")
    given = parser.parse_args(arguments)
    try:
        data = config.Data(name=given.name, source=given.source, store=given.store)
        print(build(data))
    except CalmError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
