"""Mean: every future frame is the mean of the neuron's training frames."""

from __future__ import annotations

import numpy as np

from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits


def fit(prepared: Prepared, splits: Splits, context: int, horizon: int) -> Mean:
    """The mean over the valid training samples of every session; 0 for z-scored traces."""
    means = []
    for i, parts in enumerate(splits.parts):
        # Z-scored traces have it in their scaler; the mean is then exactly 0.
        if prepared.scalers.config.z_score:
            means.append(np.zeros(prepared.scalers.mean[i].size, np.float32))
            continue
        total = count = 0.0
        for a, b in parts["train"]:
            z, mask = prepared.range(i, a, b)
            total = total + np.sum(z, 0, dtype=np.float64, where=mask)
            count = count + mask.sum(0)
        means.append((total / np.maximum(count, 1)).astype(np.float32))
    return Mean(means)


class Mean:
    """y_{t+h} = mean of the training frames, one value per neuron.

    Attributes:
      means: per session (N,) in the unit of the prepared traces.
    """

    def __init__(self, means: list[np.ndarray]) -> None:
        self.means = means

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N)."""
        shape = (context.shape[0], horizon, context.shape[2])
        return np.broadcast_to(self.means[session], shape).copy()
