"""Some sessions of a store behind the store's own interface; which ones a study takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax.errors import ConfigError

ORDER_SEED = 0  # of the order in which sessions are taken


class Subset:
    """Sessions `index` of a store, in that order; nothing is read or copied.

    Attributes:
      sessions: as the store's. n_neurons: of these sessions together.
    """

    def __init__(self, store: Any, index: Sequence[int]) -> None:
        self._store, self._index = store, tuple(index)
        self.sessions = tuple(store.sessions[i] for i in self._index)
        self._offsets = np.concatenate([[0], np.cumsum([s.n_neurons for s in self.sessions])])

    @property
    def n_neurons(self) -> int:
        return int(self._offsets[-1])

    def neuron_offset(self, i: int) -> int:
        """The first row of session `i` in a table of the neurons of these sessions."""
        return int(self._offsets[range(len(self.sessions))[i]])

    def neuron_ids(self, i: int) -> np.ndarray:
        """(N,) text."""
        return self._store.neuron_ids(self._index[i])

    def read(self, i: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames [start, stop) of session `i`: traces (T, N), mask (T, N)."""
        return self._store.read(self._index[i], start, stop)

    def session(self, i: int) -> Any:
        """The whole session `i`."""
        return self._store.session(self._index[i])


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which sessions a scaling study trains and tests on; indices of the store.

    Attributes:
      train: in the order they are added. seen: the first of them, in every size.
      held_out: never trained on. sizes: what was asked for, cut to what there is.
    """

    train: tuple[int, ...]
    seen: tuple[int, ...]
    held_out: tuple[int, ...]
    sizes: tuple[int, ...]


def choose(total: int, sizes: Sequence[int], held_out: int) -> Choice:
    """Nested sets of sessions in one random order; the last `held_out` of it are tested only.

    Raises:
      ConfigError: when too few sessions are left to train on.
    """
    left = total - held_out
    if left < 1 or held_out < 0:
        raise ConfigError(
            "no session is left to train on",
            where="calm-jax benchmark scaling --held-out",
            found=f"{held_out} of {total} sessions held out",
        )
    order = [int(i) for i in np.random.default_rng(ORDER_SEED).permutation(total)]
    cut = tuple(sorted({min(n, left) for n in sizes}))
    return Choice(tuple(order[:left]), tuple(order[: cut[0]]), tuple(order[left:]), cut)
