"""NLinear (Zeng et al. 2023): a linear map of differences from the last value."""

from __future__ import annotations

from typing import Any

from flax import nnx
from jax import Array

from calm_jax.baselines import tuning
from calm_jax.baselines.networks import Given, Sizes, anchored
from calm_jax.baselines.windows import Forecaster
from calm_jax.layers.basic import linear
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

TRAINED = True
GRID = tuple(
    {"learning_rate": rate, "weight_decay": decay} for rate in (1e-2, 1e-3) for decay in (0.0, 1e-1)
)


class NLinear(nnx.Module):
    """y = W (x - x_last) + b + x_last, one map for all neurons of all sessions."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs) -> None:
        self.map = linear(sizes.context, sizes.horizon, bias=True, rngs=rngs)

    def __call__(self, x: Array, given: Given, key: Array | None) -> Array:
        """Shapes: x (B, C, N) -> (B, H, N)."""
        x, last = anchored(x, True)
        return self.map(x.swapaxes(1, 2)).swapaxes(1, 2) + last


def fit(prepared: Prepared, splits: Splits, context: int, horizon: int, **kw: Any) -> Forecaster:
    """Tuned and trained; keywords as for `tuning.fit`."""
    return tuning.fit(NLinear, GRID, prepared, splits, context, horizon, **kw)
