"""How fast a store of a thousand sessions opens and reads, and what a build takes.

    python benchmarks/store.py [--sessions 1000] [--folder DIR]

Prints: seconds and peak memory of opening, of listing all sessions, of reading one
trial (cold and from the cache), and megabytes a second of a whole pass.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from calm_jax import config
from calm_jax.recordings.build import build
from calm_jax.recordings.formats.interchange import write_interchange
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.store import open_store

FRAMES, NEURONS, TRIAL = 600, 50, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--folder", help="kept when given; a temporary folder otherwise")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(Path(given.folder or temporary), given.sessions)


def measure(root: Path, count: int) -> None:
    source = root / "files"
    source.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    start = np.arange(0, FRAMES, TRIAL)
    for i in range(count):
        traces = rng.standard_normal((FRAMES, NEURONS), np.float32)
        session = Session(
            traces, rate=30.0, trials=Trials(start, start + TRIAL), animal=f"a{i // 30}",
            session=f"s{i:04d}",
        )  # fmt: skip
        write_interchange(session, source / f"{i:04d}.h5")
    data = config.Data("interchange", source=str(source), store=str(root / "store"))
    with Timer(f"build, {count} sessions"):
        folder = build(data)
    tracemalloc.start()
    with Timer("open"):
        store = open_store(folder)
    print(f"{'open, peak memory':<32}{tracemalloc.get_traced_memory()[1] / 1e6:10.2f} MB")
    with Timer("list all sessions"):
        frames = sum(s.n_frames for s in store.sessions)
    tracemalloc.stop()
    with Timer("first trial, imports included"):
        store.read(0, 0, TRIAL)
    with Timer("a trial, cold"):
        store.read(count // 2, TRIAL, 2 * TRIAL)
    with Timer("the same, from the cache"):
        store.read(count // 2, TRIAL, 2 * TRIAL)
    with Timer("a whole pass") as pass_:
        for i in range(count):
            store.read(i, 0, FRAMES)
    print(f"{'a whole pass':<32}{frames * NEURONS * 4 / 1e6 / pass_.seconds:10.0f} MB/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'peak memory of the process':<32}{peak:10.0f} MB")


class Timer:
    """Prints the seconds that a block takes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Timer:
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
        print(f"{self.name:<32}{self.seconds:10.4f} s")


if __name__ == "__main__":
    main()
