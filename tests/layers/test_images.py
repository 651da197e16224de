"""Convolutions of images in blocks against flax's own, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.layers import images

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _both(layer, x, rows, columns):
    """Outputs and gradients, in blocks and by upsampling and flax's convolution."""
    graph, state = nnx.split(layer)

    def ours(state, x):
        return images.upsampled(nnx.merge(graph, state), x, rows, columns)

    def plain(state, x):
        return nnx.merge(graph, state)(jnp.repeat(jnp.repeat(x, rows, 1), columns, 2))

    def with_gradient(f):
        out = jax.eval_shape(f, state, x)
        g = jax.random.normal(jax.random.key(2), out.shape)
        return f(state, x), jax.grad(lambda s, x: jnp.sum(f(s, x) * g), (0, 1))(state, x)

    return with_gradient(ours), with_gradient(plain)


def _layer(inputs, outputs, size):
    start = nnx.initializers.normal(1.0)
    return nnx.Conv(
        inputs, outputs, (size, size), kernel_init=start, bias_init=start, rngs=nnx.Rngs(0)
    )


@settings(max_examples=12, deadline=None)
@given(
    h=st.integers(1, 6), w=st.integers(1, 6), c=st.integers(1, 4), d=st.integers(1, 3),
    rows=st.sampled_from([1, 2, 3]), columns=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_it_is_the_convolution_of_the_upsampled_image(h, w, c, d, rows, columns):
    x = jax.random.normal(jax.random.key(1), (2, h, w, c))
    ours, plain = _both(_layer(c, d, 3), x, rows, columns)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 16, 4, 1), (4, 8, 1, 4), (8, 8, 40, 2)])
def test_it_is_so_with_blocks_of_several_pixels(shape):
    h, w, c, d = shape
    x = jax.random.normal(jax.random.key(1), (3, h, w, c))
    ours, plain = _both(_layer(c, d, 3), x, 1, 1)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_one_by_one_is_a_map_of_every_pixel():
    layer = _layer(5, 3, 1)
    x = jax.random.normal(jax.random.key(1), (2, 4, 6, 5))
    np.testing.assert_allclose(images.pointwise(layer, x), layer(x), rtol=1e-5, atol=1e-5)


def test_the_type_computed_in_is_that_of_the_layer():
    layer = nnx.Conv(4, 2, (3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    made = jax.eval_shape(lambda x: images.upsampled(layer, x, 2, 2), jnp.zeros((1, 4, 4, 4)))
    assert made.dtype == jnp.bfloat16 and made.shape == (1, 8, 8, 2)
