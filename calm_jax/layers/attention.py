"""Multi-head self-attention with rotary position, over whole sequences or one step.

The plain einsum form is used: on CPUs it beats `jax.nn.dot_product_attention`, and
on GPUs XLA fuses it; sequences here are short (tens of tokens).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.layers.basic import dropout, linear


class Cache(NamedTuple):
    """Keys and values of the steps seen so far: (batch, heads, length, head width)."""

    keys: Array
    values: Array


def rotary(x: Array, positions: Array, base: float = 10_000.0) -> Array:
    """Rotary position (Su et al. 2021), halves rotated as pairs (x_i, x_{i+h/2}).

    Args:
      x: (..., length, head width), an even head width.
      positions: (length,) token positions.
    """
    half = x.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, None] * rates
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class SelfAttention(nnx.Module):
    """Multi-head self-attention, (batch, length, width) -> the same.

    Args:
      causal: position t attends to positions <= t only.
      rope: rotary position on queries and keys; without it the module is
        equivariant to permutations of the length axis.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool,
        rope: bool,
        bias: bool = False,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.qkv = linear(width, 3 * width, bias=bias, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, bias=bias, dtype=dtype, rngs=rngs)
        self.heads, self.causal, self.rope, self.rate = heads, causal, rope, dropout

    def _split(self, x: Array) -> tuple[Array, Array, Array]:
        """Queries, keys, values: (batch, heads, length, head width)."""
        b, t, w = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, w // self.heads)
        q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))
        return q, k, v

    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, key: Array | None
    ) -> Array:
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
        scores = scores.astype(jnp.float32)
        if mask is not None:
            scores = jnp.where(mask, scores, -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        y = jnp.einsum("bhqk,bhkd->bqhd", dropout(weights, self.rate, key), v)
        return self.out(y.reshape(*y.shape[:2], -1))

    def __call__(
        self, x: Array, mask: Array | None = None, key: Array | None = None
    ) -> Array:
        """Args: x (batch, length, width); mask (batch, length), True = real key."""
        q, k, v = self._split(x)
        t = x.shape[1]
        if self.rope:
            positions = jnp.arange(t)
            q, k = rotary(q, positions), rotary(k, positions)
        allowed = None
        if self.causal:
            allowed = jnp.tril(jnp.ones((t, t), bool))[None, None]
        if mask is not None:
            keys = mask[:, None, None, :]
            allowed = keys if allowed is None else allowed & keys
        return self._attend(q, k, v, allowed, key)

    def cache(self, batch: int, length: int, dtype: DTypeLike) -> Cache:
        """An empty cache for `length` steps."""
        width = self.out.in_features // self.heads
        empty = jnp.zeros((batch, self.heads, length, width), dtype)
        return Cache(empty, empty)

    def step(self, x: Array, cache: Cache, position: Array) -> tuple[Array, Cache]:
        """One step of causal attention: x (batch, 1, width) at `position`."""
        q, k, v = self._split(x)
        if self.rope:
            here = jnp.asarray(position)[None]
            q, k = rotary(q, here), rotary(k, here)
        put = jax.lax.dynamic_update_slice_in_dim
        keys = put(cache.keys, k.astype(cache.keys.dtype), position, axis=2)
        values = put(cache.values, v.astype(cache.values.dtype), position, axis=2)
        seen = jnp.arange(keys.shape[2]) <= position
        y = self._attend(q, keys, values, seen[None, None, None], None)
        return y, Cache(keys, values)
