"""`calm-jax forecast`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calm_jax.commands import flags
from calm_jax.commands.flags import count, reading
from calm_jax.errors import ConfigError

TEXT = "forecast a recording with a trained run"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument("file", type=Path, metavar="FILE", help="recording")
    p.add_argument("--context", type=count, help="frames given; default: as in the experiment")
    p.add_argument("--horizon", type=count, help="frames forecast; default: as in the experiment")
    p.add_argument("--origin", type=int, help="first forecast frame; default: end of the recording")
    p.add_argument("--samples", type=_trajectories, default=0, help="trajectories for quantiles")
    p.add_argument("--out", type=Path, help="file to write (.npz)")
    p.add_argument("--nwb", type=Path, help="copy of FILE (NWB 2) to write with the forecast in it")
    reading(p)


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    written = [x for x in (known.out, known.nwb) if x is not None]
    if not written:
        raise ConfigError(
            "no file to write", where="calm-jax forecast", expected="--out FILE.npz, --nwb FILE.nwb"
        )
    flags.start_jax()
    from calm_jax import pipeline

    _, notes = pipeline.forecast_file(
        known.run,
        known.file,
        context=known.context,
        horizon=known.horizon,
        origin=known.origin,
        samples=known.samples,
        options=tuple(known.read),
        out=known.out,
        nwb=known.nwb,
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {' and '.join(map(str, written))}", file=sys.stderr)


def _trajectories(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is a negative number of trajectories")
    return value
