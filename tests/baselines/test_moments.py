"""Second moments of windows against windows laid out."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.baselines import moments


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.integers(0, 90), st.integers(1, 5), st.floats(0, 0.05),
    st.integers(0, 9),
)  # fmt: skip
def test_moments_are_those_of_the_windows(size, more, neurons, missing, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(2.0, 1.0, (size + more, neurons)).astype(np.float32)
    mask = rng.random(z.shape) >= missing
    view = np.lib.stride_tricks.sliding_window_view
    v = view(z, size, 0)[view(mask, size, 0).all(-1)].astype(np.float64)
    v = np.concatenate([v, np.ones((len(v), 1))], 1)
    found = moments.of_windows(z, mask, size)
    np.testing.assert_allclose(found, v.T @ v, rtol=1e-5, atol=1e-5 * max(len(v), 1))


def test_many_blocks_of_frames(monkeypatch):
    z = np.random.default_rng(0).normal(size=(700, 2)).astype(np.float32)
    mask = np.ones(z.shape, bool)
    whole = moments.of_windows(z, mask, 6)
    monkeypatch.setattr(moments, "_BLOCKS", 3)
    np.testing.assert_allclose(moments.of_windows(z, mask, 6), whole, rtol=1e-6)
