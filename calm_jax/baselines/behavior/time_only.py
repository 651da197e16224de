"""What time alone decodes: a guard against drift.

Behaviour and traces both drift over a recording; a decoder that merely reads the clock
gains from it. The design holds powers of the time in the recording, and of the time in
the trial where there are trials; the linear baselines are then fitted on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DEGREE = 3


def design(ranges: Sequence[tuple[int, int]], frames: int, trials: bool) -> np.ndarray:
    """(T, 3) or, with trials, (T, 6): powers of the time of the frames of all ranges.

    Time runs from -1 to 1 over the recording, and over each range.
    """
    parts = []
    for start, stop in ranges:
        clock = 2 * np.arange(start, stop) / max(frames - 1, 1) - 1
        columns = [clock**k for k in range(1, _DEGREE + 1)]
        if trials:
            own = np.linspace(-1, 1, stop - start)
            columns += [own**k for k in range(1, _DEGREE + 1)]
        parts.append(np.stack(columns, 1))
    return np.concatenate(parts).astype(np.float32)
