"""The population encoder of POYO+ for calcium: a Perceiver over (frame, neuron) tokens.

The numbers are those of `CalciumPOYOPlus` of torch_brain 0.1.2 for the same weights. The
module holds parameters; what is called are the functions below, in this order:

    embed    batch -> tokens (B, S, width)
    encode   batch -> Z1 (B, L, width), latents after the encoder cross-attention
    process  Z1 -> Z (B, L, width), latents after the self-attention blocks
    decode   Z, queries -> (B, Q, width)
    read_out (B, Q, width) -> one output per task

A batch is what `recordings.population_tokens.collate` makes. Tokens carry their own time
and unit, so their order means nothing; padding is a mask.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.errors import ConfigError
from calm_jax.layers import columns, perceiver
from calm_jax.layers.basic import dropout, linear, normal, split_key
from calm_jax.layers.perceiver import GatedForward, RotaryCrossAttention, RotarySelfAttention
from calm_jax.recordings import population_tokens

Heads = Mapping[str, tuple[int, int]]  # task name -> (id from 1, classes or dimensions)


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the population encoder."""

    window: float = 1.0  # seconds
    latent_step: float = 0.125  # seconds between latents
    latents_per_step: int = 16
    width: int = 64
    depth: int = 6  # self-attention blocks
    head_width: int = 64
    cross_heads: int = 2
    self_heads: int = 8
    forward_dropout: float = 0.2  # inside the feed-forward parts
    block_dropout: float = 0.4  # on what a self-attention block adds
    attention_dropout: float = 0.2  # of attention weights
    embedding_scale: float = 0.02  # SD of the initial embeddings
    latent_scale: float | None = None  # SD of the initial latents; None = embedding_scale
    # Factors on the initial values of the cross-attention of tokens and of that of queries. A
    # mean over hundreds of tokens hardly depends on any: with 1 (torch_brain) the first
    # thousands of steps only raise this.
    value_gain: float = 1.0
    query_gain: float = 1.0
    # "concatenated" (torch_brain): [Linear(dF/F), unit embedding]. "modulated": [Linear(dF/F),
    # dF/F x unit embedding], so that the mean over tokens is a weighted sum of the activity
    # from the first step, with weights of each cell's own; bounded by the normalisation.
    token: Literal["concatenated", "modulated"] = "concatenated"
    t_min: float = population_tokens.T_MIN  # s, shortest rotary period
    t_max: float = population_tokens.T_MAX  # s, longest rotary period


SMALL = EncoderConfig()
FULL = EncoderConfig(latents_per_step=32, width=128, depth=24, cross_heads=4)
MOVIE = EncoderConfig(width=1024)


class Embedding(nnx.Module):
    """Rows (V, width) of learned vectors, and rows appended later that train alone.

    Row 0 stands for none. Look-ups see `table`, then `added`.
    """

    def __init__(self, rows: int, width: int, *, scale: float, rngs: nnx.Rngs) -> None:
        self.table = nnx.Param(scale * normal(rngs.params(), (rows, width)))
        self.added = nnx.data(None)

    def rows(self) -> Array:
        """(V + appended, width)."""
        if self.added is None:
            return self.table[...]
        return jnp.concatenate([self.table[...], self.added[...]])

    def __call__(self, index: Array, dtype: DTypeLike) -> Array:
        return self.rows().astype(dtype)[index]


