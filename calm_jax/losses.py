"""What models are trained on: masked, pure functions of arrays.

Masks are boolean (or 0/1) and broadcast against the values; None means that
everything is valid. What stands at a masked place (even NaN) changes neither a
value nor a gradient. A mean over nothing is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

Axis = int | Sequence[int] | None


def masked_mean(values: Array, mask: Array | None = None, axis: Axis = None) -> Array:
    """Float32 mean of `values` over `axis` where `mask` is True; 0 where nothing is.

    Shapes: values (...), mask broadcastable to it -> values reduced over `axis`.
    """
    values = jnp.asarray(values, jnp.float32)
    if mask is None:
        return jnp.mean(values, axis)
    mask = jnp.broadcast_to(jnp.asarray(mask, bool), values.shape)
    total = jnp.sum(jnp.where(mask, values, 0), axis)
    return total / jnp.maximum(jnp.sum(mask, axis), 1).astype(jnp.float32)


def masked_mse(pred: Array, target: Array, mask: Array | None = None, axis: Axis = None) -> Array:
    """Mean squared error over `axis` and the valid samples: mean (pred - target)^2.

    Shapes: pred, target (...), mask broadcastable -> reduced over `axis`.
    """
    return masked_mean(jnp.square(_difference(pred, target, mask)), mask, axis)


def masked_mae(pred: Array, target: Array, mask: Array | None = None, axis: Axis = None) -> Array:
    """Mean absolute error over `axis` and the valid samples: mean |pred - target|.

    Shapes: pred, target (...), mask broadcastable -> reduced over `axis`.
    """
    return masked_mean(jnp.abs(_difference(pred, target, mask)), mask, axis)


def _difference(pred: Array, target: Array, mask: Array | None) -> Array:
    """pred - target, 0 where masked, so that NaN there cannot reach a gradient."""
    if mask is None:
        return pred - target
    mask = jnp.asarray(mask, bool)
    return jnp.where(mask, pred, 0) - jnp.where(mask, target, 0)


def pearson_loss(
    pred: Array,
    target: Array,
    mask: Array | None = None,
    axis: int = -1,
    epsilon: float = 1e-6,
) -> Array:
    """Mean over traces of 1 - r, r the correlation of a trace over its valid frames.

    r = cov(x, y) / sqrt((var x + epsilon) (var y + epsilon)): epsilon keeps the
    gradient finite where a prediction is constant (then r = 0). Traces with fewer
    than two valid frames, or whose target is constant (variance <= epsilon), have
    no correlation and are left out of the mean.

    Shapes: pred, target (...) with time on `axis`, mask broadcastable -> ().
    """
    if mask is None:
        mask = jnp.ones(target.shape, bool)
    mask = jnp.broadcast_to(jnp.asarray(mask, bool), target.shape)
    x = jnp.where(mask, pred, 0).astype(jnp.float32)
    y = jnp.where(mask, target, 0).astype(jnp.float32)
    n = jnp.sum(mask, axis, keepdims=True).astype(jnp.float32)
    mean = lambda a: jnp.sum(a, axis, keepdims=True) / jnp.maximum(n, 1)
    dx = jnp.where(mask, x - mean(x), 0)
    dy = jnp.where(mask, y - mean(y), 0)
    var_y = mean(dy * dy)
    scale = jax.lax.rsqrt((mean(dx * dx) + epsilon) * (var_y + epsilon))
    r = mean(dx * dy) * scale
    return masked_mean(1.0 - r, (n >= 2) & (var_y > epsilon))


def cross_entropy(
    logits: Array,
    labels: Array,
    mask: Array | None = None,
    smoothing: float = 0.0,
    bits: bool = False,
) -> Array:
    """Mean cross-entropy over the valid positions, in nats or bits.

    -sum_k q_k log p_k with q = (1 - smoothing) onehot(label) + smoothing / K.
    Labels at masked positions may be anything, also out of range. Computed in float32.

    Shapes: logits (..., K), labels (...) integer, mask (...) -> ().
    """
    logits = logits.astype(jnp.float32)
    if mask is not None:
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), labels.shape)
        logits = jnp.where(mask[..., None], logits, 0)
        labels = jnp.where(mask, labels, 0)
    hit = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    target = (1.0 - smoothing) * hit
    if smoothing:
        target = target + smoothing * jnp.mean(logits, -1)
    loss = masked_mean(jax.nn.logsumexp(logits, -1) - target, mask)
    return loss / jnp.log(2.0) if bits else loss


def commitment(z: Array, z_q: Array, mask: Array | None = None) -> Array:
    """Commitment term of eq. 9: L_c = mean (sg[z_q] - z)^2 over tokens and dimensions.

    Gradients reach `z` only. The embedding term of a codebook learned by gradient,
    mean (sg[z] - z_q)^2, is `commitment(z_q, z, mask)`.

    Shapes: z, z_q (..., d), mask (...) -> ().
    """
    mask = None if mask is None else jnp.asarray(mask, bool)[..., None]
    return masked_mse(z, jax.lax.stop_gradient(z_q), mask)


def assignment_entropy(soft: Array, mask: Array | None = None) -> Array:
    """Entropy in bits of the batch-mean soft assignment; eq. 9 has L_ent = -entropy.

    H = -sum_k m_k log2 m_k, m = mean over valid tokens of `soft`. Under jit over a
    mesh the mean is over the global batch, as published. log2 K where codes are
    used evenly, 0 where a single code is used.

    Shapes: soft (..., K) with rows that sum to 1, mask (...) -> ().
    """
    axes = tuple(range(soft.ndim - 1))
    mask = None if mask is None else jnp.asarray(mask, bool)[..., None]
    m = masked_mean(soft.astype(jnp.float32), mask, axes)
    # The inner `where` keeps the gradient of an unused code finite.
    log = jnp.log2(jnp.where(m > 0, m, 1.0))
    return -jnp.sum(jnp.where(m > 0, m * log, 0.0))


def orthogonality(codebook: Array) -> Array:
    """L_orth of eq. 9: sum |E E^T - I| over the K x K Gram matrix.

    Shapes: codebook (K, d) -> ().
    """
    gram = codebook @ codebook.T
    return jnp.sum(jnp.abs(gram - jnp.eye(codebook.shape[0], dtype=gram.dtype)))
