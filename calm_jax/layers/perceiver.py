"""Attention with rotary time, and the gated feed-forward part, as POYO+ has them.

Every part normalises its own inputs. A rotary code (..., 2, P) holds cosines and sines of P
angles; it turns the first P pairs (x_0, x_1), (x_2, x_3), ... of every head and leaves the
rest of the head alone. Codes are made on the host in float64
(`recordings.population_tokens.rotary_code`): angles reach 6e4, which float32 cannot hold.

The computation is done in `dtype`, softmax in at least float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.layers import columns
from calm_jax.layers.basic import dropout, linear


class Norm(nnx.Module):
    """Layer normalisation with scale and bias, epsilon 1e-5; statistics in at least float32."""

    def __init__(self, width: int, *, dtype: DTypeLike) -> None:
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        wide = _wide(self.dtype)
        x = x.astype(wide)
        d = x - jnp.mean(x, axis=-1, keepdims=True)
        y = d * jax.lax.rsqrt(jnp.mean(d * d, axis=-1, keepdims=True) + 1e-5)
        return (y * self.scale[...].astype(wide) + self.bias[...].astype(wide)).astype(self.dtype)


def _wide(dtype: DTypeLike) -> DTypeLike:
    """The type itself, or float32 where it is narrower."""
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


def rotate(x: Array, code: Array, *, back: bool = False) -> Array:
    """Heads turned by the angles of their time, or turned back.

    Args:
      x: (B, S, heads, h). code: (B, S, 2, P) or (S, 2, P), 2 P <= h.
    """
    pairs = code.shape[-1]
    code = code.astype(x.dtype)
    cos, sin = code[..., 0, :][..., None, :], code[..., 1, :][..., None, :]
    if back:
        sin = -sin
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    a, b = turned[..., 0::2], turned[..., 1::2]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.reshape(*x.shape[:-1], 2 * pairs), rest], axis=-1)


def attend(
    q: Array, k: Array, v: Array, mask: Array | None, rate: float, key: Array | None
) -> Array:
    """Scaled dot-product attention: (B, Q, heads, h), (B, K, heads, h) -> (B, Q, heads h).

    Args:
      mask: (B, K), True = may be seen; a query that may see nothing gets zeros.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = scores.astype(_wide(scores.dtype))
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1)
    if mask is not None:
        weights = jnp.where(mask.any(-1)[:, None, None, None], weights, 0)
    y = jnp.einsum("bhqk,bkhd->bqhd", dropout(weights.astype(v.dtype), rate, key), v)
    return y.reshape(*y.shape[:2], -1)


def by_columns() -> bool:
    """Whether to compute with features outside, tokens inside: on CPUs."""
    return jax.default_backend() == "cpu"


def turned(x: Array) -> Array:
    """(B, S, W) -> (W, B, S)."""
    return jnp.moveaxis(x, -1, 0)


def turned_back(x: Array) -> Array:
    """(W, B, S) -> (B, S, W)."""
    return jnp.moveaxis(x, 0, -1)


def _norm(norm: Norm, x: Array) -> Array:
    return columns.norm(
        x.astype(norm.dtype), norm.scale[...], norm.bias[...], _wide(norm.dtype)
    )


def _linear(layer: nnx.Linear, x: Array) -> Array:
    bias = None if layer.bias is None else layer.bias[...].astype(x.dtype)
    return columns.linear(layer.kernel[...].astype(x.dtype), bias, x)


def _split(x: Array, heads: int, code: Array | None) -> Array:
    """(heads h, B, S) -> (heads, B, h, S), turned where a code is given."""
    if code is None:
        return jnp.swapaxes(x.reshape(heads, -1, *x.shape[1:]), 1, 2)
    return columns.split(x, code, heads)


def _joined(x: Array, code: Array | None) -> Array:
    """(heads, B, h, S) -> (heads h, B, S), turned back where a code is given."""
    if code is None:
        x = jnp.swapaxes(x, 1, 2)
        return x.reshape(-1, *x.shape[2:])
    return columns.join(x, code, x.shape[0])


def _attend(
    q: Array, k: Array, v: Array, mask: Array | None, rate: float, key: Array | None
) -> Array:
    """(heads, 1 or B, h, Q), (heads, B, h, K) -> (heads, B, h, Q)."""
    q = jnp.broadcast_to(q * q.shape[2] ** -0.5, (*v.shape[:3], q.shape[3]))
    keep = None
    if key is not None and rate > 0:
        keep = columns.kept(key, (*v.shape[:2], q.shape[3], v.shape[3]), rate)
    else:
        rate = 0.0
    return columns.attend(q, k, v, mask, keep, rate)


