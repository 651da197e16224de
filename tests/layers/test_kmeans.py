"""k-means: recovers clusters, ignores padding, agrees with a loop."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from calm_jax.layers.kmeans import kmeans, plus_plus


def _blobs(seed, centres, each=50, spread=0.05):
    rng = np.random.default_rng(seed)
    points = np.repeat(centres, each, 0) + spread * rng.normal(size=(len(centres) * each, 2))
    return rng.permutation(points).astype(np.float32)


def test_finds_every_well_separated_cluster():
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10], [5, 20], [30, 5]], float)
    points = _blobs(0, centres)
    for seed in range(3):
        found, counts = kmeans(
            points, jnp.ones(len(points)), jax.random.key(seed), k=6, chunk=64
        )
        order = np.argmin(((np.asarray(found)[:, None] - centres) ** 2).sum(-1), 1)
        assert sorted(order) == list(range(6))
        assert_allclose(found, centres[order], atol=0.05)
        assert_allclose(counts, 50.0)


def test_lloyd_from_the_same_start_equals_a_loop_whatever_the_chunk():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(101, 3)).astype(np.float32)
    weight = (rng.random(101) < 0.8).astype(np.float32)
    key = jax.random.key(2)
    centres = np.asarray(plus_plus(jnp.asarray(points), jnp.asarray(weight), key, k=7), float)
    for _ in range(5):
        own = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
        for k in range(7):
            mine = (own == k) & (weight > 0)
            if mine.any():
                centres[k] = points[mine].mean(0)
    for chunk in (16, 4096):
        found, counts = kmeans(points, weight, key, k=7, iterations=5, chunk=chunk)
        assert_allclose(found, centres, rtol=1e-4, atol=1e-5)
        assert_allclose(counts.sum(), weight.sum())


def test_start_takes_different_points_and_no_padding():
    points = np.concatenate([np.arange(8.0), np.full(20, 1e6)])[:, None].astype(np.float32)
    weight = np.array([1.0] * 8 + [0.0] * 20, np.float32)
    start = plus_plus(jnp.asarray(points), jnp.asarray(weight), jax.random.key(0), k=8)
    assert sorted(np.asarray(start[:, 0])) == list(range(8))


def test_fewer_points_than_centres_stays_finite():
    points = jnp.asarray([[0.0], [1.0]])
    found, counts = kmeans(points, jnp.ones(2), jax.random.key(0), k=5)
    assert set(np.asarray(found[:, 0])) == {0.0, 1.0}
    assert float(counts.sum()) == 2.0
