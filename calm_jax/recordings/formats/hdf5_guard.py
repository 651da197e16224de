"""Keeps files on which the HDF5 library hangs or crashes away from this process.

A damaged file may send libhdf5 into an endless loop (a heap whose objects have size 0) or
end its process, and neither can be turned into an error from inside. A second process
(`hdf5_child.py`) therefore decodes each file first. It is started with the first HDF5 file
and serves all others; what it found is kept for as long as the file is the same.
"""

from __future__ import annotations

import atexit
import collections
import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

from calm_jax.errors import RecordingError

SECONDS = 60.0  # without a sign of life; a loop ends sooner, by the limit of the child
KEPT = 256  # files whose verdict is kept


class Guard:
    """The other process, and what it said of each file."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._owner = 0  # a fork of this process must not share the pipes
        self._lock = threading.Lock()
        self._said: collections.OrderedDict[tuple, str] = collections.OrderedDict()

    def check(self, path: str | Path) -> None:
        """Returns when the HDF5 library gets through the file, with or without errors.

        Raises:
          RecordingError: when it loops or crashes, or the other process cannot be started.
        """
        try:
            stat = os.stat(path)
        except OSError:
            return  # whoever opens the file tells it
        key = (os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if key not in self._said:
                self._said[key] = self._look(key[0])
                if len(self._said) > KEPT:
                    self._said.popitem(last=False)
            self._said.move_to_end(key)
            said = self._said[key]
        if said:
            raise RecordingError(
                "the file is damaged", found=said, remedy="Copy or write the file again."
            )

    def stop(self) -> None:
        """Ends the other process; the next file starts a new one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def _look(self, path: str) -> str:
        """What is wrong with the file; empty for nothing."""
        if self._process is not None and self._owner == os.getpid():
            if self._process.poll() is not None:  # ended between two files
                self.stop()
        else:
            self._process = None
        if self._process is None:
            self._start()
        process = self._process
        try:
            os.write(process.stdin.fileno(), json.dumps(path).encode() + b"\n")
            said = b""
            while not said.endswith(b"done\n"):
                ready, _, _ = select.select([process.stdout], [], [], SECONDS)
                some = os.read(process.stdout.fileno(), 4096) if ready else b""
                if not some:
                    break
                said = said[-8:] + some
            else:
                return ""
        except BrokenPipeError:
            ready = [process.stdout]
        except BaseException:
            self.stop()  # an answer to this file would be taken for one to the next
            raise
        status = process.wait() if ready else None
        self.stop()
        if status is not None and status >= 0:
            raise RecordingError(
                "the process that looks through HDF5 files does not run",
                found=f"exit status {status}",
                expected=f"{sys.executable} with h5py",
            )
        if status is None or -status == getattr(signal, "SIGXCPU", 0):
            return "the HDF5 library comes to no end in it"
        return f"the HDF5 library crashes on it ({_name(status)})"

    def _start(self) -> None:
        child = Path(__file__).with_name("hdf5_child.py")
        # It finds the h5py of this process; -P keeps its own folder from the search.
        paths = os.pathsep.join(p for p in sys.path if p)
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        env |= {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", str(child)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=env,
                bufsize=0,
            )
        except OSError as e:
            raise RecordingError(
                "the process that looks through HDF5 files cannot be started", found=str(e)
            ) from e
        self._owner = os.getpid()


def _name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


_GUARD = Guard()
atexit.register(_GUARD.stop)


def check(path: str | Path) -> None:
    """See `Guard.check`; one process for all files."""
    _GUARD.check(path)
