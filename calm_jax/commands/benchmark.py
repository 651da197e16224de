"""`calm-jax benchmark`."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_jax.benchmark import names
from calm_jax.commands.flags import count, nearest, reading, seconds
from calm_jax.errors import ConfigError

TEXT = "compare forecasters fairly; or skill against sessions and width"
WHAT = ("forecast", "scaling")

_OWN = {
    "forecast": ("protocol", "methods", "run"),
    "scaling": ("sessions", "widths", "held_out", "jobs", "windows", "steps"),
}


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("what", metavar="WHAT", help="forecast or scaling")
    p.add_argument("--data", help="recordings, or a data set of data/; default: the simulation")
    p.add_argument("--source", help="folder or file that a data set is built from")
    p.add_argument("--store", help="where data sets are kept; default: datasets")
    p.add_argument("--rate", type=float, help="resample every recording to this rate (Hz)")
    p.add_argument("--protocol", choices=("A", "B"), help="forecast; default: B")
    p.add_argument(
        "--methods",
        help="forecast: comma-separated, of "
        f"{', '.join((*names.SETS, *names.SETS['all']))}, or a .py file with a method; "
        "default: all",
    )
    p.add_argument(
        "--budget-seconds", type=seconds, default=600.0, help="per training and seed; default: 600"
    )
    p.add_argument("--seeds", type=count, default=3, help="default: 3")
    p.add_argument(
        "--sessions", type=count, nargs="+", metavar="N", help="scaling; default: 1 4 16 64"
    )
    p.add_argument(
        "--widths", type=count, nargs="+", metavar="W", help="scaling; default: 48 96 192"
    )
    p.add_argument(
        "--held-out", type=int, metavar="N", help="scaling: sessions only tested; default: 4"
    )
    p.add_argument(
        "--jobs", type=count, metavar="N", help="scaling: points trained side by side; default: 1"
    )
    p.add_argument(
        "--windows", type=count, metavar="N",
        help="scaling: windows of a session that are scored, about; default: 240",
    )  # fmt: skip
    p.add_argument(
        "--steps", type=count, metavar="N",
        help="scaling: optimiser steps of every point, in place of --budget-seconds",
    )  # fmt: skip
    p.add_argument("--experiment", default="calm_base", metavar="EXP", help="default: calm_base")
    p.add_argument(
        "--run", type=Path, action="append", default=[], help="forecast: a finished run; repeat"
    )
    p.add_argument("--json", type=Path, dest="out", required=True, help="the rows are written here")
    p.add_argument("--markdown", type=Path, metavar="OUT", help="write the table to this file")
    p.add_argument("--figure", type=Path, metavar="OUT", help="write the figure (.png and .svg)")
    reading(p)


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    if known.what not in WHAT:
        raise ConfigError(
            f"unknown benchmark {known.what!r}",
            where="calm-jax benchmark",
            expected=" or ".join(WHAT),
            remedy=nearest(known.what, WHAT, "calm-jax benchmark --help"),
        )
    other = _OWN["scaling" if known.what == "forecast" else "forecast"]
    given = next((name for name in other if getattr(known, name) not in (None, [])), None)
    if given is not None:
        raise ConfigError(
            f"--{given.replace('_', '-')} does not belong to it",
            where=f"calm-jax benchmark {known.what}",
            remedy="Leave it out.",
        )
    own = {k: v for k in _OWN[known.what] if (v := getattr(known, k)) is not None}
    common = {
        "budget_seconds": known.budget_seconds,
        "seeds": known.seeds,
        "experiment": known.experiment,
        "source": known.source,
        "store": known.store,
        "read": known.read,
        "rate": known.rate,
        "markdown": known.markdown,
        "figure": known.figure,
    }
    if known.what == "scaling":
        from calm_jax.benchmark import scaling

        scaling.scaling(known.data, known.out, **own, **common)
        return
    from calm_jax.benchmark import command

    renamed = {"methods": "names", "run": "runs"}
    own = {renamed.get(k, k): v for k, v in own.items()}
    command.forecast(known.data, known.out, **own, **common)
