"""`benchmarks.simulation_limit`: the simulator run on from its state, and the filter's update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import simulation_limit as limit
from calm_jax.config import Simulation
from calm_jax.simulate.population import simulate

SMALL = Simulation(sessions=1, trials=3, neurons=12, frames=40, burn_in=20)


def test_the_hidden_state_goes_on_as_the_simulator_did():
    sim = simulate(SMALL, 0)
    decay = np.exp(-SMALL.dt / np.array([SMALL.tau_decay, SMALL.tau_rise]))
    for trial, frame in ((0, 0), (2, 30)):
        now, then = (limit.true_state(sim, trial, f) for f in (frame, frame + 1))
        np.testing.assert_allclose(limit.clean(now, SMALL), sim.clean[trial, frame], atol=1e-5)
        for k, name in enumerate(("slow", "fast")):
            made = decay[k] * getattr(now, name) + sim.spikes[trial, frame + 1]
            np.testing.assert_allclose(getattr(then, name), made, atol=2e-4)


def test_one_frame_has_the_mean_of_many_simulations():
    """Without spikes to draw the state is exact; counts have the mean of their rate."""
    quiet = dataclasses.replace(SMALL, process_noise=0.0)
    sim = simulate(quiet, 0)
    x = limit.Members(*(jnp.tile(v, (4000, 1)) for v in limit.true_state(sim, 1, 10)))
    y = limit.forward(x, jax.random.key(0), jnp.asarray(sim.coupling), quiet)
    np.testing.assert_allclose(y.r[0], sim.state[1, 11], atol=1e-4)
    count = y.slow - x.slow * np.exp(-quiet.dt / quiet.tau_decay)
    expected = (np.tanh(sim.state[1, 11]) + 1) / 2 * quiet.rate_max * quiet.dt
    np.testing.assert_allclose(count.mean(0), expected, atol=0.08)
    np.testing.assert_allclose(count.var(0), expected, atol=0.12)  # Poisson


def test_the_update_is_that_of_kalman():
    """Independent Gaussian traces: posterior mean and variance in closed form."""
    rng, n, m = np.random.default_rng(0), 3, 20_000
    slow = rng.normal(1.0, 0.5, (2, m, n)).astype(np.float32)
    x = limit.Members(jnp.asarray(2 * slow), jnp.asarray(slow), jnp.zeros_like(slow))
    noise, seen = np.array([0.1, 0.5, 2.0]), np.full((2, n), 2.0)
    y = limit.update(x, jnp.asarray(seen), jnp.asarray(noise), jax.random.key(1), SMALL)
    per = limit.clean(limit.Members(1.0, 1.0, 0.0), SMALL)  # trace of one unit of `slow`
    prior, var = per * 1.0, (per * 0.5) ** 2
    gain = var / (var + noise**2)
    got = np.asarray(limit.clean(y, SMALL))
    np.testing.assert_allclose(got.mean(1), np.tile(prior + gain * (2 - prior), (2, 1)), atol=0.02)
    np.testing.assert_allclose(got.var(1), np.tile((1 - gain) * var, (2, 1)), rtol=0.05)
    np.testing.assert_allclose(y.r, 2 * y.slow, atol=1e-3)  # what hangs together moves together
