"""Mixing along the neural axis: the replaceable part of a dual-axis block.

Each mixer is equivariant to permutations of the neurons, ignores masked neurons,
and maps (batch, steps, neurons, width) -> the same, given the neuron embeddings
(batch, neurons, embedding width) of the population.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.layers import population_attention
from calm_jax.layers.attention import SelfAttention
from calm_jax.layers.basic import dropout, linear


class SoftmaxMixing(nnx.Module):
    """Bidirectional softmax self-attention over the neurons of one step (as published)."""

    def __init__(
        self, width: int, heads: int, *, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.attention = SelfAttention(
            width, heads, causal=False, rope=False, dropout=dropout, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Array, neurons: Array, mask: Array, key: Array | None) -> Array:
        b, t, n, w = x.shape
        own, most = self.attention, population_attention.scores_at_once()
        if b * t * n * n * own.heads > most:
            made = own.project(x.reshape(b * t, n, w), jnp.arange(n))
            q, k, v = (a.reshape(b, t, n, own.heads, -1) for a in made)
            y = population_attention.attend(q, k, v, mask, most, rate=own.rate, key=key)
            return own.out(y.reshape(x.shape))
        keys = jnp.broadcast_to(mask[:, None], (b, t, n)).reshape(b * t, n)
        return own(x.reshape(b * t, n, w), keys, key).reshape(x.shape)


class SignedMixing(nnx.Module):
    """Signed low-rank linear mixing, O(neurons).

    out_i = N^(-1/2) q_i . sum_j k_j v_j^T per head: queries q and keys k (rank r)
    come from the neuron embeddings alone, values v from the activity, and there is
    no softmax, so that one neuron can drive another up or down. It can express any
    coupling matrix of rank heads x r between neurons, the same at every step.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        rank: int,
        *,
        embedding: int,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        # Embeddings start small (SD 0.02), so queries and keys are normalised to
        # order 1 by a wide initialisation rather than left to vanish as a product.
        self.query = linear(embedding, heads * rank, dtype=dtype, rngs=rngs, scale=embedding**-0.5)
        self.key = linear(embedding, heads * rank, dtype=dtype, rngs=rngs, scale=embedding**-0.5)
        self.value = linear(width, width, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)
        self.heads, self.rank, self.rate = heads, rank, dropout

    def __call__(self, x: Array, neurons: Array, mask: Array, key: Array | None) -> Array:
        b, t, n, w = x.shape
        q = self.query(neurons).reshape(b, n, self.heads, self.rank)
        k = self.key(neurons).reshape(b, n, self.heads, self.rank)
        k = jnp.where(mask[:, :, None, None], k, 0)
        count = jnp.maximum(mask.sum(1), 1)[:, None, None, None].astype(x.dtype)
        v = self.value(x).reshape(b, t, n, self.heads, w // self.heads)
        pooled = jnp.einsum("bnhr,btnhe->bthre", k, v)
        # The scale is applied to the small operand, before the sum over ranks.
        out = jnp.einsum("bnhr,bthre->btnhe", q * count**-0.5, pooled)
        return self.out(dropout(out.reshape(b, t, n, w), self.rate, key))


def make_mixing(
    kind: str,
    width: int,
    heads: int,
    *,
    signed_heads: int,
    rank: int,
    dropout: float,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    embedding: int | None = None,
) -> nnx.Module:
    """The mixer named in `config.DualAxis.mixing`; `embedding` is the width of the neuron
    embeddings where it is not that of the activity."""
    if kind == "softmax":
        return SoftmaxMixing(width, heads, dropout=dropout, dtype=dtype, rngs=rngs)
    return SignedMixing(
        width,
        signed_heads,
        rank,
        embedding=embedding or width,
        dropout=dropout,
        dtype=dtype,
        rngs=rngs,
    )
