"""Rows of the population encoder for units and sessions of new animals."""

from __future__ import annotations

import jax
from flax import nnx
from jax import Array

from calm_jax.layers.basic import normal
from calm_jax.models.population_encoder import PopulationEncoder


def append(
    model: PopulationEncoder, key: Array, *, units: int = 0, sessions: int = 0
) -> PopulationEncoder:
    """The encoder with rows for new units and sessions; old rows keep their numbers.

    New rows are the parameters "units/added" and "sessions/added": a Task whose `trains`
    is `trains_added` trains them alone. Rows appended before become part of the table.
    """
    model = nnx.clone(model)
    scale = model.config.embedding_scale
    for table, rows, own in zip(
        (model.units, model.sessions), (units, sessions), jax.random.split(key)
    ):
        table.table = nnx.Param(table.rows())
        table.added = nnx.data(None)
        if rows:
            width = table.table[...].shape[1]
            table.added = nnx.Param(scale * normal(own, (rows, width)))
    return model


def trains_added(path: str) -> bool:
    """Whether a parameter is of units and sessions appended last."""
    return path in ("units/added", "sessions/added")
