"""The commands of `calm-jax`, one module each.

A module has `TEXT` (one line for --help), `add(parser)` (its flags) and `call(known, rest)`,
which imports what it needs, so that --help answers at once. `rest` holds the words that the
parser does not know; only `pretrain` takes any.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = (
    "info",
    "data",
    "pretrain",
    "table",
    "forecast",
    "adapt",
    "evaluate",
    "decode",
    "analyze",
    "export",
    "benchmark",
    "select",
    "report",
)


def modules() -> dict[str, ModuleType]:
    """All commands by name, in the order of --help."""
    return {n: importlib.import_module(f"calm_jax.commands.{n}") for n in NAMES}
