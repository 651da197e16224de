"""From one latent vector to one movie frame: the U-Net of POYO-SSL (Algorithm S2), and the
decoders that its Table 3 puts beside it.

    x = z as (1, 1, d)
    four stages, h = 2, 4, 8, 16:  s = Linear(z) as (h, h, c)
                                   x = [GELU(Conv3x3(Upsample2(x))), s];  x = GELU(Conv1x1(x))
    x -> 32 x 32 -> 64 x 128 (-> 128 x 256), each an upsampling and a Conv3x3;  sigmoid

The algorithm names no non-linearity; GELU is ours. "Skips" are the projections s of the
latent into every stage: there is no encoder of images that could have any.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.errors import ConfigError
from calm_jax.layers import images
from calm_jax.layers.basic import linear, truncated_normal
from calm_jax.layers.perceiver import Norm


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Which decoder, and its sizes."""

    # "unet"; "no_skip" = the same without projections of the latent; "mlp" = fully connected.
    kind: Literal["unet", "no_skip", "mlp"] = "unet"
    height: int = 64  # pixels
    width: int = 128
    channels: tuple[int, ...] = (128, 64, 32, 16)  # of the stages at 2, 4, 8, 16 pixels
    last_channels: int = 16  # from 32 x 32 on
    hidden: tuple[int, ...] = (512,)  # of the MLP; () = one linear map
    # A bias for every pixel, before the sigmoid; training starts it at the mean frame.
    pixel_bias: bool = False


