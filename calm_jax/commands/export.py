"""`calm-jax export`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calm_jax.commands import flags

TEXT = "write a finished run as one model to hand on, with its model card"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    flags.start_jax()
    from calm_jax import weights

    made = weights.export(known.run, known.out)
    print(f"wrote {known.out}", file=sys.stderr)
    print(f"sha256 {made}")
