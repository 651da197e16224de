"""Spread over seeds, and the paired bootstrap of one method against another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from calm_jax.rows import Row, row, select

RESAMPLES, SEED = 10_000, 0
FEWEST = 5  # sessions; with fewer, trials or blocks are resampled
BLOCK = 64  # frames: forecasts whose origins lie in one block are resampled together


@dataclasses.dataclass(frozen=True)
class Difference:
    """MSE of a method minus that of another, on the same windows.

    Attributes:
      value: mean. low, high: 95 % of the resamples. unit: what was resampled. n: of them.
    """

    value: float
    low: float
    high: float
    unit: str
    n: int


def mean_errors(results: Sequence[dict]) -> list[dict]:
    """Windows of one method with their errors averaged over seeds."""
    first = results[0]["windows"]
    out = []
    for k, entry in enumerate(first):
        each = np.array([r["windows"][k]["errors"] for r in results], np.float64)
        out.append({**entry, "trial": np.array(entry["trial"]), "errors": each.mean(0)})
    return out


def difference(a: Sequence[dict], b: Sequence[dict], strides: Sequence[int]) -> Difference:
    """Paired bootstrap of MSE(a) - MSE(b): percentiles of 10,000 resamples, seed 0.

    With 5 sessions or more whole sessions are drawn. With fewer, the trials of every
    session, or in a session with one range blocks of 64 frames, and the mean over
    sessions is taken each time: the spread is then over trials, not over animals.

    Args:
      a, b: windows of two methods, as `mean_errors` gives them.
      strides: frames between origins, per session.
    """
    rng = np.random.default_rng(SEED)
    units = []
    for x, y, stride in zip(a, b, strides):
        change = x["errors"] - y["errors"]
        label = x["trial"]
        if len(np.unique(label)) == 1:
            label = np.arange(len(change)) // max(1, BLOCK // stride)
        known = ~np.isnan(change)
        parts = [change[(label == k) & known] for k in np.unique(label)]
        units.append(np.array([p.mean() for p in parts if len(p)]))
    units = [u for u in units if len(u)]
    if not units:
        return Difference(float("nan"), float("nan"), float("nan"), "session", 0)
    means = np.array([u.mean() for u in units])
    if len(units) >= FEWEST:
        drawn = means[rng.integers(len(means), size=(RESAMPLES, len(means)))].mean(1)
        unit, n = "session", len(means)
    else:
        each = [
            u[rng.integers(len(u), size=(RESAMPLES, len(u)))].mean(1) for u in units
        ]
        drawn = np.mean(each, 0)
        blocks = any(len(np.unique(x["trial"])) == 1 for x in a)
        unit, n = "block" if blocks else "trial", sum(len(u) for u in units)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(means.mean()), float(low), float(high), unit, n)


def overall(rows: Iterable[Row], method: str, metric: str, step: int | None = None) -> np.ndarray:
    """(seeds,) means over animals of one method, by seed."""
    chosen = select(rows, method=method, metric=metric, session=None, animal=None, step=step)
    return np.array([r["value"] for r in sorted(chosen, key=lambda r: r["seed"] or 0)])


def spread_rows(rows: list[Row], methods: Sequence[str], protocol: str) -> list[Row]:
    """`mse_seed_sd` and `r_seed_sd`: SD (n - 1) over seeds of the mean over animals."""
    out = []
    for method in methods:
        for metric in ("mse", "r"):
            values = overall(rows, method, metric)
            if len(values) > 1:
                out.append(row(protocol, method, f"{metric}_seed_sd", values.std(ddof=1)))
    return out


def difference_rows(protocol: str, method: str, name: str, d: Difference) -> list[Row]:
    """`mse_minus_<name>` with its `_low` and `_high`."""
    ends = {"": d.value, "_low": d.low, "_high": d.high}
    return [row(protocol, method, f"mse_minus_{name}{k}", v) for k, v in ends.items()]
