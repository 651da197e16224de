"""`calm-jax select`: the distributions, the knees and who is kept, as table, JSON and figure."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calm_jax.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

    from calm_jax.recordings.selection import Selection
    from calm_jax.recordings.session import Session

KEPT, LEFT = "#0072B2", "#D55E00"
_SHOWN = 12  # names on the console, by neuron


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command, but for those of reading."""
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="file or folder of recordings")
    add("--by", choices=("line", "neuron"), default="line", help="what is kept; default: line")
    add(
        "--method",
        choices=("gradient", "kneedle", "fixed"),
        default="gradient",
        help="gradient (Algorithm S1, the default), kneedle (needs kneed) or fixed thresholds",
    )
    add("--skewness", type=float, help="fixed threshold; default: that of the paper, 3.507")
    add("--kurtosis", type=float, help="fixed threshold; default: that of the paper, 22.616")
    add("--excess", action="store_true", help="excess kurtosis (0 for a normal distribution)")
    add(
        "--frames",
        choices=("train", "all"),
        default="train",
        help="frames that count; default: train, the training part of the default split",
    )
    add("--json", type=Path, dest="out", metavar="OUT", help="write the selection to this file")
    add("--figure", type=Path, metavar="OUT", help="write the figure (.png and .svg)")


def run(known: argparse.Namespace, console: Console | None = None) -> None:
    """Reads the recordings, selects, and shows it.

    Raises:
      CalmError: for recordings, thresholds or files that cannot be used.
    """
    from calm_jax import config
    from calm_jax.recordings import selection

    if known.method != "fixed" and (known.skewness, known.kurtosis) != (None, None):
        raise ConfigError(
            "a threshold is given, but not used",
            where="calm-jax select",
            remedy="Add --method fixed, or leave --skewness and --kurtosis out.",
        )
    split = config.Split() if known.frames == "train" else None
    cells = selection.cells_of(
        sessions(known.paths, known.read), excess=known.excess, split=split
    )
    given = {"skewness": known.skewness, "kurtosis": known.kurtosis}
    fixed = {name: value for name, value in given.items() if value is not None}
    made = selection.select(cells, by=known.by, method=known.method, fixed=fixed or None)
    print_selection(made, console)
    if known.out is not None:
        write_json(made, known.out, frames=known.frames)
    if known.figure is not None:
        write_figure(made, known.figure)


def sessions(paths: Sequence[Path], read_options: Sequence[str]) -> Iterator[Session]:
    """Every recording at the paths, one in memory at a time; stores of `calm-jax data` too."""
    from calm_jax.recordings.formats import options_from, read, sessions_in
    from calm_jax.recordings.store import SIDE_FILE, open_store

    given = options_from(read_options)
    for path in paths:
        if (path / SIDE_FILE).is_file():
            store = open_store(path)
            for i in range(len(store.sessions)):
                yield store.session(i)
            continue
        for file in sessions_in(path):
            yield read(file, **given)


