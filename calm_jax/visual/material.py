"""What the analyses of a visual run share: its recordings, session by session, and its models."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax.recordings.batches import Prepared
from calm_jax.visual.cohorts import Cohorts
from calm_jax.visual.runs import VisualRun

SELECTED, REJECTED = "predictable", "unpredictable"


@dataclasses.dataclass(frozen=True)
class VisualSettings:
    """Options of `calm-jax analyze` for a visual run.

    Attributes:
      seed: of everything random. beside: folders of runs that are compared.
      freezing_steps: of every fine-tuning with parts frozen; 0: the default of `freezing`.
      freezing_seeds: repetitions of it.
    """

    seed: int = 0
    beside: tuple[str, ...] = ()
    freezing_steps: int = 0
    freezing_seeds: int = 1


class Sessions(Sequence):
    """Sessions of a store, read one at a time: a data set may be larger than memory."""

    def __init__(self, store: Any, index: Sequence[int]) -> None:
        self._index = tuple(index)
        self._read = functools.lru_cache(maxsize=1)(store.session)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> Any:
        return self._read(self._index[i])


@dataclasses.dataclass(frozen=True, eq=False)
class VisualMaterial:
    """A visual run and its recordings.

    Attributes:
      run, settings, folder, say: as the command has them; folder: where results are kept.
      index: sessions of the store that `analyses.theory` is given. neurons: of each at most
        so many that vary, drawn with the seed; None: all.
    """

    run: VisualRun
    settings: VisualSettings
    folder: Path
    say: Callable[[str], None]
    index: tuple[int, ...]
    neurons: int | None = None

    @property
    def data(self) -> Prepared:
        """The traces, scaled; see `VisualRun.blocks`."""
        return self.run.blocks

    # What `analyses.theory` asks of a material.

    @property
    def sessions(self) -> Sessions:
        """The `Session`s."""
        return Sessions(self.run.store, self.index)

    @property
    def rate(self) -> float:
        """Hz, the median over sessions."""
        return float(np.median([self.run.store.sessions[i].rate for i in self.index]))

    def names(self) -> list[str]:
        """Session ids."""
        return [self.run.store.sessions[i].session for i in self.index]

    def animals(self) -> list[str]:
        """The animal of each session."""
        return [self.run.store.sessions[i].animal for i in self.index]

    def alive(self, i: int) -> np.ndarray:
        """(N,) bool, neurons of the i-th session that vary in the training part."""
        found = ~self.data.scalers.constant[self.index[i]]
        if self.neurons is None or found.sum() <= self.neurons:
            return found
        rng = np.random.default_rng([self.settings.seed, self.index[i], 5])
        out = np.zeros(len(found), bool)
        out[rng.choice(np.flatnonzero(found), self.neurons, replace=False)] = True
        return out

    def frames(self, i: int, part: str) -> np.ndarray:
        """(R, 2) ranges of a part of the i-th session."""
        return self.data.splits.parts[self.index[i]][part]

    def scaled(self, i: int, part: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Scaled traces (T, N) and mask (T, N) of each range of a part."""
        for a, b in self.frames(i, part):
            yield self.data.range(self.index[i], int(a), int(b))

    def column(self, names: Sequence[str]) -> tuple[str, list[np.ndarray]] | None:
        """The first of these columns of the neuron table that all sessions have, as text."""
        for name in names:
            found = [s.neurons.columns.get(name) for s in self.sessions]
            if all(x is not None for x in found):
                return name, [_text(x) for x in found]
        return None

    # What only visual runs have.

    @property
    def cohorts(self) -> Cohorts:
        """Who trained and who is scored."""
        return self.run.cohorts

    def lines(self) -> list[str]:
        """The cell line of each session."""
        return [str(_text(s.neurons.columns["cell_line"])[0]) for s in self.sessions]

    def groups(self) -> list[str]:
        """SELECTED or REJECTED, of each session."""
        good = set(self.cohorts.predictable)
        return [SELECTED if x in good else REJECTED for x in self.lines()]

    def of(self, chosen: Sequence[int], neurons: int | None = None) -> VisualMaterial:
        """The same of some of its sessions, given by their place among them."""
        index = tuple(self.index[k] for k in chosen)
        return dataclasses.replace(self, index=index, neurons=neurons)


def material_of(
    run: VisualRun, settings: VisualSettings, folder: Path, say: Callable[[str], None]
) -> VisualMaterial:
    """All sessions of a run."""
    return VisualMaterial(run, settings, folder, say, tuple(range(len(run.store.sessions))))


def _text(x: np.ndarray) -> np.ndarray:
    return np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in x])
