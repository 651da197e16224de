"""Which transformer an experiment trains: chosen on the validation part, by a rule.

A population map pays where recordings are long and stationary; on minutes that drift it
overfits, and what one trace tells about its own future is all there is to learn. Two
maps in closed form tell the two apart in seconds, before anything is trained: where the
linear map shared by all neurons forecasts the validation part better than the ridge
regression of the population, the experiment's `alternative` is trained.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.baselines import population_ridge, shared_linear
from calm_jax.baselines.windows import Forecaster, stacked
from calm_jax.config import Experiment
from calm_jax.errors import RecordingError
from calm_jax.recordings.batches import Prepared

# What is looked at: the rule is about the kind of recording, and must take seconds.
_SESSIONS = 8
_TRAINING, _VALIDATION = 1500, 300  # windows of each session


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen and why, as it stands in `stages.json`.

    Attributes:
      variant: "main" or "alternative".
      reason: one sentence.
      shared, population: validation MSE of the two maps, None where not compared.
    """

    variant: str
    reason: str
    shared: float | None = None
    population: float | None = None


def choose(experiment: Experiment, prepared: Prepared) -> Choice:
    """The variant that fits these recordings; only training and validation are read."""
    if experiment.alternative.rule == "never":
        return Choice("main", "the experiment has one transformer")
    context, horizon = experiment.forecasting.context, experiment.forecasting.horizon
    sessions = prepared.splits.training_index[:_SESSIONS]
    try:
        shared = shared_linear.fit(prepared, prepared.splits, context, horizon, sessions=sessions)
        # The last frame alone: hardly worse than more lags, and a hundred times cheaper.
        ridge = population_ridge.fit(
            prepared, prepared.splits, context, horizon, lags=(1,), limit=_TRAINING
        )
        errors = [_error(f, prepared, sessions, context, horizon) for f in (shared, ridge)]
    except RecordingError as e:
        return Choice("main", f"the two maps could not be compared: {e.what}")
    own, population = (float(x) for x in errors)
    figures = f"validation MSE {own:.3f} of the shared map, {population:.3f} of the population's"
    return Choice("alternative" if own < population else "main", figures, own, population)


def tailored(experiment: Experiment, variant: str) -> Experiment:
    """The experiment with the transformer of a variant."""
    if variant == "main":
        return experiment
    other = experiment.alternative
    return dataclasses.replace(
        experiment, transformer=other.transformer, transformer_training=other.training
    )


def _error(
    forecaster: Forecaster, prepared: Prepared, sessions: list[int], context: int, horizon: int
) -> float:
    """Mean over sessions of the MSE on validation windows, constant neurons left out."""
    found = []
    for i in sessions:
        x, y = stacked(prepared, i, "valid", context, horizon, _VALIDATION)
        guess = forecaster(x, i, np.ones(x.shape, bool), horizon)
        keep = ~prepared.scalers.constant[i]
        found.append(np.square(guess - y)[..., keep].mean())
    return float(np.mean(found))
