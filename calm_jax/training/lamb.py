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

import jax.numpy as jnp
import optax
from jax import Array

Schedule = Callable[[Array], Array]


class LambState(NamedTuple):
    """Steps done, and the moments of each group of parameters (see `_groups`), stacked."""

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
    groups = lambda params: _groups(params, sparse)

    def start(params: dict[str, Array]) -> LambState:
        zeros = lambda: {
            name: jnp.zeros_like(_stacked(params, paths)) for name, paths in groups(params).items()
        }
        return LambState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(
        grads: dict[str, Array], state: LambState, params: dict[str, Array]
    ) -> tuple[dict[str, Array], LambState]:
        lr, b1 = at(rate, state.count), at(beta1, state.count)
        updates, first, second = {}, {}, {}
        for name, paths in groups(params).items():
            g, p = _stacked(grads, paths), _stacked(params, paths)
            m, v = state.first[name], state.second[name]
            cast = lambda x, dtype=p.dtype: jnp.asarray(x, dtype)
            own = tuple(range(1, p.ndim))  # axes of one parameter
            present = jnp.any(g != 0, axis=own, keepdims=True)
            rows = _rows(g, name) if name.startswith(_ROWS) else present
            one = cast(1.0)
            new_m = cast(b1) * m + (one - cast(b1)) * g
            new_v = cast(beta2) * v + cast(1 - beta2) * g * g
            u = new_m / (jnp.sqrt(new_v) + cast(epsilon)) + cast(weight_decay) * p
            u = jnp.where(rows, u, 0)
            norm_p = jnp.minimum(_norm(p, own), cast(clamp))
            norm_u = _norm(u, own)
            trust = jnp.where((norm_p > 0) & (norm_u > 0), norm_p / _positive(norm_u), one)
            # An absent parameter keeps its moments, an absent row of a present one loses them.
            first[name] = jnp.where(present, jnp.where(rows, new_m, 0), m)
            second[name] = jnp.where(present, jnp.where(rows, new_v, 0), v)
            updates |= dict(zip(paths, -cast(lr) * trust * u))
        in_order = {path: updates[path] for path in grads}
        return in_order, LambState(state.count + 1, first, second)

    return optax.GradientTransformation(start, update)


_ROWS = "rows"


def _groups(params: dict[str, Array], sparse: Callable[[str], bool]) -> dict[str, list[str]]:
    """Parameters that are updated together: those of one shape, type and rule.

    The optimiser has some dozens of operations for each; one for every parameter by itself
    was most of what a step on CPUs had to start, and of what had to be compiled.
    """
    out: dict[str, list[str]] = {}
    for path, leaf in params.items():
        kernel = path.rpartition("/")[2] == "kernel"
        rule = f"{_ROWS} of {'outputs' if kernel else 'tables'}" if sparse(path) else "whole"
        shape = "x".join(map(str, jnp.shape(leaf)))
        out.setdefault(f"{rule} {shape} {jnp.result_type(leaf).name}", []).append(path)
    return out


def _stacked(leaves: dict[str, Array], paths: list[str]) -> Array:
    return jnp.stack([leaves[path] for path in paths])


def _rows(g: Array, group: str) -> Array:
    """Which rows of stacked gradients are not 0, to be broadcast against them."""
    if g.ndim == 2:
        return g != 0
    axis = 1 if group.startswith(f"{_ROWS} of outputs") else 2
    return jnp.any(g != 0, axis=axis, keepdims=True)


def _norm(x: Array, axes: tuple[int, ...]) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def sparse_path(path: str) -> bool:
    """Unit and session tables and the read-outs: what POYO+ updates by row."""
    return path.split("/")[0] in ("units", "sessions", "readouts")
