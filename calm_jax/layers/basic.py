"""Linear maps, normalisation, dropout and the feed-forward part of a block.

Modules hold parameters only. Randomness comes in as an explicit key: `key=None`
means evaluation. Parameters are float32; `dtype` is the type computed in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; the identity when `key` is None or `rate` is 0.

    Two elements share a random word, 16 bits each, and integers are compared: random
    numbers were 40% of a training step on CPUs with `jax.random.bernoulli`. The rate is
    met to 2^-17.
    """
    if key is None or rate == 0.0:
        return x
    *lead, width = x.shape
    words = jax.random.bits(key, (*lead, -(-width // 2)), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., :width]
    keep = halves >= round(rate * 0x10000)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def split_key(key: Array | None, n: int) -> list[Array | None]:
    """`n` keys from one, or `n` times None in evaluation."""
    return [None] * n if key is None else list(jax.random.split(key, n))


def linear(
    inputs: int,
    outputs: int,
    *,
    rngs: nnx.Rngs,
    bias: bool = False,
    dtype: DTypeLike = jnp.float32,
    scale: float = 0.02,
) -> nnx.Linear:
    """A linear map with weights ~ truncated N(0, scale^2), bias 0."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=nnx.initializers.truncated_normal(scale),
        dtype=dtype,
        rngs=rngs,
    )


def layer_norm(
    width: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
) -> nnx.LayerNorm:
    """Layer normalisation with scale, no bias; statistics in float32."""
    return nnx.LayerNorm(
        width, use_bias=False, epsilon=1e-5, dtype=dtype, rngs=rngs
    )


class FeedForward(nnx.Module):
    """Two linear maps around GELU, or SwiGLU (three maps).

    Shapes: (..., width) -> (..., width).
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str = "gelu",
        bias: bool = False,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = lambda i, o: linear(i, o, bias=bias, dtype=dtype, rngs=rngs)  # noqa: E731
        self.up = make(width, hidden)
        self.gate = make(width, hidden) if activation == "swiglu" else None
        self.down = make(hidden, width)
        self.rate = dropout

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        if self.gate is None:
            h = jax.nn.gelu(self.up(x))
        else:
            h = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(dropout(h, self.rate, key))
