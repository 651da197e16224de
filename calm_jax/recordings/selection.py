"""The data diet: which neurons are predictable, by skewness and kurtosis of their dF/F.

POYO-SSL section 3.1 and appendix B. Per neuron the two statistics over training frames;
per line (Cre line) their median; on each of the two a threshold, such as the knee of
Algorithm S1; kept is what lies at or below both.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import config
from calm_jax.errors import ConfigError, RecordingError
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.moments import Moments, moments_of, nothing
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import make_split

STATISTICS = ("skewness", "kurtosis")
METHODS = ("gradient", "kneedle", "fixed")
BY = ("line", "neuron")
PAPER = {"skewness": 3.507, "kurtosis": 22.616}  # the thresholds of Table S3


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """One row per cell: where it comes from and its statistics.

    Sessions of one experiment container show the same cells: a cell found in several of
    them is one row, its statistics over the training frames of all.

    Attributes:
      id: (N,) text. line: (N,) text, "" where none is known.
      animal, container: (N,) text; the container is "" where there is none.
      sessions: per cell the ids of the sessions it is in.
      skewness, kurtosis: (N,) float64, NaN for a trace that does not vary.
      frames: (N,) int64, valid training frames.
      excess: whether the kurtosis is excess kurtosis.
    """

    id: np.ndarray
    line: np.ndarray
    animal: np.ndarray
    container: np.ndarray
    sessions: tuple[tuple[str, ...], ...]
    skewness: np.ndarray
    kurtosis: np.ndarray
    frames: np.ndarray
    excess: bool

    def __len__(self) -> int:
        return int(self.id.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Who is kept, and why.

    Attributes:
      by: "line" or "neuron". method: of METHODS.
      thresholds: statistic -> value; kept is what lies at or below both.
      names: (M,) the lines or the cell ids that were compared.
      values: statistic -> (M,) float64, medians per line or the cells' own.
      kept: (M,) bool.
      cells: what it was made of. kept_cells: (N,) bool over them.
      notes: what a reader should know, one line each.
    """

    by: str
    method: str
    thresholds: Mapping[str, float]
    names: np.ndarray
    values: Mapping[str, np.ndarray]
    kept: np.ndarray
    cells: Cells
    kept_cells: np.ndarray
    notes: tuple[str, ...] = ()


# Statistics


def cells_of(
    sessions: Iterable[Session], *, excess: bool, split: config.Split | None = None
) -> Cells:
    """The cells of recordings with their statistics over training frames.

    Args:
      sessions: one is held at a time.
      excess: excess kurtosis (0 for a normal distribution) instead of Pearson's (3).
      split: whose training part counts; None = all frames.

    Raises:
      RecordingError: when there is no session, or one comes twice.
      SplitError: when a recording is too short to be split.
    """
    made: dict[tuple[str, ...], dict[str, Any]] = {}
    seen: set[tuple[str, str]] = set()
    for session in sessions:
        own = (session.animal, session.session)
        if own in seen:
            raise RecordingError(
                "the same session twice",
                where=f"session {session.session} of animal {session.animal}",
                remedy="Remove one of them: its cells would count twice.",
            )
        seen.add(own)
        moments = _training_moments(session, split)
        columns = {
            name: _column(session, name) for name in ("cell_line", "container")
        }
        for k, cell in enumerate(session.neurons.id.tolist()):
            container = columns["container"][k]
            # Without a container nothing says that equal ids are the same cell.
            where = (container,) if container else (*own, "")
            about = made.setdefault(
                (*where, cell),
                {
                    "id": cell,
                    "line": columns["cell_line"][k],
                    "animal": session.animal,
                    "container": container,
                    "sessions": [],
                    "moments": nothing(1),
                },
            )
            about["sessions"].append(session.session)
            about["moments"] = about["moments"].merged(moments.take(np.array([k])))
    if not made:
        raise RecordingError("no recordings", expected="at least one session")
    rows = list(made.values())
    text = lambda name: np.array([r[name] for r in rows], dtype=str)
    joined = [np.concatenate(x) for x in zip(*(_fields(r["moments"]) for r in rows))]
    total = Moments(*joined)
    return Cells(
        id=text("id"),
        line=text("line"),
        animal=text("animal"),
        container=text("container"),
        sessions=tuple(tuple(r["sessions"]) for r in rows),
        skewness=total.skewness(),
        kurtosis=total.kurtosis(excess=excess),
        frames=total.n.astype(np.int64),
        excess=excess,
    )


def _fields(moments: Moments) -> tuple[np.ndarray, ...]:
    return tuple(getattr(moments, f.name) for f in dataclasses.fields(moments))


def _training_moments(session: Session, split: config.Split | None) -> Moments:
    if split is None:
        ranges = [(0, session.n_frames)]
    else:
        # The parts of a session do not depend on other sessions: one at a time will do.
        ranges = make_split(MemoryStore([session]), split).parts[0]["train"].tolist()
    total = nothing(session.n_neurons)
    for a, b in ranges:
        mask = None if session.valid is None else session.mask[a:b]
        total = total.merged(moments_of(session.traces[a:b], mask))
    return total


def _column(session: Session, name: str) -> list[str]:
    found = session.neurons.columns.get(name)
    if found is None:
        return [""] * session.n_neurons
    if found.ndim != 1:
        raise RecordingError(
            "a column of one text per neuron is needed",
            where=f"session {session.session}, neuron/{name}",
            found=f"shape {found.shape}",
        )
    if found.dtype.kind == "S":
        found = np.char.decode(found, "utf-8", "replace")
    return found.astype(str).tolist()


# Thresholds


