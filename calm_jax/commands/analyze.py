"""`calm-jax analyze`."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_jax.analyses.names import NAMES
from calm_jax.commands import flags
from calm_jax.errors import ConfigError

TEXT = "analyse what a run has learned: embeddings, dynamics, couplings, codes, theory"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument("--data", type=Path, help="other recordings; default: those of the run")
    p.add_argument("--json", type=Path, dest="out", help="write the rows to this file")
    p.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help=f"of {', '.join(NAMES)}; default: all",
    )
    p.add_argument(
        "--labels",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="one or two behaviour channels or columns of the trials (trial/COLUMN) that d' and "
        "LDA are of; default: cue and choice where the trials have them",
    )
    p.add_argument(
        "--poco-seconds",
        type=_budget,
        default=30.0,
        metavar="SECONDS",
        help="training of POCO for the dynamics; 0 leaves it out; default: 30",
    )
    p.add_argument("--seed", type=_seed, default=0, help="of everything random; default: 0")
    p.add_argument(
        "--no-report", action="store_true", help="save the results; leave the page as it is"
    )
    flags.reading(p)


def _budget(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    if known.read and known.data is None:
        raise ConfigError(
            "--read belongs to recordings named by --data",
            where="calm-jax analyze",
            remedy="Those of the run are read as in its experiment.",
        )
    flags.start_jax()
    from calm_jax.analyses.command import analyze
    from calm_jax.analyses.material import Settings

    analyze(
        known.run,
        data=known.data,
        options=known.read,
        out=known.out,
        only=known.only,
        report=not known.no_report,
        settings=Settings(known.seed, tuple(known.labels), known.poco_seconds),
    )
