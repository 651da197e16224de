"""Vector quantisation: nearest code, Gumbel assignment, moving-average codebook, revival.

Shapes: z (..., d) latents, codebook (K, d), counts (K,), sums (K, d), weight (...) of each
latent (1 = real, 0 = padding). Distances come from one matrix product,
||z - e||^2 = ||z||^2 - 2 z.e + ||e||^2, so nothing of size (latents, K, d) ever exists.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from calm_jax.layers.basic import normal


class CodebookState(nnx.Variable):
    """State of a codebook that no gradient reaches; not an `nnx.Param`."""


class Quantizer(nnx.Module):
    """A codebook (K, d) with the moving averages of its usage and of its members.

    Args:
      codes: K.
      width: d.
      learned: the codebook is an `nnx.Param` trained by gradient; otherwise it is
        `CodebookState`, moved by `moving_average`.
    """

    def __init__(self, codes: int, width: int, *, learned: bool, rngs: nnx.Rngs):
        start = normal(rngs.params(), (codes, width))
        self.codebook = nnx.Param(start) if learned else CodebookState(start)
        self.counts = CodebookState(jnp.ones((codes,), jnp.float32))
        self.sums = CodebookState(jnp.array(start))


def distances(z: Array, codebook: Array) -> Array:
    """Squared Euclidean distance of every latent to every code, (..., d) -> (..., K)."""
    square = jnp.sum(z * z, axis=-1, keepdims=True) + jnp.sum(codebook * codebook, axis=-1)
    return jnp.maximum(square - 2.0 * (z @ codebook.T), 0.0)


def nearest(z: Array, codebook: Array) -> Array:
    """The nearest code of every latent, (..., d) -> (...) int32.

    ||z||^2 is the same for all codes and is left out: arg min ||e||^2 - 2 z.e.
    """
    score = jnp.sum(codebook * codebook, axis=-1) - 2.0 * (z @ codebook.T)
    return jnp.argmin(score, axis=-1).astype(jnp.int32)


def neighbours(codebook: Array, n: int) -> Array:
    """(K, n) int32, the `n` nearest other codes of every code, nearest first."""
    count = codebook.shape[0]
    far = jnp.where(jnp.eye(count, dtype=bool), jnp.inf, distances(codebook, codebook))
    return jax.lax.top_k(-far, n)[1].astype(jnp.int32)


def gumbel_assignment(
    logits: Array, temperature: Array, key: Array
) -> tuple[Array, Array]:
    """A code drawn by the Gumbel-max trick, with a soft gradient (straight-through).

    Args:
      logits: (..., K).
      temperature: > 0; logits are divided by it, so that the draw follows
        softmax(logits / temperature) and tends to the arg max as it goes to 0.

    Returns:
      One-hot assignment (..., K) whose gradient is that of softmax((logits / t + g)),
      and the soft assignment softmax(logits / t) without noise.
    """
    scaled = logits / temperature
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    soft = jax.nn.softmax(scaled + noise, axis=-1)
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), logits.shape[-1], dtype=soft.dtype)
    return hard + soft - jax.lax.stop_gradient(soft), jax.nn.softmax(scaled, axis=-1)


def moving_average(
    counts: Array,
    sums: Array,
    z: Array,
    codes: Array,
    weight: Array,
    *,
    decay: float,
    laplace: float,
) -> tuple[Array, Array, Array]:
    """One exponential-moving-average step of the codebook (van den Oord et al. 2017).

    counts <- decay counts + (1 - decay) n_k;  sums <- decay sums + (1 - decay) sum of z in k;
    e_k = sums_k / c_k with Laplace-smoothed c_k = (counts_k + eps) / (n + K eps) n, n = sum counts.

    Args:
      z: (..., d); codes: (...) int; weight: (...), 0 leaves a latent out.

    Returns:
      (codebook, counts, sums).
    """
    k = counts.shape[0]
    member = jax.nn.one_hot(codes.reshape(-1), k, dtype=z.dtype) * weight.reshape(-1, 1)
    counts = decay * counts + (1.0 - decay) * jnp.sum(member, axis=0)
    sums = decay * sums + (1.0 - decay) * (member.T @ z.reshape(-1, z.shape[-1]))
    total = jnp.sum(counts)
    smooth = (counts + laplace) / (total + k * laplace) * total
    return sums / smooth[:, None], counts, sums


@jax.jit
def revive(
    codebook: Array,
    counts: Array,
    sums: Array,
    z: Array,
    weight: Array,
    key: Array,
    *,
    below: float,
) -> tuple[Array, Array, Array, Array]:
    """Re-seeds rarely used codes from latents drawn at random.

    A code whose count is below `below` times the mean count takes a latent (n, d) drawn
    with probability proportional to weight (n,), and the mean count as its new usage.

    Returns:
      (codebook, counts, sums, number of codes re-seeded).
    """
    mean = jnp.mean(counts)
    rare = counts < below * mean
    logits = jnp.where(weight > 0, jnp.log(jnp.maximum(weight, 1e-30)), -jnp.inf)
    drawn = z[_draw_distinct(logits, counts.shape[0], key)]
    codebook = jnp.where(rare[:, None], drawn, codebook)
    counts = jnp.where(rare, mean, counts)
    sums = jnp.where(rare[:, None], drawn * mean, sums)
    return codebook, counts, sums, jnp.sum(rare)


def _draw_distinct(logits: Array, n: int, key: Array) -> Array:
    """`n` different indices by Gumbel top-n; repeats only when there are fewer than n."""
    noisy = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    have = min(n, logits.shape[0])
    values, index = jax.lax.top_k(noisy, have)
    good = jnp.maximum(jnp.sum(values > -jnp.inf), 1)
    return index[jnp.arange(n) % good]
