"""Strided convolutions over time whose kernel equals their stride.

Such a convolution sees every frame once, so it is a reshape and one linear map
(and its transpose a linear map and a reshape): exact, and faster than a general
convolution on every backend. Output t depends on input frames [t s, (t + 1) s) alone.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.layers.basic import linear


class Downsample(nnx.Module):
    """Conv1d with kernel = stride = `stride`: (..., T, inputs) -> (..., T / stride, outputs)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 2,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        fan_in = stride * inputs
        self.map = linear(
            fan_in, outputs, bias=True, dtype=dtype, scale=fan_in**-0.5, rngs=rngs
        )
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        *lead, t, c = x.shape
        return self.map(x.reshape(*lead, t // self.stride, self.stride * c))


class Upsample(nnx.Module):
    """The transpose of `Downsample`: (..., T, inputs) -> (..., T * stride, outputs)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 2,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.map = linear(
            inputs, stride * outputs, bias=True, dtype=dtype, scale=inputs**-0.5, rngs=rngs
        )
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        *lead, t, _ = x.shape
        y = self.map(x)
        return y.reshape(*lead, t * self.stride, y.shape[-1] // self.stride)
