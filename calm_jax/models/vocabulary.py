"""Ids of units and sessions as rows of an embedding table."""

from __future__ import annotations

import numpy as np

from calm_jax.errors import ConfigError


class Vocabulary:
    """Row numbers of ids in an embedding table; row 0 stands for none.

    Raises:
      ConfigError: for an id that comes twice, or when one is asked for that is not there.
    """

    def __init__(self, ids: tuple[str, ...] = ()) -> None:
        self.ids = tuple(ids)
        self._rows = {name: i + 1 for i, name in enumerate(self.ids)}
        if len(self._rows) < len(self.ids):
            twice = next(x for x in self.ids if self.ids.count(x) > 1)
            raise ConfigError("an id comes twice", where="vocabulary", found=twice)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: list[str] | np.ndarray) -> np.ndarray:
        """(N,) int32 rows of ids."""
        for name in ids:
            if str(name) not in self._rows:
                raise ConfigError(
                    "the model does not know this unit or session",
                    where="vocabulary",
                    found=str(name),
                    remedy="Append it (`append`, `Vocabulary.extended`) and fine-tune.",
                )
        return np.array([self._rows[str(x)] for x in ids], np.int32)

    def extended(self, ids: list[str] | np.ndarray) -> Vocabulary:
        """The vocabulary with new ids at its end."""
        return Vocabulary((*self.ids, *map(str, ids)))
