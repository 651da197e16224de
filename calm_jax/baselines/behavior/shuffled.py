"""The level of labels that belong to other frames of the same session.

Labels are shifted circularly over the frames of a part, by at least a tenth of it: their
statistics and their slowness stay, their relation to the neurons goes. Contiguous blocks
stay together, so the level is wider than that of a permutation of frames, as it should be
for labels that are slow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

COUNT = 200


def shifts(frames: int, count: int, seed: int = 0) -> np.ndarray:
    """(count,) shifts, at least a tenth of the frames in both directions; without
    repetition where there are enough."""
    low = max(1, frames // 10)
    possible = np.arange(low, max(frames - low, low) + 1)
    rng = np.random.default_rng([seed, frames])
    return rng.choice(possible, count, replace=possible.size < count)


def level(
    score: Callable[[np.ndarray], float], frames: int, count: int = COUNT, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and the 2.5 and 97.5 % quantiles of a score over shifted labels.

    `score(order)` gets the (frames,) order of the labels. NaN where fewer than ten frames
    leave nothing to shift.
    """
    if frames < 10:
        return (np.nan,) * 3
    t = np.arange(frames)
    found = np.array([score((t + s) % frames) for s in shifts(frames, count, seed)])
    found = found[~np.isnan(found)]
    if not found.size:
        return (np.nan,) * 3
    return (float(found.mean()), *map(float, np.quantile(found, (0.025, 0.975))))
