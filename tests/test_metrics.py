"""Metrics against scipy, scikit-learn and loops; masks drop exactly what is masked."""

import jax
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from calm_jax import metrics

ORACLES = {
    "pearson": lambda x, y: scipy.stats.pearsonr(x, y)[0],
    "mse": lambda x, y: sklearn.metrics.mean_squared_error(y, x),
    "mae": lambda x, y: sklearn.metrics.mean_absolute_error(y, x),
    "r2": lambda x, y: sklearn.metrics.r2_score(y, x),
}


def _data(seed=0, shape=(20, 4)):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(2, 1, (2, *shape)).astype(np.float32)
    return x, y + 0.5 * x, rng.random(shape) < 0.7


@pytest.mark.parametrize("name", ORACLES)
def test_masked_metrics_equal_the_loop(name):
    x, y, mask = _data()
    f = jax.jit(getattr(metrics, name))
    for m in (mask, None):
        keep = np.ones_like(mask) if m is None else m
        loop = [ORACLES[name](x[k, n], y[k, n]) for n in range(4) for k in [keep[:, n]]]
        assert_allclose(f(x, y, m), loop, rtol=1e-3, atol=1e-5)
    dirty = np.where(mask, x, 1e9), np.where(mask, y, -1e9)
    assert_allclose(f(*dirty, mask), f(x, y, mask), rtol=1e-5)


@pytest.mark.parametrize("name", ORACLES)
def test_per_step_versions_are_the_metric_of_each_step(name):
    x, y, mask = _data(1, (12, 5, 3))  # windows, steps, neurons
    f = getattr(metrics, name)
    loop = [f(x[:, h], y[:, h], mask[:, h]) for h in range(5)]
    assert_allclose(f(x, y, mask, axis=0), loop, rtol=1e-5)


def test_constant_traces():
    x, y, _ = _data()
    x, y = x.copy(), y.copy()
    x[:, 0] = 5  # constant forecast: 0
    y[:, 1] = 0.1  # constant target: undefined
    r = np.asarray(metrics.pearson(x, y))
    assert r[0] == 0 and np.isnan(r[1]) and np.isfinite(r[2:]).all()
    assert np.isnan(metrics.r2(x, y)[1])
    assert np.isnan(metrics.pearson(x, y, np.arange(20)[:, None] < 1)).all()
    assert_allclose(metrics.average(r), r[[0, 2, 3]].mean(), rtol=1e-6)
    assert np.isnan(metrics.average(np.full(3, np.nan)))


def test_skill():
    assert metrics.skill(1.0, 4.0) == 0.75 and metrics.skill(4.0, 4.0) == 0


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 16), st.floats(0, 1), st.integers(0, 99))
def test_code_usage(used, keep, seed):
    rng = np.random.default_rng(seed)
    size = 16  # one shape, one compilation
    codes, mask = rng.integers(0, used, 80), rng.random(80) < keep
    share = np.asarray(metrics.usage(codes, size, mask))
    counts = np.bincount(codes[mask], minlength=size)
    assert_allclose(share, counts / max(mask.sum(), 1), rtol=1e-5)
    if mask.any():
        entropy = scipy.stats.entropy(counts, base=2)
        assert_allclose(metrics.perplexity(share), 2**entropy, rtol=1e-4)
    assert metrics.codes_used(share) == (counts > 0).sum()


def test_coverage_of_calibrated_quantiles():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(4000, 3))
    levels = np.array([0.1, 0.5, 0.9])
    q = np.broadcast_to(scipy.stats.norm.ppf(levels)[:, None, None], (3, *y.shape))
    assert_allclose(metrics.coverage(q, y), levels, atol=0.02)
    assert metrics.coverage(q, y, axis=0).shape == (3, 3)
    mask = y < 0
    assert_allclose(metrics.coverage(q, y, mask)[1], 1)


def test_crps_of_a_normal_distribution():
    # Closed form of N(0, 1): y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi)
    y = np.array([-1.5, 0.0, 0.7])
    n = scipy.stats.norm
    want = y * (2 * n.cdf(y) - 1) + 2 * n.pdf(y) - 1 / np.sqrt(np.pi)
    levels = (np.arange(999) + 0.5) / 999
    q = np.broadcast_to(n.ppf(levels)[:, None], (999, 3))
    assert_allclose(metrics.crps_quantiles(q, levels, y), want, atol=2e-3)
    assert_allclose(metrics.crps_samples(q, y), want, atol=3e-3)


def test_crps_of_samples_equals_the_double_sum():
    x, y = np.random.default_rng(0).normal(size=(7, 5)), np.zeros(5)
    pairs = np.abs(x[:, None] - x[None]).sum((0, 1)) / (7 * 6)
    assert_allclose(metrics.crps_samples(x, y), np.abs(x).mean(0) - pairs / 2, rtol=1e-4, atol=1e-5)
    assert_allclose(metrics.crps_samples(x[:1], y), np.abs(x[0]), rtol=1e-5)
    assert_allclose(metrics.crps_quantiles(x[:1], [0.5], y), np.abs(x[0]), rtol=1e-5)
