"""Figures of the codes: their waveforms, and which follows which; axis in, axis out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAP = "viridis"


def gallery(
    ax: Axes,
    mean: np.ndarray,
    sd: np.ndarray,
    count: np.ndarray,
    order: np.ndarray,
    *,
    rate: float,
    unit: str,
    columns: int | None = None,
) -> Axes:
    """All codes as small waveforms in reading order of their level, each about its own level.

    One scale for all; colour: the level; the grey line in a cell is that level, the band one SD.
    A bar below gives the scale. Shapes: mean, sd (K, p); count, order (K,).
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    used = [int(c) for c in order if count[c] > 0]
    columns = columns or int(np.clip(np.ceil(np.sqrt(2 * len(used))), 4, 16))
    p = mean.shape[1]
    level = mean.mean(1)
    shape = mean - level[:, None]
    # Rare codes may be wide: the scale is that of all but the widest.
    widest = np.abs(shape[used]).max(1) + sd[used].max(1)
    span = 2 * max(float(np.quantile(widest, 0.97)), 1e-9)
    limit = max(float(np.abs(level[used]).max()), 1e-9)
    norm, paint = Normalize(-limit, limit), colormaps["PuOr_r"]
    rows = -(-len(used) // columns)
    place = np.linspace(0.12, 0.88, p)
    for k, c in enumerate(used):
        column, row = k % columns, k // columns
        x, middle = column + place, -row - 0.5
        scale = lambda v, m=middle: m + np.clip(0.9 * v / span, -0.5, 0.5)  # noqa: E731
        ax.plot([column + 0.06, column + 0.94], [middle] * 2, color="#CCCCCC", lw=0.5)
        ax.fill_between(x, scale(shape[c] - sd[c]), scale(shape[c] + sd[c]), color="#BBBBBB",
                        alpha=0.45, lw=0)  # fmt: skip
        ax.plot(x, scale(shape[c]), color="#333333", lw=2.2)
        ax.plot(x, scale(shape[c]), color=paint(norm(level[c])), lw=1.5)
    size = _round(span / 2)
    height = 0.9 * size / span
    ax.plot([0.1, 0.1], [-rows - 0.15 - height, -rows - 0.15], color=style.TRUE, lw=1.5)
    ax.text(0.3, -rows - 0.15 - height / 2, f"{size:g} {unit}; each {1000 * p / rate:.0f} ms",
            va="center", fontsize=8)  # fmt: skip
    ax.set_xlim(0, columns)
    ax.set_ylim(-rows - 0.3 - max(height, 0.5), 0.05)
    ax.set_axis_off()
    ax.figure.colorbar(ScalarMappable(norm, paint), ax=ax, shrink=0.6, pad=0.01,
                       label=f"mean level ({unit})")  # fmt: skip
    return ax


def _plain_ticks(axis, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    candidates = [m * 10.0**e for e in range(-6, 3) for m in (1, 2, 5)]
    ticks = [t for t in candidates if low <= t <= high] or [low, high]
    axis.set_major_locator(FixedLocator(ticks[:: max(1, len(ticks) // 6)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))


def transition_matrix(ax: Axes, pairs: np.ndarray, order: np.ndarray) -> Axes:
    """P(next code | code), codes in order of their level; white where it was never seen.

    Shapes: pairs (K, K) counts, order (K,).
    """
    from matplotlib.colors import LogNorm

    used = order[(pairs.sum(0) + pairs.sum(1))[order] > 0]
    chosen = pairs[np.ix_(used, used)].astype(float)
    p = 100 * chosen / np.maximum(chosen.sum(1, keepdims=True), 1)
    low = max(float(p[p > 0].min(initial=100.0)), 0.01)
    shown = ax.imshow(np.where(p > 0, p, np.nan), cmap=_MAP,
                      norm=LogNorm(low, max(float(p.max()), 10 * low)), aspect="equal",
                      interpolation="nearest", origin="lower")  # fmt: skip
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="next code, by level", ylabel="code, by level")
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.85, label="probability (%)")
    _plain_ticks(bar.ax.yaxis, low, max(float(p.max()), 10 * low))
    return ax


def transition_graph(
    ax: Axes, mean: np.ndarray, count: np.ndarray, pairs: np.ndarray, edges: np.ndarray, unit: str
) -> Axes:
    """Codes by what they look like, and the commonest ways from one to another.

    A code stands at its mean level and at its change from first to last frame; its area is its
    share of the tokens, an arrow's width that of the transition.
    Shapes: mean (K, p), count (K,), pairs (K, K), edges (E, 2) code -> next code.
    """
    level, change = mean.mean(1), mean[:, -1] - mean[:, 0]
    used = count > 0
    share = count / max(count.sum(), 1)
    top = max((pairs[a, b] for a, b in edges), default=1)
    for a, b in edges:
        weight = pairs[a, b] / top
        ax.annotate(
            "", (level[b], change[b]), (level[a], change[a]),
            arrowprops={"arrowstyle": "-|>", "color": "#D55E00", "alpha": 0.35 + 0.5 * weight,
                        "lw": 0.4 + 1.4 * weight, "shrinkA": 2, "shrinkB": 2,
                        "mutation_scale": 6, "connectionstyle": "arc3,rad=0.2"},
        )  # fmt: skip
    ax.scatter(level[used], change[used], s=4 + 900 * share[used], color="#0072B2", alpha=0.55,
               lw=0, zorder=3)  # fmt: skip
    ax.axhline(0, color=style.QUIET, lw=0.8, ls=":")
    ax.axvline(0, color=style.QUIET, lw=0.8, ls=":")
    ax.set(xlabel=f"mean level of the code ({unit})", ylabel=f"change within the code ({unit})")
    return ax


def _round(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `value`."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(m * power for m in (1, 2, 5) if m * power <= value * (1 + 1e-9)))
