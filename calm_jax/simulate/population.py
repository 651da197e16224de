"""The simulated benchmark of CalM, eq. 17-18: a chaotic rate network seen through calcium.

    r' = (-r + g J tanh(r) + noise) / tau                                     (eq. 17)
    S_t ~ Poisson((tanh(r_t) + 1) / 2 * lambda_max * dt)
    F = S * K + noise,  K(t) = exp(-t / tau_decay) - exp(-t / tau_rise)       (eq. 18)

K is scaled to a peak of 1; as printed (with tau_r as the slower constant) it would
be negative. Numpy only; a session is a pure function of (config, session index).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from threadpoolctl import threadpool_limits

from calm_jax.config import Simulation
from calm_jax.errors import ConfigError
from calm_jax.recordings.session import Session, Trials


@dataclasses.dataclass(frozen=True, eq=False)
class Simulated:
    """One simulated session with everything that a recording hides. R trials, T frames, N neurons.

    Attributes:
      config: what it was made from.
      session: its index; the random stream is `config.seed + session`.
      traces: (R, T, N) float32, clean trace plus observation noise, arbitrary unit.
      clean: (R, T, N) float32, spikes convolved with the kernel.
      spikes: (R, T, N) uint16, spikes per frame.
      state: (R, T, N) float32, r at the end of each frame.
      coupling: (N, N) float32, J[i, j] is the weight from neuron j to neuron i.
    """

    config: Simulation
    session: int
    traces: np.ndarray
    clean: np.ndarray
    spikes: np.ndarray
    state: np.ndarray
    coupling: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """(R, T, N) float32, firing rates in Hz: (tanh(r) + 1) / 2 * lambda_max."""
        return firing_rate(self.state, self.config)


def firing_rate(state: np.ndarray, config: Simulation) -> np.ndarray:
    """Hz, the rate of neurons in state r: (tanh(r) + 1) / 2 * lambda_max. Any shape."""
    out = np.tanh(state)
    out += 1
    out *= config.rate_max / 2
    return out


def kernel_peak(config: Simulation) -> float:
    """The largest value of exp(-t / tau_decay) - exp(-t / tau_rise), t in continuous time."""
    rise, decay = config.tau_rise, config.tau_decay
    t = np.log(decay / rise) * decay * rise / (decay - rise)
    return float(np.exp(-t / decay) - np.exp(-t / rise))


def kernel(config: Simulation, frames: int) -> np.ndarray:
    """(frames,) float64, K(t) of eq. 18 at t = 0, dt, 2 dt, ...; its continuous peak is 1."""
    t = np.arange(frames) * config.dt
    return (np.exp(-t / config.tau_decay) - np.exp(-t / config.tau_rise)) / kernel_peak(config)


def simulate(config: Simulation, session: int) -> Simulated:
    """Simulates session number `session`: all trials at once, each from its own initial state.

    Trials share the network and differ in initial state, process noise, spikes and
    observation noise. The convolution is exact: K is the difference of two
    exponentials, so two first-order recursions give it without truncation, with the
    spikes of the burn-in still decaying in the first frames. Observation noise is
    `observation_noise` times the SD of each neuron's own clean trace over the session.

    Raises:
      ConfigError: when a field makes no simulation.
    """
    _check(config)
    rng = np.random.default_rng(config.seed + session)
    trials, neurons = config.trials, config.neurons

    coupling = _draw_network(rng, neurons)
    h = config.dt / config.substeps / config.tau  # step in units of tau
    drive = np.ascontiguousarray(coupling.T) * np.float32(config.gain * h)
    keep = np.float32(1 - h)
    noise_scale = np.float32(config.process_noise * np.sqrt(2 * h))
    slow_decay = np.float32(np.exp(-config.dt / config.tau_decay))
    fast_decay = np.float32(np.exp(-config.dt / config.tau_rise))
    scale = np.float32(1 / kernel_peak(config))

    shape = (trials, config.frames, neurons)
    clean, state = np.empty(shape, np.float32), np.empty(shape, np.float32)
    spikes = np.empty(shape, np.uint16)
    r = rng.standard_normal((trials, neurons), np.float32)
    noise, active, current = np.empty_like(r), np.empty_like(r), np.empty_like(r)
    slow, fast = np.zeros_like(r), np.zeros_like(r)
    # The products are small: on a busy machine threads would wait longer than they work.
    with threadpool_limits(1, "blas"):
        for frame in range(-config.burn_in, config.frames):
            for _ in range(config.substeps):
                np.matmul(np.tanh(r, out=active), drive, out=current)
                rng.standard_normal(out=noise, dtype=np.float32)
                noise *= noise_scale
                r *= keep
                r += current
                r += noise
            count = rng.poisson(firing_rate(r, config) * np.float32(config.dt))
            slow *= slow_decay
            slow += count
            fast *= fast_decay
            fast += count
            if frame >= 0:
                state[:, frame], spikes[:, frame] = r, count
                np.subtract(slow, fast, out=clean[:, frame])
    clean *= scale

    sd = clean.std((0, 1), dtype=np.float64).astype(np.float32)
    traces = rng.standard_normal(shape, np.float32)
    traces *= np.float32(config.observation_noise) * sd
    traces += clean
    return Simulated(config, session, traces, clean, spikes, state, coupling)


def network(config: Simulation, session: int) -> np.ndarray:
    """(N, N) float32, the coupling J of a session, without simulating it."""
    _check(config)
    return _draw_network(np.random.default_rng(config.seed + session), config.neurons)


def _draw_network(rng: np.random.Generator, neurons: int) -> np.ndarray:
    """Drawn first and alone: the network of a seed depends on nothing but N."""
    return rng.normal(0, 1 / np.sqrt(neurons), (neurons, neurons)).astype(np.float32)


def to_session(simulated: Simulated) -> Session:
    """The recording as an experimenter would have it: trials end to end, noise included."""
    trials, frames, neurons = simulated.traces.shape
    start = np.arange(trials) * frames
    name = f"sim{simulated.session}"
    return Session(
        traces=simulated.traces.reshape(trials * frames, neurons),
        rate=1.0 / simulated.config.dt,
        trials=Trials(start, start + frames),
        unit="a.u.",
        animal=name,
        session=name,
    )


def _check(config: Simulation) -> None:
    """Raises a ConfigError for values that simulate nothing."""
    bad: list[tuple[str, object]] = []
    for name in ("sessions", "trials", "neurons", "frames", "substeps"):
        bad += [(name, "at least 1")] if getattr(config, name) < 1 else []
    for name in ("dt", "tau", "rate_max", "tau_rise", "tau_decay"):
        value = getattr(config, name)
        bad += [] if 0 < value < float("inf") else [(name, "a positive number")]
    for name in ("burn_in", "process_noise", "observation_noise", "seed"):
        bad += [(name, "0 or more")] if not getattr(config, name) >= 0 else []
    if not bad and config.tau_rise >= config.tau_decay:
        bad.append(("tau_rise", f"less than tau_decay = {config.tau_decay} s"))
    if bad:
        name, expected = bad[0]
        raise ConfigError(
            "this simulates nothing",
            where=f"simulation.{name}",
            found=getattr(config, name),
            expected=expected,
        )
