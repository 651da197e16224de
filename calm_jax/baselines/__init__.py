"""Baselines: one method a file, each `fit(prepared, splits, context, horizon) -> Forecaster`.

`METHODS` maps the name a method has in every table to its module.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from calm_jax.baselines import copy_last, mean, population_ridge, shared_linear
from calm_jax.baselines.windows import Forecaster

METHODS: dict[str, ModuleType] = {
    "copy_last": copy_last,
    "mean": mean,
    "shared_linear": shared_linear,
    "population_ridge": population_ridge,
}


def fit_all(
    prepared: Any, splits: Any, context: int, horizon: int
) -> dict[str, Forecaster]:
    """Every baseline, fitted on the training part, settings chosen on the validation part."""
    return {
        name: module.fit(prepared, splits, context, horizon) for name, module in METHODS.items()
    }
