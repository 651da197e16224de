"""Initial weights, normalisation and types of the basic layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.layers.basic import layer_norm, normal, normal_start, truncated_normal

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)


@settings(max_examples=15)
@given(SHAPES, st.integers(0, 2**31 - 1))
def test_drawn_in_few_sizes_the_numbers_are_those_of_jax(shape, seed):
    key, start = jax.random.key(seed), jax.nn.initializers
    for ours, theirs in (
        (truncated_normal(0.02), start.truncated_normal(0.02)),
        (normal_start(0.3), start.normal(0.3)),
    ):
        np.testing.assert_allclose(
            ours(key, shape, jnp.float32), theirs(key, shape, jnp.float32), rtol=1e-5
        )  # programs of other sizes round the last bit in other ways
    abstract = jax.eval_shape(lambda k: normal(k, shape), key)
    assert abstract.shape == shape and abstract.dtype == jnp.float32


@pytest.mark.parametrize("size", [1, 2**12, 2**12 + 1, 2**20 + 1])
def test_draws_at_the_edges_of_the_sizes(size):
    key = jax.random.key(1)
    np.testing.assert_allclose(normal(key, (size,)), jax.random.normal(key, (size,)), rtol=1e-5)


def test_normalisation_in_bfloat16_keeps_its_type_under_strict_promotion():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (5, 16)), jnp.float32)
    half = layer_norm(16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    whole = layer_norm(16, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(half.astype(jnp.float32), whole, atol=0.03)
