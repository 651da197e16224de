"""The summary of an evaluation on the console."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from calm_jax.report import style
from calm_jax.report.tables import METRICS, Line, reconstruction_table, summarise
from calm_jax.rows import Row


def print_summary(rows: Iterable[Row], console: Console | None = None) -> None:
    """Prints protocol x method with the best in bold, and the reconstruction of the tokenizer.

    Args:
      rows: of an evaluation, as in `calm_jax.rows`.
      console: where to; None is the standard output.
    """
    rows = list(rows)
    console = console or Console()
    lines = summarise(rows)
    for protocol in dict.fromkeys(line.protocol for line in lines):
        group = [line for line in lines if line.protocol == protocol]
        table = Table(title=f"Forecasts, protocol {protocol}", title_justify="left", box=None)
        table.add_column("method")
        for name, sign in METRICS.values():
            table.add_column(f"{name} {'↑' if sign > 0 else '↓'}", justify="right")
        for line in group:
            name = Text(style.label(line.method), "bold" if style.own(line.method) else "")
            cells = [line.cells[m] for m in METRICS]
            table.add_row(name, *(Text(c.text, "bold" if c.best else "") for c in cells))
        console.print(table)
        console.print(Text(_counts(group[0]), "dim"))
        console.print()
    _print_reconstruction(rows, console)


def _counts(line: Line) -> str:
    text = f"{line.sessions} session{'' if line.sessions == 1 else 's'}"
    if not math.isnan(line.neurons):
        text += f", {line.neurons:.0f} neurons"
    if line.constant > 0:
        text += f"; {line.constant:.0f} constant or all but silent traces"
        text += f" ({line.constant_text}) left out"
    return text + "; skill = 1 − MSE / MSE of copy last"


def _print_reconstruction(rows: list[Row], console: Console) -> None:
    parts = {k[0]: v for k, v in reconstruction_table(rows).items() if k[1] is None}
    if not parts:
        return
    metrics = list(dict.fromkeys(m for cells in parts.values() for m in cells))
    table = Table(title="Tokenizer, mean over sessions", title_justify="left", box=None)
    table.add_column("part")
    for metric in metrics:
        table.add_column(metric.replace("_", " "), justify="right")
    for part, cells in parts.items():
        table.add_row(part, *(number(m, cells.get(m, math.nan)) for m in metrics))
    console.print(table)


def number(metric: str, value: float) -> str:
    """A reconstruction metric as text: counts without decimals."""
    if math.isnan(value):
        return "–"
    few = metric in ("codes_used", "perplexity") or metric.startswith("n_")
    return f"{value:.0f}" if few else f"{value:.3f}"
