"""Figures of latent spaces: their dimension, likeness, order in time, and frozen encoders.

Maps (t-SNE) are drawn by `analysis_figures.cloud` and `classes`. Every function draws on an axis
and gives it back; `style.look()` gives the looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from calm_jax.report import analysis_parts as parts
from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calm_jax.analysis.freezing import Detail, Freezing
    from calm_jax.analysis.latents import Dimension, Neighbourhood

FROZEN = {
    "none": "nothing frozen",
    "all": "all frozen",
    "first": "first third",
    "middle": "middle third",
    "last": "last third",
}


def dimensions(ax: Axes, made: Mapping[str, Dimension]) -> Axes:
    """Intrinsic dimension of each space; the bar is the middle half of the single points."""
    for i, each in enumerate(made.values()):
        low, high = np.quantile(each.per_point, [0.25, 0.75])
        ax.plot([low, high], [i, i], color=parts.colour(i), lw=5, alpha=0.35,
                solid_capstyle="butt")  # fmt: skip
        ax.plot(each.value, i, parts.marker(i), color=parts.colour(i), ms=7)
        ax.annotate(f"{each.value:.2f}", (each.value, i), (0, 8), textcoords="offset points",
                    ha="center", va="bottom")  # fmt: skip
    _rows(ax, [f"{name}\nn = {each.n:,}" for name, each in made.items()])
    ax.set(xlabel="intrinsic dimension\n(bar: middle half of single points)")
    ax.set_xlim(left=0)
    return ax


def neighbourhoods(ax: Axes, made: Mapping[str, Neighbourhood]) -> Axes:
    """Temporal neighbourhood preservation of each space, with the level of chance."""
    for i, each in enumerate(made.values()):
        ax.barh(i, each.score, height=0.55, color=parts.colour(i), alpha=0.85)
        ax.plot([each.chance] * 2, [i - 0.38, i + 0.38], color="#111111", lw=1.4, ls=":",
                label="chance" if i == 0 else None)  # fmt: skip
        ax.text(each.score, i, f" {each.score:.3f}", va="center")
    k = sorted({each.k for each in made.values()})
    _rows(ax, [f"{name}\nn = {each.n:,}" for name, each in made.items()])
    top = max([e.score for e in made.values()] + [e.chance for e in made.values()])
    ax.set(xlabel=f"neighbours kept in time (Jaccard, k = {', '.join(map(str, k))})",
           xlim=(0, 1.2 * top))  # fmt: skip
    parts.legend_above(ax, 1)
    return ax


def likeness(ax: Axes, matrix: np.ndarray, names: Sequence[str], *, label: str, n: str) -> Axes:
    """A measure in [0, 1] between every two spaces, such as CKA or Procrustes disparity.

    Shapes: matrix (S, S), NaN where not compared.
    """
    drawn = ax.imshow(matrix, cmap="cividis", vmin=0, vmax=1, aspect="equal")
    count = len(names)
    ax.set_xticks(range(count), names, rotation=40, ha="right")
    ax.set_yticks(range(count), names)
    for i in range(count):
        for j in range(count):
            if np.isfinite(matrix[i, j]) and count <= 8:
                ax.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=7.5,
                        color="white" if matrix[i, j] < 0.55 else "#111111")  # fmt: skip
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    parts.colour_bar(ax, drawn, label)
    ax.set_title(n, loc="left", color=style.QUIET)
    return ax


def freezing_scores(ax: Axes, made: Freezing, *, xlabel: str) -> Axes:
    """Scores of fine-tuning with parts of the encoder frozen: seeds, mean, 95 % interval."""
    reference = made.variants.index(made.reference)
    ax.axvline(made.mean[reference], color=style.QUIET, lw=0.9, ls=":")
    seeds = made.scores.shape[1]
    for i in range(len(made.variants)):
        ax.scatter(made.scores[i], np.full(seeds, i + 0.22), s=12, color=parts.colour(i), lw=0,
                   alpha=0.7)  # fmt: skip
        if np.isfinite(made.low[i]):
            ax.plot([made.low[i], made.high[i]], [i, i], color=parts.colour(i), lw=1.6)
        ax.plot(made.mean[i], i, parts.marker(i), color=parts.colour(i), ms=7)
        text = f"{made.mean[i]:.3f}"
        if i != reference and np.isfinite(made.p[i]):
            text += f", {parts.p_text(made.p[i])}"
        ax.text(made.mean[i], i - 0.2, text, ha="center", va="bottom", bbox=parts.BACK)
    _rows(ax, [FROZEN.get(v, v) for v in made.variants], above=0.75)
    ax.set(xlabel=xlabel)
    ax.margins(x=0.15)
    interval = "; line: 95% interval (t), small dots: seeds" if seeds > 1 else ""
    ax.set_title(f"n = {seeds} {'seed' if seeds == 1 else 'seeds'}{interval}", loc="left",
                 color=style.QUIET)  # fmt: skip
    return ax


def spatial_detail(ax: Axes, made: Mapping[str, Detail]) -> Axes:
    """Energy of reconstructed images at low and high spatial frequencies, truth = 1."""
    at = np.arange(len(made))
    sides = (("low", [d.energy_low for d in made.values()], -0.19),
             ("high", [d.energy_high for d in made.values()], 0.19))  # fmt: skip
    for i, (name, values, offset) in enumerate(sides):
        ax.barh(at + offset, values, height=0.34, color=parts.colour(i), hatch=("", "///")[i],
                edgecolor="white", lw=0.5, label=f"{name} frequencies")  # fmt: skip
        for y, value in zip(at + offset, values):
            ax.text(value, y, f" {value:.2f}", va="center", fontsize=7.5)
    ax.axvline(1, color=style.QUIET, lw=0.9, ls=":", label="as in the true images")
    frames = next(iter(made.values())).frames
    _rows(ax, [FROZEN.get(v, v) for v in made])
    ax.set(xlabel=f"energy, reconstruction / truth (n = {frames:,} images)")
    ax.set_xlim(0, 1.18 * max(1, *(v for _, values, _ in sides for v in values)))
    parts.legend_above(ax, 2)
    return ax


def _rows(ax: Axes, names: Sequence[str], above: float = 0.6) -> None:
    """One row for each name, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.45, -above)
