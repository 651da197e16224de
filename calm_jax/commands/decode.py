"""`calm-jax decode`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from calm_jax.commands import flags
from calm_jax.commands.flags import reading
from calm_jax.config import Decoding
from calm_jax.errors import ConfigError

TEXT = "decode behaviour from a run, beside its baselines"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    d = Decoding()
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument("--data", type=Path, help="recordings; default: those of the run")
    p.add_argument(
        "--target",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="behaviour channels, or trial/COLUMN for one label per trial",
    )
    p.add_argument(
        "--classify",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="targets whose numbers are labels",
    )
    p.add_argument(
        "--head",
        choices=("pooled", "gated", "linear"),
        help="pooled: ridge with a prior shared by all neurons; gated, linear: as published; "
        "default: pooled, with --fine-tune gated",
    )
    p.add_argument("--rank", type=int, default=d.rank, help=f"per output; default: {d.rank}")
    p.add_argument("--look-ahead", type=float, metavar="SECONDS", help="default: nothing after t")
    p.add_argument(
        "--every-frame", action="store_true", help="features at every frame, 4 times the work"
    )
    p.add_argument("--traces", action="store_true", help="traces beside the features")
    p.add_argument("--fine-tune", action="store_true", help="train the transformer too")
    p.add_argument("--from", type=Path, dest="start", metavar="DECODER", help="start at this one")
    p.add_argument(
        "--rows-only", action="store_true", help="with --from: train the rows of neurons alone"
    )
    p.add_argument(
        "--minutes",
        nargs="+",
        default=[],
        metavar="M",
        help="labels of the first minutes of training only; several, such as 1 2 5 all: a curve",
    )
    p.add_argument("--figure", type=Path, help="of the curve (.png and .svg)")
    p.add_argument("--unbalanced", action="store_true", help="classes weigh by their frequency")
    p.add_argument("--seeds", type=int, default=3, help="default: 3")
    p.add_argument(
        "--steps", type=int, default=d.training.steps, help=f"default: {d.training.steps}"
    )
    p.add_argument(
        "--learning-rate",
        type=float,
        default=d.training.learning_rate,
        help=f"default: {d.training.learning_rate}",
    )
    p.add_argument(
        "--weight-decay",
        type=float,
        default=d.training.weight_decay,
        help=f"default: {d.training.weight_decay}",
    )
    p.add_argument("--dropout", type=float, default=d.dropout, help=f"default: {d.dropout}")
    p.add_argument(
        "--poyo", action="store_true", help="the POYO+ read-out beside it, minutes of training"
    )
    p.add_argument("--no-baselines", action="store_true", help="our decoder alone")
    p.add_argument("--name", default="decoder", help="saved as RUN/decoders/NAME; default: decoder")
    p.add_argument("--json", type=Path, dest="out", help="write the rows to this file")
    reading(p)


def settings_of(known: argparse.Namespace) -> Decoding:
    """The settings that the flags make.

    Raises:
      ConfigError: for a number out of its range.
    """
    least = {"rank": 1, "seeds": 1, "steps": 1, "learning_rate": 0, "weight_decay": 0}
    least |= {"dropout": 0, "look_ahead": 0}
    for name, low in least.items():
        value = getattr(known, name)
        if value is not None and not low <= value < float("inf"):
            raise ConfigError(
                "out of range",
                where=f"--{name.replace('_', '-')}",
                found=value,
                expected=f"at least {low}",
            )
    if known.dropout >= 1:
        raise ConfigError("too high", where="--dropout", found=known.dropout, expected="below 1")
    if not known.name or Path(known.name).name != known.name:
        raise ConfigError("not the name of a folder", where="--name", found=repr(known.name))
    d = Decoding()
    return dataclasses.replace(
        d,
        head=known.head or ("gated" if known.fine_tune else d.head),
        rank=known.rank,
        dropout=known.dropout,
        every_frame=known.every_frame,
        traces=known.traces,
        fine_tune=known.fine_tune,
        rows_only=known.rows_only,
        balanced=not known.unbalanced,
        training=dataclasses.replace(
            d.training,
            steps=known.steps,
            learning_rate=known.learning_rate,
            final_learning_rate=known.learning_rate / 100,
            weight_decay=known.weight_decay,
        ),
    )


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    settings = settings_of(known)
    if known.read and known.data is None:
        raise ConfigError(
            "--read belongs to recordings named by --data",
            where="calm-jax decode",
            remedy="Those of the run are read as in its experiment.",
        )
    from calm_jax.minutes import parse_minutes

    minutes = parse_minutes(known.minutes)
    if known.figure is not None and len(minutes) < 2:
        raise ConfigError(
            "a figure is drawn of a curve",
            where="--figure",
            remedy="Name several numbers of minutes, such as --minutes 1 2 5 all.",
        )
    flags.start_jax()
    how = {
        "data": known.data,
        "classify": known.classify,
        "look_ahead": known.look_ahead,
        "seeds": known.seeds,
        "baselines": not known.no_baselines,
        "poyo": known.poyo,
        "start": known.start,
        "name": known.name,
        "options": known.read,
        "out": known.out,
    }
    if len(minutes) > 1:
        from calm_jax import decoding_curve

        decoding_curve.curve(
            known.run, known.target, minutes=known.minutes, settings=settings,
            figure_out=known.figure, **how,
        )  # fmt: skip
        return
    from calm_jax import decoding

    if minutes:
        settings = dataclasses.replace(settings, minutes=minutes[0])
    decoding.decode(known.run, known.target, settings=settings, **how)
