"""Rotary position and self-attention against oracles in numpy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.layers.attention import SelfAttention, rotary
from calm_jax.layers.basic import FeedForward, dropout, layer_norm, split_key

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("quick_compilation")


def module(causal=True, rope=True, width=8, heads=2, rate=0.0, dtype=jnp.float32):
    m = SelfAttention(
        width, heads, causal=causal, rope=rope, bias=True, dropout=rate, dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    # Weights of order 1, or every softmax would be uniform to rounding.
    return jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape) * 0.5, a.dtype), m)


# One compilation a shape: eager calls would compile every operation on its own.
apply = jax.jit(lambda m, x, mask=None: m(x, mask))


@functools.partial(jax.jit, static_argnames="sizes")
def in_pieces(m, x, sizes):
    """The steps of x in pieces of the given sizes through one cache."""
    cache, at, out = m.cache(x.shape[0], 12), 0, []
    for size in sizes:
        y, cache = m.extend(x[:, at : at + size], cache, at)
        out.append(y)
        at += size
    return jnp.concatenate(out, 1), cache


def rotary_oracle(x, positions, base=1e4):
    """Turns of complex numbers: z_i <- z_i exp(i t base^(-2i/h)), in float64."""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    rate = base ** (-2.0 * np.arange(half) / x.shape[-1])
    z = z * np.exp(1j * positions[:, None, None] * rate)
    return np.concatenate([z.real, z.imag], -1)


def attention_oracle(m, x, mask=None):
    """Softmax attention one query at a time, in float64."""
    f = lambda a: np.asarray(a, np.float64)
    b, t, w = x.shape
    h = w // m.heads
    qkv = f(x) @ f(m.qkv.kernel[...]) + f(m.qkv.bias[...])
    q, k, v = (qkv[..., i * w : (i + 1) * w].reshape(b, t, m.heads, h) for i in range(3))
    if m.rope:
        q, k = (rotary_oracle(a, np.arange(t)) for a in (q, k))
    y = np.zeros((b, t, m.heads, h))
    for bi in range(b):
        for head in range(m.heads):
            for i in range(t):
                seen = np.arange(t) <= i if m.causal else np.ones(t, bool)
                if mask is not None:
                    seen = seen & np.asarray(mask[bi])
                s = k[bi, seen, head] @ q[bi, i, head] / np.sqrt(h)
                p = np.exp(s - s.max())
                y[bi, i, head] = (p / p.sum()) @ v[bi, seen, head]
    return y.reshape(b, t, w) @ f(m.out.kernel[...]) + f(m.out.bias[...])


def test_rotary_is_a_turn_of_complex_numbers():
    x = RNG.normal(size=(2, 30, 3, 8)).astype(np.float32)
    positions = np.arange(5, 35)
    got = rotary(jnp.asarray(x), jnp.asarray(positions))
    np.testing.assert_allclose(got, rotary_oracle(x, positions), atol=2e-5)
    # A turn keeps lengths, and position 0 is not turned.
    np.testing.assert_allclose(
        np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(rotary(jnp.asarray(x[:, :1]), jnp.zeros(1)), x[:, :1])


def test_rotary_products_depend_on_the_distance_only():
    q, k = (jnp.asarray(RNG.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
    score = lambda i, j: jnp.vdot(rotary(q, jnp.array([i])), rotary(k, jnp.array([j])))
    same = [score(i, i - 3) for i in (3, 7, 40, 100)]
    np.testing.assert_allclose(same, same[0], atol=2e-5)
    assert abs(float(score(7, 5) - score(7, 4))) > 1e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rope", [True, False])
def test_attention_equals_the_oracle(causal, rope):
    m = module(causal, rope)
    x = jnp.asarray(RNG.normal(size=(3, 6, 8)), jnp.float32)
    mask = np.ones((3, 6), bool)
    mask[0, 4:], mask[1, 3] = False, False
    np.testing.assert_allclose(apply(m, x), attention_oracle(m, x), atol=1e-5)
    np.testing.assert_allclose(
        apply(m, x, jnp.asarray(mask)), attention_oracle(m, x, mask), atol=1e-5
    )


def test_masked_keys_change_nothing_bit_for_bit():
    m = module(causal=False, rope=False)
    x = jnp.asarray(RNG.normal(size=(2, 6, 8)), jnp.float32)
    mask = jnp.arange(6)[None] < jnp.array([[4], [6]])
    other = x.at[0, 4:].set(1e3)
    a, b = apply(m, x, mask), apply(m, other, mask)
    np.testing.assert_array_equal(a[0, :4], b[0, :4])
    np.testing.assert_array_equal(a[1], b[1])
    # Nothing at all to attend to: finite, so that padding cannot poison a gradient.
    assert np.isfinite(apply(m, x, jnp.zeros((2, 6), bool))).all()


def test_causal_bit_for_bit():
    m = module()
    x = jnp.asarray(RNG.normal(size=(2, 9, 8)), jnp.float32)
    a, b = apply(m, x), apply(m, x.at[:, 5:].add(100.0))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert np.abs(a[:, 5:] - b[:, 5:]).min(axis=(0, 2)).max() > 0


def test_extension_by_any_number_of_steps_equals_the_whole():
    m = module()
    x = jnp.asarray(RNG.normal(size=(2, 9, 8)), jnp.float32)
    for sizes in ((9,), (4, 5), (3, 1, 2, 1, 1, 1)):
        y, cache = in_pieces(m, x, sizes)
        np.testing.assert_allclose(y, apply(m, x), atol=1e-5)
    assert cache.keys.shape == (2, 12, 2, 4)


def test_a_stale_cache_behind_the_position_is_not_seen():
    m = module()
    x = jnp.asarray(RNG.normal(size=(1, 4, 8)), jnp.float32)
    extend = jax.jit(lambda cache: m.extend(x, cache, 0)[0])
    clean = extend(m.cache(1, 7))
    got = extend(jax.tree.map(lambda a: a + 1e3, m.cache(1, 7)))
    np.testing.assert_array_equal(got, clean)


def test_without_rotary_attention_is_permutation_equivariant():
    m = module(causal=False, rope=False)
    x = jnp.asarray(RNG.normal(size=(2, 7, 8)), jnp.float32)
    order = RNG.permutation(7)
    np.testing.assert_allclose(apply(m, x)[:, order], apply(m, x[:, order]), atol=1e-5)


@settings(max_examples=6)
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([(4, 2), (8, 2), (12, 3)]))
def test_shapes(batch, length, sizes):
    width, heads = sizes
    for dtype in (jnp.float32, jnp.bfloat16):
        def run(x, mask, dtype=dtype):
            m = SelfAttention(
                width, heads, causal=True, rope=True, dropout=0.1, dtype=dtype, rngs=nnx.Rngs(0)
            )
            y = m(x, mask, jax.random.key(0))
            z, cache = m.extend(x, m.cache(batch, length + 2, dtype), 1)
            return y, z, cache

        x = jax.ShapeDtypeStruct((batch, length, width), dtype)
        mask = jax.ShapeDtypeStruct((batch, length), bool)
        y, z, cache = jax.eval_shape(run, x, mask)
        assert y.shape == z.shape == x.shape
        assert y.dtype == z.dtype == cache.keys.dtype == dtype
        assert cache.values.shape == (batch, length + 2, heads, width // heads)


def test_dropout_keeps_the_mean_and_the_share():
    x = jnp.ones((200, 500))
    y = dropout(x, 0.3, jax.random.key(0))
    kept = np.asarray(y) != 0
    # Binomial: SD of the share is sqrt(.21 / 1e5) = .0014.
    assert abs(kept.mean() - 0.7) < 0.006
    np.testing.assert_allclose(np.asarray(y)[kept], 1 / 0.7, rtol=1e-6)
    # Elements that share a random word are independent all the same: SD .0045 each.
    for distance in (1, 2, 250):
        a, b = kept[:, :-distance].ravel(), kept[:, distance:].ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.025
    odd = np.asarray(dropout(jnp.ones((7, 3, 5)), 0.5, jax.random.key(1)))
    assert odd.shape == (7, 3, 5) and 0.25 < (odd == 0).mean() < 0.75
    assert dropout(x, 0.3, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x.astype(jnp.bfloat16), 0.3, jax.random.key(0)).dtype == jnp.bfloat16


def test_split_key():
    assert split_key(None, 3) == [None] * 3
    keys = split_key(jax.random.key(0), 4)
    assert len({bytes(np.asarray(jax.random.key_data(k))) for k in keys}) == 4


def test_feed_forward_and_norm_against_formulas():
    x = RNG.normal(size=(5, 6)).astype(np.float32)
    norm = layer_norm(6, rngs=nnx.Rngs(0))
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-5)
    ffn = FeedForward(6, 10, activation="swiglu", rngs=nnx.Rngs(0))
    gate, up, down = (np.asarray(m.kernel[...]) for m in (ffn.gate, ffn.up, ffn.down))
    g = x @ gate
    expected = (g / (1 + np.exp(-g)) * (x @ up)) @ down
    np.testing.assert_allclose(ffn(jnp.asarray(x)), expected, atol=1e-6)
    ffn = FeedForward(6, 10, rngs=nnx.Rngs(0))
    h = 40 * x @ np.asarray(ffn.up.kernel[...])
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    expected = gelu @ np.asarray(ffn.down.kernel[...])
    np.testing.assert_allclose(ffn(jnp.asarray(40 * x)), expected, atol=1e-5)
