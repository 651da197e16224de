"""AdamW with warm-up and cosine decay, clipping, and the parameter average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from calm_jax.config import Training

_DECAYED = "decayed"


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
            training.weight_decay, mask=lambda vectors: {k: k.startswith(_DECAYED) for k in vectors}
        ),
        optax.scale_by_learning_rate(lambda step: learning_rate(step, training, steps)),
    ]
    return joined(optax.chain(*parts), lambda path: _DECAYED if decays(path) else "free")


def joined(
    inner: optax.GradientTransformation, group: Callable[[str], str]
) -> optax.GradientTransformation:
    """`inner` over one vector per group of parameters and type, {"group float32": (P,)}.

    An element-wise optimiser then has a few operations where it had a dozen per parameter,
    which is what XLA takes most of its time with in a small model.
    """

    def names(params: dict[str, Array]) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {}
        for path, leaf in params.items():
            out.setdefault(f"{group(path)} {jnp.result_type(leaf).name}", []).append(path)
        return out

    def join(params: dict[str, Array]) -> dict[str, Array]:
        return {
            name: jnp.concatenate([jnp.ravel(params[path]) for path in paths])
            for name, paths in names(params).items()
        }

    def init(params: dict[str, Array]) -> Any:
        return inner.init(join(params))

    def update(grads: dict[str, Array], state: Any, params: Any = None) -> tuple:
        own = None if params is None else join(params)
        vectors, state = inner.update(join(grads), state, own)
        out = {}
        for name, paths in names(grads).items():
            ends = np.cumsum([np.size(grads[path]) for path in paths])[:-1]
            for path, part in zip(paths, jnp.split(vectors[name], ends)):
                out[path] = part.reshape(jnp.shape(grads[path]))
        return {path: out[path] for path in grads}, state

    return optax.GradientTransformation(init, update)


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
