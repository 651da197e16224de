"""Figures of couplings and time constants; every function draws on an axis and gives it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWN = "#D55E00"  # what comes from the model
OTHER = "#0072B2"  # what comes from the traces alone
METHODS = {
    "response": "model: response, whole horizon",
    "response_first": "model: response, first code",
    "mixing": "model: mixing tables",
    "ridge": "ridge weights, whole horizon",
    "ridge_first": "ridge weights, first code",
    "correlation": "correlation",
    "lagged_correlation": "correlation, 1 frame later",
    "lagged_change": "correlation with the next change",
}


def colour(method: str) -> str:
    """Of the model's couplings, or of those of the traces alone."""
    return OWN if method in ("response", "response_first", "mixing") else OTHER


def agreement(
    ax: Axes,
    values: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    chance: float,
    null: tuple[float, float] | None = None,
) -> Axes:
    """A number per method: every session a dot, their mean a bar; chance is a line.

    Args:
      values: method -> one value per session. null: middle 95 % under relabelled neurons.
    """
    names = list(values)
    if null is not None:
        ax.axvspan(*null, color="#DDDDDD", lw=0, label="95% with neurons relabelled")
    ax.axvline(chance, color=style.QUIET, lw=0.9, ls=":", label=f"chance, {chance:g}")
    for y, name in enumerate(names):
        x = np.asarray(values[name], float)
        mean = float(np.nanmean(x)) if np.isfinite(x).any() else np.nan
        ax.plot([chance, mean], [y, y], color=colour(name), lw=5, alpha=0.35,
                solid_capstyle="butt")  # fmt: skip
        ax.plot(x, np.full(len(x), y), "o", ms=4, mfc="white", mec=colour(name), mew=1.2)
        ax.annotate(f"{mean:.3f}", (np.nanmax([mean, *x, chance]), y), xytext=(6, 0),
                    textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    ax.set_yticks(range(len(names)), [METHODS.get(n, style.label(n)) for n in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.margins(x=0.14)
    ax.set_xlabel(xlabel)
    return ax


def by_estimate(
    ax: Axes, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 20
) -> Axes:
    """Mean true coupling against the rank of the estimated one, in bins of equal numbers.

    Bars: two standard errors. Shapes: pairs[method] (M,) estimates and (M,) truths.
    """
    markers = {"response": "o", "ridge": "s", "correlation": "^", "mixing": "D"}
    for k, (name, (estimate, truth)) in enumerate(pairs.items()):
        order = np.array_split(np.argsort(estimate, kind="stable"), bins)
        mean = np.array([truth[o].mean() for o in order])
        error = np.array([2 * truth[o].std() / np.sqrt(max(len(o), 1)) for o in order])
        x = (np.arange(bins) + 0.5) / bins * 100 + (k - 1) * 0.7
        tone = {"response": OWN, "mixing": "#E69F00", "correlation": "#56B4E9"}.get(name, OTHER)
        ax.errorbar(x, mean, error, color=tone, marker=markers.get(name, "v"), ms=3, lw=1,
                    elinewidth=0.8, label=METHODS.get(name, name))  # fmt: skip
    ax.axhline(0, color=style.QUIET, lw=0.9, ls=":")
    ax.set(xlabel="pairs by estimated coupling (percentile)", ylabel="mean true coupling J")
    ax.set_ylim(ax.get_ylim()[0], ax.get_ylim()[1] * 1.45)
    ax.legend(loc="upper left", fontsize=7.5)
    return ax


def matrix(ax: Axes, coupling: np.ndarray, *, label: str) -> Axes:
    """A coupling matrix (N, N), rows read, columns speak; neurons in the order of the leading
    eigenvector of its symmetric part. Colours end at the 99th percentile; a power of ten goes
    into the unit, behind the first bracket of `label`."""
    c = np.where(np.eye(len(coupling), dtype=bool), 0, coupling)
    _, vectors = np.linalg.eigh((c + c.T) / 2)
    order = np.argsort(vectors[:, -1])
    top = float(np.quantile(np.abs(c), 0.99)) or 1.0
    power = int(np.floor(np.log10(top)))
    if -2 <= power <= 2:
        power = 0
    else:
        label = label.replace("(", f"($10^{{{power}}}$ ", 1)
    unit = 10.0**power
    shown = ax.imshow(c[np.ix_(order, order)] / unit, cmap="PuOr_r", vmin=-top / unit,
                      vmax=top / unit, interpolation="nearest", aspect="auto")  # fmt: skip
    ax.set(xlabel="neuron that changes", ylabel="neuron that answers")
    ax.figure.colorbar(shown, ax=ax, shrink=0.85, label=label)
    return ax


def autocorrelations(
    ax: Axes, times: Sequence[np.ndarray], curves: Sequence[np.ndarray], names: Sequence[str]
) -> Axes:
    """Median autocorrelation of the neurons of each session; a band from quarter to quarter
    where there are at most three sessions. Shapes: times (L,) s, curves (L, N)."""
    tones = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#332288"]
    few = len(curves) <= 3
    for k, (t, c) in enumerate(zip(times, curves, strict=True)):
        low, middle, high = np.nanquantile(c, (0.25, 0.5, 0.75), axis=1)
        tone = tones[k % len(tones)]
        ax.plot(t, middle, color=tone, lw=1.4, ls=("-", "--", "-.")[k % 3],
                label=names[k] if len(names) <= 8 else None)  # fmt: skip
        if few:
            ax.fill_between(t, low, high, color=tone, alpha=0.15, lw=0)
    ax.axhline(0, color=style.QUIET, lw=0.9, ls=":")
    ax.set(xlabel="lag (s)", ylabel="autocorrelation")
    ax.margins(x=0.01)
    if len(names) <= 8:
        ax.legend(loc="upper right", fontsize=7.5, ncols=1 if few else 2)
    return ax


def time_constants(
    ax: Axes, values: Mapping[str, np.ndarray], true: Mapping[str, float] | None = None
) -> Axes:
    """Distributions of time constants (s): the middle half as a bar, the middle 95 % as a line,
    the median marked; true constants as vertical lines.

    Shapes: values[name] (N,), NaN where not known.
    """
    tones = {"forecast after an impulse": OWN}
    ends = [float(v) for v in (true or {}).values()]
    for y, (name, x) in enumerate(values.items()):
        known = x[np.isfinite(x)]
        tone = tones.get(name, style.TRUE if "true" in name else OTHER)
        if len(known):
            a, b, m, c, d = np.quantile(known, (0.025, 0.25, 0.5, 0.75, 0.975))
            ax.plot([a, d], [y, y], color=tone, lw=1.2)
            ax.plot([b, c], [y, y], color=tone, lw=7, solid_capstyle="butt", alpha=0.45)
            ax.plot(m, y, "o", ms=5, mfc="white", mec=tone, mew=1.4)
            ax.annotate(f"{m:.2f} s, n = {len(known)} of {len(x)}", (m, y), xytext=(0, 7),
                        textcoords="offset points", va="bottom", fontsize=7.5)  # fmt: skip
            ends.append(float(d))
        else:
            ax.annotate("none determined", (0, y), va="center", fontsize=7.5)
    for (name, value), dashes in zip((true or {}).items(), (":", "--", "-."), strict=False):
        ax.axvline(value, color=style.QUIET, lw=1, ls=dashes, label=f"{name}, {value:g} s")
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.7)
    ax.set_xlim(0, 1.08 * max(ends, default=1.0))
    ax.set_xlabel("time constant (s)")
    if true:
        ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=7.5)
    return ax


def impulse(ax: Axes, times: Sequence[np.ndarray], curves: Sequence[np.ndarray]) -> Axes:
    """A neuron's forecast after its own last frames were raised by 1 SD: each session's median,
    and the middle half of all neurons. Shapes: times (H,) s, curves (H, N)."""
    every = np.concatenate([c for c in curves if len(c) == len(curves[0])], 1)
    low, high = np.nanquantile(every, (0.25, 0.75), axis=1)
    ax.fill_between(times[0], low, high, color=OWN, alpha=0.2, lw=0, label="middle half of neurons")
    for k, (t, c) in enumerate(zip(times, curves, strict=True)):
        name = None if k else "median, each session"
        ax.plot(t, np.nanmedian(c, 1), color=OWN, lw=1.1, label=name)
    ax.axhline(0, color=style.QUIET, lw=0.9, ls=":")
    ax.set(xlabel="time after the change (s)", ylabel="change of the forecast (SD per SD)")
    ax.set_ylim(min(0, ax.get_ylim()[0]), ax.get_ylim()[1] * 1.2)
    ax.legend(loc="upper right", fontsize=7.5)
    return ax


def scatter(
    ax: Axes, x: np.ndarray, y: np.ndarray, *, xlabel: str, ylabel: str
) -> Axes:
    """Points of neurons with the line of equality and their correlation."""
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    ax.plot(x, y, "o", ms=2.5, color=OTHER, alpha=0.5, mew=0, rasterized=len(x) > 2000)
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))] if len(x) else [0, 1]
    ax.plot(ends, ends, color=style.QUIET, lw=0.9, ls=":", label="equal")
    r = float(np.corrcoef(x, y)[0, 1]) if len(x) > 2 and x.std() > 0 and y.std() > 0 else np.nan
    ax.set_title(f"r = {r:.2f}, n = {len(x)} neurons")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(loc="lower right", fontsize=7.5)
    return ax
