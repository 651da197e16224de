"""The figures: every function draws data on an axis and gives the axis back.

Times are in seconds, traces in the unit that is passed; `style.look()` gives the looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calm_jax.report.tables import Line

_FEW = 5  # sessions: up to here a band is the range, above the middle half
_SMOOTHED = 60  # points of a training curve above which its moving mean is drawn


def loss_curve(
    ax: Axes,
    train: tuple[np.ndarray, np.ndarray] | None,
    valid: tuple[np.ndarray, np.ndarray] | None,
    *,
    ylabel: str = "loss",
    reference: tuple[str, float] | None = None,
    event: tuple[str, float] | None = None,
    more_is_better: bool = False,
) -> Axes:
    """Training and validation curves, each (step, value); the best validation is marked.

    The axis is logarithmic where less is better and the values are positive and span more
    than a factor 3. Above 60 records training is smoothed, with its records in the back.

    Args:
      reference: name and level of a horizontal line. event: name and step of a vertical one.
    """
    seen = []
    if train is not None:
        step, value = train
        many = len(step) > _SMOOTHED
        ax.plot(step, value, color="#56B4E9" if many else "#0072B2", lw=0.8 if many else 1.3,
                alpha=0.55 if many else 1, label=None if many else "training")  # fmt: skip
        if many:
            width = max(len(step) // 30, 3)
            ax.plot(step, _moving_mean(value, width), color="#0072B2",
                    label="training (smoothed)")  # fmt: skip
        seen.append(value)
    if valid is not None:
        step, value = valid
        marker = "o" if len(step) <= 40 else None
        ax.plot(step, value, color="#D55E00", marker=marker, ms=2.5, label="validation")
        if np.isfinite(value).any():
            i = int(np.nanargmax(value) if more_is_better else np.nanargmin(value))
            ax.plot(step[i], value[i], "o", mfc="white", mec="#D55E00", ms=6, mew=1.5, ls="none",
                    label=f"best {value[i]:.3g} at step {int(step[i]):,}")  # fmt: skip
        seen.append(value)
    if reference is not None:
        ax.axhline(reference[1], color=style.QUIET, ls=":", label=reference[0])
        seen.append(np.array([reference[1]]))
    everything = np.concatenate(seen)
    everything = everything[np.isfinite(everything)]
    positive = len(everything) > 0 and everything.min() > 0 and not more_is_better
    if positive and everything.max() > 3 * everything.min():
        _log_axis(ax)
    if event is not None:
        ax.axvline(event[1], color=style.QUIET, lw=0.8, ls="--", label=event[0])
    ax.set(xlabel="optimiser step", ylabel=ylabel)
    ax.margins(x=0.02)
    _legend_above(ax, columns=2)
    return ax


def code_usage(ax: Axes, usage: Mapping[str, np.ndarray]) -> Axes:
    """Sorted share of the tokens per code, for each part, with the even level.

    Shapes: usage[part] (K,) counts.
    """
    colours = {"train": "#0072B2", "test": "#D55E00"}
    names = {"train": "training", "valid": "validation"}
    k = 1
    for part, counts in usage.items():
        counts = np.asarray(counts, float)
        k = len(counts)
        share = np.sort(counts)[::-1] / max(counts.sum(), 1)
        p = share[share > 0]
        even = 2 ** -np.sum(p * np.log2(p)) if len(p) else 0
        text = f"{names.get(part, part)}: {len(p)} of {k} codes used, perplexity {even:.0f}"
        ax.step(np.arange(1, k + 1), 100 * share, where="mid", label=text,
                color=colours.get(part, "#009E73"), lw=1.5)  # fmt: skip
    ax.axhline(100 / k, color=style.QUIET, ls=":", label=f"even use, {100 / k:.2g}%")
    ax.set(xlabel="code, by rank", ylabel="share of tokens (%)", ylim=(0, None))
    ax.set_xlim(0, k + 1)
    ax.set_ylim(0, ax.get_ylim()[1] * 1.25)  # room for the legend
    ax.legend(loc="upper right")
    return ax


def reconstruction(
    ax: Axes, true: np.ndarray, pred: np.ndarray, *, rate: float, unit: str, title: str = ""
) -> Axes:
    """A trace (T,) and its reconstruction from codes (T,); rate in Hz."""
    t = np.arange(len(true)) / rate
    ax.plot(t, true, color=style.TRUE, lw=1.0, label="recorded")
    ax.plot(t, pred, color=style.colour("calm_tokenizer"), lw=1.3, alpha=0.9,
            label="decoded from codes")  # fmt: skip
    _head(ax, title, _r_text(true, pred))
    ax.set(xlabel="time (s)", ylabel=unit)
    ax.margins(x=0.01)
    return ax


def forecast_example(
    ax: Axes,
    context: np.ndarray,
    truth: np.ndarray,
    mean: np.ndarray,
    *,
    rate: float,
    unit: str,
    title: str = "",
    quantiles: np.ndarray | None = None,
    levels: Sequence[float] = (),
    baselines: Mapping[str, np.ndarray] | None = None,
) -> Axes:
    """What was given, what came, and what was forecast; time 0 is the last frame given.

    Args:
      context: (C,) frames given, of which the last 2 H are drawn.
      truth, mean: (H,) frames that came, and their forecast.
      quantiles: (L, H) at `levels`; symmetric pairs become bands.
      baselines: method -> (H,).
    """
    ahead = np.arange(1, len(truth) + 1) / rate
    context = context[-2 * len(truth) :]
    past = np.arange(1 - len(context), 1) / rate
    own = style.colour("calm")
    for low, high, share in pairs(levels):
        alpha = 0.32 if share <= 0.6 else 0.16
        ax.fill_between(ahead, quantiles[low], quantiles[high], color=own, alpha=alpha, lw=0,
                        label=f"{100 * share:.0f}% interval")  # fmt: skip
    for method, values in (baselines or {}).items():
        ax.plot(ahead, values, **{**style.line(method), "linewidth": 1.0},
                label=style.label(method))  # fmt: skip
    ax.plot(np.concatenate([past, ahead]), np.concatenate([context, truth]), color=style.TRUE,
            lw=1.0, label="recorded")  # fmt: skip
    ax.plot(ahead, mean, **{**style.line("calm"), "linewidth": 1.8}, label=style.label("calm"))
    ax.axvline(0, color=style.QUIET, lw=0.9, ls="--", label="forecast origin")
    _head(ax, title, f"MSE {np.nanmean((mean - truth) ** 2):.2f}")
    ax.set(xlabel="time from the last frame given (s)", ylabel=unit)
    ax.margins(x=0.01)
    return ax


def per_step(
    ax: Axes,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    rate: float | None,
    ylabel: str,
) -> Axes:
    """A metric against time ahead for every method; spread over sessions for ours and the best.

    Shapes: curves[method] = steps (H,), mean (H,), sessions (S, H). The band is the range
    of the sessions (at most 5 of them) or their middle half. Baselines so bad that the rest
    would be squeezed into a part of the axis are named with their mean value instead.
    """
    order = sorted(curves, key=lambda m: (not style.own(m), m))
    sign = 1 if ylabel.startswith("MSE") else -1
    far = _far_off({m: curves[m][1] for m in order}, sign)
    others = [m for m in order if not style.own(m) and np.isfinite(curves[m][1]).any()]
    best = min(others, key=lambda m: sign * np.nanmean(curves[m][1]), default=None)
    for method in order:
        steps, mean, sessions = curves[method]
        x = steps / (rate or 1.0)
        name = style.label(method)
        if method in far:
            ax.plot([], [], **style.line(method), label=f"{name}: {np.nanmean(mean):.2f}, off axis")
            continue
        if style.own(method) or method == best:
            low, high = spread(sessions)
            ax.fill_between(x, low, high, color=style.colour(method), alpha=0.15, lw=0)
        ax.plot(x, mean, **style.line(method), label=name)
    ahead = "time ahead (s)" if rate else "frames ahead"
    ax.set(xlabel=ahead, ylabel=ylabel)
    ax.set_xlim(left=0)
    _legend_above(ax, columns=2)
    return ax


def _far_off(means: Mapping[str, np.ndarray], sign: int) -> set[str]:
    """The fewest baselines without which the means span less than 70% as much.

    Copy-last and all of our own stay, two methods at least; sign +1 when large is bad.
    """
    finite = {m: v[np.isfinite(v)] for m, v in means.items()}
    finite = {m: v for m, v in finite.items() if len(v)}
    worst = [m for m in finite if not style.own(m) and not m.startswith("copy")]
    worst.sort(key=lambda m: -sign * finite[m].mean())

    def span(left_out: Sequence[str]) -> float:
        kept = np.concatenate([v for m, v in finite.items() if m not in left_out])
        return float(np.ptp(kept))

    for count in range(len(finite) - 1):
        if count <= len(worst) and span(worst[:count]) < 0.7 * span([]):
            return set(worst[:count])
    return set()


def spread(sessions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge (H,) of the band over sessions (S, H); NaN where none is known."""
    known = ~np.isnan(sessions)
    filled = np.where(known.any(0), sessions, 0.0)
    if len(sessions) <= _FEW:
        low, high = np.nanmin(filled, 0), np.nanmax(filled, 0)
    else:
        low, high = np.nanquantile(filled, [0.25, 0.75], axis=0)
    return tuple(np.where(known.any(0), edge, np.nan) for edge in (low, high))