class RotaryCrossAttention(nnx.Module):
    """Attention from x (B, Q, width) to context (B, K, context width) -> (B, Q, width).

    Args:
      rotate_values: values are turned too, and the sum is turned back at the query, so
        that what is read depends on time differences.
      dropout: of attention weights.
    """

    def __init__(
        self,
        width: int,
        context: int,
        *,
        heads: int,
        head_width: int,
        rotate_values: bool,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        inner = heads * head_width
        make = lambda i, o, bias: linear(
            i, o, bias=bias, dtype=dtype, scale=i**-0.5, rngs=rngs
        )
        self.norm = Norm(width, dtype=dtype)
        self.norm_context = Norm(context, dtype=dtype)
        self.query = make(width, inner, False)
        self.key_value = make(context, 2 * inner, False)
        self.out = make(inner, width, True)
        self.heads, self.rotate_values, self.rate = heads, rotate_values, dropout

    def __call__(
        self,
        x: Array,
        context: Array,
        code: Array,
        context_code: Array,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        """Args: code of x, context_code, (..., 2, P); mask (B, K), True = may be seen.

        x may be (1, Q, width), the same for all of the batch.
        """
        if by_columns():
            return self._columns(x, context, code, context_code, mask, key)
        split = lambda a: a.reshape(*a.shape[:-1], self.heads, -1)
        q = split(self.query(self.norm(x)))
        k, v = jnp.split(self.key_value(self.norm_context(context)), 2, axis=-1)
        k, v = split(k), split(v)
        q, k = rotate(q, code), rotate(k, context_code)
        q = jnp.broadcast_to(q, (k.shape[0], *q.shape[1:]))
        if self.rotate_values:
            v = rotate(v, context_code)
        y = attend(q, k, v, mask, self.rate, key)
        if self.rotate_values:
            y = rotate(split(y), code, back=True).reshape(y.shape)
        return self.out(y)

    def _columns(self, x, context, code, context_code, mask, key):
        code, context_code = columns.columns_of(code), columns.columns_of(context_code)
        q = _split(_linear(self.query, _norm(self.norm, turned(x))), self.heads, code)
        context = _norm(self.norm_context, turned(context))
        kernel = self.key_value.kernel[...].astype(context.dtype)
        k, v = (columns.linear(part, None, context) for part in jnp.split(kernel, 2, axis=1))
        k = _split(k, self.heads, context_code)
        v = _split(v, self.heads, context_code if self.rotate_values else None)
        y = _attend(q, k, v, mask, self.rate, key)
        y = _joined(y, code if self.rotate_values else None)
        return turned_back(_linear(self.out, y))


class RotarySelfAttention(nnx.Module):
    """Attention of x (B, L, width) to itself, values turned and turned back."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_width: int,
        rotate_values: bool = True,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        inner = heads * head_width
        self.norm = Norm(width, dtype=dtype)
        self.query_key_value = linear(
            width, 3 * inner, dtype=dtype, scale=width**-0.5, rngs=rngs
        )
        self.out = linear(inner, width, bias=True, dtype=dtype, scale=inner**-0.5, rngs=rngs)
        self.heads, self.rotate_values, self.rate = heads, rotate_values, dropout

    def __call__(self, x: Array, code: Array, key: Array | None = None) -> Array:
        """Args: code (..., 2, P)."""
        if by_columns():
            return turned_back(self.columns(turned(x), columns.columns_of(code), key))
        split = lambda a: a.reshape(*a.shape[:-1], self.heads, -1)
        q, k, v = map(split, jnp.split(self.query_key_value(self.norm(x)), 3, axis=-1))
        q, k = rotate(q, code), rotate(k, code)
        if self.rotate_values:
            v = rotate(v, code)
        y = attend(q, k, v, None, self.rate, key)
        if self.rotate_values:
            y = rotate(split(y), code, back=True).reshape(y.shape)
        return self.out(y)

    def columns(self, x: Array, code: Array, key: Array | None = None) -> Array:
        """The same from (width, B, L) to (width, B, L), with the code of `columns_of`."""
        values_code = code if self.rotate_values else None
        x = _norm(self.norm, x)
        kernel = self.query_key_value.kernel[...].astype(x.dtype)
        # Three products, not one: the gradients need not be put together.
        q, k, v = (columns.linear(part, None, x) for part in jnp.split(kernel, 3, axis=1))
        q, k = _split(q, self.heads, code), _split(k, self.heads, code)
        y = _attend(q, k, _split(v, self.heads, values_code), None, self.rate, key)
        return _linear(self.out, _joined(y, values_code))


class GatedForward(nnx.Module):
    """GEGLU (Shazeer 2020): W2 (a gelu(b)) with [a, b] = W1 LN(x), the exact GELU; four times
    as wide inside."""

    def __init__(
        self,
        width: int,
        *,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm = Norm(width, dtype=dtype)
        self.up = linear(width, 8 * width, bias=True, dtype=dtype, scale=width**-0.5, rngs=rngs)
        self.down = linear(
            4 * width, width, bias=True, dtype=dtype, scale=(4 * width) ** -0.5, rngs=rngs
        )
        self.rate = dropout

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        if by_columns():
            return turned_back(self.columns(turned(x), key))
        value, gate = jnp.split(self.up(self.norm(x)), 2, axis=-1)
        h = value * jax.nn.gelu(gate, approximate=False)
        return self.down(dropout(h, self.rate, key))

    def columns(self, x: Array, key: Array | None = None) -> Array:
        """The same from (width, B, L) to (width, B, L)."""
        h = columns.gated(*jnp.split(_linear(self.up, _norm(self.norm, x)), 2))
        return _linear(self.down, columns.dropout(h, self.rate, key))
