"""calm_jax: a foundation model of calcium-imaging population dynamics, in JAX.

`read` gives a `Session` from a file, `load` a trained run, `forecast` the next
frames. They are imported when first used: `import calm_jax` itself is light.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "CalmError": "calm_jax.errors",
    "Experiment": "calm_jax.config",
    "Session": "calm_jax.recordings.session",
    "read": "calm_jax.recordings.formats",
    "from_array": "calm_jax.recordings.arrays",
    "load": "calm_jax.weights",
    "make_context": "calm_jax.forecasting",
    "forecast": "calm_jax.forecasting",
    "CalMForecaster": "calm_jax.estimators",
    "CalMDecoder": "calm_jax.estimators",
    "CalMEmbedding": "calm_jax.estimators",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'calm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