def spread_text(sessions: int) -> str:
    """What the band of `per_step` is, in words."""
    if sessions == 1:
        return "n = 1 session"
    kind = "range" if sessions <= _FEW else "middle half"
    return f"line: mean; band (ours and the best baseline): {kind} of n = {sessions} sessions"


def neuron_histogram(ax: Axes, r: Mapping[str, np.ndarray]) -> Axes:
    """Histogram of the correlation of every neuron, per method, with the medians.

    Shapes: r[method] (N,), NaN where undefined.
    """
    known = {m: v[np.isfinite(v)] for m, v in r.items()}
    low = min((float(v.min()) for v in known.values() if len(v)), default=0.0)
    bins = np.linspace(min(np.floor(low * 20) / 20, 0.8), 1.0, 41)
    for method, values in known.items():
        colour = style.colour(method)
        median = np.median(values) if len(values) else np.nan
        text = f"{style.label(method)}: median {median:.3f}, n = {len(values):,}"
        ax.hist(values, bins, histtype="stepfilled", color=colour, alpha=0.22)
        ax.hist(values, bins, histtype="step", color=colour, lw=1.4, label=text,
                linestyle=style.line(method)["linestyle"])  # fmt: skip
        ax.axvline(median, color=colour, lw=1.2, ls=style.line(method)["linestyle"])
    ax.set(xlabel="correlation of forecast and truth, r", ylabel="neurons")
    ax.set_xlim(bins[0], 1.0)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
    return ax


