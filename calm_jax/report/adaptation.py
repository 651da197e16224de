"""Skill against minutes of a new animal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from calm_jax.report import style
from calm_jax.rows import Row, averaged, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Curve(NamedTuple):
    """One method: minutes (M,), mean over animals (M,), animals (A, M); NaN where unknown."""

    minutes: np.ndarray
    mean: np.ndarray
    animals: np.ndarray


def curves(rows: Iterable[Row], protocol: str = "B", metric: str = "skill") -> dict[str, Curve]:
    """The curves of every method in the rows of `calm-jax adapt`.

    Rows of one protocol and different minutes stand as "B, 1 min", "B, all"; seeds are averaged,
    then sessions of an animal, then animals.
    """
    rows = [r for r in rows if r["step"] is None and r["session"] is not None]
    rows = averaged({**r, "seed": None} for r in _seeds_averaged(rows))
    mine = [r for r in rows if r["protocol"].split(",")[0] == protocol]
    out = {}
    for method in dict.fromkeys(r["method"] for r in mine):
        own = select(mine, method=method, session=None)
        animals = sorted({r["animal"] for r in own} - {None})
        points = []
        for place in dict.fromkeys(r["protocol"] for r in own):
            here = select(own, protocol=place)
            values = {r["animal"]: r["value"] for r in select(here, metric=metric)}
            [minutes] = [r["value"] for r in select(here, metric="minutes", animal=None)]
            each = [values.get(a, math.nan) for a in animals]
            points.append((minutes, values.get(None, math.nan), each))
        points.sort(key=lambda p: p[0])
        x, mean, each = zip(*points, strict=True)
        out[method] = Curve(np.array(x), np.array(mean), np.array(each).T)
    return out


def _seeds_averaged(rows: list[Row]) -> list[Row]:
    groups: dict[tuple, list[Row]] = {}
    for r in rows:
        key = (r["protocol"], r["method"], r["session"], r["animal"], r["metric"])
        groups.setdefault(key, []).append(r)
    return [{**g[0], "value": float(np.mean([r["value"] for r in g]))} for g in groups.values()]


def skill_against_minutes(ax: Axes, found: Mapping[str, Curve]) -> Axes:
    """Skill (1 - MSE / MSE of copy-last) of every method against minutes of a new animal.

    Methods that lie far below are left out of the drawing and named in the title; thin lines
    are the single animals of the adapted model.
    """
    means = {m: c.mean[np.isfinite(c.mean)] for m, c in found.items()}
    best = max((v.max() for v in means.values() if len(v)), default=1.0)
    low = min(-0.1, min((means[m].min() for m in means if style.own(m)), default=0.0))
    low = max(low - 0.05, best - 1.5)
    hidden = [m for m, v in means.items() if len(v) and v.max() < low]
    for method, curve in found.items():
        if method in hidden or not np.isfinite(curve.mean).any():
            continue
        ax.plot(curve.minutes, curve.mean, marker="o", ms=3, label=style.label(method),
                **style.line(method))  # fmt: skip
        if method == "calm_adapted" and len(curve.animals) > 1:
            for each in curve.animals:
                ax.plot(curve.minutes, each, color=style.colour(method), lw=0.5, alpha=0.4)
    count = max((len(c.animals) for c in found.values()), default=0)
    title = f"n = {count} animal{'' if count == 1 else 's'}"
    if hidden:
        title += "; below the axis: " + ", ".join(style.label(m) for m in hidden)
    ax.set(xlabel="minutes of the new animal", ylabel="skill, 1 − MSE / MSE of copy last")
    ax.set_xscale("log")
    ticks = sorted({round(float(x), 2) for c in found.values() for x in c.minutes})
    ax.set_xticks(ticks, [f"{round(t, 1):g}" for t in ticks])
    ax.minorticks_off()
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, low - 0.05), top)
    ax.set_title(title, loc="left", pad=4)
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return ax
