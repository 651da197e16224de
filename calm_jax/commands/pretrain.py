"""`calm-jax pretrain`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calm_jax.commands import flags, processes
from calm_jax.commands.fields import override
from calm_jax.config import Experiment
from calm_jax.errors import ConfigError

TEXT = "run an experiment from recordings to report"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("experiment", metavar="EXP", nargs="?", help="a name in experiments/, or a file")
    p.add_argument("--run", type=Path, help="run folder; default: runs/<experiment>")
    processes.add(p)
    p.add_argument("-h", "--help", action="store_true")


def call(known: argparse.Namespace, rest: list[str]) -> int | None:
    """Runs the command."""
    from calm_jax import experiments_loader

    if known.experiment is None and rest and not rest[0].startswith("-"):
        known.experiment = rest.pop(0)  # argparse misses it behind a flag
    if known.experiment is None:
        if known.help:
            print("usage: calm-jax pretrain EXP [--run DIR] [--processes N] [--FIELD VALUE ...]\n")
            print("Runs an experiment from recordings to report; again, it continues.")
            print("`calm-jax pretrain EXP --help` lists the fields.\n")
            print("experiments:", ", ".join(experiments_loader.names()))
            return None
        listed = ", ".join(experiments_loader.names()) or "a path to a .py file"
        raise ConfigError("no experiment named", where="calm-jax pretrain", expected=listed)
    experiment = experiments_loader.load_experiment(known.experiment)
    experiment = override(experiment, [*rest, *(["--help"] if known.help else [])])
    if processes.wanted(known):
        return processes.again(known)
    from calm_jax import compilation
    from calm_jax.allocator import prefer_large_pages

    prefer_large_pages()  # before jax starts its threads
    folder = known.run or Path("runs") / experiment.name
    compilation.prepare(experiment.compilation)
    if isinstance(experiment, Experiment):
        flags.start_jax()
        from calm_jax import pipeline

        pipeline.pretrain(experiment, folder)
        return None
    flags.start_jax()
    import jax

    from calm_jax.visual import stages

    shown = jax.process_index() == 0
    say = lambda text: print(text, file=sys.stderr) if shown else None
    stages.pretrain(experiment, folder, say)
    return None