def neuron_scatter(ax: Axes, x: np.ndarray, y: np.ndarray, methods: tuple[str, str]) -> Axes:
    """Every neuron: correlation of one method (N,) against that of another (N,)."""
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    low = min(np.floor(min(x.min(), y.min()) * 20) / 20, 0.8) if len(x) else 0.0
    ax.plot([low, 1], [low, 1], color=style.QUIET, lw=0.9, ls="--")
    # Thousands of vector points make a heavy page.
    ax.scatter(x, y, s=6, color=style.colour(methods[1]), alpha=0.45, lw=0,
               rasterized=len(x) > 2000)  # fmt: skip
    better = 100 * np.mean(y > x) if len(x) else np.nan
    text = f"{style.label(methods[1])} better in {better:.0f}% of n = {len(x):,} neurons"
    ax.set_title(text, loc="left")
    ax.set(xlabel=f"r, {style.label(methods[0])}", ylabel=f"r, {style.label(methods[1])}")
    ax.set(xlim=(low, 1), ylim=(low, 1), aspect="equal")
    return ax


def summary_table(ax: Axes, lines: Sequence[Line]) -> Axes:
    """The summary as a picture for slides: protocol x method, best in bold."""
    from calm_jax.report.tables import METRICS

    heads = ["", "", *(name for name, _ in METRICS.values()), "constant"]
    x = [0.0, 0.1, 0.52, 0.64, 0.76, 0.87, 1.0]
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(len(lines) + 0.6, -0.8))

    def put(row: float, cells: Sequence[tuple[str, str, str]]) -> None:
        for i, (text, weight, colour) in enumerate(cells):
            ax.text(x[i], row, text, ha="left" if i < 2 else "right", va="center",
                    fontweight=weight, color=colour)  # fmt: skip

    put(-0.2, [(h, "normal", style.QUIET) for h in heads])
    last = None
    for i, each in enumerate(lines):
        new = each.protocol != last
        if new:
            ax.axhline(i + 0.3, color="#999999", lw=0.6)
        last = each.protocol
        name = style.label(each.method)
        weight = "bold" if style.own(each.method) else "normal"
        cells = [(each.protocol if new else "", "bold", "#111111")]
        cells.append((name, weight, "#111111"))
        ax.plot(0.075, i + 0.8, "o", ms=4, color=style.colour(each.method), clip_on=False)
        for metric in METRICS:
            cell = each.cells[metric]
            cells.append((cell.text, "bold" if cell.best else "normal", "#111111"))
        cells.append((each.constant_text, "normal", "#111111"))
        put(i + 0.8, cells)
    return ax


# -- parts ---------------------------------------------------------------------------


def _moving_mean(value: np.ndarray, width: int) -> np.ndarray:
    """Centred mean of what is known in `width` records; shorter at the ends."""
    known = np.isfinite(value)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, value, 0.0), kernel, "same")
    n = np.convolve(known.astype(float), kernel, "same")
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _log_axis(ax: Axes) -> None:
    """A logarithmic axis with plain numbers (0.2, not 2 x 10^-1)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ticks = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def pairs(levels: Sequence[float]) -> list[tuple[int, int, float]]:
    """Indices of symmetric quantile levels and the share between them, widest first."""
    levels = [float(v) for v in levels]
    out = []
    for i, low in enumerate(levels):
        for j, high in enumerate(levels):
            if low < 0.5 and abs(low + high - 1) < 1e-6:
                out.append((i, j, high - low))
    return sorted(out, key=lambda p: -p[2])


def _head(ax: Axes, left: str, right: str) -> None:
    ax.set_title(left, loc="left", pad=3)
    ax.set_title(right, loc="right", pad=3, color=style.QUIET)


def _r_text(true: np.ndarray, pred: np.ndarray) -> str:
    known = np.isfinite(true) & np.isfinite(pred)
    x, y = true[known], pred[known]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return ""
    return f"r {np.corrcoef(x, y)[0, 1]:.2f}"


def _legend_above(ax: Axes, columns: int = 3) -> None:
    handles, names = ax.get_legend_handles_labels()
    ax.legend(handles, names, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0),
              borderaxespad=0.1, columnspacing=1.2)  # fmt: skip
