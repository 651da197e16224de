"""Latent siamese masking of POYO-SSL: predict the latents of hidden time from the rest (eq. 1).

    L = L1(Z_masked, stop_gradient(Z)) + lambda CE(grating direction)                (eq. 1)

Z1 are the latents after the encoder cross-attention. In the masked view those of hidden
positions are a learned vector, with their time kept; both views go through the same
self-attention blocks. Every part that Table 3 of the paper changes is an option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from calm_jax.errors import ConfigError
from calm_jax.layers.basic import normal, split_key
from calm_jax.models import population_encoder as encoders
from calm_jax.models.population_encoder import EncoderConfig, PopulationEncoder


@dataclasses.dataclass(frozen=True)
class Masking:
    """What is hidden and how the views are compared."""

    ratio: float = 0.5  # of the latent time steps
    kind: Literal["temporal", "random"] = "temporal"  # temporal hides the end of the window
    distance: Literal["l1", "mse", "cosine"] = "l1"
    over: Literal["masked", "all"] = "masked"  # positions that are compared
    stop_gradient: bool = True  # of the unmasked view
    # Views are brought to mean 0 and variance 1 over dimensions before they are compared.
    # Without it (the paper) the distance has the scale of the latents, which may run away:
    # blocks that both views share move the target along with what follows it.
    normalised: bool = False
    masking_weight: float = 1.0  # of the distance; 0 leaves the labels alone
    label_weight: float = 0.01  # lambda, of the cross-entropy; 0 = masking alone


class Siamese(nnx.Module):
    """The population encoder and the vector that stands at hidden positions."""

    def __init__(self, encoder: PopulationEncoder, *, rngs: nnx.Rngs) -> None:
        self.encoder = encoder
        scale = encoder.config.embedding_scale
        self.mask = nnx.Param(scale * normal(rngs.params(), (encoder.config.width,)))


def init(
    config: EncoderConfig,
    key: Array,
    *,
    units: int,
    sessions: int,
    heads: encoders.Heads,
    dtype: jnp.dtype = jnp.float32,
) -> Siamese:
    """A siamese model with random weights; arguments as `population_encoder.init`."""
    a, b = jax.random.split(key)
    encoder = encoders.init(
        config, a, units=units, sessions=sessions, heads=heads, dtype=dtype
    )
    return Siamese(encoder, rngs=nnx.Rngs(b))


def check(masking: Masking, config: EncoderConfig) -> None:
    """Raises ConfigError when nothing or everything would be hidden, or a weight is negative."""
    steps = round(config.window / config.latent_step)
    if not 1 <= hidden_steps(masking, config) < steps:
        raise ConfigError(
            "the ratio must hide at least one latent step and leave one",
            where="masking.ratio",
            found=f"{masking.ratio} of {steps} steps",
        )
    weights = (masking.masking_weight, masking.label_weight)
    if min(weights) < 0 or max(weights) == 0:
        raise ConfigError(
            "the loss needs a positive weight, and no negative one",
            where="masking.masking_weight, masking.label_weight",
            found=weights,
        )


def hidden_steps(masking: Masking, config: EncoderConfig) -> int:
    """How many latent time steps are hidden."""
    return round(masking.ratio * round(config.window / config.latent_step))


def hidden(masking: Masking, config: EncoderConfig, batch: int, key: Array) -> Array:
    """(B, L) bool, True where the masked view is blind.

    "temporal": the last `ratio` of the window, as a causal prediction has it. "random":
    as many time steps drawn anew for every window. All latents of a step go together: their
    neighbours would give a lone one away.
    """
    steps = round(config.window / config.latent_step)
    count = hidden_steps(masking, config)
    if masking.kind == "temporal":
        rows = jnp.broadcast_to(jnp.arange(steps) >= steps - count, (batch, steps))
    else:
        order = jnp.argsort(jax.random.uniform(key, (batch, steps)), axis=-1)
        rows = order < count
    return jnp.repeat(rows, config.latents_per_step, axis=1)


def views(
    model: Siamese,
    batch: Mapping[str, Array],
    blind: Array,
    *,
    key: Array | None = None,
) -> tuple[Array, Array]:
    """(Z, Z_masked), each (B, L, width), through the same blocks.

    Args:
      blind: (B, L) bool of `hidden`. key: switches dropout on; the encoder pass is shared,
        in the blocks each view has its own.
    """
    a, b, c = split_key(key, 3)
    z1 = encoders.encode(model.encoder, batch, key=a)
    masked = jnp.where(blind[..., None], model.mask[...].astype(z1.dtype), z1)
    return (
        encoders.process(model.encoder, z1, key=b),
        encoders.process(model.encoder, masked, key=c),
    )


def distance(masking: Masking, z_masked: Array, z: Array, blind: Array) -> Array:
    """() mean distance of Z_masked and Z (B, L, width) over the positions that count.

    "l1": |a - b|; "mse": (a - b)^2, both means over dimensions; "cosine": 1 - cos(a, b).
    """
    if masking.normalised:
        z_masked, z = _standard(z_masked), _standard(z)
    target = jax.lax.stop_gradient(z) if masking.stop_gradient else z
    if masking.distance == "l1":
        each = jnp.mean(jnp.abs(z_masked - target), axis=-1)
    elif masking.distance == "mse":
        each = jnp.mean(jnp.square(z_masked - target), axis=-1)
    else:
        squares = jnp.sum(z_masked**2, -1) * jnp.sum(target**2, -1)
        each = 1 - jnp.sum(z_masked * target, -1) * jax.lax.rsqrt(squares + 1e-12)
    weight = blind if masking.over == "masked" else jnp.ones_like(blind)
    return jnp.sum(jnp.where(weight, each, 0)) / jnp.maximum(jnp.sum(weight), 1).astype(z.dtype)


def _standard(z: Array) -> Array:
    d = z - jnp.mean(z, axis=-1, keepdims=True)
    return d * jax.lax.rsqrt(jnp.mean(jnp.square(d), axis=-1, keepdims=True) + 1e-5)


# Collapse


def _covariance(z: Array) -> Array:
    """(width, width) float32 covariance over samples: Z (..., width), positions centred.

    Each latent position has its own mean taken off: what is learned per position and says
    nothing of the recording must not pass for variety.
    """
    z = z.astype(jnp.float32)
    d = (z - jnp.mean(z, axis=0, keepdims=True)).reshape(-1, z.shape[-1])
    return d.T @ d / max(d.shape[0], 1)


def spread(z: Array) -> dict[str, Array]:
    """What tells a collapse, cheap enough for every step: latents (B, L, width) -> scalars.

    `variance`, `variance_least`: mean and least variance of a dimension over windows;
    `participation`: (sum l)^2 / sum l^2 of the eigenvalues l of the covariance, between 1
    and the width. All variances go to 0 in a complete collapse, the participation to 1 in a
    dimensional one.
    """
    c = _covariance(z)
    each = jnp.diagonal(c)
    total = jnp.sum(each)
    return {
        "variance": jnp.mean(each),
        "variance_least": jnp.min(each),
        "participation": total**2 / jnp.maximum(jnp.sum(c * c), 1e-30),
    }


def effective_rank(z: Array) -> Array:
    """exp of the entropy of the normalised singular values of Z (Roy and Vetterli 2007).

    Latents (B, L, width) centred per position; 0 where what varies is below 1e-10 of the
    mean square, which is rounding.
    """
    c = _covariance(z)
    s = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(c), 0))
    least = 1e-10 * jnp.mean(jnp.square(z.astype(jnp.float32))) * z.shape[-1]
    total = jnp.sum(s)
    p = s / jnp.maximum(total, 1e-30)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
    return jnp.where(jnp.trace(c) > least, jnp.exp(entropy), 0.0)
