"""Read-outs on the features of the dual-axis transformer, beside the code head."""

from __future__ import annotations

from collections.abc import Sequence

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


def roughness(frames: Array, known: Array) -> Array:
    """Mean squared change from frame to frame over the variance, of the frames that are known:
    what `baselines.windows.roughness` is of whole contexts.

    Shapes: frames (B, S, N, L), known (S, L) -> (B, S, N); 0 for a trace that is constant.
    """
    k = known[:, None].astype(frames.dtype)
    pair = k[..., 1:] * k[..., :-1]
    count = jnp.maximum(k.sum(-1), 1)
    centred = (frames - ((frames * k).sum(-1) / count)[..., None]) * k
    change = jnp.square(jnp.diff(frames, axis=-1)) * pair
    variance = jnp.square(centred).sum(-1) / count + 1e-9
    return change.sum(-1) / jnp.maximum(pair.sum(-1), 1) / variance


def between(x: Array, knots: Sequence[float]) -> Array:
    """How much of every knot there is at x (...): (..., K), >= 0, of sum 1, linear from one knot
    to the next; below the first and above the last all of that one."""
    at = jnp.asarray(knots, x.dtype)
    eye = jnp.eye(len(knots), dtype=x.dtype)
    return jnp.stack([jnp.interp(x, at, row) for row in eye], -1)


class FrameReadout(nnx.Module):
    """The next frames of every neuron at once, from each step (a direct multi-step head).

    y_f = a x + s w_f . h (+ sum_k m_fk (x_{-k} - x)), f = 1..F, where x is the last
    frame seen, a is 1 when anchored, h are the features, s is the scale of the window
    (1 without one), and m is one linear map shared by all neurons over the recent frames
    (`linear_context`). With `level` the linear path reads the last frame itself too, and has
    a constant: + l_f x + c_f, both 0 at the start, so that it can be any linear map of the
    recent frames. With `knots` the map depends on the trace: what it is at each knot of the
    `roughness` of the recent frames comes on top, interpolated between knots,

        + sum_j phi_j(roughness) (sum_k m_jfk (x_{-k} - x) (+ l_jf x + c_jf)),

    0 at the start. White noise returns to its mean, a smooth trace goes on: one map has to be a
    compromise. Weights start near 0, so the untrained read-out is the copy-last
    forecast (anchored) or the mean; training may start m, l and c at a fitted map.

    Args:
      frames: F, frames predicted.
      patch: frames per step.
      anchor: predict the change from the last frame.
      linear_context: frames of the linear path, a multiple of `patch`; 0 = none.
      level: whether the linear path has l and c.
      knots: ascending values of roughness; none = one map.
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
        knots: tuple[float, ...] = (),
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.head = linear(width, frames, bias=True, dtype=dtype, rngs=rngs, scale=1e-4)
        self.linear = (
            linear(linear_context, frames, rngs=rngs, scale=1e-4) if linear_context else None
        )
        self.level = linear(1, frames, bias=True, rngs=rngs, scale=0.0) if level else None
        count = len(knots) if linear_context else 0
        table = lambda inputs: linear(count * inputs, frames, rngs=rngs, scale=0.0)
        self.rough = table(linear_context) if count else None
        self.rough_level = table(2) if count and level else None
        self.frames, self.patch, self.anchor, self.knots = frames, patch, anchor, knots
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
        if self.rough is not None:
            phi = between(roughness(recent[..., -size:], known[:, -size:]), self.knots)
            y = y + self.rough(_by_knot(phi, change))
            if self.rough_level is not None:
                given = jnp.concatenate([last, jnp.ones_like(last)], -1)
                y = y + self.rough_level(_by_knot(phi, given))
        return y


def _by_knot(phi: Array, x: Array) -> Array:
    """(..., K * I) products of phi (..., K) and x (..., I).

    Products of x with the map of every knot first and their weighted sum behind would need less
    memory, but XLA of jax 0.10.2 compiles two such sums in one expression to garbage on CPUs.
    """
    return (phi[..., None] * x[..., None, :]).reshape(*x.shape[:-1], -1)
