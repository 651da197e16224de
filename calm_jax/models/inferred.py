"""Neuron embeddings inferred from the context: no rows, so no animal is new.

What a table of neurons holds for those it was trained on is read here from the frames
before each step: the neuron's own statistics, which are added to its tokens, and its
correlations with the rest of the population, which take the place of the queries and keys
of the signed mixing. All of it is causal, equivariant to permutations of the neurons and
costs O(neurons).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.layers.basic import dropout, linear

STATISTICS = 6
_FLOOR = 0.1  # SD, in units of the training SD, that a trace is not magnified beyond


class Traces(NamedTuple):
    """What is known of every neuron at every step.

    Attributes:
      shape: (B, T', N, 2 patch) levels and changes of each step in units of the running SD.
      own: (B, T', N, STATISTICS) running statistics up to the end of each step.
    """

    shape: Array
    own: Array


class Inference(NamedTuple):
    """Traces and the position of the first step that is mixed with them."""

    traces: Array
    position: Array | int


def describe(values: Array, mask: Array) -> Traces:
    """Causal features and statistics of every trace.

    Step t sees the frames of steps <= t only: x is scaled by its running mean and SD.
    The statistics are log SD of levels and of changes, the mean since the first frame, the
    correlation of successive changes, and covariance and correlation with the mean of the
    population.

    Args:
      values: (B, T', N, patch) scaled frames. mask: (B, N) bool, False for padding.
    """
    b, t, n, p = values.shape
    x = jnp.where(mask[:, None, :, None], values, 0).astype(jnp.float32)
    frames = x.swapaxes(2, 3).reshape(b, t * p, n)
    before = jnp.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    change = frames - before
    earlier = jnp.concatenate([jnp.zeros_like(change[:, :1]), change[:, :-1]], axis=1)
    count = jnp.maximum(mask.sum(1), 1).astype(jnp.float32)[:, None, None]
    together = change.sum(-1, keepdims=True) / count
    seen = jnp.arange(1, t * p + 1, dtype=jnp.float32)[:, None]
    mean = lambda y: (jnp.cumsum(y, axis=1) / seen)[:, p - 1 :: p]  # noqa: E731

    away = frames - frames[:, :1]
    drift = mean(away)
    sd = jnp.sqrt(jnp.maximum(mean(jnp.square(away)) - jnp.square(drift), 0) + _FLOOR**2)
    power = mean(jnp.square(change)) + 0.01 * _FLOOR**2
    joint, common = mean(change * together), mean(jnp.square(together)) + 1e-4
    own = jnp.stack(
        [
            jnp.log(sd),
            0.5 * jnp.log(power),
            drift,
            mean(change * earlier) / power,
            joint / common,
            joint * jax.lax.rsqrt(power * common),
        ],
        axis=-1,
    )
    level = (away.reshape(b, t, p, n) - drift[:, :, None]) / sd[:, :, None]
    moved = change.reshape(b, t, p, n) * jax.lax.rsqrt(power)[:, :, None]
    shape = jnp.concatenate([level, moved], axis=2).swapaxes(2, 3)
    real = mask[:, None, :, None]
    return Traces(jnp.where(real, jnp.clip(shape, -10, 10), 0), jnp.where(real, own, 0))


class OwnStatistics(nnx.Module):
    """(B, T', N, STATISTICS) -> (B, T', N, width), by one hidden layer."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        make = lambda i, o: linear(i, o, bias=True, dtype=dtype, rngs=rngs)  # noqa: E731
        self.up, self.down = make(STATISTICS, 2 * width), make(2 * width, width)

    def __call__(self, own: Array) -> Array:
        return self.down(jax.nn.gelu(self.up(own)))


class ContextMixing(nnx.Module):
    """Signed mixing whose couplings are correlations of the traces seen so far, O(neurons).

    out_i(t) = N^(-1/2) / t' sum_{s <= t'} q_i(s) . sum_j k_j(s) v_j(t) per head, where t' is
    the last step known at t, and q_i(s), k_j(s) (rank r) are linear in what neurons i and j
    did at step s. The coupling of i and j is then a learned, signed covariance of their
    traces: of levels with changes, say, which is one step of the regression of i on j.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        rank: int,
        features: int,
        *,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        make = lambda i, o, s=0.02: linear(i, o, dtype=dtype, rngs=rngs, scale=s)  # noqa: E731
        self.query = make(features, heads * rank, features**-0.5)
        self.key = make(features, heads * rank, features**-0.5)
        self.value, self.out = make(width, width), make(width, width)
        self.heads, self.rank, self.rate = heads, rank, dropout

    def __call__(self, x: Array, known: Inference, mask: Array, key: Array | None) -> Array:
        """x (B, S, N, D) of the steps from `known.position`; traces (B, T', N, features)."""
        b, s, n, w = x.shape
        past = known.traces.astype(x.dtype)
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)  # noqa: E731
        q, k, v = split(self.query(past)), split(self.key(past)), split(self.value(x))
        k = jnp.where(mask[:, None, :, None, None], k, 0)
        steps = jnp.arange(past.shape[1])
        visible = steps[:, None] <= known.position + jnp.arange(s)
        visible = visible.astype(jnp.float32)
        share = visible / jnp.maximum(visible.sum(0), 1)
        count = jnp.maximum(mask.sum(1), 1)[:, None, None, None, None, None]
        pooled = jnp.einsum("bunhr,btnhe->butrhe", k, v)
        pooled = pooled * share[:, :, None, None, None].astype(x.dtype)
        pooled = pooled * (count.astype(x.dtype) ** -0.5)
        out = jnp.einsum("bunhr,butrhe->btnhe", q, pooled)
        return self.out(dropout(out.reshape(b, s, n, w), self.rate, key))
