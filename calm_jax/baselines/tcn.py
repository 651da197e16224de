"""TCN (Bai et al. 2018): causal dilated convolutions whose channels are the population.

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


class CausalConvolution(nnx.Module):
    """y_t = b + sum_j W_j x_{t - j d}, frames before the first taken as 0.

    Shapes: (B, T, inputs) -> (B, T, outputs).
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, dilation: int, *, rngs: nnx.Rngs
    ) -> None:
        scale = (2 / (kernel * inputs)) ** 0.5  # He et al. 2015, for relu
        self.map = linear(kernel * inputs, outputs, bias=True, scale=scale, rngs=rngs)
        self.kernel, self.dilation = kernel, dilation

    def __call__(self, x: Array) -> Array:
        t, back = x.shape[1], (self.kernel - 1) * self.dilation
        x = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))
        taps = [x[:, back - j * self.dilation :][:, :t] for j in range(self.kernel)]
        return self.map(jnp.concatenate(taps, -1))


class Block(nnx.Module):
    """Two causal convolutions with relu and dropout, and a residual: (B, T, D) -> the same."""

    def __init__(
        self, width: int, kernel: int, dilation: int, rate: float, *, rngs: nnx.Rngs
    ) -> None:
        make = lambda: CausalConvolution(width, width, kernel, dilation, rngs=rngs)  # noqa: E731
        self.first, self.second, self.rate = make(), make(), rate

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        keys = split_key(key, 2)
        h = dropout(jax.nn.relu(self.first(x)), self.rate, keys[0])
        h = dropout(jax.nn.relu(self.second(h)), self.rate, keys[1])
        return jax.nn.relu(x + h)


class TCN(nnx.Module):
    """Neurons -> width, blocks of dilation 1, 2, 4, ..., and a map of the last step to the
    horizon of all neurons."""

    def __init__(
        self,
        sizes: Sizes,
        *,
        width: int = 64,
        blocks: int = 4,
        kernel: int = 3,
        dropout: float = 0.1,
        anchor: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.enter = linear(
            sizes.neurons, width, bias=True, scale=sizes.neurons**-0.5, rngs=rngs
        )
        make = lambda k: Block(width, kernel, 2**k, dropout, rngs=rngs)  # noqa: E731
        self.blocks = nnx.List([make(k) for k in range(blocks)])
        self.out = linear(width, sizes.horizon * sizes.neurons, bias=True, rngs=rngs)
        self.horizon, self.anchor = sizes.horizon, anchor

    def states(self, x: Array, key: Array | None = None) -> Array:
        """The last block at every frame: x (B, T, N) -> (B, T, D); causal."""
        h = self.enter(x)
        for block, k in zip(self.blocks, split_key(key, len(self.blocks))):
            h = block(h, k)
        return h

    def __call__(self, x: Array, given: Given, key: Array | None) -> Array:
        """Shapes: x (B, C, N) -> (B, H, N)."""
        last = anchored(x, self.anchor)[1]
        x = jnp.where(given.real[:, None], x, 0)
        y = self.out(self.states(x, key)[:, -1])
        return y.reshape(x.shape[0], self.horizon, -1) + last


def fit(prepared: Prepared, splits: Splits, context: int, horizon: int, **kw: Any) -> Forecaster:
    """Tuned and trained; keywords as for `tuning.fit`."""
    return tuning.fit(TCN, GRID, prepared, splits, context, horizon, per_session=True, **kw)
