"""Speed of conversion: an interchange HDF5 file to a store, beside a plain h5py copy.

    python benchmarks/convert.py [--gigabytes 1] [--folder DIR] [--repeats 3]

The file is in the page cache; both write to the disk they are on and wait until the data
are there (fsync). Prints megabytes of traces a second and processor seconds: of `build`
alone, of the command `calm-jax data` with start and imports, and of the copy of the values in
blocks of 4096 frames. The three take turns, each in a process of its own; the median of the
repeats is the last line, with the ratio of build to copy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

NEURONS, BLOCK = 1000, 4096
BUILD = """
import json, sys, time
from rich.console import Console
from calm_jax import config
from calm_jax.recordings.build import build
import data.interchange.builder
quiet, c, t = Console(quiet=True), time.process_time(), time.perf_counter()
build(config.Data(name="interchange", source=sys.argv[1], store=sys.argv[2]), quiet)
print(json.dumps([time.perf_counter() - t, time.process_time() - c]))
"""
COPY = """
import json, os, sys, time
import h5py
c, t = time.process_time(), time.perf_counter()
with h5py.File(sys.argv[1]) as a, h5py.File(sys.argv[2], "w") as b:
    x = a["traces"]
    y = b.create_dataset("traces", x.shape, x.dtype)
    for i in range(0, x.shape[0], 4096):
        y[i : i + 4096] = x[i : i + 4096]
with open(sys.argv[2], "rb") as f:
    os.fsync(f.fileno())
print(json.dumps([time.perf_counter() - t, time.process_time() - c]))
"""


def write(path: Path, frames: int) -> None:
    """A recording of noise, block by block."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["rate"] = 30.0
        data = file.create_dataset("traces", (frames, NEURONS), "f4")
        for a in range(0, frames, BLOCK):
            data[a : a + BLOCK] = rng.standard_normal((min(BLOCK, frames - a), NEURONS), np.float32)


def run(code: str, *arguments: object) -> list[float]:
    """Seconds and processor seconds that `code` prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def command(source: Path, store: Path) -> list[float]:
    """Seconds and processor seconds of `calm-jax data`, start and all."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, start = used.ru_utime + used.ru_stime, time.perf_counter()
    line = [sys.executable, "-m", "calm_jax", "data", "interchange"]
    subprocess.run(
        [*line, "--source", str(source), "--store", str(store)], check=True, capture_output=True
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return [time.perf_counter() - start, used.ru_utime + used.ru_stime - before]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where the files are made; default: a temporary folder")
    given = parser.parse_args()
    frames = int(given.gigabytes * 1e9 / 4 / NEURONS)
    size = frames * NEURONS * 4 / 1e6
    print(f"{frames} frames x {NEURONS} neurons, {size:.0f} MB")
    print(f"{'':<10}{'build MB/s':>14}{'command MB/s':>14}{'copy MB/s':>14}   "
          "processor s of the three, load")  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        source, store, copy = folder / "in", folder / "store", folder / "copy.h5"
        source.mkdir()
        write(source / "a.h5", frames)
        os.sync()
        (source / "a.h5").read_bytes()[:0]  # into the page cache
        for i in range(given.repeats):
            took = []
            for job in (
                lambda: run(BUILD, source, store),
                lambda: command(source, store),
                lambda: run(COPY, source / "a.h5", copy),
            ):
                took.append(job())
                shutil.rmtree(store, ignore_errors=True)
                copy.unlink(missing_ok=True)
            rows.append([size / t for t, _ in took])
            cpu = ", ".join(f"{c:.1f}" for _, c in took)
            speeds = "".join(f"{x:>14.0f}" for x in rows[-1])
            print(f"run {i + 1:<6}{speeds}   {cpu}; {os.getloadavg()[0]:.1f}", flush=True)
    middle = [statistics.median(x) for x in zip(*rows)]
    print(f"{'median':<10}" + "".join(f"{x:>14.0f}" for x in middle)
          + f"   build takes {middle[2] / middle[0]:.2f} of the time of the copy")  # fmt: skip


if __name__ == "__main__":
    main()
