"""The simulator against closed forms: kernel, dynamics, Poisson rates, shot-noise spectrum."""

import dataclasses

import numpy as np
import pytest

from calm_jax.config import Simulation
from calm_jax.errors import ConfigError
from calm_jax.simulate.population import kernel, simulate, to_session

SMALL = Simulation(sessions=2, trials=12, neurons=15, frames=40, burn_in=10)


def test_kernel_peaks_at_one_and_is_the_difference_of_two_exponentials():
    fine = kernel(Simulation(dt=1e-4), 20_000)
    assert fine[0] == 0
    np.testing.assert_allclose(fine.max(), 1, atol=1e-7)
    # d/dt = 0 at log(decay / rise) / (1 / rise - 1 / decay) = log(10) / 9 s
    assert fine.argmax() * 1e-4 == pytest.approx(np.log(10) / 9, abs=1e-4)
    assert (fine[1:] > 0).all()
    # Long after the rise it decays by e per second.
    np.testing.assert_allclose(fine[19_000] / fine[9_000], np.exp(-1), rtol=1e-3)


def test_clean_trace_is_the_convolution_of_the_spikes_with_the_kernel():
    x = simulate(dataclasses.replace(SMALL, burn_in=0), 0)
    k = kernel(SMALL, SMALL.frames)
    for trial, neuron in [(0, 0), (3, 7), (11, 14)]:
        direct = np.convolve(x.spikes[trial, :, neuron], k)[: SMALL.frames]
        np.testing.assert_allclose(x.clean[trial, :, neuron], direct, atol=1e-5)


def test_noiseless_dynamics_follow_eq_17():
    config = dataclasses.replace(SMALL, process_noise=0.0)
    x = simulate(config, 0)
    J = x.coupling.astype(np.float64)
    h = config.dt / config.substeps
    r = x.state[:, 20].astype(np.float64)
    for _ in range(config.substeps):
        r = r + h / config.tau * (-r + config.gain * np.einsum("ij,bj->bi", J, np.tanh(r)))
    np.testing.assert_allclose(x.state[:, 21], r, atol=1e-5)


def test_uncoupled_states_are_an_autoregressive_process_of_known_variance():
    config = Simulation(trials=200, neurons=50, frames=30, gain=0.0)
    r = simulate(config, 0).state.astype(np.float64)
    step = config.dt / config.substeps / config.tau
    variance = config.process_noise**2 * 2 * step / (1 - (1 - step) ** 2)
    assert r.var() == pytest.approx(variance, rel=0.02)
    lag = (r[:, 1:] * r[:, :-1]).mean() / r.var()
    assert lag == pytest.approx((1 - step) ** config.substeps, abs=0.01)


def test_spikes_are_poisson_at_the_clean_rates():
    config = dataclasses.replace(SMALL, trials=100, neurons=40)
    x = simulate(config, 1)
    expected = x.rates.astype(np.float64) * config.dt
    assert (x.rates >= 0).all() and (x.rates <= config.rate_max).all()
    residual = x.spikes - expected
    z = residual.sum() / np.sqrt(expected.sum())
    assert abs(z) < 4
    # Variance equals mean, frame by frame; and no memory beyond the rate.
    keep = expected > 0.05
    assert (residual[keep] ** 2 / expected[keep]).mean() == pytest.approx(1, abs=0.02)
    both = residual[:, 1:] * residual[:, :-1] / np.sqrt(expected[:, 1:] * expected[:, :-1])
    assert abs(both[keep[:, 1:] & keep[:, :-1]].mean()) < 0.02


def test_autocovariance_and_spectrum_of_uncoupled_traces_are_those_of_shot_noise():
    # Without coupling and noise r decays to 0: every neuron fires at lambda_max / 2.
    config = Simulation(
        trials=150, neurons=40, frames=64, burn_in=120, gain=0.0, process_noise=0.0
    )
    x = simulate(config, 0).clean.astype(np.float64)
    k = kernel(config, 400)
    mean = config.rate_max / 2 * config.dt
    assert x.mean() == pytest.approx(mean * k.sum(), rel=0.01)
    centred = x - mean * k.sum()
    frames = config.frames
    covariance = np.array([mean * (k[: k.size - lag] * k[lag:]).sum() for lag in range(frames)])
    for lag in (0, 1, 2, 5, 10, 20):
        measured = (centred[:, lag:] * centred[:, : frames - lag]).mean()
        assert measured == pytest.approx(covariance[lag], abs=0.03 * covariance[0])
    # Expected periodogram of a finite stretch: the tapered sum of the autocovariances.
    power = (np.abs(np.fft.rfft(centred, axis=1)) ** 2).mean((0, 2)) / frames
    lags = np.arange(-frames + 1, frames)
    taper = (1 - np.abs(lags) / frames) * covariance[np.abs(lags)]
    f = np.arange(frames // 2 + 1) / frames
    expected = (taper * np.cos(2 * np.pi * f[:, None] * lags)).sum(1)
    np.testing.assert_allclose(power, expected, rtol=0.08)


def test_observation_noise_is_a_tenth_of_each_neurons_own_sd():
    x = simulate(dataclasses.replace(SMALL, trials=100), 0)
    noise = (x.traces - x.clean).astype(np.float64)
    ratio = noise.std((0, 1)) / x.clean.std((0, 1))
    np.testing.assert_allclose(ratio, 0.1, rtol=0.05)
    assert abs(noise.mean() / noise.std()) < 4 / np.sqrt(noise.size)


def test_coupling_has_variance_one_over_n():
    x = simulate(Simulation(trials=1, frames=1, burn_in=0), 0)
    assert x.coupling.var() * 200 == pytest.approx(1, abs=0.03)
    assert abs(x.coupling.mean()) < 4 / 200 / np.sqrt(200)


def test_a_session_is_a_function_of_seed_plus_index():
    a, b = simulate(SMALL, 1), simulate(SMALL, 1)
    np.testing.assert_array_equal(a.traces, b.traces)
    c = simulate(dataclasses.replace(SMALL, seed=1), 0)
    np.testing.assert_array_equal(a.traces, c.traces)
    assert not np.array_equal(a.traces, simulate(SMALL, 0).traces)


def test_to_session_lays_trials_end_to_end():
    x = simulate(SMALL, 1)
    s = to_session(x)
    assert (s.session, s.animal, s.unit, s.rate) == ("sim1", "sim1", "a.u.", 10.0)
    assert s.traces.shape == (12 * 40, 15) and len(s.trials) == 12
    a, b = s.trials.start[5], s.trials.stop[5]
    np.testing.assert_array_equal(s.traces[a:b], x.traces[5])


@pytest.mark.parametrize(
    ("field", "value"),
    [("neurons", 0), ("dt", 0.0), ("tau", -1.0), ("tau_rise", 2.0), ("burn_in", -1),
     ("rate_max", float("nan")), ("frames", 0)],
)  # fmt: skip
def test_impossible_simulations_are_refused_by_the_name_of_the_field(field, value):
    with pytest.raises(ConfigError, match=rf"simulation\.{field}: .*found {value}"):
        simulate(dataclasses.replace(SMALL, **{field: value}), 0)
