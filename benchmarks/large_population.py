"""Closed-form forecasts of large simulated populations that share factors, beside what knowing
the factors gives.

    python benchmarks/large_population.py --cells 300 1000 3000 --seeds 3

Shared factors (an AR(1) each) drive Poisson events of every cell through an exponential; an
indicator decays exponentially, and noise is added: 20 minutes at 3 Hz. Protocol B on the test
part, MSE of z-scored traces. "knows the factors": the conditional mean of the next frames for one
who is given factors and noiseless traces up to the origin, and every parameter; no forecast from
recordings can do better. Seconds: fitting and forecasting.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from calm_jax import baselines, config
from calm_jax import scored_windows as scored
from calm_jax.baselines import common_factors
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session

KEEP, STEP = 0.9, 0.45  # of a factor: z' = KEEP z + STEP noise
GAIN, LOG_RATE = 0.8, -2.0  # events a frame: exp(GAIN w z + LOG_RATE)
DECAY, SIZE, NOISE = 0.75, 0.3, 0.2  # of the indicator a frame, of an event, SD of the noise
METHODS = ("mean", "copy_last", "population_ridge", "autoregression", "shared_linear",
           "population_change", "common_factors")  # fmt: skip


def simulate(cells: int, frames: int, factors: int, seed: int) -> dict[str, np.ndarray]:
    """traces and noiseless traces (T, N), factors (T, K), weights (K, N)."""
    rng = np.random.default_rng(seed)
    z = np.zeros((frames, factors))
    for t in range(1, frames):
        z[t] = KEEP * z[t - 1] + STEP * rng.normal(size=factors)
    w = rng.normal(size=(factors, cells)) / np.sqrt(factors)
    events = rng.poisson(np.exp(GAIN * z @ w + LOG_RATE))
    clean = np.zeros((frames, cells))
    for t in range(1, frames):
        clean[t] = DECAY * clean[t - 1] + SIZE * events[t]
    traces = clean + NOISE * rng.normal(size=clean.shape)
    return {"traces": traces.astype(np.float32), "clean": clean, "factors": z, "weights": w}


def knowing(made: dict[str, np.ndarray], origin: int, horizon: int) -> np.ndarray:
    """(horizon, N), the conditional mean of the traces given all up to `origin`."""
    z, c, w = made["factors"][origin - 1], made["clean"][origin - 1], made["weights"]
    out = []
    for h in range(1, horizon + 1):
        left = STEP**2 * (1 - KEEP ** (2 * h)) / (1 - KEEP**2)  # variance of a factor by then
        rate = np.exp(GAIN * KEEP**h * z @ w + GAIN**2 * left * (w**2).sum(0) / 2 + LOG_RATE)
        c = DECAY * c + SIZE * rate
        out.append(c)
    return np.stack(out)


def errors(cells: int, frames: int, factors: int, seed: int) -> dict[str, tuple[float, float]]:
    """Method -> (MSE, seconds)."""
    made = simulate(cells, frames, factors, seed)
    store = MemoryStore([Session(made["traces"], rate=3.0, session="simulated")])
    split = splits.make_split(store, config.Split())
    p = Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))
    settings = config.Forecasting()
    plan = scored.plan(p, split, 0, "test", "B", settings)
    mean, sd = p.scalers.mean[0], p.scalers.sd[0]
    batches = list(scored.batches(p, 0, plan, 16))
    out = {}
    for name in METHODS:
        start, found = time.perf_counter(), []
        f = baselines.METHODS[name].fit(p, split, settings.context, settings.horizon)
        for b in batches:
            n = len(b.truth)
            guess = f(b.context, 0, b.seen, settings.horizon)[:n]
            found.append(np.square(guess - b.truth).mean((1, 2)))
        out[name] = float(np.concatenate(found).mean()), time.perf_counter() - start
        if isinstance(f, common_factors.CommonFactors):
            print(f"    {f.chosen[0]} factors of {factors} found", flush=True)
    found = []
    for origin, truth in zip(plan.origin, np.concatenate([b.truth for b in batches])):
        guess = (knowing(made, int(origin), settings.horizon) - mean) / sd
        found.append(np.square(guess - truth).mean())
    out["knows the factors"] = float(np.mean(found)), 0.0
    return out


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("--frames", type=int, default=3600)
    parser.add_argument("--factors", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    known = parser.parse_args()
    for cells in known.cells:
        every = [errors(cells, known.frames, known.factors, s) for s in range(known.seeds)]
        print(f"{cells} cells, {known.factors} factors, {known.seeds} seeds")
        for name in every[0]:
            mse, seconds = np.array([e[name] for e in every]).T
            print(f"  {name:18s} {mse.mean():.4f} +- {mse.std():.4f}  {seconds.mean():6.1f} s")


if __name__ == "__main__":
    main()
