"""One command as several processes of this machine, each on cores of its own.

XLA shares one pool of threads between all devices of a process and cuts most operations for it.
Processes on cores of their own do without: the population encoder trains about a fifth faster on
two cores than with one process (docs/results.md). On GPUs one process uses all of them already.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO

from calm_jax.errors import ConfigError

MARK = "CALM_JAX_PROCESSES"  # in the environment of a process that `launch` started
GRACE = 30.0  # s that others have to end by themselves once one has failed
_NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def add(parser: argparse.ArgumentParser) -> None:
    """The flag."""
    from calm_jax.commands.flags import count

    parser.add_argument(
        "--processes",
        type=count,
        default=1,
        metavar="N",
        help="CPUs: train with N processes, each on its share of the cores; default: 1",
    )


def wanted(known: argparse.Namespace) -> bool:
    """Whether this process is to start others; they carry the same flag."""
    return known.processes > 1 and not os.environ.get(MARK)


def again(known: argparse.Namespace) -> int:
    """Runs this command as `known.processes` processes; returns its status, see `launch`."""
    return launch(known.processes, [sys.executable, "-m", "calm_jax", *known.arguments])


def launch(count: int, command: Sequence[str]) -> int:
    """Runs a command as `count` processes that find each other; returns the status of the run.

    Each is bound to its share of the cores, where the system allows it. The first speaks; of
    another one the end of its output is shown if it fails alone. SIGTERM and Ctrl-C reach all.
    When one fails, the others have `GRACE` seconds.

    Raises:
      ConfigError: for more processes than cores, or inside a run over several machines.
    """
    given = [n for n in _NAMES if os.environ.get(n)]
    if given:
        raise ConfigError(
            "the run has its processes from the environment already",
            where="--processes",
            found=given[0],
            remedy="Leave the flag out, or unset the variable.",
        )
    cores = _cores()
    if count > len(cores):
        raise ConfigError(
            "more processes than cores",
            where="--processes",
            found=count,
            expected=f"at most {len(cores)}",
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryFile() as said, _forwarding() as started:
        for i in range(count):
            own = dict(zip(_NAMES, (address, str(count), str(i)), strict=True))
            with _bound(cores[i * len(cores) // count : (i + 1) * len(cores) // count]):
                started.append(_start(command, own, None if i == 0 else said))
        first = _wait(started)
        if first < 0:
            return 0
        if first > 0 and started[0].returncode != started[first].returncode:
            _tell(first, said)  # else the first has told the same
        return _status(started[first])


def _start(command: Sequence[str], own: dict[str, str], said: IO | None) -> subprocess.Popen:
    # A session of its own: Ctrl-C in a terminal then reaches it once, through this process.
    return subprocess.Popen(
        command,
        env={**os.environ, **own, MARK: str(os.getpid())},
        stdout=said,
        stderr=said,
        start_new_session=True,
    )


def _wait(started: list[subprocess.Popen]) -> int:
    """The index of the process that failed first, -1 if none did; all have ended then."""
    first, since, asked = -1, 0.0, 0
    while any(p.poll() is None for p in started):
        failed = [i for i, p in enumerate(started) if p.poll()]
        if failed and first < 0:
            first, since = failed[0], time.monotonic()
        if first >= 0 and time.monotonic() - since > GRACE * (1 + asked / 2) and asked < 2:
            for p in started:
                if p.poll() is None:
                    (p.terminate, p.kill)[asked]()
            asked += 1
        time.sleep(0.05)
    failed = [i for i, p in enumerate(started) if p.poll()]
    return first if first >= 0 else (failed or [-1])[0]


def _status(process: subprocess.Popen) -> int:
    """As a shell tells it: 128 + signal for a process that a signal ended."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _tell(index: int, said: IO) -> None:
    """The end of what a process other than the first said before it failed."""
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()[-15:]
    print("\n".join(f"process {index}: {x}" for x in lines), file=sys.stderr)


@contextlib.contextmanager
def _forwarding() -> Iterator[list[subprocess.Popen]]:
    """A list of processes that get the SIGTERM and Ctrl-C of this one."""
    started: list[subprocess.Popen] = []

    def forward(signum: int, frame: object) -> None:
        for p in started:
            if p.poll() is None:
                p.send_signal(signum)

    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield started
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
        for p in started:
            if p.poll() is None:
                p.kill()


def _cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def _bound(cores: list[int]) -> Iterator[None]:
    """What is started within may use these cores only; nothing where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def started() -> None:
    """In a process that `launch` started: checks the devices, and ends with its parent.

    Raises:
      ConfigError: on a GPU.
    """
    parent = os.environ.get(MARK)
    if not parent:
        return
    import jax

    if jax.default_backend() != "cpu":
        raise ConfigError(
            "processes on one machine divide CPUs; one process uses all GPUs already",
            where="--processes",
            found=jax.default_backend(),
            remedy="Leave the flag out, or set JAX_PLATFORMS=cpu.",
        )
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            raise SystemExit(128 + signal.SIGTERM)
