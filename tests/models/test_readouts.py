"""The read-out of frames: what it reads, and how its linear path goes from map to map."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from calm_jax.baselines.windows import roughness
from calm_jax.models.forecaster import frames_ahead
from calm_jax.models.readouts import FrameReadout, between, recent_frames
from calm_jax.models.readouts import roughness as roughness_of_known

PATCH, B, T, N = 4, 2, 5, 3


def test_recent_frames_and_frames_ahead_against_loops():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(B, T, N, PATCH)).astype(np.float32)
    mask = rng.random(values.shape) < 0.8
    frames = values.swapaxes(1, 2).reshape(B, N, -1)
    seen = mask.swapaxes(1, 2).reshape(B, N, -1)
    recent, known = recent_frames(jnp.asarray(values), 12)
    ahead, valid = frames_ahead(jnp.asarray(values), jnp.asarray(mask), 8)
    assert recent.shape == (B, T, N, 12) and ahead.shape == valid.shape == (B, T, N, 8)
    for t in range(T):
        end = (t + 1) * PATCH
        for i in range(12):
            frame = end - 12 + i
            assert bool(known[t, i]) == (frame >= 0)
            expected = frames[..., frame] if frame >= 0 else 0.0 * frames[..., 0]
            np.testing.assert_array_equal(recent[:, t, :, i], expected)
        for i in range(8):
            frame = end + i
            inside = frame < T * PATCH
            np.testing.assert_array_equal(
                valid[:, t, :, i], seen[..., frame] if inside else np.zeros((B, N), bool)
            )
            if inside:
                np.testing.assert_array_equal(ahead[:, t, :, i], frames[..., frame])


def test_roughness_is_of_the_frames_that_are_known():
    rng = np.random.default_rng(4)
    frames = np.cumsum(rng.normal(size=(B, T, N, 12)), -1).astype(np.float32)
    frames[0, 0, 0] = 3.0  # constant
    for first in (0, 5, 11):
        known = np.tile(np.arange(12) >= first, (T, 1))
        given = np.where(known[:, None], frames, 0)
        found = roughness_of_known(jnp.asarray(given), jnp.asarray(known))
        wanted = 0 * found
        if first < 11:  # of a single frame there is no change
            whole = np.moveaxis(frames[..., first:], -1, 2).reshape(B * T, 12 - first, N)
            wanted = roughness(whole).reshape(B, T, N)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
        assert not found[0, 0, 0]


@given(st.lists(st.floats(-1, 4, width=32), min_size=1, max_size=6))
def test_between_knots(x):
    knots = (0.05, 0.3, 1.0, 2.0)
    phi = np.asarray(between(jnp.asarray(x, jnp.float32), knots))
    assert phi.shape == (len(x), 4) and (phi >= 0).all() and ((phi > 0).sum(1) <= 2).all()
    np.testing.assert_allclose(phi.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(phi @ np.array(knots), np.clip(x, 0.05, 2.0), rtol=1e-4)


def test_a_compiled_readout_equals_the_plain_one():
    """At a size where XLA (jax 0.10.2, CPU) compiled sums of small products to garbage."""
    read = FrameReadout(
        8, 16, patch=4, anchor=True, linear_context=48, level=True, knots=(0.05, 0.3, 1.0, 2.0),
        dtype=jnp.float32, rngs=nnx.Rngs(0),
    )  # fmt: skip
    rng = np.random.default_rng(8)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    read = jax.tree.map(lambda a: draw(*a.shape), read)
    x, known = draw(13, 1, 141, 48), jnp.ones((1, 48), bool)
    h = draw(13, 1, 141, 8)
    found = jax.jit(lambda m, *a: m(*a))(read, h, x, known)
    np.testing.assert_allclose(found, read(h, x, known), rtol=1e-4, atol=1e-3)
