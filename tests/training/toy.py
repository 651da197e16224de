"""A small Task: a linear map from noisy data, with every feature the loop offers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.config import Training

TRAINING = Training(
    batch=8,
    learning_rate=1e-2,
    log_every=5,
    eval_every=10,
    ema=0.9,
    checkpoint_seconds=1e9,
)


class Toy:
    """y = x W; `extra` counts the steps and holds a value that an event changes."""

    name = "toy"

    def __init__(self, rows=8, seed=0, frozen=(), noise=0.1):
        self.rows, self.seed, self.frozen, self.noise = rows, seed, frozen, noise
        self.truth = np.random.default_rng(7).normal(size=(4, 3)).astype(np.float32)
        self.traces = 0

    def init(self, key):
        params = {
            "w": jax.random.normal(key, (4, 3)),
            "b": jnp.zeros(3),
            "fixed": jnp.ones(2),
        }
        return params, {"count": jnp.int32(0), "shift": jnp.zeros(3)}

    def loss(self, params, extra, batch, key, step):
        self.traces += 1
        noise = self.noise * jax.random.normal(key, batch["y"].shape)
        error = batch["x"] @ params["w"] + params["b"] + noise - batch["y"] - extra["shift"]
        loss = jnp.mean(error**2) + 0.0 * params["fixed"].sum()
        return loss, ({**extra, "count": extra["count"] + 1}, {"mae": jnp.abs(error).mean()})

    def batch(self, step, part=0, parts=1):
        x = np.random.default_rng((self.seed, step)).normal(size=(self.rows, 4))
        x = x.astype(np.float32)[part * self.rows // parts : (part + 1) * self.rows // parts]
        return {"x": x, "y": x @ self.truth}

    def event(self, step):
        if step != 7:
            return None
        return lambda params, extra: (params, {**extra, "shift": extra["shift"] + 0.25})

    def evaluate(self, params, extra):
        return {"loss": float(jnp.mean((params["w"] - self.truth) ** 2))}

    def decays(self, path):
        return path == "w"

    def trains(self, path):
        return path not in self.frozen
