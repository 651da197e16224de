"""What a user has who recorded a new animal for so many minutes, and nothing beyond."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from calm_jax import config
from calm_jax.baselines.windows import Forecaster
from calm_jax.errors import RecordingError
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

VALIDATION = 0.3  # of the minutes, at their end; of "all", the recording's own validation part


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """The first minutes of the training part of every session.

    Attributes:
      label: "2 min", or "all".
      minutes: how many they are, mean over sessions.
      prepared: split into training and validation inside the minutes (the test part is that of
        the whole recording) and scaled by the training frames of the minutes alone.
      spans: per session (R, 2), the ranges that hold the frames of the minutes.
      fits: whether every session has a training and a validation window: else nothing can be
        fitted to the minutes but the scale.
    """

    label: str
    minutes: float
    prepared: Prepared
    spans: tuple[np.ndarray, ...]
    fits: bool = True


def label_of(minutes: float | None) -> str:
    """How the minutes stand in tables and folders; None = all."""
    return "all" if minutes is None else f"{minutes:g} min"


def given(
    store: Any, whole: Splits, minutes: float | None, e: config.Experiment
) -> Given:
    """The frames of the first `minutes` of every training part; None = all there are.

    Trials: those of the training part in time order, as long as they fit, the last 30% of
    them for validation. Without trials: the last 30% of the minutes, at least context +
    horizon frames, for validation, after the split's gap. "all" is the training and the
    validation part as they are.

    Raises:
      RecordingError: for minutes that a session does not have, or too few to be split.
    """
    needed = e.forecasting.context + e.forecasting.horizon
    parts, spans, seconds, fits = [], [], [], True
    for i, info in enumerate(store.sessions):
        own = whole.parts[i]
        if minutes is None:
            span = np.concatenate([own["train"], own["valid"]])
            parts.append(own)
        else:
            pick = _trials if len(info.trials) else _block
            frames = int(minutes * 60 * info.rate + 1e-6)
            have = int((own["train"][:, 1] - own["train"][:, 0]).sum())
            if frames > have:
                raise RecordingError(
                    f"the training part is shorter than {minutes:g} minutes",
                    where=f"session {info.session}",
                    found=f"{have / info.rate / 60:.1f} minutes",
                    remedy="Give fewer --minutes, or all.",
                )
            train, valid, span = pick(own["train"], frames, needed, whole.gap)
            if not len(train) or not len(valid):
                raise RecordingError(
                    f"{minutes:g} minutes are too few for a training and a validation part",
                    where=f"session {info.session}",
                    found=f"{frames} frames",
                    remedy="Give more --minutes.",
                )
            fits &= all((p[:, 1] - p[:, 0] >= needed).any() for p in (train, valid))
            parts.append({"train": train, "valid": valid, "test": own["test"]})
        spans.append(span)
        seconds.append(float((span[:, 1] - span[:, 0]).sum()) / info.rate)
    made = dataclasses.replace(whole, parts=tuple(parts)).check(store)
    scalers = preprocess.fit(store, made, e.preprocess)
    return Given(
        label_of(minutes), float(np.mean(seconds)) / 60, Prepared(store, made, scalers),
        tuple(spans), bool(fits),
    )  # fmt: skip


def _block(train: np.ndarray, frames: int, needed: int, gap: int) -> tuple[np.ndarray, ...]:
    """Training block, validation block and both together, of the first `frames` frames."""
    a = int(train[0, 0])
    z = min(a + frames, int(train[0, 1]))
    size = max(1, round(VALIDATION * (z - a)))
    if z - a >= 2 * needed + gap:
        size = max(size, needed)
    first, last = z - size, z - size - gap
    none = np.zeros((0, 2), np.int64)
    return np.array([[a, last]]) if last > a else none, np.array([[first, z]]), np.array([[a, z]])


def _trials(train: np.ndarray, frames: int, needed: int, gap: int) -> tuple[np.ndarray, ...]:
    """The first trials with `frames` frames together; the last 30% of them validate."""
    order = train[np.argsort(train[:, 0])]
    order = order[np.cumsum(order[:, 1] - order[:, 0]) <= frames]
    count = max(1, round(VALIDATION * len(order)))
    return order[: max(len(order) - count, 0)], order[max(len(order) - count, 0) :], order


class InUnits:
    """A forecaster that was fitted in units of some minutes, asked in those of the test.

    Every method is scored in the same unit, the SD of the whole training part, and knows no
    more of it than its own minutes told.

    Args:
      own: scalers of the minutes. common: those of the whole training part.
    """

    def __init__(
        self, forecaster: Forecaster, own: preprocess.Scalers, common: preprocess.Scalers
    ) -> None:
        self._forecaster, self._own, self._common = forecaster, own, common

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) in units of `common` -> (B, horizon, N), alike."""
        a, b = self._common, self._own
        ratio = a.sd[session] / b.sd[session]
        shift = (a.mean[session] - b.mean[session]) / b.sd[session]
        out = self._forecaster((context * ratio + shift).astype(np.float32), session, mask, horizon)
        return (out - shift) / ratio