def print_selection(made: Selection, console: Console | None = None) -> None:
    """A table of the values, ascending by skewness, with the thresholds and who is kept."""
    import numpy as np
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from calm_jax.recordings.disjoint import sharing

    console = console or Console()
    cells = made.cells
    limits = ", ".join(f"{name} <= {value:.4g}" for name, value in made.thresholds.items())
    kind = "excess kurtosis" if cells.excess else "kurtosis (3 for a normal distribution)"
    table = Table(title=f"{made.method}: {limits}", title_justify="left", box=None)
    table.add_column(made.by)
    if made.by == "line":
        table.add_column("cells", justify="right")
    for name in made.values:
        table.add_column(("median " if made.by == "line" else "") + name, justify="right")
    table.add_column("kept")
    order = np.argsort(made.values["skewness"], kind="stable")
    shown = order
    if made.by == "neuron" and order.size > _SHOWN:  # those on both sides of the knee
        middle = int(made.kept.sum())
        first = min(max(middle - _SHOWN // 2, 0), order.size - _SHOWN)
        shown = order[first : first + _SHOWN]
    for i in shown:
        counted = []
        if made.by == "line":
            same = (cells.line == made.names[i]) & np.isfinite(cells.skewness)
            counted = [str(int(same.sum()))]
        numbers = [f"{values[i]:.3f}" for values in made.values.values()]
        row = [escape(str(made.names[i])), *counted, *numbers, "kept" if made.kept[i] else ""]
        table.add_row(*row, style="bold" if made.kept[i] else None)
    console.print(table)
    if len(shown) < order.size:
        console.print(f"... {order.size - len(shown)} more neurons", highlight=False)
    console.print(
        f"kept: {int(made.kept_cells.sum())} of {len(cells)} cells"
        + (f" in {int(made.kept.sum())} of {made.kept.size} lines" if made.by == "line" else "")
        + f"; {kind}",
        highlight=False,
    )
    both = {name: found for name, found in sharing(made).items() if found}
    if both:
        told = ", ".join(f"{len(found)} {name}(s)" for name, found in both.items())
        console.print(
            f"[yellow]warning[/yellow] kept and other cells share {told}: divide by animal "
            "before pretraining and fine-tuning on them"
        )
    else:
        console.print("kept and other cells share no animal, container or session")
    for text in made.notes:
        console.print(f"note: {escape(text)}", highlight=False)


def as_json(made: Selection, *, frames: str = "train") -> dict[str, Any]:
    """The selection as JSON values: thresholds, values per line, kept lines and neuron ids."""
    import numpy as np

    from calm_jax.recordings.disjoint import sharing

    cells = made.cells
    number = lambda x: float(x) if np.isfinite(x) else None
    key = "lines" if made.by == "line" else "neurons"
    values = [
        {made.by: str(name)}
        | {stat: number(v[i]) for stat, v in made.values.items()}
        | {"kept": bool(made.kept[i])}
        for i, name in enumerate(made.names)
    ]
    return {
        "by": made.by,
        "method": made.method,
        "frames": frames,
        "kurtosis": "excess" if cells.excess else "pearson",
        "thresholds": {k: float(v) for k, v in made.thresholds.items()},
        key: values,
        "kept_lines": made.names[made.kept].tolist() if made.by == "line" else None,
        "kept_neurons": [
            {
                "id": str(cells.id[i]),
                "line": str(cells.line[i]) or None,
                "animal": str(cells.animal[i]),
                "container": str(cells.container[i]) or None,
                "sessions": list(cells.sessions[i]),
                "skewness": number(cells.skewness[i]),
                "kurtosis": number(cells.kurtosis[i]),
            }
            for i in np.flatnonzero(made.kept_cells)
        ],
        "shared": {k: [str(x) for x in v] for k, v in sharing(made).items()},
        "notes": list(made.notes),
    }


def write_json(made: Selection, path: Path, *, frames: str = "train") -> None:
    """Writes `as_json` to `path`."""
    from calm_jax.files import replacing

    with replacing(path) as part:
        part.write_text(json.dumps(as_json(made, frames=frames), indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)


def write_figure(made: Selection, path: Path) -> None:
    """Writes the figure as `path` with .png and with .svg: one panel per statistic."""
    from calm_jax.report import style

    with style.look():
        figure, axes = style.panels(len(made.values), height=2.8)
        for ax, (name, values) in zip(axes, made.values.items()):
            draw(ax, name, values, made)
        written = style.save(figure, path.parent, path.stem)
    print(f"wrote {' and '.join(map(str, written))}", file=sys.stderr)


def draw(ax: Axes, name: str, values: Any, made: Selection) -> Axes:
    """Values in ascending order, the threshold dashed; kept ones filled, the others open."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    place, kept = np.arange(order.size), made.kept[order]
    size = 22 if order.size < 60 else 4
    y = values[order]
    ax.scatter(place[kept], y[kept], s=size, color=KEPT, label="kept", zorder=3)
    ax.scatter(
        place[~kept], y[~kept], s=size, facecolors="none", edgecolors=LEFT, label="not kept"
    )
    limit = made.thresholds[name]
    ax.axhline(limit, color="#444444", linestyle="--", linewidth=0.8)
    ax.annotate(
        f"{limit:.4g}", (1, limit), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    kind = "excess " if name == "kurtosis" and made.cells.excess else ""
    ax.set_ylabel(("median " if made.by == "line" else "") + kind + name)
    if (y > 0).all() and y.max() > 30 * y.min():
        ax.set_yscale("log")
    if order.size < 30:
        labels = [str(made.names[i]) for i in order]
        ax.set_xticks(place, labels, rotation=40, ha="right", fontsize=6.5)
    else:
        ax.set_xlabel(f"{made.by}s, in ascending order")
    ax.legend(loc="upper left")
    return ax
