"""TCN (Bai et al. 2018) as a decoder, a network of the behaviour task.

Each neuron has a row of input weights; the causal dilated convolutions and the read-out
are shared by all sessions, so that it learns from all of them, as ours does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from calm_jax import config
from calm_jax.baselines.tcn import Block
from calm_jax.layers.basic import linear, normal, split_key
from calm_jax.models.decoder import unfold_steps


class Decoder(nnx.Module):
    """x (B, T, N) -> (B, T, O); dilations 1, 2, 4, ..."""

    def __init__(
        self,
        neurons: int,
        outputs: int,
        *,
        width: int = 48,
        blocks: int = 4,
        kernel: int = 3,
        dropout: float = 0.2,
        rngs: nnx.Rngs,
    ):
        self.rows = nnx.Param(normal(rngs.params(), (neurons, width)))
        make = lambda k: Block(width, kernel, 2**k, dropout, rngs=rngs)  # noqa: E731
        self.blocks = nnx.List([make(k) for k in range(blocks)])
        self.out = linear(width, outputs, bias=True, rngs=rngs)

    def __call__(self, x: Array, neuron: Array, real: Array, key: Array | None) -> Array:
        count = jnp.maximum(real.sum(-1), 1).astype(x.dtype)
        rows = jnp.where(real[..., None], self.rows[...][neuron], 0)
        h = jnp.einsum("btn,bnd->btd", x, rows) * jax.lax.rsqrt(count)[:, None, None]
        for block, k in zip(self.blocks, split_key(key, len(self.blocks))):
            h = block(h, k)
        return self.out(h)


class TCNNetwork:
    """The decoder on scaled traces; see `tasks.behavior.Network`."""

    hop = unfold = align = 1
    early = 0
    history = 64  # frames; the convolutions reach 61 back

    def __init__(self, settings: config.Decoding, neurons: int, outputs: int):
        self._ahead = settings.look_ahead
        make = lambda rngs: Decoder(  # noqa: E731
            neurons, outputs, dropout=settings.dropout, rngs=rngs
        )
        self._make = make
        self._graph = nnx.graphdef(jax.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(self, key: Array) -> tuple[dict, dict]:
        """(params, {})."""
        return nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(key)), nnx.Param)), {}

    def _model(self, params: dict) -> Decoder:
        return nnx.merge(self._graph, nnx.State(params))

    def steps(self, params: dict, extra: dict, batch: dict, key: Array | None) -> Array:
        """Inputs are scaled traces (B, T, N) -> (B, T, 1, O)."""
        model = self._model(params)
        return model(batch["inputs"], batch["neuron"], batch["real"], key)[:, :, None]

    def frames(self, params: dict, y: Array, length: Array) -> Array:
        """Frame t reads the state at t + look-ahead."""
        return unfold_steps(y, length, self._ahead, self._model(params).out.bias[...])

    def decays(self, path: str) -> bool:
        """Weight decay on matrices only."""
        return path.endswith(("kernel", "rows"))
