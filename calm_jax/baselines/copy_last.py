"""Copy-last: every future frame is the last one seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits


def fit(prepared: Prepared, splits: Splits, context: int, horizon: int, **_: Any) -> CopyLast:
    """Nothing to fit."""
    return CopyLast()


class CopyLast:
    """y_{t+h} = x_t for all h; an invalid last frame stands at the last valid one."""

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N)."""
        return np.repeat(context[:, -1:], horizon, 1)
