"""The commands that make a run and its numbers again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from calm_jax import experiments_loader
from calm_jax.config import Experiment, to_dict
from calm_jax.errors import CalmError


def shown(folder: Path) -> str:
    """A folder as one types it: relative where it lies below the working folder."""
    folder, here = Path(folder).resolve(), Path.cwd().resolve()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def pretrain(experiment: Experiment, folder: str) -> str:
    """`calm-jax pretrain ...` with a flag for every field that was changed.

    An experiment that is not among `experiments/` has its name alone: its file is the
    user's own.
    """
    words = ["calm-jax", "pretrain", experiment.name]
    try:
        original = experiments_loader.load_experiment(experiment.name)
    except CalmError:
        original = experiment
    words += _flags(to_dict(original), to_dict(experiment))
    if folder != f"runs/{experiment.name}":
        words += ["--run", folder]
    return shlex.join(words)


def _flags(before: Any, now: Any, name: str = "-") -> list[str]:
    """Flags for the leaves in which two configs differ."""
    if isinstance(now, dict):
        out = []
        for key, value in now.items():
            stem = "--" if name == "-" else f"{name}."
            out += _flags(before[key], value, stem + key.replace("_", "-"))
        return out
    if before == now:
        return []
    values = now if isinstance(now, list) else [now]
    return [name, *(str(v) for v in values)]


def evaluate(folder: str) -> str:
    """`calm-jax evaluate RUN`."""
    return shlex.join(["calm-jax", "evaluate", folder])


def report(folder: str) -> str:
    """`calm-jax report RUN`."""
    return shlex.join(["calm-jax", "report", folder])


def analyze(folder: str) -> str:
    """`calm-jax analyze RUN`."""
    return shlex.join(["calm-jax", "analyze", folder])
