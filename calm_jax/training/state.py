"""State, everything that one training step reads and writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PyTree = Any


class State(NamedTuple):
    """A pytree of arrays; the step donates it to the next.

    Attributes:
      step: () int32, optimiser steps done.
      bad: () int32, the first step whose loss or gradient was not finite; -1 = none.
      params: the parameters of the task.
      extra: state that the loss hands on without gradient.
      opt: optimiser state over the trained parameters by path.
      average: moving average of the trained parameters by path; None = none is kept.
    """

    step: Array
    bad: Array
    params: PyTree
    extra: PyTree
    opt: PyTree
    average: dict[str, Array] | None


def named(tree: PyTree) -> dict[str, Array]:
    """The leaves of `tree` by path, "blocks/0/up/kernel", in tree order."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): leaf for path, leaf in pairs}


def path_name(path: tuple) -> str:
    """"blocks/0/up/kernel"; the `.value` of a Flax variable is left out."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def with_leaves(tree: PyTree, leaves: dict[str, Array]) -> PyTree:
    """`tree` with the leaves at the given paths replaced."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves.get(path_name(path), leaf), tree
    )


def trained(params: PyTree, trains: Any) -> dict[str, Array]:
    """The floating-point parameters for which `trains(path)`, by path."""
    return {
        name: leaf
        for name, leaf in named(params).items()
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and trains(name)
    }


def evaluated(state: State) -> PyTree:
    """The parameters to evaluate and use: the average where one is kept."""
    return state.params if state.average is None else with_leaves(state.params, state.average)


def create(params: PyTree, extra: PyTree, optimizer: Any, trains: Any, average: bool) -> State:
    """The state at step 0."""
    live = trained(params, trains)
    return State(
        np.int32(0),
        np.int32(-1),
        params,
        extra,
        optimizer.init(live),
        dict(live) if average else None,
    )
