"""Decoded behaviour scored: rows {method, target, session, animal, seed, metric, value}.

`session` None is the mean over the sessions of an animal, `animal` None the mean over
animals, `seed` None a method without chance. Counts (`n_...`, `confusion/...`) are summed.

Continuous targets, over all known test frames of a session together: `r` (Pearson; 0 for
a constant prediction), `r2` = 1 - SSE / SST about the mean of these test frames, `mse` in
units of the training variance. Classes: `accuracy`, `balanced_accuracy` (mean recall of
the classes that the test part has), `confusion/TRUE/DECODED` frames.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
from rich.console import Console
from rich.table import Table

from calm_jax.baselines.behavior import shuffled
from calm_jax.files import replacing
from calm_jax.recordings.targets import Target

FIELDS = ("method", "target", "session", "animal", "seed", "metric", "value")
CONTINUOUS = ("r", "r2", "mse")
CLASSES = ("accuracy", "balanced_accuracy")


class DecodingRow(TypedDict):
    """One number and what it is of."""

    method: str
    target: str
    session: str | None
    animal: str | None
    seed: int | None
    metric: str
    value: float


def continuous(pred: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """r, r2 and mse of predictions (T,) against the truth (T,); NaN where it is constant."""
    x, y = pred.astype(np.float64), truth.astype(np.float64)
    error = float(np.square(x - y).mean()) if x.size else math.nan
    total = float(np.square(y - y.mean()).mean()) if x.size else 0.0
    if not total > 1e-12:
        return {"r": math.nan, "r2": math.nan, "mse": error}
    spread = float(x.std())
    real = spread > 1e-9 * max(float(np.abs(x).max()), 1e-30)
    cov = float(((x - x.mean()) * (y - y.mean())).mean())
    r = cov / (spread * math.sqrt(total)) if real else 0.0
    return {"r": r, "r2": 1 - error / total, "mse": error}


def confusion(pred: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts, true class by decoded class."""
    index = truth.astype(int) * classes + pred.astype(int)
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def classified(table: np.ndarray) -> dict[str, float]:
    """accuracy and balanced accuracy of a confusion matrix; the latter is NaN where the
    truth has a single class."""
    total, per = table.sum(), table.sum(1)
    present = per > 0
    recall = np.diag(table)[present] / per[present]
    return {
        "accuracy": float(np.trace(table) / total) if total else math.nan,
        "balanced_accuracy": float(recall.mean()) if present.sum() > 1 else math.nan,
    }


def score(
    outputs: np.ndarray, truth: np.ndarray, target: Target, *, null: bool = True
) -> dict[str, float]:
    """All metrics of outputs (T, O) on known frames, with the level of shifted labels.

    `<metric>_null`, `_null_low`, `_null_high` are mean and 95 % interval of r (continuous)
    or balanced accuracy (classes) over `n_null` circular shifts of the labels; `null` False
    leaves them out.
    """
    if target.classes is None:
        pred, main = outputs[:, 0], "r"
        found = continuous(pred, truth)
        measure = lambda order: continuous(pred, truth[order])["r"]  # noqa: E731
    else:
        size, main = len(target.classes), "balanced_accuracy"
        pred = outputs.argmax(1)
        table = confusion(pred, truth, size)
        found = classified(table)
        for a, true in enumerate(target.classes):
            for b, decoded in enumerate(target.classes):
                found[f"confusion/{true}/{decoded}"] = float(table[a, b])
        measure = lambda order: classified(confusion(pred, truth[order], size))[  # noqa: E731
            "balanced_accuracy"
        ]
    if not null:
        return {**found, "n_test": float(len(truth))}
    middle, low, high = shuffled.level(measure, len(truth))
    found |= {f"{main}_null": middle, f"{main}_null_low": low, f"{main}_null_high": high}
    return {**found, "n_test": float(len(truth)), "n_null": float(shuffled.COUNT)}


def averaged(rows: Iterable[DecodingRow]) -> list[DecodingRow]:
    """The rows of sessions, then their means over sessions per animal, then over animals."""
    sessions = [r for r in rows if r["session"] is not None]
    animals = _merge(sessions, "session")
    return [*sessions, *animals, *_merge(animals, "session", "animal")]


def _merge(rows: Sequence[DecodingRow], *cleared: str) -> list[DecodingRow]:
    groups: dict[tuple, list[float]] = {}
    for r in rows:
        key = tuple(None if k in cleared else r[k] for k in FIELDS[:-1])
        groups.setdefault(key, []).append(r["value"])
    out = []
    for key, values in groups.items():
        known = [v for v in values if not math.isnan(v)]
        value = sum(known) if known else math.nan
        if known and not key[-1].startswith(("n_", "confusion/")):
            value /= len(known)
        out.append(DecodingRow(**dict(zip(FIELDS, (*key, value)))))
    return out


def write(rows: Iterable[DecodingRow], path: str | os.PathLike) -> None:
    """Writes a JSON list of rows, one a line; NaN becomes null."""
    lines = [
        json.dumps({**r, "value": r["value"] if math.isfinite(r["value"]) else None}) for r in rows
    ]
    with replacing(path) as part:
        part.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def summary(
    rows: Sequence[DecodingRow], target: str, method: str, metric: str
) -> tuple[float, float, float]:
    """Mean over animals, its SD over animals (means over seeds), and over seeds (means over
    animals); an SD of one value is NaN."""
    chosen = [
        r
        for r in rows
        if (r["target"], r["method"], r["metric"]) == (target, method, metric)
        and r["session"] is None
        and r["animal"] is not None
        and not math.isnan(r["value"])
    ]

    def means(field: str) -> np.ndarray:
        groups: dict[object, list[float]] = {}
        for r in chosen:
            groups.setdefault(r[field], []).append(r["value"])
        return np.array([np.mean(v) for v in groups.values()])

    def spread(x: np.ndarray) -> float:
        return float(x.std(ddof=1)) if x.size > 1 else math.nan

    animals, seeds = means("animal"), means("seed")
    mean = float(animals.mean()) if animals.size else math.nan
    return mean, spread(animals), spread(seeds)


def print_summary(
    rows: Sequence[DecodingRow], targets: Sequence[Target], console: Console
) -> None:
    """One table per target: methods by metrics, mean (SD over animals; SD over seeds)."""
    for target in targets:
        own = [r for r in rows if r["target"] == target.name]
        metrics = CONTINUOUS if target.classes is None else CLASSES
        title = target.name if target.classes is None else (
            f"{target.name} ({len(target.classes)} classes)"
        )
        table = Table(title=title, title_justify="left", box=None)
        table.add_column("method")
        for metric in metrics:
            table.add_column(metric.replace("_", " "), justify="right")
        table.add_column("null, 95 %", justify="right")
        main = "r" if target.classes is None else "balanced_accuracy"
        for method in dict.fromkeys(r["method"] for r in own):
            names = (f"{main}_null_low", f"{main}_null_high")
            low, high = (summary(own, target.name, method, m)[0] for m in names)
            null = "-" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
            cells = [cell(*summary(own, target.name, method, m)) for m in metrics]
            table.add_row(method, *cells, null)
        console.print(table)
    console.print(
        "mean over animals (SD over animals; SD over seeds); r2 against the mean of the test part; "
        f"mse in units of the training variance; null: {shuffled.COUNT} circular label shifts"
    )


def cell(mean: float, animals: float, seeds: float) -> str:
    if math.isnan(mean):
        return "-"
    spread = "; ".join(f"{x:.2f}" for x in (animals, seeds) if not math.isnan(x))
    return f"{mean:.3f} ({spread})" if spread else f"{mean:.3f}"
