"""Attention from one sequence to another, as a Perceiver uses it to read and to be read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from calm_jax.layers.attention import rotary
from calm_jax.layers.basic import FeedForward, layer_norm, linear


class CrossAttention(nnx.Module):
    """Pre-norm multi-head cross-attention with rotary time, then a feed-forward part.

    x <- x + A(LN(x), LN(y)); x <- x + FF(LN(x)). Queries and keys are turned by the time
    of their token, so that only differences of times count.

    Shapes: x (B, Q, width), y (B, K, width) -> (B, Q, width).
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        make = lambda i, o: linear(i, o, scale=i**-0.5, rngs=rngs)  # noqa: E731
        self.query, self.key_value, self.out = (
            make(width, width),
            make(width, 2 * width),
            make(width, width),
        )
        self.norm_x, self.norm_y, self.norm_ff = (layer_norm(width, rngs=rngs) for _ in range(3))
        self.feed_forward = FeedForward(width, 4 * width, rngs=rngs)
        self.heads = heads

    def __call__(
        self, x: Array, y: Array, time_x: Array, time_y: Array, mask: Array | None = None
    ) -> Array:
        """Args: time_x (Q,), time_y (K,) in frames; mask (B, K), True = may be seen."""
        split = lambda a: a.reshape(*a.shape[:2], self.heads, -1)  # noqa: E731
        q = rotary(split(self.query(self.norm_x(x))), time_x)
        k, v = jnp.split(self.key_value(self.norm_y(y)), 2, axis=-1)
        k, v = rotary(split(k), time_y), split(v)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = jnp.where(mask[:, None, None], scores, -1e30)
        h = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), v)
        x = x + self.out(h.reshape(*h.shape[:2], -1))
        return x + self.feed_forward(self.norm_ff(x))
