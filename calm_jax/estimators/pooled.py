"""The pooled head of `CalMDecoder`: in closed form, as of `calm-jax decode`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from calm_jax import config
from calm_jax.errors import WeightsError
from calm_jax.estimators import inputs
from calm_jax.pooled_decoder import TAUS, PooledDecoder, Solution
from calm_jax.recordings.session import Session
from calm_jax.recordings.targets import Target

if TYPE_CHECKING:
    from calm_jax.estimators.decoder import CalMDecoder


def fit(
    estimator: CalMDecoder,
    sessions: Sequence[Session],
    targets: Sequence[Target],
    settings: config.Decoding,
    offset: np.ndarray,
) -> dict[str, np.ndarray]:
    """The solutions by the number of the target and the name of the array."""
    everyone = range(len(sessions))
    made = PooledDecoder(
        lambda i, a, b: estimator._scaled(sessions[i], i, a, b),
        estimator._reader(sessions, everyone, settings),
        estimator.split_,
        offset,
        targets,
        settings,
    )
    made.fit()
    return {f"{k}/{name}": v for k, own in made.arrays().items() for name, v in own.items()}


def outputs(
    estimator: CalMDecoder,
    sessions: Sequence[Session],
    places: Sequence[int],
    settings: config.Decoding,
    offset: np.ndarray,
) -> list[np.ndarray]:
    """(T, outputs) of every recording; `places`: which fitted ones they are."""
    reader = estimator._reader(sessions, places, settings)
    solutions = _solutions(estimator.head_)
    out = []
    for j, (s, i) in enumerate(zip(sessions, places, strict=True)):
        decoder = PooledDecoder(
            lambda _, a, b, j=j, i=i: estimator._scaled(sessions[j], i, a, b),
            lambda _, a, b, j=j: reader(j, a, b),
            estimator.split_,
            offset,
            (),
            settings,
        )
        decoder.solutions = solutions
        parts = [decoder.predict(i, a, b) for a, b in inputs.pieces(s)]
        out.append(np.concatenate(parts))
    return out


def check(
    arrays: dict[str, np.ndarray], outputs: Sequence[int], offset: np.ndarray, width: int
) -> None:
    """Raises a `WeightsError` unless the arrays are solutions for these neurons.

    Args:
      outputs: of each target. width: of the features of the backbone.
    """
    for k, size in enumerate(outputs):
        directions = arrays.get(f"{k}/directions", np.zeros(0))
        rank = directions.shape[-1]
        wanted = {
            "directions": (width + len(TAUS) + 1, rank),
            "rows": (int(offset[-1]), rank, size),
            "bias": (len(offset) - 1, size),
            "alpha": (len(offset) - 1,),
        }
        for name, shape in wanted.items():
            found = arrays.get(f"{k}/{name}")
            if found is None or found.shape != shape:
                raise WeightsError(
                    "the head is of another model",
                    found=f"{k}/{name}: {'missing' if found is None else found.shape}",
                    expected=str(shape),
                )


def _solutions(arrays: dict[str, np.ndarray]) -> list[Solution]:
    count = sum(name.endswith("/directions") for name in arrays)
    return [
        Solution(*(arrays[f"{k}/{name}"] for name in Solution._fields)) for k in range(count)
    ]
