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
from calm_jax.errors import CalmError, ConfigError, writing
from calm_jax.recordings.store import open_store


def data_sets() -> list[str]:
    """The names of the data sets in `data/`."""
    package = importlib.import_module("data")
    return sorted(
        p.parent.name for folder in package.__path__ for p in Path(folder).glob("*/builder.py")
    )


def build(data: config.Data, console: Console | None = None) -> Path:
    """The folder of the store of `data`, built unless it stands there already.

    An interrupted build leaves nothing that looks complete; of two processes that
    build the same store, one builds and the other waits for it.

    Args:
      data: which data set, from where, kept where.
      console: where progress is shown; standard error by default.

    Raises:
      ConfigError: for an unknown data set, or one without the source it needs.
      RecordingError: for a source that cannot be read; it names file and field.
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
    [cls] = [c for c in shared.SessionBuilder.__subclasses__() if c.__module__ == module.__name__]
    root = Path(data.store)
    settings = shared.SessionsConfig(
        name="any", simulation=data.simulation, source=data.source
    )
    if hasattr(module, "files"):
        source = shared.named_source(data.name, data.source)
        settings.name = _files_fingerprint(module.files(source))
    else:
        settings.name = config.fingerprint(data.simulation)
    builder = cls(data_dir=str(root), config=settings)
    folder = Path(builder.data_dir)
    if folder.is_dir():
        open_store(folder)  # a damaged one is told here, not in the middle of a run
        return folder
    with writing(root), _alone(folder.parent):
        if not folder.is_dir():
            for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
                shutil.rmtree(left)  # of a build that was killed
            # Nothing is downloaded, but tensorflow-datasets makes the folders for it.
            with _progress(builder, data.name, console), tempfile.TemporaryDirectory() as empty:
                builder.download_and_prepare(download_dir=empty, file_format="array_record")
    return folder


def _files_fingerprint(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in inside:
            stat = file.stat()
            name = file.relative_to(path.parent)
            digest.update(f"{name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


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
        print(build(config.Data(name=given.name, source=given.source, store=given.store)))
    except CalmError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
