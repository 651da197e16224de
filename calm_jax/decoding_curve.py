"""Decoding against minutes of labels: decoders handed on, fitted anew, and the baselines.

Every method gets the labels of the same first minutes of the training part, and the labels
of the validation part beside them; all are scored on the same test part. A decoder that is
handed on (`start`) stands as `METHOD_handed_on` beside the same fitted anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from calm_jax import config
from calm_jax import decoding_scores as scores
from calm_jax.decoding import decoded, opened, saying
from calm_jax.decoding_data import limited, minutes_of
from calm_jax.decoding_scores import DecodingRow
from calm_jax.errors import ConfigError
from calm_jax.minutes import parse_minutes
from calm_jax.recordings.targets import Target
from calm_jax.report import decoding_curve as figure
from calm_jax.report import style


class CurveRow(DecodingRow):
    """A number of a decoder with so many minutes of labels per session (mean), and how the
    command named them: "2 min", "all"."""

    minutes: float
    given: str


def curve(
    folder: Path | str,
    targets: Sequence[str],
    *,
    minutes: Sequence[str],
    data: Path | None = None,
    classify: Sequence[str] = (),
    settings: config.Decoding | None = None,
    look_ahead: float | None = None,
    seeds: int = 3,
    baselines: bool = True,
    poyo: bool = False,
    start: Path | None = None,
    name: str = "decoder",
    options: Sequence[str] = (),
    out: Path | None = None,
    figure_out: Path | None = None,
    console: Console | None = None,
) -> list[CurveRow]:
    """Decodes with every number of minutes; arguments as in `decoding.decode`.

    Args:
      minutes: positive numbers, or "all". Decoders are saved as NAME_2min, NAME_all, ...
      figure_out: where the figure is written (.png and .svg).

    Raises:
      CalmError: for a run, recordings, targets or minutes that cannot be used.
    """
    wanted = parse_minutes(minutes)
    say = saying(console)
    setup = opened(
        folder, data=data, settings=settings, look_ahead=look_ahead, start=start,
        options=options, say=say,
    )  # fmt: skip
    found: list[CurveRow] = []
    known: tuple[Target, ...] = ()
    for m in wanted:
        label = "all" if m is None else f"{m:g} min"
        own = dataclasses.replace(
            setup, settings=dataclasses.replace(setup.settings, minutes=m)
        )
        sessions = setup.given.sessions
        given = minutes_of(limited(setup.given.prepared.splits, sessions, m), sessions)
        if m is not None and given < 0.99 * m and (None in wanted or found):
            say(f"{label}: there are only {given:.2f} min, as much as all; left out")
            continue
        what = f"{name}_{label.replace(' ', '')}"
        made = []
        if own.saved is not None:
            # The same head without what is handed on, and the baselines, once.
            anew = dataclasses.replace(
                own, saved=None, settings=dataclasses.replace(own.settings, rows_only=False)
            )
            rows, known = decoded(
                own, targets, classify, seeds=seeds, baselines=False, name=what, say=say
            )
            made += [{**r, "method": f"{r['method']}_handed_on"} for r in rows]
            own, what = anew, f"{what}_anew"
        rows, known = decoded(
            own, targets, classify, seeds=seeds, baselines=baselines, poyo=poyo, name=what, say=say
        )
        found += [CurveRow(**r, minutes=given, given=label) for r in [*made, *rows]]
    if out is not None:
        scores.write(found, out)
        say(f"wrote {len(found)} rows to {out}")
    if figure_out is not None:
        for path in draw(found, known, figure_out):
            say(f"wrote {path}")
    print_summary(found, known, console or Console(highlight=False))
    return found


def main_metric(target: Target) -> str:
    """What a curve of the target shows."""
    return "r2" if target.classes is None else "balanced_accuracy"


def draw(rows: Sequence[CurveRow], targets: Sequence[Target], path: Path) -> list[Path]:
    """Writes the figure, a panel per target, at `path`.png and .svg.

    Raises:
      ConfigError: for a name that is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError("a folder, not a file", where="--figure", found=path)
    with style.look():
        made, axes = style.panels(len(targets), height=3.0, width=5.6)
        for ax, target in zip(axes, targets, strict=True):
            figure.score_against_minutes(ax, rows, target.name, main_metric(target))
        return style.save(made, path.parent, path.with_suffix("").name)


def print_summary(
    rows: Sequence[CurveRow], targets: Sequence[Target], console: Console
) -> None:
    """One table per target: methods by minutes."""
    labels = list(dict.fromkeys(r["given"] for r in rows))
    for target in targets:
        metric = main_metric(target)
        table = Table(title=f"{target.name}, {metric}", title_justify="left", box=None)
        table.add_column("method")
        for label in labels:
            table.add_column(label, justify="right")
        for method in dict.fromkeys(r["method"] for r in rows if r["target"] == target.name):
            cells = []
            for label in labels:
                own = [r for r in rows if r["given"] == label]
                cells.append(scores.cell(*scores.summary(own, target.name, method, metric)))
            if any(c != "-" for c in cells):
                table.add_row(method, *cells)
        console.print(table)
    console.print(
        "mean over animals (SD over animals; SD over seeds), by minutes of labels for training"
    )
