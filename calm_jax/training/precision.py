"""Which floating-point type is computed in; parameters are float32 always."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def compute_dtype(precision: str) -> DTypeLike:
    """The type named by `Training.precision`: "auto" is bfloat16 on GPUs and TPUs.

    CPUs compute bfloat16 more slowly than float32.
    """
    if precision == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(precision).type
