"""LAMB with sparse rows, and the one-cycle schedule, as POYO+ is trained (torch_brain 0.1.2).

LAMB (You et al. 2020) without bias correction: the update of Adam and weight decay u is
scaled by a trust ratio, min(||p||, 10) / ||u||, per parameter. Of an embedding table or a
read-out only the rows that have a gradient are updated: ||u|| is over those rows (||p|| over
all), the others stay as they are and their moments go back to 0.

A parameter whose gradient is 0 everywhere took no part in the batch (the read-out of an
absent task): it and its moments stay. In PyTorch it has no gradient; in JAX its gradient
is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

Schedule = Callable[[Array], Array]


class LambState(NamedTuple):
    """Steps done, and the moments by path."""

    count: Array
    first: dict[str, Array]
    second: dict[str, Array]


def one_cycle(
    step: Array | int, steps: int, rate: float, *, share: float = 0.5
) -> tuple[Array, Array]:
    """(learning rate, beta1) of a step: constant, then a cosine to rate / 1e4.

    beta1 goes 0.95 -> 0.85 during the first `share` of the steps and back, by cosines.
    """
    top = share * steps - 1
    s = jnp.asarray(step, jnp.float32)
    rising = jnp.clip(s / max(top, 1e-9), 0, 1)
    falling = jnp.clip((s - top) / max(steps - 1 - top, 1e-9), 0, 1)
    blend = lambda a, b, x: b + (a - b) * 0.5 * (1 + jnp.cos(math.pi * x))
    first = s <= top
    lr = jnp.where(first, rate, blend(rate, rate * 1e-4, falling))
    beta1 = jnp.where(first, blend(0.95, 0.85, rising), blend(0.85, 0.95, falling))
    return lr, beta1


def lamb(
    rate: float | Schedule,
    *,
    beta1: float | Schedule = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 1e-4,
    clamp: float = 10.0,
    sparse: Callable[[str], bool] = lambda path: False,
) -> optax.GradientTransformation:
    """LAMB over a dictionary of parameters by path.

    Args:
      rate, beta1: numbers, or functions of the step.
      clamp: the largest parameter norm that the trust ratio uses.
      sparse: whether the parameter at a path is updated by row; rows are the axis 0 of
        tables and biases, and the outputs (axis 1) of a "kernel".
    """
    at = lambda x, count: x(count) if callable(x) else x

    def start(params: dict[str, Array]) -> LambState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return LambState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(
        grads: dict[str, Array], state: LambState, params: dict[str, Array]
    ) -> tuple[dict[str, Array], LambState]:
        lr, b1 = at(rate, state.count), at(beta1, state.count)
        updates, first, second = {}, {}, {}
        for path, g in grads.items():
            p, m, v = params[path], state.first[path], state.second[path]
            cast = lambda x, dtype=p.dtype: jnp.asarray(x, dtype)
            present = jnp.any(g != 0)
            rows = _rows(g, path) if sparse(path) else present
            one = cast(1.0)
            new_m = cast(b1) * m + (one - cast(b1)) * g
            new_v = cast(beta2) * v + cast(1 - beta2) * g * g
            u = new_m / (jnp.sqrt(new_v) + cast(epsilon)) + cast(weight_decay) * p
            u = jnp.where(rows, u, 0)
            norm_p = jnp.minimum(_norm(p), cast(clamp))
            norm_u = _norm(u)
            trust = jnp.where((norm_p > 0) & (norm_u > 0), norm_p / _positive(norm_u), one)
            updates[path] = -cast(lr) * trust * u
            # An absent parameter keeps its moments, an absent row of a present one loses them.
            first[path] = jnp.where(present, jnp.where(rows, new_m, 0), m)
            second[path] = jnp.where(present, jnp.where(rows, new_v, 0), v)
        return updates, LambState(state.count + 1, first, second)

    return optax.GradientTransformation(start, update)


def _rows(g: Array, path: str) -> Array:
    """Which rows of a gradient are not 0, to be broadcast against it."""
    if g.ndim == 1:
        return g != 0
    axis = 0 if path.rpartition("/")[2] == "kernel" else 1
    return jnp.any(g != 0, axis=axis, keepdims=True)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def sparse_path(path: str) -> bool:
    """Unit and session tables and the read-outs: what POYO+ updates by row."""
    return path.split("/")[0] in ("units", "sessions", "readouts")
