"""How often the intervals of forecasts hold: nominal against observed share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from calm_jax.calibration import INTERVALS
from calm_jax.report import style, tables
from calm_jax.report.contents import Contents
from calm_jax.report.sections import Drawing, Section, protocol_text
from calm_jax.rows import Row, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def shares(rows: list[Row], protocol: str) -> dict[str, np.ndarray]:
    """method -> (1 + sessions, intervals) shares of true values inside; first the mean over
    animals and seeds, then every session. Methods without quantiles are left out."""
    out = {}
    own = [r for r in rows if r["protocol"] == protocol and r["step"] is None]
    for method in dict.fromkeys(r["method"] for r in own):
        columns = []
        for k in INTERVALS:
            found = select(own, method=method, metric=f"coverage_{k}")
            whole = [r["value"] for r in found if r["session"] is None and r["animal"] is None]
            each = {(r["animal"], r["session"]): r["value"] for r in found if r["session"]}
            columns.append([float(np.mean(whole)) if whole else np.nan, *each.values()])
        if len({len(c) for c in columns}) == 1 and np.isfinite([c[0] for c in columns]).all():
            out[method] = np.array(columns).T
    return out


def reliability(ax: Axes, found: Mapping[str, np.ndarray]) -> Axes:
    """Observed less nominal share of true values inside the central intervals.

    On the dotted line an interval holds as often as it says; the grey band is 5 points
    either way. Bars are the range over sessions of our own method.

    Shapes: found[method] (1 + sessions, intervals), the mean first.
    """
    nominal = np.array(INTERVALS, float)
    ax.axhspan(-5, 5, color="#eeeeee", lw=0)
    ax.axhline(0, color=style.QUIET, ls=":")
    for method in sorted(found, key=lambda m: (style.own(m), m)):
        mean = 100 * found[method][0] - nominal
        name = style.label(method)
        bars = {}
        if style.own(method):
            each = 100 * found[method][1:] - nominal
            low, high = np.nanmin(each, 0), np.nanmax(each, 0)
            bars = {"yerr": [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]}
            bars |= {"capsize": 3, "elinewidth": 1.0}
        ax.errorbar(nominal, mean, **bars, **style.line(method), marker="o", ms=4, label=name)
    ax.set(xlabel="interval, nominal share (%)", ylabel="observed − nominal (points)")
    ax.set_xticks(nominal)
    ax.set_xlim(44, 100)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -10), max(high, 10))
    ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
    return ax


def calibration(run: Contents) -> Section:
    """A drawing for every protocol, and the numbers of the 80 % interval in its caption."""
    drawings = []
    for protocol in sorted({r["protocol"] for r in run.rows} - {tables.TOKENIZER}):
        found = shares(run.rows, protocol)
        if not found:
            continue
        figure, (ax,) = style.panels(height=2.9)
        reliability(ax, found)
        own = next((m for m in found if style.own(m)), None)
        caption = f"{protocol_text(protocol, run)} How much more often (above) or less often "
        caption += "(below) than they say the central intervals hold the true value on the test "
        caption += "part; fitted on the validation part. Grey: within 5 points."
        if own is not None:
            crps = select(run.rows, protocol=protocol, method=own, metric="crps", session=None,
                          animal=None, step=None)  # fmt: skip
            value = f", CRPS {crps[0]['value']:.3f}" if crps else ""
            share = 100 * found[own][0][INTERVALS.index(80)]
            caption += f" {style.label(own)}: the 80% interval holds {share:.1f}%{value}; bars: "
            caption += f"range over {len(found[own]) - 1} sessions."
        drawings.append(Drawing(f"calibration_{protocol}", caption, figure))
    if drawings:
        return Section(drawings, [])
    return Section([], ["calibration: the run holds no scored quantiles"])


