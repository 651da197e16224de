"""Decoding against minutes of labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONSTANT = ("mean", "majority", "chance", "shuffled")


def score_against_minutes(
    ax: Axes, rows: Iterable[Mapping[str, Any]], target: str, metric: str
) -> Axes:
    """A score of every method against minutes of labels, mean over animals; thin lines are
    the animals of our first method.

    Methods that lie far below are left out of the drawing and named in the title; lines that
    leave the axis go on below it.

    Args:
      rows: of `decoding_curve.curve`, with `minutes`.
    """
    own = [
        r for r in rows
        if (r["target"], r["metric"]) == (target, metric) and r["session"] is None
        and math.isfinite(r["value"])
    ]  # fmt: skip
    curves = {m: _curve(own, m, None) for m in dict.fromkeys(r["method"] for r in own)}
    curves = {m: c for m, c in curves.items() if len(c[0])}
    best = max((c[1].max() for c in curves.values()), default=1.0)
    ours = [m for m in curves if style.own(m)]
    low = min([0.0, *(curves[m][1].min() for m in ours)])
    floor = min(low, best) - 0.3  # of the axis: what is far below tells nothing more
    hidden = [m for m, c in curves.items() if m not in ours and c[1].max() < floor]
    for method, (x, y) in curves.items():
        if method not in hidden:
            quiet = {"alpha": 0.7, "linewidth": 0.9} if method in _CONSTANT else {}
            ax.plot(x, y, marker="o", ms=3, label=style.label(method),
                    **{**style.line(method), **quiet})  # fmt: skip
    animals = sorted({r["animal"] for r in own} - {None})
    if ours and len(animals) > 1:
        for animal in animals:
            look = {"color": style.colour(ours[0]), "linewidth": 0.5, "alpha": 0.4}
            ax.plot(*_curve(own, ours[0], animal), **look)
    count = len(animals)
    title = f"{target}, n = {count} animal{'' if count == 1 else 's'}"
    if hidden:
        title += "; below the axis: " + ", ".join(style.label(m) for m in hidden)
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, floor), top)
    ax.set(xlabel="minutes of labels", ylabel=metric.replace("_", " ").replace("r2", "R²"))
    ax.set_xscale("log")
    ticks = sorted({round(float(x), 2) for c in curves.values() for x in c[0]})
    ax.set_xticks(ticks, [f"{round(t, 1):g}" for t in ticks])
    ax.minorticks_off()
    ax.set_title(title, loc="left", pad=4)
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return ax


def _curve(rows: list, method: str, animal: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(minutes, mean over seeds), in the order of minutes."""
    found: dict[float, list[float]] = {}
    for r in rows:
        if r["method"] == method and r["animal"] == animal:
            found.setdefault(r["minutes"], []).append(r["value"])
    x = sorted(found)
    return np.array(x), np.array([np.mean(found[m]) for m in x])
