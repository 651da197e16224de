"""How well the simulated benchmark can be forecast at all, knowing how it was made.

    python -m benchmarks.simulation_limit [--members 100 400] [--windows 40] [--run runs/calm_base]

The simulator (coupling, rates, indicator, noise) is known to both of these, as it is to nobody
who only has the recording:

  filter   an ensemble Kalman filter (Evensen 1994, perturbed observations) reads the 48 frames
           of the context from a stationary start; its members are simulated on and averaged.
           The gain of a frame is that of all windows of a session together: with 200 neurons
           covariances of one ensemble would need many thousands of members. Gaussian updates
           of counts that are Poisson, one gain for all: a better filter may come lower.
  state    the hidden state at the origin is given too: the floor, nothing can be below.

Beside them, on the same windows: copy-last, population ridge, the runs that are named (network
alone), and the mean of their forecasts where there are several. `--members` with nothing
behind it leaves the filter out.
Protocol B, test trials, windows spread evenly over them; MSE in units of training SD.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from calm_jax import compilation, runs
from calm_jax import scored_windows as scored
from calm_jax.baselines import copy_last, population_ridge
from calm_jax.baselines.windows import Forecaster
from calm_jax.config import Forecasting, Simulation
from calm_jax.experiments_loader import load_experiment
from calm_jax.forecasting import CalmForecaster
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.simulate.population import Simulated, kernel_peak, simulate

MOST = 10  # spikes in a frame: at most 1 is expected


class Members(NamedTuple):
    """Ensembles: rate state r and the two recursions of the indicator, (..., M, N) each."""

    r: Array
    slow: Array
    fast: Array


def forward(x: Members, key: Array, coupling: Array, config: Simulation) -> Members:
    """One frame of the simulator (`simulate.population`), all members."""
    h = config.dt / config.substeps / config.tau
    noise_key, spike_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (config.substeps, *x.r.shape))

    def step(r, e):
        drive = config.gain * jnp.tanh(r) @ coupling.T
        return r + h * (drive - r) + config.process_noise * jnp.sqrt(2 * h) * e, None

    r, _ = jax.lax.scan(step, x.r, noise)
    rate = (jnp.tanh(r) + 1) / 2 * config.rate_max * config.dt
    u = jax.random.uniform(spike_key, r.shape)
    term = jnp.exp(-rate)
    total, count = term, jnp.zeros_like(rate)
    for k in range(1, MOST):
        count += (u > total).astype(count.dtype)
        term = term * rate / k
        total += term
    slow = x.slow * np.exp(-config.dt / config.tau_decay) + count
    return Members(r, slow, x.fast * np.exp(-config.dt / config.tau_rise) + count)


def clean(x: Members, config: Simulation) -> Array:
    """(..., M, N) the trace without noise."""
    return (x.slow - x.fast) / kernel_peak(config)


def update(x: Members, seen: Array, noise: Array, key: Array, config: Simulation) -> Members:
    """Ensembles (W, M, N) after a frame (W, N) seen with noise of SD (N,)."""
    h = clean(x, config)
    w, m, n = h.shape
    centred = lambda a: (a - a.mean(1, keepdims=True)).reshape(-1, n)
    free = w * (m - 1)
    cov = centred(h).T @ centred(h) / free + jnp.diag(noise**2)
    miss = seen[:, None] + noise * jax.random.normal(key, h.shape) - h
    pull = jnp.linalg.solve(cov, miss.reshape(-1, n).T).T / free
    return Members(*(a + (pull @ (centred(h).T @ centred(a))).reshape(a.shape) for a in x))


@partial(jax.jit, static_argnames=("config", "horizon", "members"))
def filtered(
    context: Array, coupling: Array, noise: Array, key: Array, *,
    config: Simulation, horizon: int, members: int,
) -> Array:  # fmt: skip
    """(H, W, N) mean forecasts after contexts (T, W, N), in the unit of the recording."""
    start, burn, read, on = jax.random.split(key, 4)
    shape = (context.shape[1], members, context.shape[2])
    x = Members(jax.random.normal(start, shape), jnp.zeros(shape), jnp.zeros(shape))
    go = lambda x, k: (forward(x, k, coupling, config), None)
    x, _ = jax.lax.scan(go, x, jax.random.split(burn, config.burn_in))

    def both(x, given):
        frame, k = given
        a, b = jax.random.split(k)
        return update(forward(x, a, coupling, config), frame, noise, b, config), None

    x, _ = jax.lax.scan(both, x, (context, jax.random.split(read, len(context))))
    return _ahead(x, on, coupling, config, horizon)


@partial(jax.jit, static_argnames=("config", "horizon", "members"))
def known(
    x: Members, coupling: Array, key: Array, *, config: Simulation, horizon: int, members: int
) -> Array:
    """(H, W, N) mean forecasts from true states (W, N) at the last frame of the context."""
    shape = lambda a: (a.shape[0], members, a.shape[1])
    x = Members(*(jnp.broadcast_to(a[:, None], shape(a)) for a in x))
    return _ahead(x, key, coupling, config, horizon)


def _ahead(x: Members, key: Array, coupling: Array, config: Simulation, horizon: int) -> Array:
    def go(x, k):
        x = forward(x, k, coupling, config)
        return x, clean(x, config).mean(-2)

    return jax.lax.scan(go, x, jax.random.split(key, horizon))[1]


def true_state(sim: Simulated, trial: int, frame: int) -> Members:
    """The hidden state at a frame; its recursions follow from two frames and the spikes."""
    c = sim.config
    a, b = np.exp(-c.dt / c.tau_decay), np.exp(-c.dt / c.tau_rise)
    now, then = sim.clean[trial, frame : frame + 2].astype(np.float64) * kernel_peak(c)
    slow = (then - b * now) / (a - b)
    made = (sim.state[trial, frame], slow, slow - now)
    return Members(*(np.asarray(v, np.float32) for v in made))


def batches(
    prepared: Prepared, i: int, s: Forecasting, count: int
) -> Iterator[tuple[tuple[int, int], scored.Batch]]:
    """((trial, frame of the origin), window), `count` of the test windows, evenly spread."""
    plan = scored.plan(prepared, prepared.splits, i, "test", "B", s)
    chosen = np.linspace(0, len(plan.origin) - 1, min(count, len(plan.origin))).round()
    start = prepared.store.sessions[i].trials.start
    for k, batch in enumerate(scored.batches(prepared, i, plan, 1)):
        if k in chosen:
            trial = int(np.searchsorted(start, plan.origin[k], "right")) - 1
            yield (trial, int(plan.origin[k] - start[trial])), batch


def main() -> None:
    """Parses, measures, prints after every session."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--members", type=int, nargs="*", default=[100, 400])
    p.add_argument("--windows", type=int, default=40, help="of a session")
    p.add_argument("--run", type=Path, action="append", default=[])
    p.add_argument("--out", type=Path)
    told = p.parse_args()
    compilation.enable()
    e = load_experiment("calm_base")
    store = open_store(build(e.data))
    made = splits.make_split(store, e.split)
    prepared = Prepared(store, made, preprocess.fit(store, made, e.preprocess))
    s = e.forecasting
    fit = lambda m: m.fit(prepared, made, s.context, s.horizon)
    methods: dict[str, Forecaster] = {
        "copy_last": fit(copy_last), "population_ridge": fit(population_ridge),
    }  # fmt: skip
    for folder in told.run:
        t = runs.load(folder)
        most = max(x.n_neurons for x in store.sessions)
        methods[str(folder)] = CalmForecaster(t.model, t.offsets(), most, mode=s.mode)
    errors: dict[str, list[np.ndarray]] = {}  # name -> by session (W, H, N)
    for i in range(len(store.sessions)):
        places, every = zip(*batches(prepared, i, s, told.windows))
        truth = np.concatenate([b.truth for b in every])
        made_here = {
            name: np.concatenate([f(b.context, i, b.seen, s.horizon) for b in every])
            for name, f in methods.items()
        }
        if len(told.run) > 1:
            made_here["mean of runs"] = np.mean([made_here[str(f)] for f in told.run], axis=0)
        if told.members:
            made_here |= _oracles(e.data.simulation, prepared, i, places, s, told.members)
        for name, y in made_here.items():
            errors.setdefault(name, []).append(np.square(y - truth))
            print(f"session {i}  {name:24s} {errors[name][i].mean():.4f}", flush=True)
    found = {}
    for name, own in errors.items():
        step = np.mean([v.mean((0, 2)) for v in own], axis=0)
        found[name] = {"mse": float(step.mean()), "mse_per_step": step.tolist()}
        print(f"all        {name:24s} {step.mean():.4f}")
    if told.out:
        told.out.write_text(json.dumps(found, indent=1))


def _oracles(
    config: Simulation, prepared: Prepared, i: int, places: tuple, s: Forecasting,
    sizes: list[int],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Name -> (W, H, N) scaled forecasts from (trial, frame of the origin) of each window."""
    sim = simulate(config, i)
    scaled = lambda y: (
        np.moveaxis(np.asarray(y), 1, 0) - prepared.scalers.mean[i]
    ) / prepared.scalers.sd[i]
    noise = jnp.asarray(config.observation_noise * sim.clean.std((0, 1)))
    coupling, key = jnp.asarray(sim.coupling), jax.random.key(i)
    seen = jnp.asarray(np.stack([sim.traces[r, o - s.context : o] for r, o in places], 1))
    how = {"config": config, "horizon": s.horizon}
    out = {
        f"filter, {m} members": scaled(filtered(seen, coupling, noise, key, members=m, **how))
        for m in sizes
    }
    state = Members(*map(np.stack, zip(*(true_state(sim, r, o - 1) for r, o in places))))
    return out | {"state": scaled(known(state, coupling, key, members=max(sizes), **how))}


if __name__ == "__main__":
    main()
