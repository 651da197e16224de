"""AdamW with warm-up and cosine decay, clipping, and the parameter average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from calm_jax.config import Training


def learning_rate(step: Array | int, training: Training, steps: int) -> Array:
    """Linear warm-up to `learning_rate`, then a cosine to `final_learning_rate`.

    With W = warmup_fraction * steps: lr (s + 1) / W for s < W; afterwards
    lr_end + (lr - lr_end) (1 + cos(pi (s - W) / (steps - 1 - W))) / 2.
    """
    warm = round(training.warmup_fraction * steps)
    peak, end = training.learning_rate, training.final_learning_rate
    s = jnp.asarray(step, jnp.float32)
    share = jnp.clip((s - warm) / max(steps - 1 - warm, 1), 0.0, 1.0)
    cosine = end + (peak - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))
    return jnp.where(s < warm, peak * (s + 1.0) / max(warm, 1), cosine)


def make_optimizer(
    training: Training, steps: int, decays: Callable[[str], bool]
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; over a dictionary of parameters by path.

    Args:
      decays: whether the parameter at a path gets weight decay.
    """
    parts = [] if training.clip is None else [optax.clip_by_global_norm(training.clip)]
    parts += [
        optax.scale_by_adam(),
        optax.add_decayed_weights(
            training.weight_decay, mask=lambda params: {k: bool(decays(k)) for k in params}
        ),
        optax.scale_by_learning_rate(lambda step: learning_rate(step, training, steps)),
    ]
    return optax.chain(*parts)


def optimizer_of(task: Any, training: Training, steps: int) -> optax.GradientTransformation:
    """The optimiser of a task: its own where it has one, else `make_optimizer`."""
    own = getattr(task, "optimizer", None)
    return make_optimizer(training, steps, task.decays) if own is None else own(training, steps)


def rate_of(task: Any, training: Training, steps: int, step: int) -> float:
    """The learning rate of a step, for the log; of `task.learning_rate(step)` where it has one."""
    own = getattr(task, "learning_rate", None)
    return float(learning_rate(step, training, steps) if own is None else own(step))


def update_average(
    average: dict[str, Array], params: dict[str, Array], step: Array, decay: float
) -> dict[str, Array]:
    """a <- d a + (1 - d) p with d = min(decay, (1 + s) / (10 + s)).

    The shorter memory of the first steps lets go of the initial weights, so that a
    short run is not judged by them.
    """
    s = jnp.asarray(step, jnp.float32)
    d = jnp.minimum(decay, (1.0 + s) / (10.0 + s))
    return jax.tree.map(lambda a, p: (d * a + (1.0 - d) * p).astype(a.dtype), average, params)
