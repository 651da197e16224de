"""Animals, containers, sessions and cells that pretraining and fine-tuning must not share."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from calm_jax.errors import SplitError
from calm_jax.recordings.selection import Cells, Selection

PARTS = ("pretrain", "finetune")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a part's data come from: ids of each kind."""

    animal: frozenset[str]
    container: frozenset[str]
    session: frozenset[str]
    neuron: frozenset[tuple[str, str]]


def origin(cells: Cells, rows: np.ndarray) -> Origin:
    """The origin of the cells at `rows` ((N,) bool)."""
    index = np.flatnonzero(rows)
    # Session ids are unique within an animal only, cell ids within a container or session.
    sessions = {i: [f"{cells.animal[i]}/{s}" for s in cells.sessions[i]] for i in index.tolist()}
    return Origin(
        frozenset(cells.animal[index].tolist()),
        frozenset(x for x in cells.container[index].tolist() if x),
        frozenset(s for own in sessions.values() for s in own),
        frozenset(
            (str(cells.container[i]) or own[0], str(cells.id[i])) for i, own in sessions.items()
        ),
    )


def shared(a: Origin, b: Origin) -> dict[str, list]:
    """What two parts have in common, by kind; empty lists where they are disjoint.

    Animals called "unknown" are not known to be the same one and are passed over.
    """
    both = {f.name: getattr(a, f.name) & getattr(b, f.name) for f in dataclasses.fields(Origin)}
    both["animal"] = both["animal"] - {"unknown"}
    return {kind: sorted(x) for kind, x in both.items()}


def check_disjoint(a: Origin, b: Origin) -> None:
    """Raises SplitError when two parts share an animal, container, session or cell."""
    for kind, found in shared(a, b).items():
        if found:
            name = found[0] if isinstance(found[0], str) else "/".join(found[0])
            raise SplitError(
                f"pretraining and fine-tuning share {len(found)} {kind}(s)",
                where=f"{kind} {name}",
                remedy="Divide by animal first (`divide`); the sessions of one container "
                "show the same cells.",
            )


def divide(
    cells: Cells, fraction: float = 0.5, seed: int = 0
) -> dict[str, np.ndarray]:
    """Cells by whole animals (and containers) into "pretrain" and "finetune", each (N,) bool.

    Animals that share a container, and containers that share an animal, stay together.
    The groups are put in an order made of `seed` and their names, and pretraining gets
    the first `fraction` of them, at least one; fine-tuning at least one.

    Raises:
      SplitError: when there are fewer than two groups, or the fraction is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise SplitError("no such fraction", found=fraction, expected="between 0 and 1")
    group = _groups(cells)
    names = sorted(set(group))
    if len(names) < 2:
        raise SplitError(
            "too few animals for two disjoint parts",
            found=f"{len(names)} that shares nothing with another",
            expected="at least 2",
        )
    rank = lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()
    names.sort(key=rank)
    first = min(max(round(fraction * len(names)), 1), len(names) - 1)
    mine = np.isin(group, names[:first])
    out = {"pretrain": mine, "finetune": ~mine}
    check_disjoint(*(origin(cells, out[p]) for p in PARTS))
    return out


def _groups(cells: Cells) -> np.ndarray:
    """(N,) text: the animal, container or session name that stands for the group of a cell."""
    parent: dict[str, str] = {}

    def root(x: str) -> str:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    def join(names: Iterable[str]) -> str:
        first, *rest = (root(n) for n in names)
        for other in rest:
            a, b = sorted((root(first), root(other)))
            parent[b] = a
        return root(first)

    for i in range(len(cells)):
        join(_marks(cells, i))
    return np.array([root(_marks(cells, i)[0]) for i in range(len(cells))])


def _marks(cells: Cells, i: int) -> list[str]:
    animal, container = str(cells.animal[i]), str(cells.container[i])
    known = [f"animal {animal}"] if animal != "unknown" else []
    known += [f"container {container}"] if container else []
    return known + [f"session {animal}/{s}" for s in cells.sessions[i]]


def sharing(selection: Selection) -> Mapping[str, list]:
    """What the kept cells (pretraining) share with the rest (fine-tuning), by kind.

    A cell that does not vary belongs to neither.
    """
    cells, kept = selection.cells, selection.kept_cells
    rest = ~kept & np.isfinite(cells.skewness)
    return shared(origin(cells, kept), origin(cells, rest))
