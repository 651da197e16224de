"""Work on many recordings at a time, one process each; an error names its recording.

A process that dies (a fault inside the HDF5 library on a damaged file, no memory left)
takes one recording with it, not the build.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from calm_jax.errors import CalmError, RecordingError


def run(
    task: Callable[[Any], Any], items: Sequence[Any], workers: int, name: Callable[[Any], str]
) -> Iterator[tuple[int, Any]]:
    """Yields (i, task(items[i])) as they are done; a RecordingError is yielded, not raised.

    Args:
      task, items: can be pickled when `workers` > 1.
      workers: processes; 1 = this one, in order.
      name: of an item, for the message when its process dies.

    Raises:
      whatever else `task` raises.
    """
    if workers <= 1 or len(items) <= 1:
        for i, item in enumerate(items):
            yield i, _attempt(task, item, name)
        return
    # A fork of a process with threads (JAX, HDF5) may hang.
    context = multiprocessing.get_context("spawn")
    free: list[tuple[Any, Any]] = []
    busy: dict[Any, tuple[Any, int]] = {}
    left = list(range(len(items)))[::-1]
    try:
        while left or busy:
            while left and len(busy) < workers:
                pipe, process = free.pop() if free else _start(context, task)
                i = left.pop()
                pipe.send(items[i])
                busy[pipe] = (process, i)
            for pipe in multiprocessing.connection.wait(list(busy)):
                process, i = busy.pop(pipe)
                try:
                    kind, result = pipe.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    pipe.close()
                    yield i, _died(name(items[i]), process.exitcode)
                    continue
                free.append((pipe, process))
                if kind == "bug":
                    raise RuntimeError(f"{name(items[i])}:\n{result}")
                if isinstance(result, BaseException) and not isinstance(result, RecordingError):
                    raise result
                yield i, result
    finally:
        for pipe, process in free + [(pipe, process) for pipe, (process, _) in busy.items()]:
            pipe.close()
            process.terminate()
            process.join()


def _start(context: Any, task: Callable[[Any], Any]) -> tuple[Any, Any]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, task), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _serve(pipe: Any, task: Callable[[Any], Any]) -> None:
    """A worker: one item after the other, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    while True:
        try:
            item = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = ("done", _attempt(task, item, str))
        except (CalmError, OSError) as e:
            answer = ("done", e)
        except BaseException:
            answer = ("bug", traceback.format_exc())
        try:
            pipe.send(answer)
        except ConnectionError:
            return


def _attempt(task: Callable[[Any], Any], item: Any, name: Callable[[Any], str]) -> Any:
    try:
        return task(item)
    except RecordingError as e:
        return e
    except MemoryError:
        return RecordingError(
            "the recording does not fit into memory",
            where=name(item),
            remedy="Use fewer workers, or a machine with more memory.",
        )


def _died(name: str, status: int | None) -> RecordingError:
    return RecordingError(
        "reading this ended its process",
        where=name,
        found=f"exit status {status}" if status is None or status >= 0 else f"signal {-status}",
        expected="a recording that the HDF5 library can read in the memory there is",
        remedy="The file may be damaged: write it again, or use fewer workers.",
    )
