"""What the figures of the analyses share: colours of categories, bars of colour, legends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable

# Okabe and Ito, then Tol: told apart by all common forms of colour vision; markers and
# dashes differ too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<")
_DASHES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    (0, (1, 1)),
)
BACK = {"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.8}  # behind text on data
MANY = 2000  # points from which a cloud is a picture inside the vector file


def colour(i: int) -> str:
    """Colour of the i-th category."""
    return _COLOURS[i % len(_COLOURS)]


def marker(i: int) -> str:
    """Marker of the i-th category; with the colour, 64 differ."""
    return _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]


def dashes(i: int):
    """Line style of the i-th category."""
    return _DASHES[i % len(_DASHES)]


def size(n: int) -> float:
    """Area of a point, in points^2, that keeps a cloud of n readable."""
    return float(np.clip(9000 / max(n, 1), 2, 16))


def p_text(p: float) -> str:
    """A p-value as it is read: p = 0.02, p < 0.001."""
    if not np.isfinite(p):
        return "no null"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def legend_above(ax: Axes, columns: int = 2) -> None:
    """The legend over the axis, where nothing is drawn."""
    handles, names = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, names, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0),
                  borderaxespad=0.1, columnspacing=1.2, handletextpad=0.5)  # fmt: skip


def colour_bar(ax: Axes, drawn: ScalarMappable, label: str, **options) -> None:
    """A slim bar of colour at the right of the axis."""
    bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.05, pad=0.02, label=label, **options)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)


def plain_log(axis: Axis) -> None:
    """A logarithmic axis with plain numbers (0.2, not 2 x 10^-1); fewer where it spans more."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if not 0 < low < high:
        return
    ticks = (1.0, 2.0, 5.0) if high < 30 * low else (1.0, 3.0) if high < 300 * low else (1.0,)
    if high < 3 * low:
        ticks = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(base=10, subs=ticks))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def note(ax: Axes, text: str) -> None:
    """A quiet line at the right end of the title."""
    ax.set_title(text, loc="right", pad=3, color=style.QUIET)


def centred_limit(values: np.ndarray) -> float:
    """Half the range of a diverging colour scale: the 98th percentile of |values|."""
    finite = np.abs(values[np.isfinite(values)])
    return float(np.quantile(finite, 0.98)) if len(finite) and finite.max() > 0 else 1.0
