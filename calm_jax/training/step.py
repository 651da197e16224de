"""One optimiser step as a pure function of State, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from calm_jax.config import Training
from calm_jax.training import exchange
from calm_jax.training.mesh import replicated
from calm_jax.training.optimizers import optimizer_of, update_average
from calm_jax.training.state import State, named, trained, with_leaves
from calm_jax.training.task import Task

PyTree = Any
Step = Callable[[PyTree, dict[str, Array], Array], tuple[PyTree, dict[str, Array]]]


def make_step(
    task: Task, training: Training, steps: int, key: Array, mesh: Mesh, treedef: Any
) -> Step:
    """The jitted step: (leaves of State, donated; batch; flags) -> (leaves, metrics).

    Leaves rather than the State go through jit, so that a call does not walk the
    Python objects of a Flax module. The metrics hold `loss`, `grad_norm`, those of
    the task, `bad` (see State) and `flag`, the largest of the flags of all devices,
    by which processes agree on stopping without a further collective.

    Args:
      key: of the run; step n uses fold_in(key, n).
      treedef: of the State.
    """
    optimizer = optimizer_of(task, training, steps)

    def loss(live: dict[str, Array], state: State, batch: dict[str, Array]) -> tuple:
        params = with_leaves(state.params, live)
        step_key = jax.random.fold_in(key, state.step)
        with exchange.over(mesh):
            return task.loss(params, state.extra, batch, step_key, state.step)

    def step(leaves: PyTree, batch: dict[str, Array], flags: Array) -> tuple:
        state: State = jax.tree.unflatten(treedef, leaves)
        live = trained(state.params, task.trains)
        (value, (extra, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(
            live, state, batch
        )
        if named(extra).keys() != named(state.extra).keys():
            raise TypeError(f"the loss of {task.name} returned another `extra` than it was given")
        norm = optax.global_norm(grads)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int and float counts
            updates, opt = optimizer.update(grads, state.opt, live)
        live = optax.apply_updates(live, updates)
        average = state.average
        if average is not None:
            average = update_average(average, live, state.step, training.ema)
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        bad = jnp.where((state.bad < 0) & ~sound, state.step, state.bad)
        new = State(
            state.step + 1,
            bad,
            with_leaves(state.params, live),
            with_leaves(state.extra, named(extra)),
            opt,
            average,
        )
        out = _same_types(jax.tree.leaves(new), leaves)
        own = {"loss": value, "grad_norm": norm, "bad": bad, "flag": flags.max()}
        return out, {**metrics, **own}

    # The inputs carry their shardings; only what comes out has to be told.
    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def _same_types(new: list[Array], old: list[Array]) -> list[Array]:
    """`new` with the types of `old`, or the step would compile again.

    Raises:
      TypeError: when a task changes the shape of its state.
    """
    if len(new) != len(old) or any(jnp.shape(a) != jnp.shape(b) for a, b in zip(new, old)):
        raise TypeError("the loss of the task returned `extra` with other shapes than it was given")
    return [jax.lax.convert_element_type(a, b.dtype) for a, b in zip(new, old)]


def all_finite(leaves: list[Array]) -> bool:
    """Whether every floating-point leaf of a replicated state is finite; on the host, where a
    program over hundreds of leaves need not be compiled."""
    return all(
        bool(np.isfinite(np.asarray(x.addressable_data(0))).all())
        for x in leaves
        if jnp.issubdtype(x.dtype, jnp.floating)
    )