def knee(values: Sequence[float] | np.ndarray) -> int:
    """Algorithm S1: the index, among ascending values, before the sharpest rise.

    With y ascending and g_i = y_{i+1} - y_i: k = argmax g, the first where several are
    equal. The knee is y_k, and y_k itself is kept.

    Raises:
      ConfigError: for fewer than two values, values out of order or not finite.
    """
    y = _ascending(values)
    return int(np.argmax(np.diff(y)))


def kneedle(values: Sequence[float] | np.ndarray) -> int:
    """The knee by Kneedle (Satopaa et al. 2011) of the package `kneed`; an index as `knee` gives.

    The curve is taken as convex and increasing.

    Raises:
      ConfigError: when `kneed` is not installed, or finds no knee.
    """
    y = _ascending(values)
    try:
        kneed = importlib.import_module("kneed")
    except ImportError:
        raise ConfigError(
            "the method kneedle needs the package kneed",
            where="method",
            remedy="Install calm_jax[selection], or use the method gradient (Algorithm S1).",
        ) from None
    found = kneed.KneeLocator(np.arange(y.size), y, curve="convex", direction="increasing").knee
    if found is None:
        raise ConfigError(
            "Kneedle finds no knee in these values",
            where="method",
            found=f"{y.size} values from {y[0]:.4g} to {y[-1]:.4g}",
            remedy="Use the method gradient, or fixed thresholds.",
        )
    return int(found)


def _ascending(values: Sequence[float] | np.ndarray) -> np.ndarray:
    y = np.asarray(values, np.float64)
    if y.ndim != 1 or y.size < 2 or not np.isfinite(y).all() or (np.diff(y) < 0).any():
        raise ConfigError(
            "a knee needs at least two finite values in ascending order",
            found=f"{y.size} values" if y.size < 2 else "values out of order or not finite",
            remedy="With a single line or neuron use fixed thresholds.",
        )
    return y


def threshold(values: np.ndarray, method: str) -> float:
    """The threshold that a knee of `method` ("gradient", "kneedle") puts on values (M,)."""
    y = np.sort(np.asarray(values, np.float64))
    return float(y[{"gradient": knee, "kneedle": kneedle}[method](y)])


def select_values(
    values: Mapping[str, np.ndarray],
    method: str = "gradient",
    fixed: Mapping[str, float] | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """(thresholds, kept (M,) bool) of values (M,) of both statistics.

    Args:
      method: "gradient" (Algorithm S1), "kneedle", or "fixed" with `fixed` thresholds.

    Raises:
      ConfigError: for another method, or fixed thresholds that are missing or not used.
    """
    if method not in METHODS:
        raise ConfigError(
            "no such method", where="method", found=repr(method), expected=", ".join(METHODS)
        )
    if method == "fixed":
        given = {**PAPER, **(fixed or {})}
        limits = {name: float(given[name]) for name in STATISTICS}
    elif fixed:
        raise ConfigError(
            f"the method {method} finds its own thresholds",
            where="method",
            found=f"a threshold for {', '.join(fixed)}",
            remedy='Use the method "fixed".',
        )
    else:
        limits = {name: threshold(values[name], method) for name in STATISTICS}
    kept = np.logical_and.reduce([values[name] <= limits[name] for name in STATISTICS])
    return limits, kept


# Selection


def line_medians(cells: Cells) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(lines (L,), statistic -> (L,) medians over the cells that vary), by name.

    Raises:
      RecordingError: when no cell has a line.
    """
    usable = np.isfinite(cells.skewness) & (cells.line != "")
    names = np.unique(cells.line[usable])
    if not names.size:
        raise RecordingError(
            "no neuron has a cell line",
            where="neuron/cell_line",
            remedy="Select by neuron, or give the neuron table a column `cell_line`.",
        )
    median = lambda x: np.array([np.median(x[usable & (cells.line == n)]) for n in names])
    return names, {"skewness": median(cells.skewness), "kurtosis": median(cells.kurtosis)}


def select(
    cells: Cells,
    *,
    by: str = "line",
    method: str = "gradient",
    fixed: Mapping[str, float] | None = None,
) -> Selection:
    """The predictable lines, or the predictable neurons.

    Args:
      by: "line" compares medians per line (the paper), "neuron" single cells.
      method, fixed: as for `select_values`; fixed thresholds default to the paper's.

    Raises:
      RecordingError: by line without lines; no neuron varies.
      ConfigError: an unknown method, a knee that cannot be found.
    """
    if by not in BY:
        raise ConfigError("no such way", where="by", found=repr(by), expected=" or ".join(BY))
    varies = np.isfinite(cells.skewness)
    notes = []
    if not varies.any():
        raise RecordingError("no neuron varies in the training frames", where="traces")
    if not varies.all():
        notes.append(f"{int((~varies).sum())} neurons do not vary and are left out")
    if by == "line":
        names, values = line_medians(cells)
        bare = int((cells.line == "").sum())
        if bare:
            notes.append(f"{bare} neurons without a cell line are left out")
    else:
        names = cells.id[varies]
        values = {"skewness": cells.skewness[varies], "kurtosis": cells.kurtosis[varies]}
    limits, kept = select_values(values, method, fixed)
    if by == "line":
        kept_cells = np.isin(cells.line, names[kept]) & varies
    else:
        kept_cells = np.zeros(len(cells), bool)
        kept_cells[varies] = kept
        if method == "gradient" and kept.mean() > 0.95:
            notes.append(
                "the largest gap of single neurons lies among the outliers: nearly all are "
                "kept; consider the method kneedle or fixed"
            )
    if method == "fixed" and cells.excess and not fixed:
        notes.append("the paper's kurtosis threshold, here on excess kurtosis")
    return Selection(by, method, limits, names, values, kept, cells, kept_cells, tuple(notes))
