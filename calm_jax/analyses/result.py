"""What an analysis leaves: arrays, rows, and one line for each thing that was not possible.

    RUN/analysis/<name>.npz     arrays, drawn by `calm-jax report` without computing anything
    RUN/analysis/<name>.json    {"analysis", "seed", "seconds", "command", "facts", "missing",
                                 "rows"}; written last, so that the pair is complete with it

A row is {analysis, method, session, animal, seed, metric, value}; `session` null stands for
all sessions together.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np

from calm_jax.errors import RunError
from calm_jax.files import replacing

FOLDER = "analysis"
T = TypeVar("T")


class AnalysisRow(TypedDict):
    """One number and what it is of."""

    analysis: str
    method: str
    session: str | None
    animal: str | None
    seed: int | None
    metric: str
    value: float


@dataclasses.dataclass(eq=False)
class Result:
    """One analysis of a run.

    Attributes:
      name: of the analysis. seed: of everything random in it.
      arrays: for the figures. facts: JSON values for captions, such as counts and units.
      missing: what was not possible and why, one line each.
      rows: the numbers. seconds: it took.
      command: that made it.
    """

    name: str
    seed: int
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    rows: list[AnalysisRow] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    command: str = ""

    def put(
        self,
        method: str,
        metric: str,
        value: float,
        *,
        session: str | None = None,
        animal: str | None = None,
    ) -> None:
        """Adds a row."""
        self.rows.append(
            AnalysisRow(
                analysis=self.name,
                method=method,
                session=session,
                animal=animal,
                seed=self.seed,
                metric=metric,
                value=float(value),
            )
        )

    def value(self, method: str, metric: str, session: str | None = None) -> float:
        """The value of a row; NaN where there is none."""
        for r in self.rows:
            if (r["method"], r["metric"], r["session"]) == (method, metric, session):
                return r["value"]
        return math.nan

    def keep(self, prefix: str, thing: Any) -> None:
        """Packs a dataclass of arrays, numbers and text into the arrays."""
        self.arrays.update(pack(prefix, thing))

    def get(self, cls: type[T], prefix: str) -> T | None:
        """The dataclass that was kept at `prefix`; None where there is none."""
        return unpack(cls, self.arrays, prefix)


def pack(prefix: str, thing: Any) -> dict[str, np.ndarray]:
    """The fields of a dataclass as arrays `prefix.field`; of dictionaries `prefix.field.key`."""
    out: dict[str, np.ndarray] = {}
    for f in dataclasses.fields(thing):
        value = getattr(thing, f.name)
        if isinstance(value, dict):
            out[f"{prefix}.{f.name}.keys"] = np.array(list(value), dtype=str)
            for i, v in enumerate(value.values()):
                out[f"{prefix}.{f.name}.{i}"] = np.asarray(v)
        elif value is not None:
            out[f"{prefix}.{f.name}"] = np.asarray(value)
    return out


def unpack(cls: type[T], arrays: dict[str, np.ndarray], prefix: str) -> T | None:
    """The dataclass that `pack` wrote. Scalars come back as Python values, tuples of text as
    tuples; None where nothing was packed."""
    if not any(k.startswith(f"{prefix}.") for k in arrays):
        return None
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        name = f"{prefix}.{f.name}"
        if f"{name}.keys" in arrays:
            keys = arrays[f"{name}.keys"].tolist()
            values[f.name] = {k: _plain(arrays[f"{name}.{i}"], "") for i, k in enumerate(keys)}
        else:
            values[f.name] = _plain(arrays[name], str(f.type)) if name in arrays else None
    return cls(**values)


def _plain(array: np.ndarray, kind: str) -> Any:
    if array.ndim == 0:
        return array.item()
    return tuple(array.tolist()) if kind.startswith("tuple") else array


def merged(missing: Sequence[str]) -> list[str]:
    """Lines "... in session NAME: why", alike but for the name, as one line; order is kept."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in missing:
        parts = re.fullmatch(r"(.*) in session (\S+): (.*)", line)
        key, name = ((parts[1], parts[3]), parts[2]) if parts else ((line, ""), "")
        found.setdefault(key, []).append(name)
    return [
        f"{what} in session {names[0]}: {why}" if len(names) == 1 and names[0]
        else f"{what} in {len(names)} sessions: {why}" if names[0] else what
        for (what, why), names in found.items()
    ]  # fmt: skip


def save(result: Result, folder: Path) -> None:
    """Writes `<name>.npz` and `<name>.json` below `folder`, each whole or not at all."""
    marker = folder / f"{result.name}.json"
    if marker.exists():  # an older pair must not look complete while its arrays change
        marker.unlink()
    with replacing(folder / f"{result.name}.npz") as part, open(part, "wb") as file:
        np.savez_compressed(file, **result.arrays)
    said = {k: getattr(result, k) for k in ("seed", "seconds", "command", "facts", "missing")}
    text = _finite({"analysis": result.name, **said, "rows": result.rows})
    with replacing(marker) as part:
        part.write_text(json.dumps(text, indent=1, allow_nan=False) + "\n")


def load(folder: Path, name: str) -> Result | None:
    """The analysis `name` saved below `folder`; None where it was never made.

    Raises:
      RunError: for files that cannot be read.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        text = json.loads(path.read_text())
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
        rows = [
            AnalysisRow(**{**r, "value": math.nan if r["value"] is None else r["value"]})
            for r in text["rows"]
        ]
        said = {k: text[k] for k in ("seed", "seconds", "command", "facts", "missing")}
        return Result(name=name, arrays=arrays, rows=rows, **said)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as e:
        raise RunError(
            "the file is damaged",
            where=path,
            found=" ".join(str(e).split()) or type(e).__name__,
            remedy="Give `calm-jax analyze` again.",
        ) from e


def write_rows(rows: Sequence[AnalysisRow], path: Path) -> None:
    """Writes a JSON list of rows, one a line; NaN becomes null."""
    lines = [json.dumps(_finite(r)) for r in rows]
    with replacing(path) as part:
        part.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
