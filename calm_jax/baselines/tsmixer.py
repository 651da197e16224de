"""TSMixer (Chen et al. 2023): perceptrons along time and along neurons in turn.

One model per session, because its weights belong to the neurons of one population.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from calm_jax.baselines import tuning
from calm_jax.baselines.networks import Given, Sizes, anchored
from calm_jax.baselines.windows import Forecaster
from calm_jax.layers.basic import dropout, linear, split_key
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

TRAINED = True
GRID = tuple(
    {"learning_rate": rate, "weight_decay": 1e-2, "dropout": drop, "anchor": anchor}
    for rate, drop in ((1e-3, 0.1), (3e-3, 0.4))
    for anchor in (True, False)
)


def normalised(x: Array, real: Array) -> Array:
    """Zero mean and unit variance over time and the real neurons of each window.

    Shapes: x (B, C, N), real (B, N) -> (B, C, N), 0 in the padding.
    """
    real = real[:, None]
    n = x.shape[1] * jnp.maximum(real.sum((1, 2), keepdims=True), 1).astype(x.dtype)
    d = jnp.where(real, x - jnp.where(real, x, 0).sum((1, 2), keepdims=True) / n, 0)
    return d * jax.lax.rsqrt(jnp.square(d).sum((1, 2), keepdims=True) / n + 1e-5)


class Block(nnx.Module):
    """x + relu(W_t LN(x)) along time, then + W_2 relu(W_1 LN(x)) along neurons.

    Shapes: (B, C, N) -> the same. The normalisation is over time and neurons, with a
    scale and a shift for each of them.
    """

    def __init__(
        self, frames: int, neurons: int, hidden: int, rate: float, *, rngs: nnx.Rngs
    ) -> None:
        make = lambda i, o: linear(i, o, bias=True, scale=i**-0.5, rngs=rngs)  # noqa: E731
        self.time, self.up, self.down = (
            make(frames, frames),
            make(neurons, hidden),
            make(hidden, neurons),
        )
        self.scale = nnx.Param(jnp.ones((2, frames, neurons)))
        self.shift = nnx.Param(jnp.zeros((2, frames, neurons)))
        self.rate = rate

    def __call__(self, x: Array, real: Array, key: Array | None = None) -> Array:
        keys = split_key(key, 3)
        scale, shift = self.scale[...], self.shift[...]
        h = normalised(x, real) * scale[0] + shift[0]
        h = jax.nn.relu(self.time(h.swapaxes(1, 2))).swapaxes(1, 2)
        x = x + dropout(h, self.rate, keys[0])
        h = normalised(x, real) * scale[1] + shift[1]
        h = dropout(jax.nn.relu(self.up(jnp.where(real[:, None], h, 0))), self.rate, keys[1])
        return x + dropout(self.down(h), self.rate, keys[2])


class TSMixer(nnx.Module):
    """Blocks, then a map of time context -> horizon shared by all neurons."""

    def __init__(
        self,
        sizes: Sizes,
        *,
        blocks: int = 2,
        hidden: int = 128,
        dropout: float = 0.1,
        anchor: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        frames, neurons = sizes.context, sizes.neurons
        make = lambda: Block(frames, neurons, hidden, dropout, rngs=rngs)  # noqa: E731
        self.blocks = nnx.List([make() for _ in range(blocks)])
        self.out = linear(frames, sizes.horizon, bias=True, rngs=rngs)
        self.anchor = anchor

    def __call__(self, x: Array, given: Given, key: Array | None) -> Array:
        """Shapes: x (B, C, N) -> (B, H, N)."""
        x, last = anchored(x, self.anchor)
        for block, k in zip(self.blocks, split_key(key, len(self.blocks))):
            x = block(x, given.real, k)
        return self.out(x.swapaxes(1, 2)).swapaxes(1, 2) + last


def fit(prepared: Prepared, splits: Splits, context: int, horizon: int, **kw: Any) -> Forecaster:
    """Tuned and trained; keywords as for `tuning.fit`."""
    return tuning.fit(
        TSMixer, GRID, prepared, splits, context, horizon, per_session=True, **kw
    )
