"""`calm-jax table`."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_jax.commands import flags, processes
from calm_jax.commands.flags import count

TEXT = "run a table of experiments over seeds, and write it"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("table", metavar="EXP", help="a table in experiments/, or a .py file")
    p.add_argument("--seeds", type=count, default=3, help="default: 3")
    p.add_argument("--run", type=Path, help="folder; default: runs/<table>")
    p.add_argument(
        "--only", action="append", default=[], metavar="LABEL", help="this line; may be repeated"
    )
    processes.add(p)


def call(known: argparse.Namespace, rest: list[str]) -> int | None:
    """Runs the command."""
    if processes.wanted(known):
        return processes.again(known)
    from calm_jax.allocator import prefer_large_pages

    prefer_large_pages()  # before jax starts its threads
    flags.start_jax()
    from calm_jax import experiments_loader
    from calm_jax.visual import table

    found = experiments_loader.load_table(known.table)
    folder = known.run or Path("runs") / found.name
    table.make(found, folder, seeds=known.seeds, only=known.only)
    return None
