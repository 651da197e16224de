"""Nearest codes, Gumbel draws, moving averages and revival against loops and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from calm_jax.layers import quantizer
from calm_jax.layers.convolution import Downsample, Upsample


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=8)
@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 9), st.integers(2, 12))
def test_nearest_is_the_brute_force_minimum(seed, n, d, k):
    z, e = _normal(seed, n, d), _normal(seed + 1, k, d)
    square = ((z[:, None].astype(float) - e[None]) ** 2).sum(-1)
    assert_allclose(quantizer.distances(z, e), square, rtol=1e-4, atol=1e-4)
    found = np.asarray(quantizer.nearest(z, e))
    assert_allclose(square[np.arange(n), found], square.min(1), rtol=1e-4, atol=1e-4)


def test_nothing_of_size_tokens_times_codes_times_width():
    n, k, d = 64, 32, 16
    for f in (quantizer.nearest, quantizer.distances):
        jaxpr = jax.make_jaxpr(f)(jnp.zeros((n, d)), jnp.zeros((k, d)))
        sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
        assert max(sizes) <= max(n * k, k * d, n * d)


def test_neighbours_leave_out_the_code_itself():
    e = jnp.asarray([[0.0], [1.0], [3.0], [7.0]])
    assert_array_equal(quantizer.neighbours(e, 2), [[1, 2], [0, 2], [1, 0], [2, 1]])


def test_gumbel_draw_follows_the_tempered_softmax():
    logits = jnp.asarray([0.0, 1.0, 2.0, -1.0])
    draw = jax.vmap(lambda k: quantizer.gumbel_assignment(logits, jnp.float32(2.0), k)[0])
    mean = draw(jax.random.split(jax.random.key(0), 20_000)).mean(0)
    # Standard error of a frequency of 20,000 draws is below 0.0036.
    assert_allclose(mean, jax.nn.softmax(logits / 2.0), atol=0.015)


def test_cold_draw_is_the_nearest_code_and_its_value_is_one_hot():
    logits = jnp.asarray(_normal(0, 50, 6))
    hard, soft = quantizer.gumbel_assignment(logits, jnp.float32(1e-4), jax.random.key(1))
    assert_array_equal(hard.argmax(-1), logits.argmax(-1))
    assert_allclose(np.sort(hard, -1)[:, -1], 1.0, atol=1e-6)
    assert_allclose(hard.sum(-1), 1.0, atol=1e-6)
    assert_allclose(soft.sum(-1), 1.0, atol=1e-5)


def test_straight_through_gradient_is_that_of_the_soft_assignment():
    logits, value = jnp.asarray(_normal(0, 7)), jnp.asarray(_normal(1, 7))
    key, t = jax.random.key(3), jnp.float32(0.7)
    noise = jax.random.gumbel(key, (7,))
    found = jax.grad(lambda x: quantizer.gumbel_assignment(x, t, key)[0] @ value)(logits)
    p = np.asarray(jax.nn.softmax(logits / t + noise), float)
    expected = p * (value - p @ np.asarray(value)) / 0.7
    assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(found).max() > 1e-3


def test_moving_average_equals_a_loop():
    k, d, decay, eps = 5, 3, 0.9, 1e-5
    rng = np.random.default_rng(0)
    counts, sums = np.ones(k), _normal(0, k, d).astype(float)
    state = (jnp.asarray(counts, jnp.float32), jnp.asarray(sums, jnp.float32))
    for step in range(6):
        z, codes = _normal(step + 1, 4, 6, d), rng.integers(0, k - 1, (4, 6))
        weight = (rng.random((4, 6)) < 0.7).astype(np.float32)
        codebook, *state = quantizer.moving_average(
            *state, z, codes, weight, decay=decay, laplace=eps
        )
        for c in range(k):
            mine = (codes == c) & (weight > 0)
            counts[c] = decay * counts[c] + (1 - decay) * mine.sum()
            sums[c] = decay * sums[c] + (1 - decay) * z[mine].sum(0)
        smooth = (counts + eps) / (counts.sum() + k * eps) * counts.sum()
        assert_allclose(codebook, sums / smooth[:, None], rtol=1e-4, atol=1e-5)
        assert_allclose(state[0], counts, rtol=1e-5)


def test_revival_reseeds_rare_codes_from_real_latents_only():
    k, d = 6, 2
    codebook = jnp.asarray(_normal(0, k, d))
    counts = jnp.asarray([10.0, 0.1, 12.0, 0.0, 9.0, 11.0])
    z, weight = jnp.asarray(_normal(1, 40, d)), jnp.asarray([1.0] * 20 + [0.0] * 20)
    new, new_counts, sums, n = jax.jit(quantizer.revive)(
        codebook, counts, codebook * counts[:, None], z, weight, jax.random.key(0), below=0.2
    )
    rare = np.array([False, True, False, True, False, False])
    assert int(n) == 2
    assert_array_equal(new[~rare], codebook[~rare])
    assert_array_equal(new_counts[~rare], counts[~rare])
    at = [int(np.flatnonzero((np.asarray(z) == row).all(1))[0]) for row in np.asarray(new[rare])]
    assert max(at) < 20 and len(set(at)) == 2
    assert_allclose(new_counts[rare], counts.mean(), rtol=1e-6)
    # The moving average starts at the new place.
    assert_allclose(sums[rare] / new_counts[rare, None], new[rare], rtol=1e-5)


def test_revival_with_fewer_latents_than_codes_repeats_them():
    z = jnp.asarray([[1.0], [2.0], [3.0]])
    new, *_ = jax.jit(quantizer.revive)(
        jnp.zeros((8, 1)), jnp.zeros(8).at[0].set(1.0), jnp.zeros((8, 1)), z,
        jnp.asarray([1.0, 0.0, 1.0]), jax.random.key(0), below=0.2,
    )  # fmt: skip
    assert set(np.asarray(new[1:, 0])) == {1.0, 3.0}


@pytest.mark.parametrize("stride", [2, 4])
def test_strided_convolutions_equal_the_general_ones(stride):
    rngs = nnx.Rngs(0)
    x = jnp.asarray(_normal(0, 3, 8, 5))
    down = Downsample(5, 7, stride, rngs=rngs)
    kernel = down.map.kernel[...].reshape(stride, 5, 7)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert_allclose(down(x), expected, atol=1e-5)
    up = Upsample(5, 7, stride, rngs=rngs)
    kernel = up.map.kernel[...].reshape(5, stride, 7)
    y = np.einsum("btc,cso->btso", x, kernel).reshape(3, 8 * stride, 7)
    assert_allclose(up(x), y, atol=1e-5)
