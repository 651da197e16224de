"""The neural quantizer of CalM: one code per `patch` frames of one neuron's trace.

Univariate: the weights are shared by all neurons of all animals. Everything is strictly
causal: code t depends on frames before (t + 1) patch, output frame s on the codes up to
s // patch. The module holds parameters; what is called are the functions below. They are
pure, work eagerly and under jit, vmap and grad, and take any leading axes.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax import config as configs
from calm_jax.errors import ConfigError
from calm_jax.layers import quantizer
from calm_jax.layers.attention import SelfAttention
from calm_jax.layers.basic import FeedForward, layer_norm, linear, split_key
from calm_jax.layers.convolution import Downsample, Upsample


class Block(nnx.Module):
    """Pre-LN causal transformer block with rotary position, (batch, T', d) -> the same."""

    def __init__(self, cfg: configs.Tokenizer, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm_1 = layer_norm(cfg.width, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(
            cfg.width,
            cfg.heads,
            causal=True,
            rope=True,
            bias=True,
            dropout=cfg.dropout,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm_2 = layer_norm(cfg.width, dtype=dtype, rngs=rngs)
        self.forward = FeedForward(
            cfg.width, cfg.ffn * cfg.width, bias=True, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        x = x + self.attention(self.norm_1(x), key=key)
        return x + self.forward(self.norm_2(x))


class Stack(nnx.Module):
    """Blocks and a final layer normalisation, on any leading axes (..., T', d)."""

    def __init__(
        self, cfg: configs.Tokenizer, layers: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.blocks = nnx.List([Block(cfg, dtype=dtype, rngs=rngs) for _ in range(layers)])
        self.norm = layer_norm(cfg.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        y = x.reshape(-1, *x.shape[-2:])
        for block, k in zip(self.blocks, split_key(key, len(self.blocks)), strict=True):
            y = block(y, k)
        return self.norm(y).reshape(x.shape)


class Tokenizer(nnx.Module):
    """Encoder, codebook, decoder and the code predictor used in training.

    Built by `init`. Strided convolutions have kernel = stride = 2, one per factor 2 of
    the patch, GELU between them, widths doubling up to d (d/2, d for a patch of 4).
    """

    def __init__(self, cfg: configs.Tokenizer, *, dtype: DTypeLike, rngs: nnx.Rngs):
        halvings = cfg.patch.bit_length() - 1
        widths = [1] + [cfg.width >> (halvings - 1 - i) for i in range(halvings)]
        pairs = list(itertools.pairwise(widths))
        how = {"dtype": dtype, "rngs": rngs}
        self.down = nnx.List([Downsample(i, o, **how) for i, o in pairs])
        self.encoder = Stack(cfg, cfg.layers, dtype=dtype, rngs=rngs)
        self.decoder = Stack(cfg, cfg.layers, dtype=dtype, rngs=rngs)
        self.up = nnx.List([Upsample(o, i, **how) for i, o in reversed(pairs)])
        width = cfg.code_width or cfg.width
        if width == cfg.width:
            self.into = self.out_of = None
        else:
            self.into = linear(
                cfg.width, width, bias=True, scale=cfg.width**-0.5, rngs=rngs
            )
            self.out_of = linear(
                width, cfg.width, bias=True, scale=width**-0.5, dtype=dtype, rngs=rngs
            )
        self.quantizer = quantizer.Quantizer(
            cfg.codes, width, learned=cfg.codebook == "gradient", rngs=rngs
        )
        self.predictor = (
            Predictor(cfg, width, dtype=dtype, rngs=rngs)
            if cfg.autoregressive_weight > 0
            else None
        )
        self.config, self.dtype = cfg, dtype


class Predictor(nnx.Module):
    """Causal blocks on the latents that predict the codes 1..k steps ahead (L_AR, eq. 9)."""

    def __init__(
        self, cfg: configs.Tokenizer, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        steps = cfg.autoregressive_steps
        self.into = linear(
            width, cfg.width, bias=True, scale=width**-0.5, dtype=dtype, rngs=rngs
        )
        self.stack = Stack(cfg, cfg.autoregressive_layers, dtype=dtype, rngs=rngs)
        self.head = linear(
            cfg.width, steps * cfg.codes, bias=True, scale=cfg.width**-0.5, dtype=dtype, rngs=rngs
        )
        self.steps = steps

    def __call__(self, z: Array, key: Array | None = None) -> Array:
        """z (..., T', d) -> logits (..., T', steps, K); entry k predicts code t + k + 1."""
        y = self.head(self.stack(self.into(z.astype(self.into.dtype)), key))
        return y.reshape(*y.shape[:-1], self.steps, -1).astype(jnp.float32)


def init(
    config: configs.Tokenizer, key: Array, *, dtype: DTypeLike = jnp.float32
) -> Tokenizer:
    """A tokenizer with random weights.

    Args:
      key: jax.random key. dtype: of the computation; parameters are float32.

    Raises:
      ConfigError: when a size of the config does not fit the others.
    """
    check(config)
    return Tokenizer(config, dtype=dtype, rngs=nnx.Rngs(key))


def check(config: configs.Tokenizer) -> None:
    """Raises `ConfigError` when the sizes of the config contradict each other."""
    if config.patch < 2 or config.patch & (config.patch - 1):
        raise ConfigError(
            "the patch must be a power of two",
            where="tokenizer.patch",
            found=config.patch,
            expected="2, 4, 8, ...",
        )
    if config.width % config.heads or (config.width // config.heads) % 2:
        raise ConfigError(
            "the width must be an even multiple of the heads (rotary position)",
            where="tokenizer.width",
            found=f"width {config.width}, heads {config.heads}",
        )
    if config.width % (config.patch // 2):
        raise ConfigError(
            "the width must be divisible by half the patch",
            where="tokenizer.width",
            found=f"width {config.width}, patch {config.patch}",
        )
    if config.codes < 2:
        raise ConfigError(
            "at least two codes are needed",
            where="tokenizer.codes",
            found=config.codes,
        )
    if config.code_width is not None and config.code_width < 1:
        raise ConfigError(
            "the codes need at least one dimension",
            where="tokenizer.code_width",
            found=config.code_width,
            expected="1 or more, or None for the width",
        )


def latents(tok: Tokenizer, traces: Array, *, key: Array | None = None) -> Array:
    """Latents before quantisation: traces (..., T) -> z (..., T // patch, code width).

    Frames beyond the last whole patch are dropped. `key` switches dropout on (training).
    """
    cfg = tok.config
    tokens = traces.shape[-1] // cfg.patch
    x = traces[..., : tokens * cfg.patch, None].astype(tok.dtype)
    for i, layer in enumerate(tok.down):
        x = layer(x if i == 0 else jax.nn.gelu(x))
    z = tok.encoder(x, key).astype(jnp.float32)
    if tok.into is not None:
        z = tok.into(z)
    # Causal moving average over tokens; the first token has no predecessor.
    before = jnp.concatenate([z[..., :1, :], z[..., :-1, :]], axis=-2)
    return (1.0 - cfg.smoothing) * z + cfg.smoothing * before


def assign(tok: Tokenizer, z: Array) -> Array:
    """Nearest codes: latents (..., d) -> codes (...) int32 in [0, K)."""
    return quantizer.nearest(z, tok.quantizer.codebook[...])


def encode(tok: Tokenizer, traces: Array) -> Array:
    """Codes of traces: (..., T) -> (..., T // patch) int32, causal."""
    return assign(tok, latents(tok, traces))


def decode_embeddings(tok: Tokenizer, e: Array, *, key: Array | None = None) -> Array:
    """Traces from code vectors: e (..., T', code width) -> (..., T' patch) float32, causal.

    `e` may be any point of the code space, such as an expected value over codes.
    `key` switches dropout on (training).
    """
    x = e.astype(tok.dtype)
    if tok.out_of is not None:
        x = tok.out_of(x)
    x = tok.decoder(x, key)
    for i, layer in enumerate(tok.up):
        x = layer(x if i == 0 else jax.nn.gelu(x))
    return x[..., 0].astype(jnp.float32)


def decode(tok: Tokenizer, codes: Array) -> Array:
    """Traces from codes: (..., T') int -> (..., T' patch) float32, causal."""
    return decode_embeddings(tok, tok.quantizer.codebook[...][codes])


def nearest_codes(tok: Tokenizer, n: int) -> Array:
    """(K, n) int32, the `n` nearest other codes of every code, nearest first."""
    return quantizer.neighbours(tok.quantizer.codebook[...], n)


def token_mask(mask: Array, patch: int) -> Array:
    """A code is valid when all of its frames are: (..., T) bool -> (..., T // patch) bool."""
    tokens = mask.shape[-1] // patch
    return mask[..., : tokens * patch].reshape(*mask.shape[:-1], tokens, patch).all(-1)
