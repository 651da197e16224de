"""Figures of neurons and their embeddings: tuning, components, discriminants, classification.

Every function draws on an axis and gives it back; `style.look()` gives the looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from calm_jax.report import analysis_parts as parts
from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calm_jax.analysis.classification import Classification
    from calm_jax.analysis.dynamics import Dynamics
    from calm_jax.analysis.embeddings import Angle

_TEXT = 8  # classes up to which a confusion matrix has its numbers written in
_BAND = 0.95  # of a null distribution


def tuning_histogram(
    ax: Axes, d: Mapping[str, np.ndarray], *, threshold: float = 0.5, signs: str = ""
) -> Axes:
    """d' of all neurons for each quantity, with the share beyond the threshold.

    Args:
      d: quantity -> (N,). signs: what right and left mean, for the label of the axis.
    """
    finite = {k: v[np.isfinite(v)] for k, v in d.items()}
    limit = max([float(np.quantile(np.abs(v), 0.995)) for v in finite.values() if len(v)] + [1.0])
    bins = np.linspace(-limit, limit, 61)
    for i, (name, values) in enumerate(finite.items()):
        share = 100 * np.mean(np.abs(values) > threshold) if len(values) else np.nan
        text = f"{name}: |d'| > {threshold:g} in {share:.0f}% of n = {len(values):,} neurons"
        shown = np.clip(values, -limit, limit)
        ax.hist(shown, bins, histtype="stepfilled", color=parts.colour(i), alpha=0.2)
        ax.hist(shown, bins, histtype="step", color=parts.colour(i), lw=1.4, label=text,
                linestyle=parts.dashes(i))  # fmt: skip
    for edge in (-threshold, threshold):
        ax.axvline(edge, color=style.QUIET, lw=0.8, ls=":")
    ax.set(xlabel="d'" + (f" ({signs})" if signs else ""), ylabel="neurons", xlim=(-limit, limit))
    parts.legend_above(ax, 1)
    return ax


def null_histogram(
    ax: Axes,
    value: float,
    null: np.ndarray,
    p: float,
    *,
    xlabel: str,
    n: str,
    chance: float | None = None,
) -> Axes:
    """A measured value against its distribution under shuffled labels.

    Args:
      n: what was measured on, such as "n = 600 neurons". chance: a level known without shuffling.
    """
    low, high = min(null.min(), value), max(null.max(), value)
    margin = 0.06 * (high - low) or 0.5
    bins = np.linspace(low - margin, high + margin, 46)
    ax.hist(null, bins, color="#B5B5B5", label=f"labels shuffled, {len(null):,} times")
    text = f"measured: {value:.3g}, {parts.p_text(p)} ({n})"
    ax.axvline(value, color="#D55E00", lw=2, label=text)
    if chance is not None:
        ax.axvline(chance, color=style.QUIET, lw=1, ls=":", label=f"chance: {chance:.3g}")
    ax.set(xlabel=xlabel, ylabel="shuffles", xlim=(bins[0], bins[-1]))
    parts.legend_above(ax, 1)
    return ax


def cloud(
    ax: Axes,
    points: np.ndarray,
    values: np.ndarray,
    *,
    label: str,
    axes: tuple[str, str],
    diverging: bool = False,
    unit: str = "neurons",
) -> Axes:
    """Points of a plane coloured by a quantity; those without a value are small and grey.

    Args:
      points: (n, 2). values: (n,). label: of the quantity, with its unit.
      diverging: for quantities with a sign, such as d'.
    """
    known = np.isfinite(values)
    n = len(points)
    ax.scatter(*points[~known].T, s=2, color="#CFCFCF", lw=0, rasterized=n > parts.MANY)
    order = np.flatnonzero(known)
    if diverging:  # strong ones on top
        order = order[np.argsort(np.abs(values[order]), kind="stable")]
    limit = parts.centred_limit(values)
    scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if diverging else {"cmap": "viridis"}
    edge = {"edgecolors": "#555555", "linewidths": 0.25} if diverging and n < 1500 else {"lw": 0}
    drawn = ax.scatter(*points[order].T, c=values[order], s=parts.size(n), **scale, **edge,
                       rasterized=n > parts.MANY)  # fmt: skip
    parts.colour_bar(ax, drawn, label, extend="both" if diverging else "neither")
    ax.set(xlabel=axes[0], ylabel=axes[1])
    parts.note(ax, f"n = {int(known.sum()):,} {unit}")
    return ax


def classes(
    ax: Axes,
    points: np.ndarray,
    index: np.ndarray,
    names: Sequence[str],
    *,
    axes: tuple[str, str],
    unit: str = "neurons",
) -> Axes:
    """Points of a plane in classes, each with a colour and a marker of its own.

    Args:
      points: (n, 2). index: (n,) of the names; -1 (no class) is small and grey.
    """
    n = len(points)
    ax.scatter(*points[index < 0].T, s=2, color="#CFCFCF", lw=0, rasterized=n > parts.MANY)
    for i, name in enumerate(names):
        chosen = points[index == i]
        ax.scatter(*chosen.T, s=parts.size(n), color=parts.colour(i), marker=parts.marker(i),
                   lw=0, alpha=0.75, label=f"{name} ({len(chosen):,})",
                   rasterized=n > parts.MANY)  # fmt: skip
    ax.set(xlabel=f"{axes[0]}\n(n = {int((index >= 0).sum()):,} {unit})", ylabel=axes[1])
    parts.legend_above(ax, 2)
    for handle in ax.get_legend().legend_handles:
        handle.set(sizes=[18], alpha=1)
    return ax


def coding_directions(
    ax: Axes, angle: Angle, names: tuple[str, str], *, origin: np.ndarray | None = None
) -> Axes:
    """Arrows of the two best coding directions, on a plane drawn by `classes` or `cloud`."""
    ax.set_aspect("equal", adjustable="datalim")
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    origin = np.zeros(2) if origin is None else origin
    length = 0.42 * float(np.min(high - low))
    for direction, name, style_ in ((angle.first, names[0], "-"), (angle.second, names[1], "--")):
        tip = origin + length * direction
        ax.annotate("", tip, origin, arrowprops={"arrowstyle": "-|>", "lw": 1.8, "color": "#111111",
                                                 "linestyle": style_, "shrinkA": 0})  # fmt: skip
        ax.text(*(origin + 1.1 * length * direction), name, ha="center", va="center",
                fontweight="bold", bbox=parts.BACK)  # fmt: skip
    text = f"angle {angle.degrees:.0f}° (95%: {angle.low:.0f} to {angle.high:.0f}°)"
    ax.text(0.02, 0.02, text, transform=ax.transAxes, va="bottom", ha="left",
            bbox=parts.BACK)  # fmt: skip
    return ax


def confusion(ax: Axes, made: Classification, *, what: str, unit: str = "rows") -> Axes:
    """Shares of each true class that are given each class, in per cent.

    Args:
      what: the class ("animal"). unit: what is classified ("neurons").
    """
    from matplotlib.ticker import FixedLocator

    share = 100 * made.confusion / np.maximum(made.confusion.sum(1, keepdims=True), 1)
    top = 10 * max(float(np.ceil(share.max() / 10)), 2)
    drawn = ax.imshow(share, cmap="cividis", vmin=0, vmax=top, aspect="equal")
    count = len(share)
    names = [_short(c) for c in made.classes]
    if count <= 2 * _TEXT:
        ax.set_xticks(range(count), names, rotation=45 if max(map(len, names)) > 3 else 0,
                      ha="right" if max(map(len, names)) > 3 else "center")  # fmt: skip
        ax.set_yticks(range(count), names)
    else:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(FixedLocator(range(0, count, -(-count // 8))))
    if count <= _TEXT:
        for i in range(count):
            for j in range(count):
                dark = share[i, j] < 0.55 * top
                ax.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=7,
                        color="white" if dark else "#111111")  # fmt: skip
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    parts.colour_bar(ax, drawn, "share of the true class (%)")
    ax.set(xlabel=f"{what} given", ylabel=f"true {what}")
    null = f", shuffled {made.null.mean():.2f}" if len(made.null) else ""
    lines = (
        f"balanced accuracy {made.accuracy:.2f}, chance {made.chance:.2f}{null}",
        f"{parts.p_text(made.p) if len(made.null) else 'no null'}; "
        f"n = {made.n:,} {unit}, {made.folds} folds",
    )
    ax.set_title("\n".join(lines), loc="left")
    return ax


def component_correlation(ax: Axes, made: Dynamics) -> Axes:
    """Correlation of forecast and truth along each component, with the trial-shuffle null."""
    k = np.arange(1, made.components + 1)
    order = sorted(made.r, key=lambda m: (not style.own(m), m))
    null = [made.null[m] for m in order if len(made.null[m])]
    if null:
        low, high = np.nanquantile(np.concatenate(null), [(1 - _BAND) / 2, (1 + _BAND) / 2], axis=0)
        ax.fill_between(k, low, high, color="#D0D0D0", lw=0, label="trials shuffled, 95%", zorder=0)
    for i, method in enumerate(order):
        ax.plot(k, made.r[method], **style.line(method), marker=parts.marker(i), ms=3.5,
                label=f"{style.label(method)}: mean {np.nanmean(made.r[method]):.2f}")  # fmt: skip
    ax.axhline(0, color=style.QUIET, lw=0.6)
    kind = {"train": "training", "test": "test"}[made.fitted]
    scored = f"{made.trials:,} windows, {made.frames:,} frames"
    ax.set(xlabel=f"principal component of true {kind} traces\n({scored})",
           ylabel="correlation, r")  # fmt: skip
    ax.set_xticks(k if len(k) <= 10 else [1, *range(5, len(k) + 1, 5)])
    ax.set_ylim(top=1.0)
    parts.legend_above(ax, 2)
    return ax


def component_variance(ax: Axes, made: Dynamics) -> Axes:
    """Variance of each component that is there, and that each forecast explains."""
    k = np.arange(1, made.components + 1)
    ax.bar(k, 100 * made.share, color="#C9C9C9", width=0.8,
           label=f"there: {100 * made.share.sum():.0f}% in {len(k)} components")  # fmt: skip
    for i, method in enumerate(sorted(made.explained, key=lambda m: (not style.own(m), m))):
        part = made.share * made.explained[method]
        total = 100 * np.nansum(part)
        ax.plot(k, 100 * np.maximum(part, 0), **style.line(method), marker=parts.marker(i), ms=3.5,
                label=f"{style.label(method)}: {total:.0f}%")  # fmt: skip
    ax.set(xlabel=f"principal component of true traces\n({made.frames:,} frames)",
           ylabel="share of all variance (%)")  # fmt: skip
    ax.set_xticks(k if len(k) <= 10 else [1, *range(5, len(k) + 1, 5)])
    ax.set_ylim(bottom=0)
    parts.legend_above(ax, 2)
    return ax


def trajectories(
    ax: Axes, made: Dynamics, methods: Sequence[str], *, trial: int, unit: str = "z-score"
) -> Axes:
    """One window in the plane of the first two components: truth, and forecasts from its start."""
    if made.components < 2:
        raise ValueError("a plane needs two components")
    paths = {None: made.truth[trial], **{m: made.scores[m][trial] for m in methods}}
    for i, (method, path) in enumerate(paths.items()):
        look = style.line(method) if method else {"color": style.TRUE, "lw": 1.6, "zorder": 2}
        name = style.label(method) if method else "recorded"
        ax.plot(path[:, 0], path[:, 1], **look, label=name, marker=parts.marker(i), ms=2.5)
        ax.plot(path[0, 0], path[0, 1], marker="o", ms=6, mfc="white", mec=look["color"], zorder=4)
    ax.set(xlabel=f"component 1 ({100 * made.ratio[0]:.0f}% of variance; {unit})\n"
           "(n = 1 window; circle: first frame ahead)",
           ylabel=f"component 2 ({100 * made.ratio[1]:.0f}%; {unit})")  # fmt: skip
    parts.legend_above(ax, 3)
    return ax


def _short(name: object, most: int = 12) -> str:
    text = str(name)
    return text if len(text) <= most else text[: most - 1] + "…"
