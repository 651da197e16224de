"""Baselines: one method a file, each `fit(prepared, splits, context, horizon) -> Forecaster`.

`METHODS` maps the name a method has in every table to its module. A module with
`TRAINED = True` trains for a while: its `fit` takes the keywords `budget_seconds`, `seed`
and `folder` too. Those of `CLOSED_FORM` do not and stand beside every evaluation of a run.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from calm_jax.baselines import (
    autoregression,
    common_factors,
    copy_last,
    dlinear,
    itransformer,
    mean,
    nlinear,
    patchtst,
    poco,
    population_change,
    population_ridge,
    shared_linear,
    tcn,
    tsmixer,
)
from calm_jax.baselines.windows import Forecaster

METHODS: dict[str, ModuleType] = {
    "copy_last": copy_last,
    "mean": mean,
    "autoregression": autoregression,
    "shared_linear": shared_linear,
    "population_ridge": population_ridge,
    "population_change": population_change,
    "common_factors": common_factors,
    "nlinear": nlinear,
    "dlinear": dlinear,
    "tcn": tcn,
    "tsmixer": tsmixer,
    "poco": poco,
}
# Those that need an extra; `missing()` gives one line where it is not installed.
EXTRAS: dict[str, ModuleType] = {"patchtst": patchtst, "itransformer": itransformer}
CLOSED_FORM = ("copy_last", "mean", "autoregression", "shared_linear", "population_ridge")


class PerContext:
    """A baseline fitted anew for every length of context it is given (protocols A and B)."""

    def __init__(
        self, module: ModuleType, prepared: Any, splits: Any, horizon: int, **extra: Any
    ) -> None:
        self._module, self._prepared, self._splits = module, prepared, splits
        self._horizon, self._extra = horizon, extra
        self._fitted: dict[int, Forecaster] = {}

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N)."""
        length = context.shape[1]
        if length not in self._fitted:
            self._fitted[length] = self._module.fit(
                self._prepared, self._splits, length, self._horizon, **self._extra
            )
        return self._fitted[length](context, session, mask, horizon)


def fit_all(prepared: Any, splits: Any, horizon: int) -> dict[str, Forecaster]:
    """Every closed-form baseline, fitted on the training part when first used, with
    settings chosen on the validation part; horizons longer than `horizon` are rolled out."""
    return {
        name: PerContext(METHODS[name], prepared, splits, horizon) for name in CLOSED_FORM
    }
