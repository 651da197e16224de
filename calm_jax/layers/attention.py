"""Multi-head self-attention with rotary position, over whole sequences or step by step.

The plain einsum form is used: sequences here are short (tens of tokens), where it
beats `jax.nn.dot_product_attention` on CPUs and XLA fuses it on GPUs. Attention over
many neurons goes through `population_attention`.
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
    """Keys and values of the steps seen so far: (batch, length, heads, head width)."""

    keys: Array
    values: Array


def rotary(x: Array, positions: Array, base: float = 10_000.0) -> Array:
    """Rotary position (Su et al. 2021), pairs (x_i, x_{i + h/2}) turned by t base^(-2i/h).

    Args:
      x: (batch, length, heads, h), h even.
      positions: (length,) token positions t.
    """
    half = x.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (positions.astype(jnp.float32)[:, None] * rates)[:, None, :]
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

    def project(self, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Queries, keys, values: (batch, length, heads, head width)."""
        b, t, w = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, w // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.rope:
            q, k = rotary(q, positions), rotary(k, positions)
        return q, k, v

    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, key: Array | None
    ) -> Array:
        """mask: broadcastable to (batch, heads, queries, keys), True = may be seen."""
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        scores = scores.astype(jnp.float32)
        if mask is not None:
            scores = jnp.where(mask, scores, -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", dropout(weights, self.rate, key), v)
        return self.out(y.reshape(*y.shape[:2], -1))

    def __call__(
        self, x: Array, mask: Array | None = None, key: Array | None = None
    ) -> Array:
        """Args: x (batch, length, width); mask (batch, length), True = real key."""
        t = x.shape[1]
        q, k, v = self.project(x, jnp.arange(t))
        allowed = None
        if self.causal:
            allowed = jnp.tril(jnp.ones((t, t), bool))[None, None]
        if mask is not None:
            keys = mask[:, None, None, :]
            allowed = keys if allowed is None else allowed & keys
        return self._attend(q, k, v, allowed, key)

    def cache(self, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """An empty cache for `length` steps."""
        shape = (batch, length, self.heads, self.out.in_features // self.heads)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def extend(self, x: Array, cache: Cache, position: Array) -> tuple[Array, Cache]:
        """Causal attention of S new steps x (batch, S, width) that begin at `position`.

        The same numbers as `__call__` on the whole sequence, for these steps.
        """
        steps = position + jnp.arange(x.shape[1])
        q, k, v = self.project(x, steps)
        put = jax.lax.dynamic_update_slice_in_dim
        keys = put(cache.keys, k.astype(cache.keys.dtype), position, axis=1)
        values = put(cache.values, v.astype(cache.values.dtype), position, axis=1)
        seen = jnp.arange(keys.shape[1])[None, :] <= steps[:, None]
        y = self._attend(q, keys.astype(q.dtype), values.astype(q.dtype), seen[None, None], None)
        return y, Cache(keys, values)
