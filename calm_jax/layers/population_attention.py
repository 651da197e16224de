"""Softmax attention over the neurons of every step, a few steps and heads at a time.

All scores of a window are steps x heads x neurons^2 numbers: 354 MB for 480 neurons, 96
steps and 4 heads. Here as many are made at a time as caches hold, or one block of queries
where even one step has too many, and the gradient makes them again from the sum of each
softmax (Dao et al. 2022, FlashAttention): memory is linear in neurons.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from calm_jax.layers.basic import dropout


def scores_at_once() -> int:
    """Scores held at a time: on CPUs 4 MiB, what caches hold, on GPUs 1 GiB."""
    return 1 << 20 if jax.default_backend() == "cpu" else 1 << 28


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    most: int,
    *,
    rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Attention within every step, scaled by d^-1/2; the axis of the batch stays whole.

    Args:
      q, k, v: (B, T, N, H, d). mask: (B, N), True = may be seen; a row of which nothing may
        be seen gives the mean of its values and has no meaningful gradient, but a finite one.
      most: scores held at a time, as far as one query of each row allows.
      rate, key: of dropout on the weights; None = without.

    Returns:
      (B, T, N, H, d).
    """
    b, t, n, h, d = q.shape
    cut = _cut(b, t, n, h, most)

    def items(a: Array) -> Array:
        """(count, group, B, N, d)."""
        return a.transpose(1, 3, 0, 2, 4).reshape(cut.count, cut.group, b, n, d)

    def queries(a: Array) -> Array:
        """(count, blocks, group, B, size, d)."""
        extra = cut.blocks * cut.size - n
        a = jnp.pad(items(a), ((0, 0), (0, 0), (0, 0), (0, extra), (0, 0)))
        a = a.reshape(cut.count, cut.group, b, cut.blocks, cut.size, d)
        return jnp.moveaxis(a, 3, 1)

    keys = None
    if key is not None and rate > 0:
        keys = jax.random.split(key, (cut.count, cut.blocks))
    y = _attend(queries(q * d**-0.5), items(k), items(v), mask, keys, rate)
    y = jnp.moveaxis(y, 1, 3).reshape(t, h, b, cut.blocks * cut.size, d)[:, :, :, :n]
    return y.transpose(2, 0, 3, 1, 4)


class _Cut(NamedTuple):
    """`count` pieces of `group` (step, head) pairs, or `blocks` of `size` queries of one."""

    count: int
    group: int
    blocks: int
    size: int


def _cut(b: int, t: int, n: int, h: int, most: int) -> _Cut:
    blocks = -(-n // max(min(most // (b * n), n), 1))
    size = -(-n // blocks)
    fit = max(most // (b * n * n), 1)
    group = max(g for g in range(1, min(fit, t * h) + 1) if t * h % g == 0)
    return _Cut(t * h // group, group, blocks, size)


def _scores(q: Array, k: Array, mask: Array) -> Array:
    scores = _precise(jnp.einsum("gbqd,gbkd->gbqk", q, k))
    return jnp.where(mask[None, :, None, :], scores, -1e30)


def _precise(x: Array) -> Array:
    """At least float32: what exponentials and sums are taken in."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    q: Array, k: Array, v: Array, mask: Array, keys: Array | None, rate: float
) -> Array:
    """q (count, blocks, group, B, size, d), k and v (count, group, B, N, d) -> as q."""
    return _forward(q, k, v, mask, keys, rate)[0]


def _forward(
    q: Array, k: Array, v: Array, mask: Array, keys: Array | None, rate: float
) -> tuple[Array, tuple]:
    def step(given: tuple) -> tuple[Array, Array]:
        q, k, v, keys = given

        def block(given: tuple) -> tuple[Array, Array]:
            q, key = given
            scores = _scores(q, k, mask)
            peak = scores.max(-1, keepdims=True)
            weights = jnp.exp(scores - peak)
            total = weights.sum(-1, keepdims=True)
            weights = dropout(weights.astype(v.dtype), rate, key)
            y = jnp.einsum("gbqk,gbkd->gbqd", weights, v) / total.astype(v.dtype)
            return y, (peak + jnp.log(total))[..., 0]

        return _each(block, (q, keys))

    y, total = jax.lax.map(step, (q, k, v, keys))
    return y, (q, k, v, mask, keys, y, total)


def _backward(rate: float, kept: tuple, dy: Array) -> tuple:
    q, k, v, mask, keys, y, total = kept

    def step(given: tuple) -> tuple[Array, Array, Array]:
        q, k, v, keys, y, total, dy = given

        def block(given: tuple) -> tuple[Array, Array, Array]:
            q, key, y, total, dy = given
            weights = jnp.exp(_scores(q, k, mask) - total[..., None])
            # Dropout multiplies by the same numbers again; it is linear.
            dv = jnp.einsum("gbqk,gbqd->gbkd", dropout(weights.astype(dy.dtype), rate, key), dy)
            inner = dropout(jnp.einsum("gbqd,gbkd->gbqk", dy, v), rate, key)
            own = _precise(dy * y).sum(-1, keepdims=True)
            ds = (weights * (_precise(inner) - own)).astype(q.dtype)
            dq = jnp.einsum("gbqk,gbkd->gbqd", ds, k)
            return dq, jnp.einsum("gbqk,gbqd->gbkd", ds, q), dv

        if len(q) == 1:
            return _each(block, (q, keys, y, total, dy), out=(0,))

        def add(sums: tuple, given: tuple) -> tuple[tuple, Array]:
            dq, *more = block(given)
            return jax.tree.map(lambda s, m: s + m.astype(s.dtype), sums, tuple(more)), dq

        zero = _precise(jnp.zeros_like(k))
        (dk, dv), dq = jax.lax.scan(add, (zero, zero), (q, keys, y, total, dy))
        return dq, dk.astype(k.dtype), dv.astype(v.dtype)

    dq, dk, dv = jax.lax.map(step, (q, k, v, keys, y, total, dy))
    return dq, dk, dv, None, None


def _each(
    block: Callable[[tuple], tuple], given: tuple, out: tuple[int, ...] | None = None
) -> tuple:
    """`block` of every block of queries; a single one without a loop.

    Args:
      out: of a single block, the results that keep the axis of blocks; None = all.
    """
    if len(given[0]) > 1:
        return jax.lax.map(block, given)
    made = block(jax.tree.map(lambda a: a[0], given))
    return tuple(a[None] if out is None or i in out else a for i, a in enumerate(made))


_attend.defvjp(_forward, _backward)
