"""`calm-jax evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_jax.commands import flags
from calm_jax.commands.flags import reading
from calm_jax.errors import ConfigError

TEXT = "score a run beside its baselines"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument("--data", type=Path, help="other recordings; default: those of the run")
    p.add_argument("--json", type=Path, dest="out", help="write the rows to this file")
    reading(p)


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    if known.read and known.data is None:
        raise ConfigError(
            "--read belongs to recordings named by --data",
            where="calm-jax evaluate",
            remedy="Those of the run are read as in its experiment.",
        )
    flags.start_jax()
    from calm_jax import pipeline

    pipeline.evaluate_run(known.run, data=known.data, options=known.read, out=known.out)
