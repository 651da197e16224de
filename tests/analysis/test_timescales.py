"""Time constants: against closed forms, scipy's fit and processes whose constant is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from calm_jax.analysis.spectrum import autocorrelation
from calm_jax.analysis.timescales import decay_times
from calm_jax.errors import AnalysisError


@settings(deadline=None, max_examples=40)
@given(st.floats(0.15, 3.0), st.floats(0.1, 2.0), st.floats(-0.5, 0.5))
def test_an_exact_decay_is_found(tau, amplitude, offset):
    t = np.arange(1, 41) * 0.1
    found = decay_times(t, (amplitude * np.exp(-t / tau) + offset)[:, None])
    assert found.tau[0] == pytest.approx(tau, rel=2e-3)
    assert found.amplitude[0] == pytest.approx(amplitude, rel=0.02)
    assert found.offset[0] == pytest.approx(offset, abs=0.02 * amplitude)
    assert found.explained[0] > 0.999


def test_a_noisy_decay_is_that_of_scipy():
    rng = np.random.default_rng(0)
    t = np.arange(1, 51) * 0.1
    curves = 0.8 * np.exp(-t[:, None] / np.array([0.4, 0.9, 1.6])) - 0.05
    curves += rng.normal(0, 0.02, curves.shape)
    found = decay_times(t, curves)
    for k in range(3):
        model = lambda x, a, tau, b: a * np.exp(-x / tau) + b  # noqa: E731
        best, _ = curve_fit(model, t, curves[:, k], p0=(1, 1, 0))
        assert found.tau[k] == pytest.approx(best[1], rel=1e-3)


def test_without_an_offset_it_is_scipys_too():
    t = np.arange(1, 17) * 0.1
    curve = 0.7 * np.exp(-t / 0.6) + np.random.default_rng(1).normal(0, 0.01, 16)
    best, _ = curve_fit(lambda x, a, tau: a * np.exp(-x / tau), t, curve, p0=(1, 1))
    found = decay_times(t, curve[:, None], offset=False)
    assert found.tau[0] == pytest.approx(best[1], rel=1e-3)
    assert found.offset[0] == 0


def test_the_constant_of_an_autoregressive_process():
    rng = np.random.default_rng(0)
    tau, rate = 0.8, 10.0
    a = np.exp(-1 / rate / tau)
    x = np.zeros((40_000, 2))
    noise = rng.normal(size=x.shape)
    for t in range(1, len(x)):
        x[t] = a * x[t - 1] + noise[t]
    x += rng.normal(0, 0.5, x.shape)  # noise of single frames stands at lag 0 alone
    curves = autocorrelation(x, 40)[1:]
    found = decay_times(np.arange(1, 41) / rate, curves)
    np.testing.assert_allclose(found.tau, tau, rtol=0.1)


@pytest.mark.parametrize(
    "curve",
    [np.zeros(20), np.linspace(0, 1, 20), np.full(20, np.nan), -np.exp(-np.arange(20) / 4.0)],
    ids=["flat", "rising", "unknown", "negative"],
)
def test_a_curve_that_does_not_decay_has_no_constant(curve):
    found = decay_times(np.arange(1, 21) * 0.1, curve[:, None])
    assert np.isnan(found.tau[0])
    assert not found.known[0]


def test_noise_alone_has_no_constant():
    noise = np.random.default_rng(0).normal(size=(30, 200))
    assert decay_times(np.arange(1, 31) * 0.1, noise).known.mean() < 0.05


def test_too_few_times_are_refused():
    with pytest.raises(AnalysisError, match="at least 4 times"):
        decay_times(np.arange(3.0), np.ones((3, 2)))
