"""Gradients exchanged once a step: what a network does row by row, on each device's rows.

A compiler that spreads a whole step over devices adds up the gradient of every parameter by
itself. On GPUs it gathers these sums; between processes on CPUs each is a message, of milliseconds,
and a hundred of them cost more than the step. `rows` says which part of a loss treats rows alone:
it runs on each device with its own rows and one vector of all trained parameters, whose gradient is
one sum. Losses and metrics, which look at all rows, stay outside and see the global batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from calm_jax.layers import columns
from calm_jax.training.state import trained, with_leaves

PyTree = Any
AXIS = "data"


def over(mesh: Mesh) -> AbstractContextManager:
    """Where `rows` spreads over the devices of `mesh`: CPUs, more than one."""
    if mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def rows(
    f: Callable[[PyTree, PyTree, PyTree], PyTree],
    params: PyTree,
    batch: PyTree,
    keys: PyTree = None,
    *,
    trains: Callable[[str], bool] = lambda path: True,
) -> PyTree:
    """`f(params, batch, keys)`, a function that treats each row alone; pure.

    Within `over(mesh)` each device computes its own rows. The numbers are those of one device
    to rounding, dropout by `columns.kept` included.

    Args:
      f: leaves of its result have the rows of `batch` as their leading axis.
      params: replicated. batch: leaves with B rows. keys: of dropout, or None.
      trains: paths of `params` whose gradient is wanted.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names or mesh.shape[AXIS] == 1:
        return f(params, batch, keys)
    live = trained(params, trains)
    names, like = list(live), list(live.values())

    def part(vector: Array, rest: PyTree, batch: PyTree, keys: PyTree) -> PyTree:
        own = with_leaves(rest, dict(zip(names, _unpacked(vector, like), strict=True)))
        with columns.part(jax.lax.axis_index(AXIS), mesh.shape[AXIS]):
            return f(own, batch, keys)

    # Trained parameters travel in the vector alone: what stands here for them is not read.
    rest = with_leaves(params, {name: jnp.zeros(()) for name in names})
    spread = jax.shard_map(
        part, in_specs=(P(), P(), P(AXIS), P()), out_specs=P(AXIS), check_vma=False
    )
    return spread(_packed(like), rest, batch, keys)


def _packed(leaves: list[Array]) -> Array:
    """One vector of arrays of one type."""
    return jnp.concatenate([x.reshape(-1) for x in leaves])


def _unpacked(vector: Array, like: list[Array]) -> list[Array]:
    """The arrays of a vector again, in the shapes of `like`."""
    sizes = [int(np.prod(x.shape)) for x in like]
    # The gradient of `split` is one concatenation; that of slices would add as many vectors.
    return [x.reshape(y.shape) for x, y in zip(jax.lax.split(vector, sizes), like, strict=True)]
