"""Linear maps, normalisation, dropout and the feed-forward part of a block.

Modules hold parameters only. Randomness comes in as an explicit key: `key=None`
means evaluation. Parameters are float32; `dtype` is the type computed in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

_DRAWS = (2**12, 2**16, 2**20)


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
        kernel_init=truncated_normal(scale),
        dtype=dtype,
        rngs=rngs,
    )


def normal(key: Array, shape: Sequence[int], cut: float | None = None) -> Array:
    """Standard normal numbers, cut at +-`cut`; those of `jax.random` with the same
    key, to rounding.

    A program that draws takes most of a second to compile, and each shape has one. Elements
    depend on their index alone (partitionable threefry), so few sizes are drawn and cut.
    """
    size = math.prod(shape)
    drawn = next((n for n in _DRAWS if n >= size), 1 << max(size - 1, 0).bit_length())
    return _draw(key, drawn, cut)[:size].reshape(shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: Array, size: int, cut: float | None) -> Array:
    if cut is None:
        return jax.random.normal(key, (size,), jnp.float32)
    return jax.random.truncated_normal(key, -cut, cut, (size,), jnp.float32)


def normal_start(scale: float) -> Callable[..., Array]:
    """An initialiser: N(0, scale^2)."""

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, **_: Any) -> Array:
        return normal(key, shape).astype(dtype) * jnp.asarray(scale, dtype)

    return init


def truncated_normal(scale: float) -> Callable[..., Array]:
    """An initialiser: N(0, scale^2) cut at two SD."""

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, **_: Any) -> Array:
        return normal(key, shape, 2.0).astype(dtype) * jnp.asarray(scale, dtype)

    return init


class LayerNorm(nnx.LayerNorm):
    """flax's; in bfloat16 it relies on implicit promotion to float32, which strict types forbid."""

    def __call__(self, x: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x)


def layer_norm(
    width: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
) -> LayerNorm:
    """Layer normalisation with scale, no bias; statistics in float32."""
    return LayerNorm(
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
