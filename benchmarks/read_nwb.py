"""What reading an NWB file of several GB costs: memory, seconds, and beside a plain copy.

    python benchmarks/read_nwb.py [--gigabytes 2] [--folder DIR]

Writes the traces once as (time, neurons) and once transposed, with chunks, as files in the
wild are, and once with missing samples. Each measurement runs in a process of its own. Prints
for each file the peak memory of reading over the size of the traces (beyond what the process
holds before), the seconds of `calm-jax info`, and megabytes a second of reading beside a plain
h5py copy of the values to another file, of the same file in the same run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

NEURONS = 2000
BLOCK = 4096  # frames written at a time
READ = """
import json, resource, sys, time
import calm_jax
from calm_jax.recordings.formats import nwb
import h5py
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, t = peak(), time.perf_counter()
session = calm_jax.read(sys.argv[1])
seconds = time.perf_counter() - t
print(json.dumps({"seconds": seconds, "extra": peak() - before, "bytes": session.traces.nbytes}))
"""
COPY = """
import json, sys, time
import h5py
t = time.perf_counter()
with h5py.File(sys.argv[1]) as a, h5py.File(sys.argv[2], "w") as b:
    x = a["processing/ophys/DfOverF/RoiResponseSeries/data"]
    y = b.create_dataset("data", x.shape, x.dtype)
    step = x.chunks[0] if x.chunks else 4096
    for i in range(0, x.shape[0], step):
        y[i : i + step] = x[i : i + step]
print(json.dumps({"seconds": time.perf_counter() - t}))
"""


def write(path: Path, frames: int, kind: str) -> None:
    """An NWB-like file: what the reader looks at, without pynwb, written block by block."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as f:
        f.attrs["nwb_version"], f.attrs["neurodata_type"] = "2.8.0", "NWBFile"
        f["identifier"], f["general/subject/subject_id"] = "benchmark", "none"
        table = f.create_group("processing/ophys/ImageSegmentation/PlaneSegmentation")
        table.attrs["neurodata_type"], table.attrs["colnames"] = "PlaneSegmentation", ["x"]
        table["id"], table["x"] = np.arange(NEURONS), np.arange(float(NEURONS))
        box = f.create_group("processing/ophys/DfOverF")
        box.attrs["neurodata_type"] = "DfOverF"
        series = box.create_group("RoiResponseSeries")
        series.attrs["neurodata_type"] = "RoiResponseSeries"
        series["rois"] = np.arange(NEURONS)
        series["rois"].attrs["table"] = table.ref
        series["starting_time"] = 0.0
        series["starting_time"].attrs["rate"] = 30.0
        turned = kind == "neurons, time"
        shape = (NEURONS, frames) if turned else (frames, NEURONS)
        data = series.create_dataset("data", shape, "f4", chunks=(50, BLOCK) if turned else None)
        for a in range(0, frames, BLOCK):
            block = rng.standard_normal((min(BLOCK, frames - a), NEURONS), np.float32)
            if kind == "time, neurons, 1 % NaN":
                block[rng.random(block.shape) < 0.01] = np.nan
            if turned:
                data[:, a : a + len(block)] = block.T
            else:
                data[a : a + len(block)] = block


def run(code: str, *arguments: object) -> dict:
    out = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(out.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", help="where the files are made; default: a temporary folder")
    given = parser.parse_args()
    frames = int(given.gigabytes * 1e9 / 4 / NEURONS)
    print(f"{frames} frames x {NEURONS} neurons, {frames * NEURONS * 4 / 1e9:.2f} GB of float32")
    head = ("layout", "peak/traces", "info s", "read MB/s", "copy MB/s", "copy/read time")
    print(f"{head[0]:<26}" + "".join(f"{h:>15}" for h in head[1:]))
    for kind in ("time, neurons", "neurons, time", "time, neurons, 1 % NaN"):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            path = Path(folder) / "a.nwb"
            write(path, frames, kind)
            copied = run(COPY, path, Path(folder) / "b.h5")  # first: the file is in the cache
            read = run(READ, path)
            t = time.perf_counter()
            info = [sys.executable, "-m", "calm_jax", "info", str(path)]
            subprocess.run(info, check=True, capture_output=True)
            seconds = time.perf_counter() - t
        size = read["bytes"] / 1e6
        values = (
            f"{read['extra'] / read['bytes']:.2f}", f"{seconds:.2f}",
            f"{size / read['seconds']:.0f}", f"{size / copied['seconds']:.0f}",
            f"{copied['seconds'] / read['seconds']:.2f}",
        )  # fmt: skip
        print(f"{kind:<26}" + "".join(f"{v:>15}" for v in values), flush=True)


if __name__ == "__main__":
    main()
