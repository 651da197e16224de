"""`calm-jax adapt`."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_jax.commands import flags
from calm_jax.commands.flags import count, reading, seconds

TEXT = "adapt a run to a new animal; skill against minutes of data"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument(
        "--data", type=Path, required=True, help="file or folder of recordings never seen"
    )
    p.add_argument(
        "--minutes",
        nargs="+",
        default=["all"],
        metavar="M",
        help="how much of the training part is given, such as 1 2 5 all; default: all",
    )
    p.add_argument(
        "--out", type=Path, help="run folder of the adapted model (with several --minutes, a "
        "folder of them)",
    )  # fmt: skip
    p.add_argument("--json", type=Path, dest="json_out", help="write the rows to this file")
    p.add_argument("--figure", type=Path, help="write the figure (.png and .svg)")
    p.add_argument(
        "--steps", type=count, default=100, help="of training rows, and from scratch; default: 100"
    )
    p.add_argument("--seeds", type=count, default=1, help="of training; default: 1")
    p.add_argument(
        "--no-scratch", action="store_true", help="train no model from scratch beside it"
    )
    p.add_argument("--rate", type=seconds, help="resample every recording to this rate (Hz)")
    reading(p)


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    from calm_jax.allocator import prefer_large_pages

    prefer_large_pages()  # before jax starts its threads
    flags.start_jax()
    from calm_jax import adaptation_curve

    adaptation_curve.curve(
        known.run,
        known.data,
        minutes=known.minutes,
        out=known.out,
        json_out=known.json_out,
        figure_out=known.figure,
        steps=known.steps,
        seeds=known.seeds,
        scratch=not known.no_scratch,
        options=known.read,
        rate=known.rate,
    )
