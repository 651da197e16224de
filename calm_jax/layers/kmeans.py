"""k-means with a k-means++ start, in JAX, in memory bounded by chunks of points."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from calm_jax.layers.quantizer import distances, nearest


@functools.partial(jax.jit, static_argnames=("k", "iterations", "chunk"))
def kmeans(
    points: Array,
    weight: Array,
    key: Array,
    *,
    k: int,
    iterations: int = 20,
    chunk: int = 8192,
) -> tuple[Array, Array]:
    """Lloyd's algorithm from a k-means++ start (Arthur & Vassilvitskii 2007).

    Args:
      points: (n, d); weight: (n,) >= 0, 0 leaves a point out.
      key: of the start; the rest is deterministic.
      k: number of centres. iterations: of Lloyd. chunk: points assigned at a time.

    Returns:
      centres (k, d) and the weight of the points of each (k,). A centre without
      points stays where it is, with count 0.
    """
    n, d = points.shape
    chunk = min(chunk, n)
    pad = -n % chunk
    blocks = jnp.pad(points, ((0, pad), (0, 0))).reshape(-1, chunk, d)
    weights = jnp.pad(weight, (0, pad)).reshape(-1, chunk)

    def gather(centres: Array) -> tuple[Array, Array]:
        def add(total, block):
            x, w = block
            member = jax.nn.one_hot(nearest(x, centres), k, dtype=x.dtype) * w[:, None]
            return (total[0] + member.T @ x, total[1] + member.sum(0)), None

        zero = (jnp.zeros((k, d), points.dtype), jnp.zeros((k,), points.dtype))
        return jax.lax.scan(add, zero, (blocks, weights))[0]

    def lloyd(_, centres: Array) -> Array:
        sums, counts = gather(centres)
        return jnp.where(
            counts[:, None] > 0, sums / jnp.maximum(counts, 1e-30)[:, None], centres
        )

    start = plus_plus(points, weight, key, k=k)
    centres = jax.lax.fori_loop(0, iterations, lloyd, start)
    return centres, gather(centres)[1]


def plus_plus(points: Array, weight: Array, key: Array, *, k: int) -> Array:
    """k-means++ start: each centre drawn by squared distance to those before, (k, d).

    When every point already is a centre (fewer than k different points), further
    centres repeat points drawn by weight.
    """
    first, rest = jax.random.split(key)
    by_weight = jnp.where(weight > 0, jnp.log(jnp.maximum(weight, 1e-30)), -jnp.inf)
    chosen = points[jax.random.categorical(first, by_weight)]
    centres = jnp.zeros((k, points.shape[1]), points.dtype).at[0].set(chosen)

    def add(i, carry):
        centres, near = carry
        mass = near * weight
        logits = jnp.where(mass > 0, jnp.log(jnp.maximum(mass, 1e-30)), -jnp.inf)
        logits = jnp.where(jnp.any(mass > 0), logits, by_weight)
        new = points[jax.random.categorical(jax.random.fold_in(rest, i), logits)]
        near = jnp.minimum(near, distances(points, new[None])[:, 0])
        return centres.at[i].set(new), near

    near = distances(points, chosen[None])[:, 0]
    return jax.lax.fori_loop(1, k, add, (centres, near))[0]
