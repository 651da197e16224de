"""Rows of an evaluation as the table people read: protocol x method, best marked."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable

import numpy as np

from calm_jax.rows import Row, averaged, select

# metric -> (head of its column, +1 when more is better)
METRICS = {"mse": ("MSE", -1), "r": ("r", 1), "mae": ("MAE", -1), "skill": ("skill", 1)}
TOKENIZER = "tokenizer"  # the protocol of reconstruction rows


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number: the mean, its SD over sessions (NaN for one), and whether it is the best."""

    value: float
    sd: float = math.nan
    best: bool = False

    @property
    def text(self) -> str:
        """Three decimals, or a dash where it is not known."""
        return "–" if math.isnan(self.value) else f"{self.value:.3f}".replace("-", "−")


@dataclasses.dataclass(frozen=True)
class Line:
    """One method under one protocol.

    Attributes:
      cells: metric -> Cell for all of METRICS.
      sessions: how many were scored. neurons, constant: scored and left out, all sessions.
    """

    protocol: str
    method: str
    cells: dict[str, Cell]
    sessions: int
    neurons: float
    constant: float

    @property
    def constant_share(self) -> float:
        """Share of constant traces, which no mean contains; NaN when it was not counted."""
        total = self.neurons + self.constant
        return self.constant / total if total > 0 else math.nan

    @property
    def constant_text(self) -> str:
        """The share in per cent."""
        share = self.constant_share
        return "–" if math.isnan(share) else f"{100 * share:.1f}%"


def summarise(rows: Iterable[Row]) -> list[Line]:
    """The lines of the summary: by protocol, then by MSE; over all steps and sessions.

    Means are those of `rows.averaged` (sessions of an animal, then animals), then over
    seeds. All numbers that read the same as the best one are marked best.
    """
    rows = averaged(r for r in rows if r["step"] is None and r["protocol"] != TOKENIZER)
    lines = []
    keys = dict.fromkeys((r["protocol"], r["method"]) for r in rows)
    for protocol, method in sorted(keys):
        own = select(rows, protocol=protocol, method=method)
        cells = {m: _cell(own, m) for m in METRICS}
        sessions = {r["session"] for r in own} - {None}
        count = {n: total(own, n).value for n in ("n_neurons", "n_constant")}
        lines.append(Line(protocol, method, cells, len(sessions), *count.values()))
    marked = []
    for protocol in dict.fromkeys(line.protocol for line in lines):
        group = [line for line in lines if line.protocol == protocol]
        group.sort(key=lambda x: (math.isnan(x.cells["mse"].value), x.cells["mse"].value))
        marked += _mark_best(group)
    return marked


def total(rows: Iterable[Row], metric: str) -> Cell:
    """The most averaged value of a metric, mean over seeds."""
    found = [r["value"] for r in select(rows, metric=metric, session=None, animal=None)]
    known = [v for v in found if not math.isnan(v)]
    return Cell(statistics.fmean(known) if known else math.nan)


def _cell(rows: list[Row], metric: str) -> Cell:
    by_session: dict[object, list[float]] = {}
    for r in select(rows, metric=metric):
        if r["session"] is not None and not math.isnan(r["value"]):
            by_session.setdefault((r["animal"], r["session"]), []).append(r["value"])
    means = [statistics.fmean(v) for v in by_session.values()]
    sd = statistics.stdev(means) if len(means) > 1 else math.nan
    return dataclasses.replace(total(rows, metric), sd=sd)


def _mark_best(lines: list[Line]) -> list[Line]:
    best = {}
    for metric, (_, sign) in METRICS.items():
        values = [c for line in lines if not math.isnan((c := line.cells[metric]).value)]
        if len(values) > 1:
            best[metric] = max(values, key=lambda c: sign * c.value).text
    out = []
    for line in lines:
        cells = {
            m: dataclasses.replace(c, best=c.text == best.get(m)) for m, c in line.cells.items()
        }
        out.append(dataclasses.replace(line, cells=cells))
    return out


def by_step(
    rows: Iterable[Row], protocol: str, metric: str
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """method -> steps ahead (H,), mean (H,), sessions (S, H) of one metric.

    Seeds are averaged; a session that lacks a step has NaN there.
    """
    rows = [r for r in rows if r["step"] is not None]
    rows = averaged(select(rows, protocol=protocol, metric=metric))
    out = {}
    for method in dict.fromkeys(r["method"] for r in rows):
        own = select(rows, method=method)
        steps = sorted({r["step"] for r in own})
        column = {s: i for i, s in enumerate(steps)}
        sessions = sorted({(r["animal"], r["session"]) for r in own if r["session"] is not None})
        line = {key: i + 1 for i, key in enumerate(sessions)} | {(None, None): 0}
        sums = np.zeros((2, len(line), len(steps)))
        for r in own:
            where = line.get((r["animal"], r["session"]))
            if where is not None and not math.isnan(r["value"]):
                sums[:, where, column[r["step"]]] += r["value"], 1
        values = np.where(sums[1] > 0, sums[0] / np.maximum(sums[1], 1), np.nan)
        out[method] = (np.array(steps), values[0], values[1:])
    return out


def reconstruction_table(rows: Iterable[Row]) -> dict[tuple[str, str | None], dict[str, float]]:
    """(part, session or None for the mean) -> metric -> value of the tokenizer's rows.

    The baseline has parts of its own, such as "test, k-means of patches".
    """
    out: dict[tuple[str, str | None], dict[str, list[float]]] = {}
    for r in averaged(select(rows, protocol=TOKENIZER, step=None)):
        if r["session"] is None and r["animal"] is not None:
            continue
        part, _, metric = r["metric"].partition("_")
        if r["method"] == "kmeans_patches":
            part += ", k-means of patches"
        out.setdefault((part, r["session"]), {}).setdefault(metric, []).append(r["value"])
    return {k: {m: float(np.mean(v)) for m, v in cells.items()} for k, cells in out.items()}
