"""Batches prepared one thread ahead of the training step, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


class Prefetch:
    """`make(step)` for step = start, start + 1, ... below stop, a few steps ahead.

    An error in `make` is raised by the `next` that would have given its batch.
    """

    def __init__(self, make: Callable[[int], Any], start: int, stop: int, ahead: int = 2):
        self._make, self._range = make, range(start, stop)
        self._queue: queue.Queue = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        while self._thread.is_alive():  # the worker may wait for room in the queue
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self) -> None:
        try:
            for step in self._range:
                batch = self._make(step)
                self._queue.put((step, batch, None))
                if self._closed.is_set():
                    return
        except BaseException as e:  # handed to the thread that waits for the batch
            self._queue.put((None, None, e))

    def next(self, step: int) -> Any:
        """The batch of `step`; steps are asked for in order."""
        got, batch, error = self._queue.get()
        if error is not None:
            raise error
        if got != step:
            raise RuntimeError(f"batch {step} was asked for, {got} is the next")
        return batch
