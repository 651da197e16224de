"""The parts of the population encoder for CPUs: features outside, tokens inside.

The numbers are those of the row-wise code in `perceiver`. Arrays are (features, batch,
tokens), so that sums over features, turns of feature pairs and splits into heads all go over
whole vectors of tokens; weights of attention have their keys innermost. With features
innermost, strided loads and transpositions take a good part of a training step on CPUs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def norm(x: Array, scale: Array, bias: Array, wide: DTypeLike) -> Array:
    """Layer normalisation over axis 0 of (W, B, S), in the type of x; statistics in `wide`."""
    y = x.astype(wide)
    d = y - jnp.mean(y, axis=0)
    y = d * jax.lax.rsqrt(jnp.mean(d * d, axis=0) + 1e-5)
    shape = (-1, *[1] * (x.ndim - 1))
    y = y * scale.astype(wide).reshape(shape) + bias.astype(wide).reshape(shape)
    return y.astype(x.dtype)


@jax.custom_vjp
def project(kernel: Array, x: Array) -> Array:
    """kernel^T x: (I, O), (I, N) -> (O, N)."""
    if kernel.shape[0] > kernel.shape[1]:  # a third faster with the kernel turned before
        return jnp.dot(jax.lax.optimization_barrier(kernel.T), x)
    return jax.lax.dot_general(kernel, x, (((0,), (0,)), ((), ())))


def _project_back(kept, g: Array):
    # The order of the factors matters: x g^T is 15 to 20% slower, and much slower where
    # XLA is built without YNNPACK.
    kernel, x = kept
    return jax.lax.dot_general(g, x, (((1,), (1,)), ((), ()))).T, jnp.dot(kernel, g)


project.defvjp(lambda kernel, x: (project(kernel, x), (kernel, x)), _project_back)


def linear(kernel: Array, bias: Array | None, x: Array) -> Array:
    """A linear map of axis 0: (I, O), (O,) or None, (I, B, S) -> (O, B, S)."""
    y = project(kernel, x.reshape(x.shape[0], -1))
    if bias is not None:
        y = y + bias[:, None]
    return y.reshape(-1, *x.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def split(x: Array, code: Array, heads: int, back: bool = False) -> Array:
    """Heads of x, pairs of their features turned by the angles of their time, or turned back.

    No gradient reaches the code.

    Args:
      x: (heads h, B, S). code: (2, P, B or 1, S), 2 P <= h.

    Returns:
      (heads, B, h, S).
    """
    x = jnp.swapaxes(x.reshape(heads, -1, *x.shape[1:]), 1, 2)
    return _turn(x, jnp.swapaxes(code, 1, 2), back, axis=2)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def join(x: Array, code: Array, heads: int, back: bool = True) -> Array:
    """The transpose of `split` with the opposite `back`: (heads, B, h, S) -> (heads h, B, S)."""
    x = _turn(jnp.swapaxes(x, 1, 2), code, back, axis=1)
    return x.reshape(-1, *x.shape[2:])


split.defvjp(
    lambda x, code, heads, back: (split(x, code, heads, back), code),
    lambda heads, back, code, g: (join(g, code, heads, not back), None),
)
join.defvjp(
    lambda x, code, heads, back: (join(x, code, heads, back), code),
    lambda heads, back, code, g: (split(g, code, heads, not back), None),
)


def _turn(x: Array, code: Array, back: bool, axis: int) -> Array:
    """Features are along `axis`, pairs along that of the code."""
    pairs = code.shape[axis]
    cos, sin = code.astype(x.dtype)
    if back:
        sin = -sin
    turned, rest = jnp.split(x, [2 * pairs], axis=axis)
    shape = (*x.shape[:axis], pairs, 2, *x.shape[axis + 1 :])
    a, b = jnp.moveaxis(turned.reshape(shape), axis + 1, 0)
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=axis + 1)
    turned = turned.reshape(*x.shape[:axis], 2 * pairs, *x.shape[axis + 1 :])
    return jnp.concatenate([turned, rest], axis=axis)


def columns_of(code: Array) -> Array:
    """(B, S, 2, P) or (S, 2, P) -> (2, P, B or 1, S)."""
    return jnp.moveaxis(code if code.ndim == 4 else code[None], (2, 3), (0, 1))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
    q: Array, k: Array, v: Array, mask: Array | None, keep: Array | None, rate: float
) -> Array:
    """Scaled dot-product attention -> (heads, B, h, Q).

    Args:
      q: (heads, B, h, Q), already scaled. k, v: (heads, B, h, K).
      mask: (B, K), True = may be seen; a query that may see nothing gets zeros.
      keep: (heads, B, Q, K), the attention weights that dropout leaves, of `rate`.
    """
    return _attend(q, k, v, mask, keep, rate)[0]


def _attend(q, k, v, mask, keep, rate):
    s = jnp.einsum("hbdq,hbdk->hbqk", q, k)
    s = s.astype(wide(s.dtype))
    seen = None if mask is None else mask[None, :, None, :]
    if mask is not None:
        s = jnp.where(seen, s, -1e30)
    e = jnp.exp(s - jnp.max(s, axis=3, keepdims=True))
    if mask is not None:
        e = jnp.where(seen, e, 0)
    total = jnp.sum(e, axis=3)
    over = 1 / total if mask is None else jnp.where(total > 0, 1 / total, 0)
    e = e.astype(v.dtype)
    left = e if keep is None else jnp.where(keep, e, 0)
    y = jnp.einsum("hbdk,hbqk->hbdq", v, left) * (over / (1 - rate)).astype(v.dtype)[:, :, None]
    return y, (q, k, v, keep, e, over, y)


def _attend_back(rate, kept, g):
    # With w = e over and y = v (keep w) / (1 - rate): what the softmax takes off at a
    # query, sum_k w dw, is y . dy, so neither w nor dw is summed over keys.
    q, k, v, keep, e, over, y = kept
    off = jnp.sum((y * g).astype(over.dtype), axis=2) * over
    g = g * (over / (1 - rate)).astype(v.dtype)[:, :, None]
    left = e if keep is None else jnp.where(keep, e, 0)
    dv = _over_queries(g, left)
    dw = jnp.einsum("hbdq,hbdk->hbqk", g, v)
    ds = (left * dw - e * off[..., None]).astype(v.dtype)
    dk = _over_queries(q, ds)
    dq = jnp.einsum("hbdk,hbqk->hbdq", k, ds)
    return dq, dk, dv, None, None


def _over_queries(a: Array, weights: Array) -> Array:
    """(heads, B, h, Q), (heads, B, Q, K) -> (heads, B, h, K)."""
    if weights.shape[3] < 4 * weights.shape[2]:
        return jnp.einsum("hbdq,hbqk->hbdk", a, weights)
    # With many keys it is faster to turn the smaller factor; the barrier keeps it so.
    outer = jax.lax.optimization_barrier(jnp.swapaxes(a, 2, 3))
    return jnp.einsum("hbqd,hbqk->hbdk", outer, weights)


attend.defvjp(
    lambda q, k, v, mask, keep, rate: _attend(q, k, v, mask, keep, rate), _attend_back
)


_parts: list[tuple[Array, int]] = []  # of the rows of a batch, while a part of it is traced


@contextlib.contextmanager
def part(index: Array, parts: int) -> Iterator[None]:
    """Within: arrays hold part `index` of `parts` equal ones of a batch, and dropout leaves of
    them what it would leave of the whole."""
    _parts.append((index, parts))
    try:
        yield
    finally:
        _parts.pop()


def kept(key: Array, shape: tuple[int, ...], rate: float) -> Array:
    """Which elements dropout of `rate` leaves: each number hashed with the key.

    Twice the 32-bit mixer "lowbias32" (Wellons 2018), the key's words before and between.
    A word costs an eighth of one of `jax.random.bits`. Good enough to
    drop by, up to 2^32 elements; the key itself should come from `jax.random.split`.

    Args:
      shape: (features or heads, B, ...). Within `part` the B rows are some of a larger batch.
    """
    words = jax.random.key_data(key).reshape(-1)
    x = jax.lax.iota(jnp.uint32, math.prod(shape))
    if _parts:
        index, parts = _parts[-1]
        row = math.prod(shape[2:])
        before = index.astype(jnp.uint32) * jnp.uint32(shape[1] * row)
        outer = jax.lax.broadcasted_iota(jnp.uint32, (shape[0], shape[1] * row), 0)
        x = x + before + outer.reshape(-1) * jnp.uint32((parts - 1) * shape[1] * row)
    x = _mixed(_mixed(x + words[0]) ^ words[-1])
    return x.reshape(shape) >= jnp.uint32(round(rate * 0xFFFFFFFF))


def _mixed(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout with `kept`; the identity when `key` is None or `rate` is 0."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(kept(key, x.shape, rate), x / (1.0 - rate), jnp.zeros((), x.dtype))


def wide(dtype: DTypeLike) -> DTypeLike:
    """The type itself, or float32 where it is narrower."""
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


@jax.custom_vjp
def gated(value: Array, gate: Array) -> Array:
    """value gelu(gate), the exact GELU."""
    return value * gate * _normal(gate)


def _normal(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * 2**-0.5))


def _gated(value, gate):
    cdf = _normal(gate)
    slope = cdf + gate * jnp.exp(-0.5 * gate * gate) * 0.3989422804014327
    return value * gate * cdf, (value * slope, gate * cdf)


gated.defvjp(_gated, lambda kept, g: (g * kept[1], g * kept[0]))
