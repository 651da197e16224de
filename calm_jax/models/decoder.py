"""Behaviour from the features of a population: the heads of CalM (spec section 5).

A step is one token (`patch` frames), or one frame where features are made for every
frame. For outputs o, ranks r, frames f of a step:

    u = A h, v = B h,  z = dropout(u * GELU(v))           (gated; linear: z = dropout(u))
    y_{k f o} = b_o + (N R)^{-1/2} sum_n sum_r w_{n o r} z_{k n f o r}

with one row w_n per neuron; the steps are unfolded to frames and smoothed by a depth-wise
convolution that starts at the identity. The factor (N R)^{-1/2} (N neurons of the session)
is ours: outputs have the same scale in populations of every size.

Look-ahead. A decoder with a look-ahead of `a` frames reads nothing after frame t + a for
frame t. A token that covers frames 4k .. 4k + 3 then speaks for the frames from
4k + 3 - delay on, and of the convolution only taps up to `future` frames ahead are used;
delay + future = a. As published: delay 3, future 4 (kernel 9), a = 7 frames.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from calm_jax.layers.basic import dropout, linear, normal
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import DualAxisTransformer, Tokens, features


class Head(nnx.Module):
    """Parameters of a decoding head; use it through the functions below.

    Args:
      width: D, of the features. outputs: O. neurons: rows of the neuron table.
      unfold: F, frames per step. rank: R. kernel: taps of the smoothing, odd.
      future: taps of the smoothing after the present frame.
      gated: False is the linear head. dropout: of z.
    """

    def __init__(
        self,
        *,
        width: int,
        outputs: int,
        neurons: int,
        unfold: int,
        rank: int = 16,
        kernel: int = 9,
        future: int = 0,
        gated: bool = True,
        dropout: float = 0.2,
        rngs: nnx.Rngs,
    ):
        size, scale = unfold * outputs * rank, width**-0.5
        self.u = linear(width, size, scale=scale, rngs=rngs)
        self.v = linear(width, size, scale=scale, rngs=rngs) if gated else None
        self.rows = nnx.Param(0.1 * normal(rngs.params(), (neurons, outputs, rank)))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        taps = jnp.zeros((kernel, outputs)).at[kernel - 1 - future].set(1.0)
        self.smooth = nnx.Param(taps)
        self.shape = (unfold, outputs, rank)
        self.future, self.rate = future, dropout


def delays(look_ahead: int, unfold: int, kernel: int) -> tuple[int, int]:
    """(delay, future) frames that make up a look-ahead: delay + future = look_ahead.

    The convolution gets its future taps (at most kernel // 2) once the steps themselves
    are waited for (unfold - 1).
    """
    future = min(kernel // 2, max(0, look_ahead - (unfold - 1)))
    return look_ahead - future, future


def decode_steps(
    head: Head, h: Array, neuron: Array, real: Array, key: Array | None = None
) -> Array:
    """What each step says of its frames, before smoothing.

    Args:
      h: (B, S, N, D) features. neuron: (B, N) rows of the head's neuron table.
      real: (B, N) bool, False for padding. key: for dropout; None in evaluation.

    Returns:
      (B, S, F, O).
    """
    b, s, n, _ = h.shape
    f, o, r = head.shape
    z = head.u(h)
    if head.v is not None:
        z = z * jax.nn.gelu(head.v(h))
    z = dropout(z, head.rate, key).reshape(b, s, n, f, o, r)
    count = jnp.maximum(real.sum(-1), 1).astype(z.dtype)
    w = jnp.where(real[..., None, None], head.rows[...][neuron], 0)
    w = w * jax.lax.rsqrt(count * float(r))[:, None, None, None]
    return jnp.einsum("bsnfor,bnor->bsfo", z, w) + head.bias[...]


def unfold_steps(y: Array, length: Array, delay: int, before: Array) -> Array:
    """Frames from steps, each frame from the newest step that ends at most `delay` later.

    Shapes: y (B, S, F, O), length (B,) valid frames of a row, before (O,) what holds until
    the first step has ended -> (B, S * F, O). At the end of a row, where the look-ahead
    leaves it, the last frames hold.
    """
    b, s, f, o = y.shape
    flat = y.reshape(b, s * f, o)
    index = jnp.arange(s * f) - (f - 1) + delay
    # A step that the row cuts short has not ended within it.
    last = jnp.maximum((length // f) * f - 1, 0)[:, None]
    clipped = jnp.clip(index[None], 0, last)
    out = jnp.take_along_axis(flat, clipped[..., None], axis=1)
    early = (index[None] < 0) | (length < f)[:, None]
    return jnp.where(early[..., None], before, out)


def smooth_frames(y: Array, length: Array, taps: Array, future: int) -> Array:
    """Depth-wise convolution over frames: out_t = sum_j taps_j y_{t + j - (K - 1 - future)}.

    Frames beyond the ends of a row take its end values.
    Shapes: y (B, T, O), length (B,), taps (K, O) -> (B, T, O).
    """
    t, k = y.shape[1], taps.shape[0]
    last = jnp.maximum(length - 1, 0)[:, None]
    out = jnp.zeros_like(y)
    for j in range(k):
        index = jnp.clip(jnp.arange(t)[None] + j - (k - 1 - future), 0, last)
        out = out + taps[j] * jnp.take_along_axis(y, index[..., None], axis=1)
    return out


def decode_frames(head: Head, y: Array, length: Array, delay: int) -> Array:
    """Outputs of every frame from the steps of whole rows.

    Shapes: y (B, S, F, O) of `decode_steps`, length (B,) valid frames -> (B, S * F, O).
    """
    frames = unfold_steps(y, length, delay, head.bias[...])
    return smooth_frames(frames, length, head.smooth[...], head.future)


def population_features(
    tokenizer: tokenizers.Tokenizer,
    transformer: DualAxisTransformer,
    traces: Array,
    neuron: Array,
    session: Array,
    real: Array,
    *,
    every_frame: bool = False,
    with_traces: bool = False,
    key: Array | None = None,
) -> Array:
    """Features of the backbone at every token, or at every frame; causal.

    For every frame the window is tokenized `patch` times, each time one frame later, so
    that a token ends at each frame; before the first frame the trace counts as constant.

    Args:
      traces: (B, T, N) scaled, T a multiple of the patch.
      neuron, session: rows of the tables of the transformer, -1 = mean row: (B, N), (B,).
      real: (B, N) bool. with_traces: the frames of the token stand behind the features.
      key: for dropout; None in evaluation.

    Returns:
      (B, S, N, D), or D + patch with traces; S = T / patch, or T for every frame.
    """
    b, t, n = traces.shape
    patch = tokenizer.config.patch
    if every_frame:
        padded = jnp.concatenate([jnp.repeat(traces[:, :1], patch - 1, axis=1), traces], axis=1)
        shifted = jnp.stack([padded[:, p : p + t] for p in range(patch)])
        tile = lambda x: jnp.tile(x, (patch, *[1] * (x.ndim - 1)))  # noqa: E731
        h = population_features(
            tokenizer,
            transformer,
            shifted.reshape(patch * b, t, n),
            *map(tile, (neuron, session, real)),
            with_traces=with_traces,
            key=key,
        )
        h = h.reshape(patch, b, t // patch, n, -1)
        return jnp.moveaxis(h, 0, 2).reshape(b, t, n, -1)
    values = traces.reshape(b, t // patch, patch, n).swapaxes(2, 3)
    codes = tokenizers.encode(tokenizer, traces.swapaxes(1, 2)).swapaxes(1, 2)
    needs = transformer.value is not None or transformer.readout is not None
    tokens = Tokens(codes, neuron, session, real, values if needs else None)
    h = features(transformer, tokens, key=key).astype(jnp.float32)
    return jnp.concatenate([h, values], axis=-1) if with_traces else h
