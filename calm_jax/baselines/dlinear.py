"""DLinear (Zeng et al. 2023): trend and remainder, a linear map of each."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from calm_jax.baselines import tuning
from calm_jax.baselines.networks import Given, Sizes
from calm_jax.baselines.windows import Forecaster
from calm_jax.layers.basic import linear
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

TRAINED = True
# 25 frames are published; calcium decays faster than that at most frame rates.
GRID = tuple(
    {"learning_rate": rate, "weight_decay": 0.0, "kernel": kernel}
    for rate in (1e-2, 1e-3)
    for kernel in (25, 9)
)


def moving_average(length: int, kernel: int) -> np.ndarray:
    """(length, length) matrix M, trend = M x: centred means, the ends held.

    x is continued by (kernel - 1) // 2 copies of its first value in front and by the
    rest of its last value behind, as published.
    """
    front = (kernel - 1) // 2
    rows = np.arange(length)[:, None] + np.arange(kernel)[None] - front
    out = np.zeros((length, length), np.float32)
    np.add.at(out, (np.arange(length)[:, None], rows.clip(0, length - 1)), 1 / kernel)
    return out


class DLinear(nnx.Module):
    """y = W_t M x + W_r (x - M x) + b, one pair of maps for all neurons of all sessions."""

    def __init__(self, sizes: Sizes, *, kernel: int = 25, rngs: nnx.Rngs) -> None:
        # Initialised as published: each map starts as the mean of the context.
        make = lambda: linear(sizes.context, sizes.horizon, bias=True, rngs=rngs)  # noqa: E731
        self.trend, self.rest = make(), make()
        for part in (self.trend, self.rest):
            part.kernel[...] = jnp.full_like(part.kernel[...], 1 / sizes.context)
        self.kernel = kernel

    def __call__(self, x: Array, given: Given, key: Array | None) -> Array:
        """Shapes: x (B, C, N) -> (B, H, N)."""
        x = x.swapaxes(1, 2)
        trend = x @ jnp.asarray(moving_average(x.shape[-1], self.kernel).T)
        return (self.trend(trend) + self.rest(x - trend)).swapaxes(1, 2)


def fit(prepared: Prepared, splits: Splits, context: int, horizon: int, **kw: Any) -> Forecaster:
    """Tuned and trained; keywords as for `tuning.fit`."""
    return tuning.fit(DLinear, GRID, prepared, splits, context, horizon, **kw)
