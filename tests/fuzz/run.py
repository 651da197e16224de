"""Damages recordings of every format and reads them: `make fuzz`, or a small run in the tests.

Each file is read by a worker process with a limit on its memory and its time. A Session or
a RecordingError of one line that names the file is right; another exception, a process that
dies, a reader that takes too long, and code that a file made run are not.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutations import CANARY
from tests.fuzz.seeds import SEEDS, Seed

MEMORY = 4 << 30  # bytes a worker may map
SECONDS = 20.0  # for one file
KINDS = ("read", "refused", "exception", "wrong", "died", "too long", "executed")


class Worker:
    """A process that reads damaged files; started again when it has died."""

    def __init__(self, canary: Path) -> None:
        self._canary, self._process = canary, None

    def read(self, path: Path, options: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, CANARY: str(self._canary), "OMP_NUM_THREADS": "1"},
            )
        job = json.dumps({"path": str(path), "options": options})
        start = time.perf_counter()
        try:
            self._process.stdin.write(job + "\n")
            self._process.stdin.flush()
            # The first file waits for the imports of the worker too.
            ready, _, _ = select.select([self._process.stdout], [], [], SECONDS + 60)
            answer = self._process.stdout.readline() if ready else None
        except BrokenPipeError:
            answer = ""
        if answer:
            out = json.loads(answer)
            if out["seconds"] > SECONDS:
                out["kind"] = "too long"
        elif answer is None:
            self.stop()
            out = {"kind": "too long", "what": "", "seconds": time.perf_counter() - start}
        else:
            status = self._process.wait()
            self._process = None
            out = {"kind": "died", "what": f"exit status {status}", "seconds": 0.0}
        if self._canary.exists():
            self._canary.unlink()
            out["kind"] = "executed"
        return out

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def damage(seed: Seed, whole: Path, target: Path, number: int) -> str:
    """Copies the whole recording and damages it; returns the name of what was done."""
    rng = np.random.default_rng([number, len(seed.name)])
    (shutil.copytree if whole.is_dir() else shutil.copy)(whole, target)
    done = []
    for _ in range(1 if rng.random() < 0.8 else 2):
        mutate = seed.mutations[(number + len(done)) % len(seed.mutations)]
        try:
            mutate(target, rng)
        except Exception:  # it does not suit what is there; the first one always does
            mutate = seed.mutations[0]
            mutate(target, rng)
        done.append(mutate.__name__)
    return " + ".join(done)


def fuzz(count: int, first: int = 0, keep: Path | None = None) -> dict[str, Any]:
    """Reads `count` damaged files, spread over the formats.

    Returns:
      `table`: format -> kind -> files; `bad`: what was neither read nor refused;
      `whole`: format -> what came of the undamaged file; `slowest` in seconds.
    """
    table: dict[str, Any] = {s.name: collections.Counter() for s in SEEDS}
    bad, whole_said, slowest = [], {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        worker = Worker(root / "canary")
        try:
            wholes = {}
            for i, seed in enumerate(SEEDS):
                wholes[seed.name] = root / f"whole{i}" / seed.file
                wholes[seed.name].parent.mkdir()
                seed.write(wholes[seed.name])
                whole_said[seed.name] = worker.read(wholes[seed.name], seed.options)
            for k in range(count):
                seed, number = SEEDS[k % len(SEEDS)], first + k // len(SEEDS)
                target = root / "damaged" / seed.file
                target.parent.mkdir()
                done = damage(seed, wholes[seed.name], target, number)
                out = worker.read(target, seed.options)
                table[seed.name][out["kind"]] += 1
                slowest = max(slowest, out["seconds"])
                if out["kind"] not in ("read", "refused"):
                    bad.append({"format": seed.name, "number": number, "done": done, **out})
                    if keep is not None:
                        kept = keep / f"{len(bad)}" / seed.file
                        kept.parent.mkdir(parents=True, exist_ok=True)
                        (shutil.copytree if target.is_dir() else shutil.copy)(target, kept)
                shutil.rmtree(target.parent)
        finally:
            worker.stop()
    return {"table": table, "bad": bad, "whole": whole_said, "slowest": slowest}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description="Read damaged recordings.")
    parser.add_argument("--count", type=int, default=2600, help="files; default: 2600")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--keep", type=Path, help="keep files that were handled wrongly here")
    given = parser.parse_args(argv)
    # Damage done twice may read a data set that was made huge before.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    start = time.perf_counter()
    out = fuzz(given.count, given.first, given.keep)
    print(f"{'format':<20} {'files':>6}" + "".join(f"{k:>11}" for k in KINDS))
    total: collections.Counter = collections.Counter()
    for name, row in out["table"].items():
        total.update(row)
        print(f"{name:<20} {sum(row.values()):>6}" + "".join(f"{row[k]:>11}" for k in KINDS))
    print(f"{'all':<20} {sum(total.values()):>6}" + "".join(f"{total[k]:>11}" for k in KINDS))
    for x in out["bad"]:
        print(f"{x['format']} {x['number']}, {x['done']}: {x['kind']}: {x['what']}")
    for name, x in out["whole"].items():
        if x["kind"] != "read":
            print(f"{name}, undamaged: {x['kind']}: {x['what']}")
    print(f"slowest {out['slowest']:.1f} s, all {time.perf_counter() - start:.0f} s")
    fine = not out["bad"] and all(x["kind"] == "read" for x in out["whole"].values())
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
