"""The design of the linear baselines: the population over the last frames."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def lagged(z: np.ndarray, lags: int, look_ahead: int = 0) -> np.ndarray:
    """Frames t + look_ahead, ..., t - lags + 1 of all neurons, side by side.

    Beyond the ends of the range its end frames stand in; nothing after t + look_ahead is
    read. Shapes: z (T, N) -> (T, (look_ahead + lags) * N) float32.
    """
    t = np.arange(len(z))
    shifts = range(look_ahead, -lags, -1)
    return np.concatenate([z[np.clip(t + s, 0, len(z) - 1)] for s in shifts], axis=1)


def design(ranges: Iterable[np.ndarray], lags: int, look_ahead: int = 0) -> np.ndarray:
    """`lagged` of every range, one below the other; lags never leave their range."""
    return np.concatenate([lagged(z, lags, look_ahead) for z in ranges])
