"""How well: pure functions of arrays (numpy or jax), masked, each with its equation.

NaN marks what is not defined (nothing valid, a constant target); `average` leaves it
out, so that counts of what was left out can be reported beside every mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

Axis = int | Sequence[int] | None
_RELATIVE = 1e-6  # an SD below this share of the root mean square is rounding


def average(values: Array, mask: Array | None = None, axis: Axis = None) -> Array:
    """Mean over `axis` of what is valid and not NaN; NaN where nothing is.

    Shapes: values (...), mask broadcastable -> reduced over `axis`.
    """
    values = jnp.asarray(values)
    keep = ~jnp.isnan(values)
    if mask is not None:
        keep &= jnp.asarray(mask, bool)
    n = jnp.sum(keep, axis).astype(values.dtype)
    total = jnp.sum(jnp.where(keep, values, 0), axis)
    return jnp.where(n > 0, total / jnp.maximum(n, 1), jnp.nan)


def mse(pred: Array, target: Array, mask: Array | None = None, axis: Axis = 0) -> Array:
    """Mean squared error, mean (x - y)^2.

    Shapes: pred, target (T, ...) -> reduced over `axis` (time). Keep the axis of the
    step ahead to get the error per step.
    """
    return average(jnp.square(pred - target), mask, axis)


def mae(pred: Array, target: Array, mask: Array | None = None, axis: Axis = 0) -> Array:
    """Mean absolute error, mean |x - y|; shapes as in `mse`."""
    return average(jnp.abs(pred - target), mask, axis)


def _centred(x: Array, mask: Array, axis: Axis) -> tuple[Array, Array, Array]:
    """Valid samples less their mean (0 elsewhere), their variance, and whether it is real."""
    n = jnp.maximum(jnp.sum(mask, axis, keepdims=True), 1).astype(x.dtype)
    x = jnp.where(mask, x, 0)
    d = jnp.where(mask, x - jnp.sum(x, axis, keepdims=True) / n, 0)
    variance = jnp.sum(d * d, axis, keepdims=True) / n
    power = jnp.sum(x * x, axis, keepdims=True) / n
    return d, variance, variance > _RELATIVE**2 * power


def pearson(pred: Array, target: Array, mask: Array | None = None, axis: Axis = 0) -> Array:
    """Correlation r = cov(x, y) / sqrt(var x var y) over the valid samples of `axis`.

    A constant prediction has r = 0: it explains nothing. A constant target, or fewer
    than two samples, gives NaN: nothing could be explained.

    Shapes: pred, target (T, ...) -> reduced over `axis` (time).
    """
    mask = jnp.broadcast_to(True if mask is None else jnp.asarray(mask, bool), target.shape)
    dx, var_x, real_x = _centred(pred, mask, axis)
    dy, var_y, real_y = _centred(target, mask, axis)
    n = jnp.sum(mask, axis, keepdims=True)
    cov = jnp.sum(dx * dy, axis, keepdims=True) / jnp.maximum(n, 1).astype(dx.dtype)
    both = real_x & real_y
    r = jnp.where(both, cov / jnp.sqrt(jnp.where(both, var_x * var_y, 1)), 0.0)
    return jnp.squeeze(jnp.where(real_y & (n > 1), r, jnp.nan), axis)


def r2(pred: Array, target: Array, mask: Array | None = None, axis: Axis = 0) -> Array:
    """Coefficient of determination 1 - sum (y - x)^2 / sum (y - mean y)^2.

    NaN where the target is constant. Shapes as in `pearson`.
    """
    mask = jnp.broadcast_to(True if mask is None else jnp.asarray(mask, bool), target.shape)
    _, variance, real = _centred(target, mask, axis)
    variance, real = jnp.squeeze(variance, axis), jnp.squeeze(real, axis)
    error = mse(pred, target, mask, axis)
    return jnp.where(real, 1 - error / jnp.where(real, variance, 1), jnp.nan)


def skill(error: Array, reference: Array) -> Array:
    """1 - error / reference: 1 = perfect, 0 = no better than the reference (copy-last)."""
    return 1 - error / reference


def usage(codes: Array, size: int, mask: Array | None = None) -> Array:
    """Share of the tokens that each code takes.

    Shapes: codes (...) integers in [0, size), mask alike -> (size,) that sums to 1.
    """
    codes = jnp.ravel(codes)
    weights = None if mask is None else jnp.ravel(jnp.asarray(mask, jnp.float32))
    counts = jnp.bincount(codes, weights, length=size).astype(jnp.float32)
    return counts / jnp.maximum(jnp.sum(counts), 1)


def perplexity(share: Array) -> Array:
    """2^H, H = -sum_k p_k log2 p_k: the number of codes in even use that comes to the same.

    Shapes: share (K,) that sums to 1 -> ().
    """
    log = jnp.log2(jnp.where(share > 0, share, 1))
    return 2 ** -jnp.sum(share * log)


def codes_used(share: Array) -> Array:
    """How many codes are used at all. Shapes: share (K,) -> () integer."""
    return jnp.sum(share > 0)


def coverage(
    quantiles: Array, target: Array, mask: Array | None = None, axis: Axis = None
) -> Array:
    """Share of targets at or below each quantile; equals its level when calibrated.

    Shapes: quantiles (Q, ...), target (...) -> (Q,) + target reduced over `axis`.
    """
    below = jnp.asarray(target <= quantiles, jnp.float32)
    if axis is None:
        axis = tuple(range(target.ndim))
    axes = (axis,) if isinstance(axis, int) else axis
    axes = tuple(a % target.ndim + 1 for a in axes)
    return average(below, None if mask is None else jnp.asarray(mask, bool)[None], axes)


def quantile_loss(quantiles: Array, levels: Array, target: Array) -> Array:
    """Pinball loss, max(q (y - x_q), (q - 1) (y - x_q)), of each quantile and sample.

    Shapes: quantiles (Q, ...), levels (Q,), target (...) -> (Q, ...).
    """
    d = target - quantiles
    levels = np.asarray(levels, np.float32).reshape((-1,) + (1,) * target.ndim)
    return jnp.maximum(levels * d, (levels - 1) * d)


def crps_quantiles(quantiles: Array, levels: Array, target: Array) -> Array:
    """Continuous ranked probability score from quantiles: 2 integral_0^1 pinball_q dq.

    Trapezoid between the levels given, constant beyond the outermost ones. For a
    point forecast it is the absolute error. Levels increase.

    Shapes: quantiles (Q, ...), levels (Q,), target (...) -> (...).
    """
    loss = quantile_loss(quantiles, levels, target)
    levels = jnp.asarray(np.asarray(levels, np.float32))
    edges = jnp.concatenate([jnp.zeros(1), (levels[1:] + levels[:-1]) / 2, jnp.ones(1)])
    return 2 * jnp.tensordot(jnp.diff(edges), loss, 1)


def crps_samples(samples: Array, target: Array) -> Array:
    """CRPS of S samples: E|X - y| - E|X - X'| / 2, with the fair estimate of E|X - X'|.

    Gneiting and Raftery 2007, eq. 21; E|X - X'| over pairs of different samples, by
    sorting: 2 / (S (S - 1)) sum_i (2 i - S - 1) x_(i).

    Shapes: samples (S, ...), target (...) -> (...).
    """
    s = samples.shape[0]
    samples = jnp.asarray(samples)
    error = jnp.mean(jnp.abs(samples - jnp.asarray(target, samples.dtype)), 0)
    if s == 1:
        return error
    rank = 2 * jnp.arange(1, s + 1, dtype=samples.dtype) - (s + 1)
    spread = 2 * jnp.tensordot(rank, jnp.sort(samples, 0), 1) / (s * (s - 1))
    return error - spread / 2
