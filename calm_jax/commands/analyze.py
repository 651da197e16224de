"""`calm-jax analyze`."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_jax.analyses.names import NAMES
from calm_jax.commands import flags
from calm_jax.commands.flags import count
from calm_jax.errors import ConfigError

_SECONDS = 30.0
TEXT = "analyse what a run has learned: embeddings, dynamics, couplings, codes, theory"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument("--data", type=Path, help="other recordings; default: those of the run")
    p.add_argument("--json", type=Path, dest="out", help="write the rows to this file")
    p.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help=f"of {', '.join(NAMES)}; default: all",
    )
    p.add_argument(
        "--labels",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="one or two behaviour channels or columns of the trials (trial/COLUMN) that d' and "
        "LDA are of; default: cue and choice where the trials have them",
    )
    p.add_argument(
        "--beside",
        nargs="+",
        action="extend",
        default=[],
        metavar="RUN",
        help="visual runs whose latents are compared with those of this one",
    )
    p.add_argument(
        "--freezing-steps",
        type=count,
        default=0,
        metavar="N",
        help="visual runs: fine-tune with parts of the encoder frozen for N steps each; default "
        "with --only freezing: 100, or as many as the run where these are fewer",
    )
    p.add_argument(
        "--freezing-seeds",
        type=count,
        default=1,
        metavar="S",
        help="repetitions of each of these; default: 1",
    )
    p.add_argument(
        "--poco-seconds",
        type=_budget,
        default=_SECONDS,
        metavar="SECONDS",
        help="training of POCO for the dynamics; 0 leaves it out; default: 30",
    )
    p.add_argument("--seed", type=_seed, default=0, help="of everything random; default: 0")
    p.add_argument(
        "--no-report", action="store_true", help="save the results; leave the page as it is"
    )
    flags.reading(p)


def _budget(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    if known.read and known.data is None:
        raise ConfigError(
            "--read belongs to recordings named by --data",
            where="calm-jax analyze",
            remedy="Those of the run are read as in its experiment.",
        )
    flags.start_jax()
    from calm_jax.visual import runs

    if runs.is_visual(known.run):
        _visual(known)
        return
    _only_of(known, {"--beside": known.beside, "--freezing-steps": known.freezing_steps,
                     "--freezing-seeds": known.freezing_seeds - 1}, "a visual")  # fmt: skip
    from calm_jax.analyses.command import analyze
    from calm_jax.analyses.material import Settings

    analyze(
        known.run,
        data=known.data,
        options=known.read,
        out=known.out,
        only=known.only,
        report=not known.no_report,
        settings=Settings(known.seed, tuple(known.labels), known.poco_seconds),
    )


def _visual(known: argparse.Namespace) -> None:
    """The same of a run of POYO-SSL."""
    _only_of(known, {"--data": known.data, "--labels": known.labels,
                     "--poco-seconds": known.poco_seconds != _SECONDS}, "a CalM")  # fmt: skip
    from calm_jax.visual.analyze import analyze
    from calm_jax.visual.material import VisualSettings

    analyze(
        known.run,
        out=known.out,
        only=known.only,
        report_too=not known.no_report,
        settings=VisualSettings(
            known.seed, tuple(known.beside), known.freezing_steps, known.freezing_seeds
        ),
    )


def _only_of(known: argparse.Namespace, given: dict[str, object], kind: str) -> None:
    """Flags that belong to runs of another kind are told, not ignored."""
    for flag, value in given.items():
        if value:
            raise ConfigError(f"{flag} belongs to {kind} run", where=str(known.run))
