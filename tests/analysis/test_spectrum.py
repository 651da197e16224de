"""Autocorrelation and spectrum against closed forms of AR(1), scipy, and Parseval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal

from calm_jax.analysis import spectrum
from calm_jax.errors import AnalysisError


def ar1(phi: float, t: int, n: int = 1, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(t + 200, n))
    return signal.lfilter([1], [1, -phi], noise, axis=0)[200:]


@pytest.mark.parametrize("phi", [0.9, 0.3, -0.5])
def test_autocorrelation_of_an_ar1_process(phi):
    found = spectrum.autocorrelation(ar1(phi, 60_000, 4), 8).mean(1)
    np.testing.assert_allclose(found, phi ** np.arange(9), atol=0.02)


def pairs_by_hand(x, known, ranges, k):
    """The definition, pair by pair."""
    inside = np.zeros(len(x), bool)
    for a, b in ranges:
        inside[a:b] = True
    use = known & inside
    d = x - x[use].mean()
    products = [d[t] * d[t + k] for a, b in ranges for t in range(a, b - k)
                if use[t] and use[t + k]]  # fmt: skip
    return np.mean(products) / np.mean(d[use] ** 2)


@given(st.integers(0, 10**6))
def test_no_pair_crosses_a_range_or_an_unknown_frame(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 2)) + 3
    known = rng.random((60, 2)) > 0.2
    ranges = np.array([[0, 17], [17, 30], [41, 60]])
    found = spectrum.autocorrelation(np.where(known, x, np.nan), 5, ranges=ranges)
    for k in range(6):
        for i in range(2):
            by_hand = pairs_by_hand(x[:, i], known[:, i], ranges, k)
            assert found[k, i] == pytest.approx(by_hand, abs=1e-10)


def test_constant_traces_have_no_autocorrelation():
    x = np.stack([np.full(50, 0.1), np.arange(50.0)], 1)
    found = spectrum.autocorrelation(x, 3)
    assert np.isnan(found[:, 0]).all() and found[0, 1] == pytest.approx(1)
    with pytest.raises(AnalysisError, match="lags do not fit"):
        spectrum.autocorrelation(x, 50)


@pytest.mark.parametrize("window", ["hann", "boxcar"])
def test_spectrum_equals_welch_of_scipy(window):
    x = ar1(0.8, 1000, 3)
    found = spectrum.power_spectrum(x, 20.0, segment=128, window=window)
    f, power = signal.welch(x, 20.0, window=window, nperseg=128, axis=0)
    np.testing.assert_allclose(found.frequency, f)
    np.testing.assert_allclose(found.power, power, rtol=1e-9, atol=1e-14)


@given(st.integers(0, 10**6), st.floats(0.5, 100), st.integers(2, 50).map(lambda n: 2 * n))
def test_parseval_the_density_integrates_to_the_variance(seed, rate, length):
    x = np.random.default_rng(seed).normal(size=(length, 2)) + 4
    found = spectrum.power_spectrum(x, rate, segment=length, window="boxcar")
    width = rate / length
    np.testing.assert_allclose(found.power.sum(0) * width, x.var(0), rtol=1e-9)


def test_spectrum_of_an_ar1_process():
    rate, phi = 10.0, 0.7
    found = spectrum.power_spectrum(ar1(phi, 40_000, 3), rate, segment=256)
    f = found.frequency[2:-1]
    closed = 2 / rate / np.abs(1 - phi * np.exp(-2j * np.pi * f / rate)) ** 2
    np.testing.assert_allclose(np.mean(found.power[2:-1].mean(1) / closed), 1, atol=0.02)
    slow = spectrum.low_frequency_share(found, 1.0)
    assert (slow > 0.4).all()


def test_segments_stay_within_trials_and_leave_out_gaps():
    trial = np.sin(2 * np.pi * np.arange(50) / 10)  # 1 Hz at 10 frames per second
    x = np.concatenate([trial, trial + 100, trial - 50])[:, None] * [1.0, 1.0]
    x[60, 1] = np.nan
    found = spectrum.power_spectrum(x, 10.0, ranges=[(0, 50), (50, 100), (100, 150)])
    assert found.length == 50 and found.segments.tolist() == [3, 2]
    np.testing.assert_allclose(found.power[:, 0], found.power[:, 1], atol=1e-9)
    assert found.frequency[found.power[:, 0].argmax()] == pytest.approx(1.0)
    with pytest.raises(AnalysisError, match="segments do not fit"):
        spectrum.power_spectrum(x, 10.0, ranges=[(0, 50)], segment=51)
