"""`calm-jax report`."""

from __future__ import annotations

import argparse
from pathlib import Path

TEXT = "write report.html and the figures of a run"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    from calm_jax.visual import runs

    if runs.is_visual(known.run):
        from calm_jax.visual import report

        report.rewrite(runs.load(known.run))
        return
    from calm_jax import pipeline

    pipeline.write_report(known.run)
