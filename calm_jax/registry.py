"""The models that go by a name: where they are to be had, and the sha256 that they must have."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that was published.

    Attributes:
      about: one line. url: where the folder is to be had, None while there is no such place.
      sha256: of its `model.json`; None where none was published: then it is not checked.
    """

    about: str
    url: str | None = None
    sha256: str | None = None


# None is published yet: the shipped experiments make them (`calm-jax pretrain NAME`).
MODELS: dict[str, Model] = {
    "calm_base": Model("simulated population, 600 neurons (data/simulated_population)"),
    "celegans": Model("whole brains of behaving worms (data/celegans_dag2023)"),
}
