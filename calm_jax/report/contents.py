"""What a run folder holds, read for the report; what is missing or broken is remembered."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax import rows as rows_of_run
from calm_jax.config import Experiment
from calm_jax.errors import RunError
from calm_jax.report import command
from calm_jax.rows import Row
from calm_jax.runs import read_run
from calm_jax.training.log import METRICS

Curves = dict[tuple[str, str], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """A run, as far as it went.

    Attributes:
      folder, experiment: which run.
      stages: stage -> facts, as in stages.json.
      split: as in split.json; None when absent.
      curves: (stage, "train" or "valid") -> metric -> (records,), "step" among them.
      rows: of the evaluation, or of the tokenizer alone; empty when absent.
      examples: arrays of evaluation/examples.npz; code usage comes with the codes already.
      problems: file -> why it could not be used, one line each.
    """

    folder: Path
    experiment: Experiment
    stages: dict[str, dict]
    split: dict | None
    curves: Curves
    rows: list[Row]
    examples: dict[str, np.ndarray]
    problems: dict[str, str]

    @property
    def shown_folder(self) -> str:
        """The run folder as one types it: relative where it lies below the working folder."""
        return command.shown(self.folder)

    @property
    def rate(self) -> float | None:
        """Frame rate of the examples, Hz."""
        value = float(self.examples["rate"]) if "rate" in self.examples else None
        return value if value and np.isfinite(value) else None

    @property
    def unit(self) -> str:
        """Unit of the examples, for the axis of a trace."""
        return str(self.examples["unit"]) if "unit" in self.examples else "trace"

    def has(self, *arrays: str) -> bool:
        """Whether the examples hold all of these arrays, none of them empty."""
        return all(a in self.examples and self.examples[a].size for a in arrays)


def read(folder: Path) -> Contents:
    """Reads a run folder; parts that are absent or broken are noted in `problems`.

    Raises:
      RunError: when the folder is no run, or its experiment cannot be read.
    """
    folder = Path(folder)
    run = read_run(folder)
    problems: dict[str, str] = {}

    def part(name: str, reader: Any, empty: Any) -> Any:
        path = folder / name
        if not path.exists():
            problems[name] = "not there yet"
            return empty
        try:
            return reader(path)
        except (OSError, ValueError, KeyError, TypeError, RunError, zipfile.BadZipFile) as e:
            problems[name] = f"cannot be read: {' '.join(str(e).split())}"
            return empty

    stages = part("stages.json", _table, {})
    rows = part("evaluation/rows.json", rows_of_run.read, [])
    if not rows and (folder / "evaluation/tokenizer.json").exists():
        # The tokenizer is scored before the transformer is trained.
        rows = part("evaluation/tokenizer.json", rows_of_run.read, [])
    examples = part("evaluation/examples.npz", _arrays, {})
    usage = stages.get("codes", {}).get("usage", {})
    return Contents(
        folder=folder,
        experiment=run.experiment,
        stages=stages,
        split=part("split.json", _table, None),
        curves=part(METRICS, _curves, {}),
        rows=rows,
        examples={f"usage_{k}": np.asarray(v) for k, v in usage.items()} | examples,
        problems=problems,
    )


def _table(path: Path) -> dict:
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"found a {type(found).__name__}, expected a table")
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {k: file[k] for k in file.files}


def _curves(path: Path) -> Curves:
    """Columns of metrics.jsonl; a line cut off by an interruption is left out."""
    lines: dict[tuple[str, str], list[dict]] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        lines.setdefault((line["stage"], line["split"]), []).append(line)
    out: Curves = {}
    for key, group in lines.items():
        names = {n for line in group for n, v in line.items() if not isinstance(v, str)}
        out[key] = {
            n: np.array([np.nan if line.get(n) is None else line[n] for line in group], float)
            for n in sorted(names)
        }
    return out


def machine() -> str:
    """The machine in one line: processor, cores, memory, Python."""
    name = platform.processor() or platform.machine()
    memory = ""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(x.split(":")[1].strip() for x in text.splitlines() if "model name" in x)
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f", {size / 2**30:.0f} GiB memory"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = f"{platform.system()}, Python {platform.python_version()}"
    return f"{name}, {cores} CPU cores{memory}, {where}"
