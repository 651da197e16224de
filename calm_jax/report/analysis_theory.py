"""Figures of what signals offer a learner: information, loss landscape, curriculum.

Every function draws on an axis and gives it back; `style.look()` gives the looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from calm_jax.report import analysis_parts as parts
from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calm_jax.analysis.curriculum import Curriculum
    from calm_jax.analysis.groups import Groups
    from calm_jax.analysis.information import Information
    from calm_jax.analysis.landscape import Landscape
    from calm_jax.analysis.spectrum import Spectrum

_ORDERS = {
    "easy_to_hard": "easy to hard",
    "hard_to_easy": "hard to easy",
    "random": "random",
    "mixed": "mixed",
}
_FACTORS = {
    "fidelity": "fidelity (1 / bound)",
    "stability": "stability (1 / condition)",
    "regularity": "temporal regularity",
    "entropy": "entropy",
    "statistics": "low skewness, kurtosis",
}
_DOTS = 400  # neurons of a group drawn one by one


def autocorrelations(ax: Axes, made: Information, groups: np.ndarray | None = None) -> Axes:
    """Mean autocorrelation of the neurons of each group; the band is their middle half.

    Args:
      groups: (N,) text, "" is left out; None: one group.
    """
    lag = np.arange(len(made.autocorrelation)) / made.rate
    for i, (name, chosen) in enumerate(_groups(groups, made.autocorrelation.shape[1])):
        some = made.autocorrelation[:, chosen & np.isfinite(made.autocorrelation[0])]
        if not some.size:
            continue
        low, high = np.nanquantile(some, [0.25, 0.75], axis=1)
        ax.fill_between(lag, low, high, color=parts.colour(i), alpha=0.18, lw=0)
        ax.plot(lag, np.nanmean(some, 1), color=parts.colour(i), ls=parts.dashes(i),
                label=f"{name} (n = {some.shape[1]:,})")  # fmt: skip
    ax.axhline(0, color=style.QUIET, lw=0.6)
    ax.set(xlabel="lag (s)\n(line: mean; band: middle half of neurons)", ylabel="autocorrelation")
    ax.margins(x=0.01)
    parts.legend_above(ax, 2)
    return ax


def spectra(
    ax: Axes, made: Spectrum, groups: np.ndarray | None = None, *, unit: str = "ΔF/F"
) -> Axes:
    """Median power spectral density of the neurons of each group; the band is their middle half."""
    f = made.frequency
    shown = f > 0
    if made.length % 2 == 0:  # one-sided: half of the power of the last bin is not counted
        shown[-1] = False
    for i, (name, chosen) in enumerate(_groups(groups, made.power.shape[1])):
        some = made.power[:, chosen & (made.segments > 0)][shown]
        some = some[:, (some > 0).all(0)]
        if not some.size:
            continue
        low, middle, high = np.quantile(some, [0.25, 0.5, 0.75], axis=1)
        ax.fill_between(f[shown], low, high, color=parts.colour(i), alpha=0.18, lw=0)
        ax.plot(f[shown], middle, color=parts.colour(i), ls=parts.dashes(i),
                label=f"{name} (n = {some.shape[1]:,})")  # fmt: skip
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="frequency (Hz)\n(line: median; band: middle half)",
        ylabel=f"power (({unit})²/Hz)",
    )
    parts.legend_above(ax, 2)
    return ax


def per_group(
    ax: Axes,
    values: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    xlabel: str,
    log: bool = False,
    seed: int = 0,
) -> Axes:
    """A quantity of each neuron by group: box from quartile to quartile, median, single neurons.

    Few values are drawn as larger dots; at most 400 of a group are drawn, by `seed`.

    Args:
      values: (N,), such as Fisher information. groups: (N,) text.
    """
    rng = np.random.default_rng(seed)
    names = []
    listed = list(_groups(groups, len(values)))
    for i, (name, chosen) in enumerate(listed):
        some = values[chosen & np.isfinite(values)]
        if log:
            some = some[some > 0]
        names.append(f"{name}\nn = {len(some):,}")
        if not len(some):
            continue
        dots = some if len(some) <= _DOTS else rng.choice(some, _DOTS, replace=False)
        area, alpha = (5, 0.45) if len(dots) > 30 else (22, 0.85)
        ax.scatter(dots, i + 0.22 * rng.uniform(-1, 1, len(dots)), s=area, color=parts.colour(i),
                   alpha=alpha, lw=0, rasterized=len(listed) * _DOTS > parts.MANY)  # fmt: skip
        low, middle, high = np.quantile(some, [0.25, 0.5, 0.75])
        ax.plot([low, high], [i, i], color="#111111", lw=5, alpha=0.35, solid_capstyle="butt")
        ax.plot(middle, i, "|", color="#111111", ms=13, mew=2)
        ax.text(1.0, i - 0.3, f"median {middle:.3g}", transform=ax.get_yaxis_transform(),
                ha="right", va="center", color=style.QUIET, bbox=parts.BACK)  # fmt: skip
    if log:
        ax.set_xscale("log")
        parts.plain_log(ax.xaxis)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.45, -0.6))
    return ax


def composite_score(ax: Axes, made: Groups) -> Axes:
    """The composite score of each group, as the sum of its weighted factors."""
    order = np.argsort(-made.score)
    left = np.zeros(len(order))
    for i, (factor, values) in enumerate(made.factors.items()):
        width = made.weights[factor] * values[order]
        ax.barh(range(len(order)), width, left=left, color=parts.colour(i), edgecolor="white",
                height=0.62, hatch=("", "///", "", "...", "")[i % 5], lw=0.6,
                label=f"{_FACTORS[factor]}, weight {made.weights[factor]:.2g}")  # fmt: skip
        left += width
    for row, i in enumerate(order):
        ax.text(left[row] + 0.015, row, f"{made.score[i]:.2f}", va="center")
    ax.set_yticks(range(len(order)), [f"{made.names[i]}\nn = {made.neurons[i]:,}" for i in order])
    ax.invert_yaxis()
    ax.set(xlabel="composite score (1: best group in every factor)", xlim=(0, 1.1))
    parts.legend_above(ax, 1)
    return ax


def surface(ax: Axes, made: Landscape, *, unit: str = "z-score") -> Axes:
    """The smoothed loss over the first two components, with the frames it is made from."""
    from matplotlib.colors import LogNorm, Normalize

    low, high = float(made.smooth.min()), float(made.smooth.max())
    scale = LogNorm if low > 0 and high > 20 * low else Normalize
    levels = np.geomspace(low, high, 14) if scale is LogNorm else np.linspace(low, high, 14)
    if high <= low:
        levels = np.array([low - 1, low + 1])
    norm = scale(levels[0], levels[-1])
    drawn = ax.pcolormesh(made.x, made.y, made.smooth, cmap="viridis", norm=norm,
                          shading="gouraud", rasterized=True)  # fmt: skip
    ax.contour(made.x, made.y, made.smooth, levels, colors="white", linewidths=0.4, alpha=0.6)
    ax.scatter(*made.points.T, s=max(parts.size(made.n) / 3, 0.8), color="#FF6F3C", lw=0, alpha=0.7,
               rasterized=made.n > parts.MANY)  # fmt: skip
    parts.colour_bar(ax, drawn, f"loss per neuron (({unit})²)")
    ax.set(xlabel=f"component 1 ({100 * made.ratio[0]:.0f}% of variance; {unit})",
           ylabel=f"component 2 ({100 * made.ratio[1]:.0f}%; {unit})")  # fmt: skip
    ax.set(xlim=(made.x[0], made.x[-1]), ylim=(made.y[0], made.y[-1]))
    minima = f"{made.minima} local {'minimum' if made.minima == 1 else 'minima'}"
    lines = (
        f"roughness (SD) {made.roughness:.3g}, ruggedness {made.ruggedness:.2g}, {minima}",
        f"dots: n = {made.n:,} frames of {made.neurons:,} neurons",
    )
    ax.set_title("\n".join(lines), loc="left")
    return ax


def learning_curves(ax: Axes, made: Curriculum) -> Axes:
    """R^2 on held-out frames against samples seen, in the four orders; bands: all repeats."""
    lowest = []
    for i, (kind, skill) in enumerate(made.skill.items()):
        mean = skill.mean(0)
        ax.fill_between(made.samples, skill.min(0), skill.max(0), color=parts.colour(i), alpha=0.15,
                        lw=0)  # fmt: skip
        ax.plot(made.samples, mean, color=parts.colour(i), ls=parts.dashes(i), lw=1.5,
                label=f"{_ORDERS[kind]}: {made.performance[kind].mean():.3f}, "
                      f"stability {made.stability[kind].mean():.3f}")  # fmt: skip
        lowest.append(np.quantile(mean, 0.05))
    ax.axhline(made.ceiling, color=style.QUIET, lw=0.9, ls=":",
               label=f"least squares: {made.ceiling:.3f}")  # fmt: skip
    repeats = len(next(iter(made.skill.values())))
    text = f"n = {made.train:,} pairs of frames, {made.test:,} held out; {repeats} repeats"
    ax.set(xlabel=f"samples seen\n({text})", ylabel="R² on held-out frames")
    top = max(made.ceiling, max(v.max() for v in made.skill.values()))
    bottom = max(min(lowest), -1.0)
    ax.set_ylim(bottom - 0.08 * (top - bottom), top + 0.06 * (top - bottom))
    ax.margins(x=0.01)
    parts.legend_above(ax, 1)
    return ax


def moments(
    ax: Axes,
    made: Information,
    groups: np.ndarray | None = None,
    *,
    thresholds: Mapping[str, float] | None = None,
) -> Axes:
    """Kurtosis against skewness of each neuron, with the thresholds of the selection.

    Args:
      thresholds: "skewness" and "kurtosis" -> value.
    """
    n = len(made.skewness)
    for i, (name, chosen) in enumerate(_groups(groups, n)):
        some = chosen & np.isfinite(made.skewness)
        ax.scatter(made.skewness[some], made.kurtosis[some], s=parts.size(n), lw=0, alpha=0.6,
                   color=parts.colour(i), marker=parts.marker(i), rasterized=n > parts.MANY,
                   label=f"{name} (n = {int(some.sum()):,})")  # fmt: skip
    if thresholds:
        ax.axvline(thresholds["skewness"], color=style.QUIET, ls="--", lw=0.9, label="threshold")
        ax.axhline(thresholds["kurtosis"], color=style.QUIET, ls="--", lw=0.9)
    if np.nanmax(made.kurtosis) > 30:
        ax.set_yscale("log")
        parts.plain_log(ax.yaxis)
    ax.set(xlabel="skewness", ylabel="kurtosis (3: Gaussian)")
    parts.legend_above(ax, 2)
    return ax


def _groups(groups: np.ndarray | None, n: int):
    """Names and members (N,) bool of the groups, by name."""
    if groups is None:
        return [("all neurons", np.ones(n, bool))]
    groups = np.asarray(groups).astype(str)
    return [(name, groups == name) for name in np.unique(groups) if name]
