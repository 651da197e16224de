"""Evaluation as data: every result is a list of rows, the same everywhere.

A row is {protocol, method, session, animal, seed, step, metric, value}. `session`
None stands for the mean over the sessions of an animal, `animal` None for the mean
over animals; `step` None for all steps ahead together. Names of our own models
begin with `calm` or `poyo`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from calm_jax.errors import RunError
from calm_jax.files import replacing

FIELDS = ("protocol", "method", "session", "animal", "seed", "step", "metric", "value")


class Row(TypedDict):
    """One number and what it is of."""

    protocol: str
    method: str
    session: str | None
    animal: str | None
    seed: int | None
    step: int | None
    metric: str
    value: float


def row(
    protocol: str,
    method: str,
    metric: str,
    value: float,
    *,
    session: str | None = None,
    animal: str | None = None,
    seed: int | None = None,
    step: int | None = None,
) -> Row:
    """A row with plain Python values."""
    return Row(
        protocol=protocol,
        method=method,
        session=session,
        animal=animal,
        seed=None if seed is None else int(seed),
        step=None if step is None else int(step),
        metric=metric,
        value=float(value),
    )


def averaged(rows: Iterable[Row]) -> list[Row]:
    """The rows of sessions with their means over sessions per animal, then over animals.

    Values that are not numbers (NaN) are left out of a mean. Counts (metrics that
    begin with `n_`) are summed. Rows that are means already are made anew.
    """
    sessions = [r for r in rows if r["session"] is not None]
    animals = _merge(sessions, session=None)
    return [*sessions, *animals, *_merge(animals, session=None, animal=None)]


def _merge(rows: Sequence[Row], **cleared: None) -> list[Row]:
    groups: dict[tuple, list[float]] = {}
    for r in rows:
        key = tuple(cleared[k] if k in cleared else r[k] for k in FIELDS[:-1])
        groups.setdefault(key, []).append(r["value"])
    out = []
    for key, values in groups.items():
        known = [v for v in values if not math.isnan(v)]
        value = sum(known) if known else math.nan
        if known and not key[-1].startswith("n_"):
            value /= len(known)
        out.append(Row(**dict(zip(FIELDS, (*key, value)))))
    return out


def select(rows: Iterable[Row], **fields: object) -> list[Row]:
    """The rows whose fields have these values, such as `select(rows, metric="mse", step=None)`."""
    return [r for r in rows if all(r[k] == v for k, v in fields.items())]


def write(rows: Iterable[Row], path: str | os.PathLike) -> None:
    """Writes a JSON list of rows, one a line; NaN becomes null."""
    lines = [
        json.dumps({**r, "value": r["value"] if math.isfinite(r["value"]) else None}) for r in rows
    ]
    with replacing(path) as part:
        part.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def read(path: str | os.PathLike) -> list[Row]:
    """The rows written at `path`.

    Raises:
      RunError: no such file, or it holds no rows.
    """
    try:
        data = json.loads(Path(path).read_text())
        out = [
            Row(**{**r, "value": math.nan if r["value"] is None else float(r["value"])})
            for r in data
        ]
        if any(set(r) != set(FIELDS) for r in out):
            raise KeyError(f"every row needs {', '.join(FIELDS)}")
    except FileNotFoundError:
        raise RunError("no such file", where=path) from None
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise RunError(
            "not a list of evaluation rows",
            where=path,
            found=f"{type(e).__name__}: {e}",
            remedy="Run `calm-jax evaluate` again.",
        ) from e
    return out


def table(
    rows: Iterable[Row],
    metrics: Sequence[str] | None = None,
    *,
    protocol: str | None = None,
    by: str = "method",
) -> str:
    """A Markdown table, one line per value of `by`, one column per metric.

    Takes the rows over all steps that are most averaged: means over animals, or
    those of each session with `by="session"`, of each animal with `by="animal"`.
    With more than one protocol (or method) in a line's place the line names it too.
    """
    chosen = [
        r
        for r in rows
        if r["step"] is None
        and protocol in (None, r["protocol"])
        and (r["session"] is not None) == (by == "session")
        and (r["animal"] is not None) == (by in ("session", "animal"))
    ]
    names = list(metrics) if metrics else list(dict.fromkeys(r["metric"] for r in chosen))
    heads = ["protocol", "method"] + ([] if by == "method" else [by])
    lines: dict[tuple, dict[str, list[float]]] = {}
    for r in chosen:
        cell = lines.setdefault(tuple(r[h] for h in heads), {})
        cell.setdefault(r["metric"], []).append(r["value"])
    text = [[*heads, *names], ["---"] * len(heads) + ["---:"] * len(names)]
    for key, cells in lines.items():
        text.append([*map(str, key), *(_shown(n, cells.get(n)) for n in names)])
    return "\n".join("| " + " | ".join(line) + " |" for line in text) + "\n"


def _shown(metric: str, values: list[float] | None) -> str:
    """The mean over seeds."""
    known = [v for v in values or () if not math.isnan(v)]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    return f"{mean:.0f}" if metric.startswith("n_") else f"{mean:.3f}"
