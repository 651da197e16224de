"""Flags that several commands share, their types, and starting jax."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable


def reading(parser: argparse.ArgumentParser) -> None:
    """`--read`: options of the recordings' readers."""
    parser.add_argument(
        "--read",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the format's reader, such as series=DfOverF; may be repeated",
    )


def count(text: str) -> int:
    """A positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def seconds(text: str) -> float:
    """A positive number of seconds."""
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """A remedy: the nearest of the known words, or where help is to be had."""
    near = difflib.get_close_matches(word.split("=")[0], list(known), 1)
    return f"Did you mean {near[0]}?" if near else f"See `{otherwise}`."


def start_jax() -> None:
    """Joins the other processes of a run and turns the compilation cache on."""
    from calm_jax import compilation
    from calm_jax.commands import processes
    from calm_jax.training.mesh import join_processes

    join_processes()
    processes.started()
    compilation.enable()
