"""Mixing of neurons: dense oracles, masks, symmetry."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.layers.mixing import make_mixing

RNG = np.random.default_rng(1)
B, T, N, W = 2, 3, 7, 8
pytestmark = pytest.mark.usefixtures("quick_compilation")


def mixer(kind, rate=0.0, dtype=jnp.float32):
    m = make_mixing(
        kind, W, 2, signed_heads=4, rank=3, dropout=rate, dtype=dtype, rngs=nnx.Rngs(0)
    )
    return jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape) * 0.5, a.dtype), m)


apply = jax.jit(lambda m, x, e, mask: m(x, e, mask, None))


def inputs():
    x = jnp.asarray(RNG.normal(size=(B, T, N, W)), jnp.float32)
    e = jnp.asarray(RNG.normal(size=(B, N, W)), jnp.float32)
    mask = np.ones((B, N), bool)
    mask[0, 5:], mask[1, 2] = False, False
    return x, e, jnp.asarray(mask)


def test_signed_mixing_is_a_dense_coupling_matrix():
    """out_i = sum_j C_ij v_j per head with C = n^(-1/2) Q K^T over the real neurons."""
    m = mixer("signed")
    x, e, mask = inputs()
    got = apply(m, x, e, mask)
    f = lambda a: np.asarray(a, np.float64)
    for b in range(B):
        n = int(mask[b].sum())
        q = (f(e[b]) @ f(m.query.kernel[...])).reshape(N, 4, 3)
        k = (f(e[b]) @ f(m.key.kernel[...])).reshape(N, 4, 3) * f(mask[b])[:, None, None]
        v = (f(x[b]) @ f(m.value.kernel[...])).reshape(T, N, 4, 2)
        out = np.zeros((T, N, 4, 2))
        for head in range(4):
            coupling = q[:, head] @ k[:, head].T / np.sqrt(n)  # (N, N), signed
            assert (coupling < 0).any() and (coupling > 0).any()
            out[:, :, head] = np.einsum("ij,tje->tie", coupling, v[:, :, head])
        expected = out.reshape(T, N, W) @ f(m.out.kernel[...])
        np.testing.assert_allclose(got[b], expected, rtol=1e-4, atol=1e-4)


def test_softmax_mixing_is_attention_within_one_step():
    m = mixer("softmax")
    alone = jax.jit(lambda x, mask: m.attention(x, mask))
    x, e, mask = inputs()
    got = apply(m, x, e, mask)
    for b in range(B):
        for t in range(T):
            one = alone(x[b, t][None], mask[b][None])[0]
            np.testing.assert_allclose(got[b, t], one, atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "signed"])
def test_symmetry_and_masks(kind):
    m = mixer(kind)
    x, e, mask = inputs()
    run = functools.partial(apply, m)
    y = run(x, e, mask)
    order = RNG.permutation(N)
    moved = run(x[:, :, order], e[:, order], mask[:, order])
    np.testing.assert_allclose(moved, y[:, :, order], atol=2e-5)
    # What a masked neuron holds reaches no other neuron, bit for bit.
    other = run(
        jnp.where(mask[:, None, :, None], x, 7e3), jnp.where(mask[..., None], e, -50.0), mask
    )
    real = np.broadcast_to(mask[:, None], (B, T, N))
    np.testing.assert_array_equal(other[real], y[real])
    # Padding does not enter the normalisation.
    pad = lambda a, axis: jnp.pad(a, [(0, 4 * (i == axis)) for i in range(a.ndim)])
    wide = run(pad(x, 2), pad(e, 1), pad(mask, 1))
    np.testing.assert_allclose(wide[:, :, :N][real], y[real], atol=2e-5)
    # Each step is mixed on its own.
    changed = run(x.at[:, 1].add(1.0), e, mask)
    np.testing.assert_array_equal(changed[:, [0, 2]], y[:, [0, 2]])
    assert not np.allclose(changed[:, 1], y[:, 1])


@pytest.mark.parametrize("kind", ["softmax", "signed"])
def test_no_real_neuron_stays_finite(kind):
    m = mixer(kind)
    x, e, mask = inputs()
    f = lambda x: jnp.sum(jnp.square(m(x, e, jnp.zeros_like(mask), None)))
    value, grad = jax.jit(jax.value_and_grad(f))(x)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_signed_mixing_can_push_down():
    """One neuron's activity lowers another's: impossible for a softmax average of
    non-negative weights, the reason this mixer exists."""
    m = make_mixing(
        "signed", 2, 1, signed_heads=1, rank=1, dropout=0.0, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    one = jnp.array([[1.0], [0.0]])
    m.query.kernel[...], m.key.kernel[...] = -one, one[::-1]
    m.value.kernel[...] = m.out.kernel[...] = jnp.eye(2)
    e = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])  # neuron 0 listens, neuron 1 drives
    x = jnp.array([[[[0.0, 0.0], [3.0, 5.0]]]])
    y = apply(m, x, e, jnp.ones((1, 2), bool))
    np.testing.assert_allclose(y[0, 0], [[-3 / 2**0.5, -5 / 2**0.5], [0, 0]], atol=1e-6)


@settings(max_examples=6)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.sampled_from([1, 2, 4]))
def test_shapes(b, t, n, heads):
    for kind in ("softmax", "signed"):
        for dtype in (jnp.float32, jnp.bfloat16):
            def run(x, e, mask, kind=kind, dtype=dtype):
                m = make_mixing(
                    kind, W, heads, signed_heads=heads, rank=5, dropout=0.2, dtype=dtype,
                    rngs=nnx.Rngs(0),
                )
                return m(x, e, mask, jax.random.key(0)), m(x, e, mask, None)

            x = jax.ShapeDtypeStruct((b, t, n, W), dtype)
            e = jax.ShapeDtypeStruct((b, n, W), dtype)
            mask = jax.ShapeDtypeStruct((b, n), bool)
            for y in jax.eval_shape(run, x, e, mask):
                assert y.shape == x.shape and y.dtype == dtype
