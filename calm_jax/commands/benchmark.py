"""`calm-jax benchmark`."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_jax.benchmark import names
from calm_jax.commands.flags import count, nearest, reading, seconds
from calm_jax.errors import ConfigError

TEXT = "compare forecasters fairly: same windows, same time"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("what", metavar="WHAT", help="forecast")
    p.add_argument("--data", help="recordings, or a data set of data/; default: the simulation")
    p.add_argument("--source", help="folder or file that a data set is built from")
    p.add_argument("--store", help="where data sets are kept; default: datasets")
    p.add_argument("--rate", type=float, help="resample every recording to this rate (Hz)")
    p.add_argument("--protocol", choices=("A", "B"), default="B", help="default: B")
    p.add_argument(
        "--methods",
        default="all",
        help=f"comma-separated, of {', '.join((*names.SETS, *names.SETS['all']))}, or a .py file "
        "with a method; default: all",
    )
    p.add_argument(
        "--budget-seconds", type=seconds, default=600.0, help="per method and seed; default: 600"
    )
    p.add_argument("--seeds", type=count, default=3, help="default: 3")
    p.add_argument("--experiment", default="calm_base", metavar="EXP", help="default: calm_base")
    p.add_argument("--run", type=Path, action="append", default=[], help="a finished run; repeat")
    p.add_argument("--json", type=Path, dest="out", required=True, help="the rows are written here")
    p.add_argument("--markdown", type=Path, metavar="OUT", help="write the table to this file")
    p.add_argument("--figure", type=Path, metavar="OUT", help="write the figure (.png and .svg)")
    reading(p)


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    if known.what != "forecast":
        raise ConfigError(
            f"unknown benchmark {known.what!r}",
            where="calm-jax benchmark",
            expected="forecast",
            remedy=nearest(known.what, ["forecast"], "calm-jax benchmark --help"),
        )
    from calm_jax.benchmark import command

    command.forecast(
        known.data,
        known.out,
        protocol=known.protocol,
        names=known.methods,
        budget_seconds=known.budget_seconds,
        seeds=known.seeds,
        experiment=known.experiment,
        runs=known.run,
        source=known.source,
        store=known.store,
        read=known.read,
        rate=known.rate,
        markdown=known.markdown,
        figure=known.figure,
    )
