"""PatchTST (Nie et al. 2023): a transformer over patches of one neuron; see `neuralforecast`."""

from __future__ import annotations

from typing import Any

from calm_jax.baselines import neuralforecast
from calm_jax.baselines.windows import Forecaster
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

TRAINED = True
missing = neuralforecast.missing


def fit(prepared: Prepared, splits: Splits, context: int, horizon: int, **kw: Any) -> Forecaster:
    """Tuned and trained; keywords as for `neuralforecast.fit`."""
    return neuralforecast.fit("patchtst", prepared, splits, context, horizon, **kw)
