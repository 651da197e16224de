"""`calm-jax info`."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_jax.commands.flags import reading

TEXT = "describe recordings: neurons, frames, behaviour, missing data"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="file, folder or address")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument(
        "--full", action="store_true", help="read all traces of large files too, not headers alone"
    )
    reading(p)


def call(known: argparse.Namespace, rest: list[str]) -> int | None:
    """Runs the command."""
    from calm_jax.recordings.info import print_info

    return print_info(known.paths, known.json, options=known.read, full=known.full)
