"""What every baseline shares: the protocol, the training windows, the roll-out; how rough a
context is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.batches import Prepared


class Forecaster(Protocol):
    """Anything that forecasts one session's windows; our own models too."""

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """The next `horizon` frames.

        Shapes: context (B, context, N) prepared traces, mask alike (False = invalid,
        the value there is the last valid one) -> (B, horizon, N). `session` is the
        index in the store.
        """
        ...


def origins(start: int, stop: int, context: int, horizon: int, stride: int) -> np.ndarray:
    """Forecast origins in a range: first `start` + context, whole horizons only."""
    return np.arange(start + context, stop - horizon + 1, stride)


def stride_for(
    prepared: Prepared, i: int, part: str, context: int, horizon: int, limit: int
) -> int:
    """The smallest stride that leaves at most `limit` windows in a part of a session."""
    ranges = prepared.splits.parts[i][part]
    room = np.maximum(ranges[:, 1] - ranges[:, 0] - context - horizon + 1, 0)
    stride = max(1, int(room.sum()) // max(limit, 1))
    while stride < room.max(initial=0) and (-(-room // stride)).sum() > limit:
        stride += 1
    return stride


def windows(
    prepared: Prepared, i: int, part: str, context: int, horizon: int, stride: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows of each range: (W, context + horizon, N) traces and masks, as views."""
    for a, b in prepared.splits.parts[i][part]:
        if b - a < context + horizon:
            continue
        z, mask = prepared.range(i, a, b)
        cut = [
            np.lib.stride_tricks.sliding_window_view(x, context + horizon, 0)[::stride]
            for x in (z, mask)
        ]
        yield cut[0].swapaxes(1, 2), cut[1].swapaxes(1, 2)


def stacked(
    prepared: Prepared, i: int, part: str, context: int, horizon: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Contexts (W, context, N) and targets (W, horizon, N), at most about `limit` windows.

    An invalid sample stands at the last valid value of its range.

    Raises:
      RecordingError: when no range of the part is long enough.
    """
    stride = stride_for(prepared, i, part, context, horizon, limit)
    z = [x for x, _ in windows(prepared, i, part, context, horizon, stride)]
    if not z:
        raise too_short(prepared, i, part, context, horizon)
    z = np.concatenate(z)
    return z[:, :context], z[:, context:]


def roughness(context: np.ndarray) -> np.ndarray:
    """(B, N) mean squared change from frame to frame over the variance of (B, C, N).

    2 (1 - autocorrelation at one frame), but for the edges: 0 smooth, 2 white noise; 0 for a
    trace that is constant.
    """
    variance = context.var(1) + 1e-9
    return np.square(np.diff(context, axis=1)).mean(1) / variance


def too_short(prepared: Prepared, i: int, part: str, context: int, horizon: int) -> Any:
    """The error for a part without a single window."""
    ranges = prepared.splits.parts[i][part]
    return RecordingError(
        f"no {part} range holds context + horizon",
        where=f"session {prepared.splits.sessions[i]}",
        found=f"at most {int((ranges[:, 1] - ranges[:, 0]).max())} frames",
        expected=f"{context} + {horizon}",
        remedy="Use a shorter context or horizon, or longer recordings.",
    )


def roll(step: Any, context: np.ndarray, mask: np.ndarray, fitted: int, horizon: int) -> np.ndarray:
    """A horizon of any length from a map of `fitted` frames, its forecasts fed back.

    `step(context, mask) -> (B, fitted, N)`. Shapes: context (B, context, N) -> (B, horizon, N).
    """
    length, out = context.shape[1], []
    for _ in range(-(-horizon // fitted)):
        new = step(context, mask)
        out.append(new)
        context = np.concatenate([context, new], 1)[:, -length:]
        mask = np.concatenate([mask, np.ones(new.shape, bool)], 1)[:, -length:]
    return np.concatenate(out, 1)[:, :horizon]
