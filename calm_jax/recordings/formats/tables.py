"""Tables as text: `.csv` and `.tsv`, one row per frame."""

from __future__ import annotations

import csv
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.arrays import TIME_NAMES

SUFFIXES = (".csv", ".tsv")
_LINE = 1 << 24  # bytes of the first line


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers of a table.

    Attributes:
      values: (rows, columns) float64, NaN for empty cells.
      names: of the columns, or None without a header.
      times: (rows,) of the time column, or None.
      notes: what was decided.
    """

    values: np.ndarray
    names: list[str] | None
    times: np.ndarray | None
    notes: list[str]


def is_table(path: Path) -> bool:
    """True for a file of text with the suffix of a table; never raises."""
    try:
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            return False
        with open(path, "rb") as file:
            start = file.read(4096)
        return bool(start) and b"\0" not in start
    except OSError:
        return False


def read_table(path: Path, time: Any = None) -> Table:
    """Reads a table; a first line with anything but numbers names the columns.

    Args:
      time: name or number of the column with seconds; else one that is called time, t, ...

    Raises:
      RecordingError: naming the line of what is no number.
    """
    delimiter, first = _first_line(path)
    header = not all(_is_number(c) for c in first)
    values = _numbers(path, delimiter, 1 if header else 0)
    if values.shape[1] != len(first):
        raise RecordingError(
            "rows of another length than the first line",
            found=f"{values.shape[1]} values",
            expected=f"{len(first)}",
        )
    names = [c.strip() for c in first] if header else None
    notes: list[str] = []
    drop: list[int] = []
    if names and not names[0] and np.array_equal(values[:, 0], np.arange(len(values))):
        drop, notes = [0], ["the first column, without a name, counts the rows: left out"]
    column = _time_column(time, names, values.shape[1])
    if column is not None:
        drop = [*drop, column]
        notes.append(f"time is column {names[column] if names else column!r}")
    keep = [i for i in range(values.shape[1]) if i not in drop]
    return Table(
        values[:, keep] if drop else values,
        [names[i] for i in keep] if names else None,
        None if column is None else values[:, column],
        notes,
    )


def _time_column(time: Any, names: list[str] | None, width: int) -> int | None:
    if time is None:
        found = [i for i, n in enumerate(names or []) if n.lower() in TIME_NAMES]
        return found[0] if len(found) == 1 else None
    if isinstance(time, int) and not isinstance(time, bool) and 0 <= time < width:
        return time
    if names and names.count(str(time)) == 1:
        return names.index(str(time))
    raise RecordingError(
        "no such column",
        where="option time",
        found=repr(time),
        expected=", ".join([n for n in names or [] if n][:12]) or f"a number, 0 to {width - 1}",
    )


def _first_line(path: Path) -> tuple[str, list[str]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            line = file.readline(_LINE).strip("\r\n")
    except (OSError, UnicodeError) as e:
        raise RecordingError("no table of text", found=str(e)[:120]) from e
    if not line or len(line) >= _LINE - 2:
        raise RecordingError("no table of text", found="an empty or endless first line")
    counts = {d: line.count(d) for d in ("\t", ",", ";")}
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(counts, key=counts.get)
    try:
        return delimiter, next(csv.reader([line], delimiter=delimiter))
    except (csv.Error, StopIteration) as e:
        raise RecordingError("no table of text", found=str(e)) from e


def _numbers(path: Path, delimiter: str, skip: int) -> np.ndarray:
    """(rows, columns) float64."""
    options = dict(
        delimiter=delimiter, skiprows=skip, ndmin=2, comments=None, quotechar='"',
        encoding="utf-8-sig",
    )  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")  # an error here
            try:
                values = np.loadtxt(path, **options)
            except ValueError as e:
                if "string ''" not in str(e):
                    raise
                # Empty cells; slower, so only where there are some.
                fill = lambda s: float(s) if s.strip() else np.nan  # noqa: E731
                values = np.loadtxt(path, converters=fill, **options)
    except (ValueError, OSError, UnicodeError, MemoryError, IndexError) as e:
        raise RecordingError(
            "not a table of numbers",
            found=f"{str(e)[:160]} (rows count from 0 below the header)",
            expected="numbers with a decimal point; empty cells are missing",
        ) from e
    if not values.size:
        raise RecordingError("a table without rows")
    return values


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
