"""`calm-jax select`."""

from __future__ import annotations

import argparse

from calm_jax.commands.flags import reading
from calm_jax.report import selection

TEXT = "find the predictable neurons"


def add(p: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    selection.add_arguments(p)
    reading(p)


def call(known: argparse.Namespace, rest: list[str]) -> None:
    """Runs the command."""
    selection.run(known)