class Stage(nnx.Module):
    """Upsample, Conv3x3, concatenate the projection of the latent, Conv1x1."""

    def __init__(
        self, latent: int, inputs: int, outputs: int, size: int, *, skip: bool,
        dtype: DTypeLike, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.project = (
            linear(latent, size * size * outputs, bias=True, dtype=dtype, scale=latent**-0.5,
                   rngs=rngs)
            if skip else None
        )  # fmt: skip
        self.conv = _conv(inputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.fuse = _conv(outputs * (2 if skip else 1), outputs, 1, dtype=dtype, rngs=rngs)
        self.size = size

    def __call__(self, x: Array, z: Array) -> Array:
        x = jax.nn.gelu(images.upsampled(self.conv, x, 2, 2))
        if self.project is not None:
            s = self.project(z).reshape(z.shape[0], self.size, self.size, -1)
            x = jnp.concatenate([x, s], axis=-1)
        return jax.nn.gelu(images.pointwise(self.fuse, x))


class MovieDecoder(nnx.Module):
    """Parameters of a decoder; built by `init`."""

    def __init__(
        self, config: DecoderConfig, latent: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.norm = Norm(latent, dtype=dtype)
        self.config = config
        self.bias = nnx.data(None)
        if config.pixel_bias:
            self.bias = nnx.Param(jnp.zeros((config.height, config.width)))
        if config.kind == "mlp":
            sizes = (latent, *config.hidden, config.height * config.width)
            self.layers = nnx.List(
                [linear(a, b, bias=True, dtype=dtype, scale=a**-0.5, rngs=rngs)
                 for a, b in itertools.pairwise(sizes)]
            )  # fmt: skip
            return
        made, inputs = [], latent
        for i, outputs in enumerate(config.channels):
            made.append(Stage(latent, inputs, outputs, 2 ** (i + 1), dtype=dtype, rngs=rngs,
                              skip=config.kind == "unet"))  # fmt: skip
            inputs = outputs
        self.stages = nnx.List(made)
        ups = []
        for _ in steps(config):
            ups.append(_conv(inputs, config.last_channels, 3, dtype=dtype, rngs=rngs))
            inputs = config.last_channels
        self.ups = nnx.List(ups)
        self.out = _conv(inputs, 1, 3, dtype=dtype, rngs=rngs)


def steps(config: DecoderConfig) -> list[tuple[int, int]]:
    """Factors (rows, columns) from 16 x 16 to the frame: 32 x 32 first, then its shape."""
    wide = config.width // config.height
    out, h = [(2, 2)], 32
    while h < config.height:
        out.append((2, 2 * wide if h == 32 else 2))
        h *= 2
    return out


def init(
    config: DecoderConfig, key: Array, *, latent: int, dtype: DTypeLike = jnp.float32
) -> MovieDecoder:
    """A decoder of latents of `latent` dimensions, with random weights.

    Raises:
      ConfigError: for a frame size that the stages do not reach.
    """
    check(config)
    return MovieDecoder(config, latent, dtype=dtype, rngs=nnx.Rngs(key))


def frames(decoder: MovieDecoder, z: Array) -> Array:
    """Latents (B, d) -> frames (B, height, width) float32 in [0, 1]; pure."""
    x = _logits(decoder, decoder.norm(z)).astype(jnp.float32)
    return jax.nn.sigmoid(x if decoder.bias is None else x + decoder.bias[...])


def _logits(decoder: MovieDecoder, z: Array) -> Array:
    config, x = decoder.config, z
    if config.kind == "mlp":
        for i, layer in enumerate(decoder.layers):
            x = layer(x if i == 0 else jax.nn.gelu(x))
        return x.reshape(-1, config.height, config.width)
    x = z[:, None, None, :]
    for stage in decoder.stages:
        x = stage(x, z)
    for (rows, columns), conv in zip(steps(config), decoder.ups, strict=True):
        x = jax.nn.gelu(images.upsampled(conv, x, rows, columns))
    return images.upsampled(decoder.out, x)[..., 0]


def start_at(decoder: MovieDecoder, frame: Array) -> None:
    """Sets the bias of the pixels so that a decoder whose maps give 0 shows `frame` (H, W)."""
    p = jnp.clip(frame, 0.02, 0.98)
    decoder.bias[...] = jnp.log(p / (1 - p))


def count(config: DecoderConfig, latent: int) -> int:
    """How many parameters the decoder has."""
    total = 2 * latent  # the norm
    total += config.height * config.width if config.pixel_bias else 0
    if config.kind == "mlp":
        sizes = (latent, *config.hidden, config.height * config.width)
        return total + sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    skip, inputs = config.kind == "unet", latent
    for i, c in enumerate(config.channels):
        total += (latent + 1) * 4 ** (i + 1) * c if skip else 0
        total += (9 * inputs + 1) * c + ((2 if skip else 1) * c + 1) * c
        inputs = c
    for _ in steps(config):
        total += (9 * inputs + 1) * config.last_channels
        inputs = config.last_channels
    return total + 9 * inputs + 1


def matched(kind: str, like: DecoderConfig, latent: int) -> DecoderConfig:
    """The decoder of `kind` with as many parameters as `like` has, to 3 % where sizes allow.

    "mlp" gets one hidden layer of the width that fits, "no_skip" wider stages.
    """
    wanted = count(like, latent)
    if kind == like.kind:
        return like
    if kind == "mlp":
        pixels = like.height * like.width
        rest = wanted - 2 * latent - pixels * (1 + like.pixel_bias)
        hidden = max(round(rest / (latent + 1 + pixels)), 1)
        return dataclasses.replace(like, kind="mlp", hidden=(hidden,))
    options = [
        dataclasses.replace(
            like, kind=kind, channels=tuple(max(round(c * k / 64), 1) for c in like.channels)
        )
        for k in range(16, 64 * 12, 2)
    ]
    low, high = 0, len(options) - 1
    while low < high:  # parameters grow with the width
        middle = (low + high) // 2
        low, high = (middle + 1, high) if count(options[middle], latent) < wanted else (low, middle)
    near = options[max(low - 1, 0) : low + 1]
    return min(near, key=lambda c: abs(count(c, latent) - wanted))


def check(config: DecoderConfig) -> None:
    """Raises ConfigError for a frame that the stages do not reach, or sizes that make none."""
    if config.kind == "mlp":
        if min((config.height, config.width, *config.hidden)) < 1:
            raise ConfigError("sizes must be positive", where="decoder", found=config.hidden)
        return
    h, w = config.height, config.width
    doublings = h > 0 and h % 32 == 0 and (h // 32) & (h // 32 - 1) == 0 and h >= 64
    if not doublings or w % h or w // h not in (1, 2, 4):
        raise ConfigError(
            "the U-Net reaches no such frame",
            where="decoder.height, decoder.width",
            found=f"{h} x {w}",
            expected="a height of 64, 128, 256, ... and 1, 2 or 4 times as wide",
        )
    if len(config.channels) != 4 or min((*config.channels, config.last_channels)) < 1:
        raise ConfigError(
            "the U-Net has four stages", where="decoder.channels", found=config.channels
        )


def _conv(inputs: int, outputs: int, size: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs, outputs, (size, size), dtype=dtype, rngs=rngs,
        kernel_init=truncated_normal((2 / (size * size * inputs)) ** 0.5),
    )  # fmt: skip