class Block(nnx.Module):
    """Self-attention and feed-forward with dropout on what each adds."""

    def __init__(self, cfg: EncoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.attention = RotarySelfAttention(
            cfg.width,
            heads=cfg.self_heads,
            head_width=cfg.head_width,
            dropout=cfg.attention_dropout,
            dtype=dtype,
            rngs=rngs,
        )
        self.forward = GatedForward(
            cfg.width, dropout=cfg.forward_dropout, dtype=dtype, rngs=rngs
        )
        self.rate = cfg.block_dropout

    def __call__(self, x: Array, code: Array, key: Array | None = None) -> Array:
        a, b, c, d = split_key(key, 4)
        x = x + dropout(self.attention(x, code, a), self.rate, b)
        return x + dropout(self.forward(x, c), self.rate, d)

    def columns(self, x: Array, code: Array, key: Array | None = None) -> Array:
        """The same from (width, B, L) to (width, B, L); see `layers.columns`."""
        a, b, c, d = split_key(key, 4)
        x = x + columns.dropout(self.attention.columns(x, code, a), self.rate, b)
        return x + columns.dropout(self.forward.columns(x, c), self.rate, d)


class Reader(nnx.Module):
    """Cross-attention and feed-forward, each added to its input."""

    def __init__(
        self, cfg: EncoderConfig, *, rotate_values: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.attention = RotaryCrossAttention(
            cfg.width,
            cfg.width,
            heads=cfg.cross_heads,
            head_width=cfg.head_width,
            rotate_values=rotate_values,
            dropout=cfg.attention_dropout,
            dtype=dtype,
            rngs=rngs,
        )
        self.forward = GatedForward(
            cfg.width, dropout=cfg.forward_dropout, dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        x: Array,
        context: Array,
        code: Array,
        context_code: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        a, b = split_key(key, 2)
        x = x + self.attention(x, context, code, context_code, mask, a)
        return x + self.forward(x, b)


class PopulationEncoder(nnx.Module):
    """Parameters of the encoder; built by `init`.

    Attributes:
      heads: task name -> (id from 1, classes or dimensions).
      omega: angular frequencies of the rotary code (rad/s); `collate` needs them.
    """

    def __init__(
        self,
        cfg: EncoderConfig,
        *,
        units: int,
        sessions: int,
        heads: Heads,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        make = lambda rows, width: Embedding(rows, width, scale=cfg.embedding_scale, rngs=rngs)
        how = {"dtype": dtype, "rngs": rngs}
        self.value_map = linear(1, cfg.width // 2, bias=True, scale=1.0, **how)
        if cfg.token == "modulated":
            # What does not depend on the activity has to be there, or the normalisation of a
            # token would leave no more than the sign of its value.
            constant = normal(rngs.params(), (cfg.width // 2,))
            self.value_map.kernel[...] *= cfg.embedding_scale
            self.value_map.bias[...] = cfg.embedding_scale * constant
        self.units = make(units + 1, cfg.width // 2)
        self.sessions = make(sessions + 1, cfg.width)
        self.tasks = make(1 + max((i for i, _ in heads.values()), default=0), cfg.width)
        scale = cfg.embedding_scale if cfg.latent_scale is None else cfg.latent_scale
        self.latents = Embedding(cfg.latents_per_step, cfg.width, scale=scale, rngs=rngs)
        self.encoder = Reader(cfg, rotate_values=True, **how)
        self.blocks = nnx.List([Block(cfg, **how) for _ in range(cfg.depth)])
        self.decoder = Reader(cfg, rotate_values=False, **how)
        for reader, gain in ((self.encoder, cfg.value_gain), (self.decoder, cfg.query_gain)):
            kernel = reader.attention.key_value.kernel
            half = kernel[...].shape[1] // 2  # keys, then values
            kernel[...] = kernel[...].at[:, half:].multiply(gain)
        self.readouts = nnx.Dict(
            {
                name: linear(cfg.width, width, bias=True, scale=cfg.width**-0.5, **how)
                for name, (_, width) in heads.items()
            }
        )
        self.heads = tuple((name, *what) for name, what in heads.items())
        self.omega = tuple(
            population_tokens.frequencies(cfg.head_width, cfg.t_min, cfg.t_max).tolist()
        )
        self.config, self.dtype = cfg, dtype


def init(
    config: EncoderConfig,
    key: Array,
    *,
    units: int,
    sessions: int,
    heads: Heads,
    dtype: DTypeLike = jnp.float32,
) -> PopulationEncoder:
    """An encoder with random weights.

    Args:
      units, sessions: rows of the tables beside row 0, which stands for none.
      heads: task name -> (id from 1, classes or dimensions).
      dtype: of the computation; parameters are float32.

    Raises:
      ConfigError: when sizes or task ids contradict each other.
    """
    check(config, heads)
    return PopulationEncoder(
        config, units=units, sessions=sessions, heads=heads, dtype=dtype, rngs=nnx.Rngs(key)
    )


def check(config: EncoderConfig, heads: Heads) -> None:
    """Raises ConfigError when sizes or task ids contradict each other."""
    if config.width % 2 or config.head_width % 4:
        raise ConfigError(
            "the width must be even and the head width a multiple of 4 (rotary time)",
            where="width, head_width",
            found=f"width {config.width}, head width {config.head_width}",
        )
    population_tokens.latent_grid(config.window, config.latent_step, config.latents_per_step)
    ids = [i for i, _ in heads.values()]
    if any(i < 1 for i in ids) or len(set(ids)) < len(ids):
        raise ConfigError("task ids must differ and begin at 1", where="heads", found=ids)
    bad = [name for name in heads if not re.fullmatch(r"\w+", name)]
    if bad:
        raise ConfigError(
            "a task name must be letters, digits and underscores", where="heads", found=bad[0]
        )


def latent_code(model: PopulationEncoder) -> Array:
    """(L, 2, P), the rotary code of the latents."""
    cfg = model.config
    _, times = population_tokens.latent_grid(cfg.window, cfg.latent_step, cfg.latents_per_step)
    return jnp.asarray(
        population_tokens.rotary_code(times, np.array(model.omega), np.dtype(model.dtype))
    )


def latent_tokens(model: PopulationEncoder, batch: int) -> Array:
    """(B, L, width), the learned latents before they have seen anything."""
    cfg = model.config
    index, _ = population_tokens.latent_grid(
        cfg.window, cfg.latent_step, cfg.latents_per_step
    )
    z = model.latents(jnp.asarray(index), model.dtype)
    return jnp.broadcast_to(z, (batch, *z.shape))


def embed(model: PopulationEncoder, values: Array, units: Array) -> Array:
    """Tokens (B, S, width) = [Linear(dF/F), unit embedding] of values and units (B, S);
    with `token` "modulated" the embedding times dF/F."""
    x = values.astype(model.dtype)[..., None]
    own = model.units(units, model.dtype)
    if model.config.token == "modulated":
        own = own * x
    return jnp.concatenate([model.value_map(x), own], axis=-1)


def encode(
    model: PopulationEncoder, batch: Mapping[str, Array], *, key: Array | None = None
) -> Array:
    """Z1 (B, L, width): latents after the encoder cross-attention and its feed-forward part.

    Args:
      batch: values, units, mask (B, S), code (B, S, 2, P). key: switches dropout on.
    """
    x = embed(model, batch["values"], batch["units"])
    z = latent_tokens(model, 1)  # the same for all of the batch
    return model.encoder(z, x, latent_code(model), batch["code"], batch["mask"], key)


def process(model: PopulationEncoder, z: Array, *, key: Array | None = None) -> Array:
    """Z (B, L, width): latents after the stack of self-attention blocks."""
    code, keys = latent_code(model), split_key(key, len(model.blocks))
    if not perceiver.by_columns():
        for block, own in zip(model.blocks, keys, strict=True):
            z = block(z, code, own)
        return z
    z, code = perceiver.turned(z), columns.columns_of(code)
    for block, own in zip(model.blocks, keys, strict=True):
        z = block.columns(z, code, own)
    return perceiver.turned_back(z)


def queries(model: PopulationEncoder, batch: Mapping[str, Array]) -> Array:
    """(B, Q, width) session embedding + task embedding."""
    return model.sessions(batch["sessions"], model.dtype) + model.tasks(
        batch["tasks"], model.dtype
    )


def decode(
    model: PopulationEncoder,
    z: Array,
    batch: Mapping[str, Array],
    *,
    key: Array | None = None,
) -> Array:
    """(B, Q, width) what the queries read from latents z.

    Args:
      batch: sessions, tasks (B, Q), query_code (B, Q, 2, P).
    """
    return model.decoder(
        queries(model, batch), z, batch["query_code"], latent_code(model), None, key
    )


def read_out(model: PopulationEncoder, features: Array) -> dict[str, Array]:
    """Task name -> (B, Q, classes or dimensions), for all queries.

    Every task is computed at every query, so that shapes do not depend on what a batch
    asks; which of them count is in `batch["tasks"]`.
    """
    return {name: model.readouts[name](features) for name, *_ in model.heads}


def outputs(
    model: PopulationEncoder, batch: Mapping[str, Array], *, key: Array | None = None
) -> dict[str, Array]:
    """All stages: batch -> task name -> (B, Q, classes or dimensions)."""
    a, b, c = split_key(key, 3)
    z = process(model, encode(model, batch, key=a), key=b)
    return read_out(model, decode(model, z, batch, key=c))


def loss(
    model: PopulationEncoder, out: Mapping[str, Array], batch: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """(loss, task name -> its own loss) of a batch.

    Cross-entropy for classes, squared error for values, each a mean over the queries of
    its task weighted by `weights` (B, Q). The sum over tasks is weighted by the number of
    windows that ask for the task, over the windows of the batch.
    """
    rows = []
    for name, task, _ in model.heads:
        own = batch["tasks"] == task
        target = batch[f"target/{name}"]
        weight = jnp.where(own, batch["weights"], 0).astype(model.dtype)
        y = out[name]
        if jnp.issubdtype(target.dtype, jnp.integer):
            logp = jax.nn.log_softmax(y, axis=-1)
            error = -jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]
        else:
            error = jnp.mean(jnp.square(y - target.astype(y.dtype)), axis=-1)
        error = jnp.where(weight > 0, error, 0)
        asked = own.any(-1).astype(model.dtype)
        rows += [jnp.sum(error * weight, -1), jnp.sum(weight, -1), asked]
    if not rows:
        return jnp.zeros((), model.dtype), {}
    # One sum over the batch, which devices have to exchange, not one for each number.
    error, weight, asked = jnp.sum(jnp.stack(rows), -1).reshape(-1, 3).T
    means = error / jnp.maximum(weight, 1e-12)
    each = {name: mean for (name, *_), mean in zip(model.heads, means, strict=True)}
    return jnp.sum(means * asked) / batch["tasks"].shape[0], each
