"""POCO (Duan et al. 2025): an MLP per neuron, conditioned on the state of the population.

    y_i = W_2 (gamma_i * relu(W_1 x_i + b_1) + beta_i) + b_2

gamma and beta (scale and shift) come from a Perceiver: every neuron's context is cut
into tokens of 16 frames, E(i, k) = W x_segment + unit_i + session; 8 latents read all
tokens by cross-attention with rotary time, and a query per neuron (its unit and session
embedding) reads the latents. Written from the published equations; context 48 ->
horizon 16, tokens of 16 frames, 8 latents and 1024 hidden units are published, the
width and the number of heads and layers are chosen here.
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
from calm_jax.errors import ConfigError
from calm_jax.layers.attention import SelfAttention
from calm_jax.layers.basic import FeedForward, layer_norm, linear, normal, normal_start
from calm_jax.layers.cross_attention import CrossAttention
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

TRAINED = True
GRID = tuple(
    {"learning_rate": rate, "weight_decay": 1e-4, "anchor": anchor}
    for rate in (1e-3, 3e-4)
    for anchor in (True, False)
)


class POCO(nnx.Module):
    """One model for all sessions.

    Args:
      token: frames of a token. latents: of the Perceiver. hidden: of the MLP.
      width, heads, layers: of the Perceiver; `layers` counts self-attention of latents.
      anchor: forecasts differences from the last value.

    Raises:
      ConfigError: for a context shorter than a token, or heads that do not divide.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        token: int = 16,
        latents: int = 8,
        hidden: int = 1024,
        width: int = 64,
        heads: int = 4,
        layers: int = 1,
        anchor: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        if sizes.context < token:
            raise ConfigError(
                "the context is shorter than one token",
                where="poco",
                found=f"{sizes.context} frames",
                expected=f"at least {token}",
            )
        if width % heads or width // heads % 2:
            raise ConfigError(
                "the width must be an even multiple of the heads (rotary time)",
                where="poco",
                found=f"width {width}, heads {heads}",
            )
        table = lambda rows: nnx.Embed(  # noqa: E731
            rows, width, embedding_init=normal_start(0.02), rngs=rngs
        )
        make = lambda i, o: linear(i, o, bias=True, scale=i**-0.5, rngs=rngs)  # noqa: E731
        self.segment = make(token, width)
        self.unit, self.session = table(sizes.rows), table(sizes.sessions)
        self.latents = nnx.Param(0.02 * normal(rngs.params(), (latents, width)))
        self.read = CrossAttention(width, heads, rngs=rngs)
        self.mix = nnx.List([Latents(width, heads, rngs=rngs) for _ in range(layers)])
        self.ask = CrossAttention(width, heads, rngs=rngs)
        self.norm = layer_norm(width, rngs=rngs)
        self.condition = linear(width, 2 * hidden, bias=True, rngs=rngs)
        self.up = make(sizes.context, hidden)
        self.down = linear(hidden, sizes.horizon, bias=True, scale=0.1 * hidden**-0.5, rngs=rngs)
        self.token, self.anchor = token, anchor

    def population(self, x: Array, given: Given) -> Array:
        """The state of the population as each neuron reads it: x (B, C, N) -> (B, N, D)."""
        b, c, n = x.shape
        count = c // self.token
        # A context that is no whole number of tokens loses its first frames here.
        cut = x[:, c - count * self.token :].reshape(b, count, self.token, n)
        own = self.unit(given.neuron) + self.session(given.session)[:, None]
        tokens = self.segment(jnp.moveaxis(cut, 3, 1)) + own[:, :, None]
        tokens = tokens.reshape(b, n * count, -1)
        # Times in tokens, 0 = the forecast origin; a token stands at its middle.
        time = jnp.tile(jnp.arange(count, dtype=jnp.float32) - count + 0.5, n)
        now = lambda size: jnp.zeros(size)  # noqa: E731
        latents = self.latents[...]
        z = jnp.broadcast_to(latents, (b, *latents.shape))
        seen = jnp.repeat(given.real, count, axis=1)
        z = self.read(z, tokens, now(len(latents)), time, seen)
        for layer in self.mix:
            z = layer(z)
        return self.ask(own, z, now(n), now(len(latents)))

    def __call__(self, x: Array, given: Given, key: Array | None) -> Array:
        """Shapes: x (B, C, N) -> (B, H, N)."""
        x, last = anchored(x, self.anchor)
        state = self.condition(self.norm(self.population(x, given)))
        scale, shift = jnp.split(state, 2, axis=-1)
        h = jax.nn.relu(self.up(x.swapaxes(1, 2)))
        return self.down((1.0 + scale) * h + shift).swapaxes(1, 2) + last


class Latents(nnx.Module):
    """A pre-norm transformer block among the latents: (B, L, D) -> the same."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.attention = SelfAttention(width, heads, causal=False, rope=False, rngs=rngs)
        self.feed_forward = FeedForward(width, 4 * width, rngs=rngs)
        self.norm_a, self.norm_f = (layer_norm(width, rngs=rngs) for _ in range(2))

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.norm_a(x))
        return x + self.feed_forward(self.norm_f(x))


def fit(prepared: Prepared, splits: Splits, context: int, horizon: int, **kw: Any) -> Forecaster:
    """Tuned and trained; keywords as for `tuning.fit`."""
    # The hidden layer takes 64 times the memory of a window: fewer windows a step.
    settings = {"series": 6400, **kw}
    return tuning.fit(POCO, GRID, prepared, splits, context, horizon, **settings)
