"""`calm-jax data`."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_jax.commands.flags import count, reading

TEXT = "build a data set from its recordings, or simulate it"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("name", metavar="NAME", help="a builder in data/, such as interchange")
    p.add_argument("--source", type=Path, help="folder or file with the recordings")
    p.add_argument("--store", type=Path, default=Path("datasets"), help="default: datasets")
    p.add_argument("--rate", type=float, help="resample every recording to this rate (Hz)")
    p.add_argument("--workers", type=count, help="recordings read at a time; default: 1 or 2")
    p.add_argument(
        "--skip-unreadable", action="store_true", help="leave out recordings that cannot be read"
    )
    reading(p)


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    from calm_jax import config
    from calm_jax.recordings.build import build

    source = None if known.source is None else str(known.source)
    data = config.Data(
        name=known.name,
        source=source,
        store=str(known.store),
        read=tuple(known.read),
        rate=known.rate,
    )
    print(build(data, workers=known.workers, skip_unreadable=known.skip_unreadable))
