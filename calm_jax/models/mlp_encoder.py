"""The encoder of Table 3's "MLP encoder": the activity of a window through a plain network.

One linear map from (units x time bins) of each session, written as a table of weights per unit
and bin so that sessions of any size share the rest, then fully connected layers. It has
no notion of time or of a population beyond that.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.errors import ConfigError
from calm_jax.layers.basic import linear, normal


@dataclasses.dataclass(frozen=True)
class MlpConfig:
    """Sizes of the MLP encoder."""

    window: float = 1.0  # seconds
    bins: int = 5  # of the window; values of a unit within a bin are added
    first: int = 64  # width after the map of the session
    hidden: tuple[int, ...] = (256,)
    width: int = 64  # of the latent


class MlpEncoder(nnx.Module):
    """Parameters of the MLP encoder; built by `init`."""

    def __init__(
        self, config: MlpConfig, *, units: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        shape = (units + 1, config.bins, config.first)
        # About 50 units with 10 frames each are summed.
        self.table = nnx.Param(0.05 * normal(rngs.params(), shape))
        sizes = (config.first, *config.hidden, config.width)
        self.layers = nnx.List(
            [linear(a, b, bias=True, dtype=dtype, scale=a**-0.5, rngs=rngs)
             for a, b in itertools.pairwise(sizes)]
        )  # fmt: skip
        self.config, self.dtype = config, dtype


def init(
    config: MlpConfig, key: Array, *, units: int, dtype: DTypeLike = jnp.float32
) -> MlpEncoder:
    """An encoder with random weights for `units` units (rows 1 to `units`).

    Raises:
      ConfigError: for sizes that make none.
    """
    if min(config.bins, config.first, config.width, *config.hidden, 1) < 1 or config.window <= 0:
        raise ConfigError("sizes must be positive", where="encoder", found=config)
    return MlpEncoder(config, units=units, dtype=dtype, rngs=nnx.Rngs(key))


def encode(model: MlpEncoder, batch: Mapping[str, Array]) -> Array:
    """(B, width) latents of a batch with values, units, bins and mask (B, S).

    h_0 = sum_s value_s W[unit_s, bin_s]; order and padding of tokens change nothing.
    """
    value = jnp.where(batch["mask"], batch["values"], 0).astype(model.dtype)
    rows = model.table[...].astype(model.dtype)[batch["units"], batch["bins"]]
    h = jnp.einsum("bs,bsd->bd", value, rows)
    for layer in model.layers:
        h = layer(jax.nn.gelu(h))
    return h
