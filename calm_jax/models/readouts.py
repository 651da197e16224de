"""Read-outs on the features of the dual-axis transformer, beside the code head."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.layers.basic import linear


def recent_frames(values: Array, length: int) -> tuple[Array, Array]:
    """The last `length` frames at the end of every step.

    Args:
      values: (B, T', N, patch) frames of each step.
      length: a multiple of patch.

    Returns:
      frames (B, T', N, length), oldest first, 0 before the first frame, and
      known (T', length) bool, False before the first frame.
    """
    b, t, n, p = values.shape
    back = length // p
    padded = jnp.pad(values, ((0, 0), (back - 1, 0), (0, 0), (0, 0)))
    frames = jnp.concatenate([padded[:, i : i + t] for i in range(back)], axis=-1)
    step = jnp.arange(t)[:, None] + jnp.arange(back) - (back - 1)
    return frames, jnp.repeat(step >= 0, p, axis=1)


class FrameReadout(nnx.Module):
    """The next frames of every neuron at once, from each step (a direct multi-step head).

    y_f = a x + s w_f . h (+ sum_k m_fk (x_{-k} - x)), f = 1..F, where x is the last
    frame seen, a is 1 when anchored, h are the features, s is the scale of the window
    (1 without one), and m is one linear map shared by all neurons over the recent frames
    (`linear_context`). With `level` the linear path reads the last frame itself too, and has
    a constant: + l_f x + c_f, both 0 at the start, so that it can be any linear map of the
    recent frames. Weights start near 0, so the untrained read-out is the copy-last
    forecast (anchored) or the mean; training may start m, l and c at a fitted map.

    Args:
      frames: F, frames predicted.
      patch: frames per step.
      anchor: predict the change from the last frame.
      linear_context: frames of the linear path, a multiple of `patch`; 0 = none.
      level: whether the linear path has l and c.
    """

    def __init__(
        self,
        width: int,
        frames: int,
        *,
        patch: int,
        anchor: bool,
        linear_context: int,
        level: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.head = linear(width, frames, bias=True, dtype=dtype, rngs=rngs, scale=1e-4)
        self.linear = (
            linear(linear_context, frames, rngs=rngs, scale=1e-4) if linear_context else None
        )
        self.level = linear(1, frames, bias=True, rngs=rngs, scale=0.0) if level else None
        self.frames, self.patch, self.anchor = frames, patch, anchor
        self.linear_context = linear_context

    def __call__(
        self, h: Array, recent: Array, known: Array, scale: Array | None = None
    ) -> Array:
        """The next frames.

        Args:
          h: (B, S, N, D) features of S steps.
          recent: (B, S, N, L) frames up to the end of each step, oldest first,
            L >= max(1, linear_context).
          known: (S, L) bool, False before the first frame.
          scale: (B, S, N) the unit that the features speak in; None = 1.

        Returns:
          (B, S, N, F) float32.
        """
        y = self.head(h).astype(jnp.float32)
        if scale is not None:
            y = y * scale[..., None]
        last = recent[..., -1:]
        if self.anchor:
            y = y + last
        if self.linear is not None:
            size = self.linear_context
            change = jnp.where(known[:, None, -size:], recent[..., -size:] - last, 0)
            y = y + self.linear(change)
        if self.level is not None:
            y = y + self.level(last)
        return y
