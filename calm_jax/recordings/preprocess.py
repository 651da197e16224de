"""Smoothing and scaling of traces, fitted on training frames only.

Everything here is causal: a frame never changes the frames before it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from typing import Any

import numpy as np

from calm_jax import config
from calm_jax.errors import RecordingError
from calm_jax.files import replacing
from calm_jax.recordings.splits import Splits

_SAMPLES = 1 << 23  # read at a time while fitting, so that memory stays bounded


@dataclasses.dataclass(frozen=True, eq=False)
class Scalers:
    """Per session and neuron: how a trace is brought to unit scale.

    Attributes:
      config: what was asked for.
      mean: per session (N,) float32, of the valid training samples.
      sd: per session (N,) float32, the divisor: SD + epsilon, or for a constant
        neuron the median SD of the session + epsilon, so that it cannot explode.
      constant: per session (N,) bool, neurons with (almost) no variance, or no valid
        sample, in the training part. They are left out of scores.
      split_hash: of the split they were fitted on; empty without one.
    """

    config: config.Preprocess
    mean: tuple[np.ndarray, ...]
    sd: tuple[np.ndarray, ...]
    constant: tuple[np.ndarray, ...]
    split_hash: str = ""

    def apply(
        self, i: int, traces: np.ndarray, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Smoothed and scaled traces of one whole range of session `i`.

        Shapes: traces (T, N) in the unit of the recording, mask (T, N) or None for
        all valid -> (T, N) float32. Smoothing starts at the first frame given. An
        invalid sample holds the last valid one; before the first it is 0, the
        training mean.

        Raises:
          RecordingError: when the number of neurons is not that of the session.
        """
        traces = np.asarray(traces, np.float32)
        if traces.ndim != 2 or traces.shape[1] != self.mean[i].size:
            raise RecordingError(
                "traces do not fit the scalers",
                where=f"session {i}",
                found=f"shape {traces.shape}",
                expected=f"(frames, {self.mean[i].size})",
            )
        y, _ = smooth(traces, mask, self.config.smoothing)
        z = (y - self.mean[i]) / self.sd[i]
        return np.where(np.isnan(z), np.float32(0), z)

    def invert(self, i: int, traces: np.ndarray) -> np.ndarray:
        """Scaled traces (..., N) back in the unit of the input; smoothing stays."""
        return traces * self.sd[i] + self.mean[i]

    def save(self, path: str | os.PathLike) -> None:
        """Writes one npz without pickles."""
        with replacing(path) as part, open(part, "wb") as file:
            np.savez(
                file,
                sizes=np.array([m.size for m in self.mean], np.int64),
                mean=np.concatenate(self.mean),
                sd=np.concatenate(self.sd),
                constant=np.concatenate(self.constant),
                config=np.array(config.dumps(self.config)),
                split_hash=np.array(self.split_hash),
            )


def load(path: str | os.PathLike) -> Scalers:
    """The scalers saved at `path`.

    Raises:
      RecordingError: no such file, or not scalers.
    """
    try:
        with np.load(path, allow_pickle=False) as f:
            cuts = np.cumsum(f["sizes"])[:-1]
            fields = {
                k: tuple(np.split(f[k], cuts)) for k in ("mean", "sd", "constant")
            }
            settings = config.loads(str(f["config"]), config.Preprocess)
            return Scalers(config=settings, split_hash=str(f["split_hash"]), **fields)
    except FileNotFoundError:
        raise RecordingError("no such file", where=path) from None
    except (
        OSError,
        KeyError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        json.JSONDecodeError,
    ) as e:
        raise RecordingError(
            "not scalers, or damaged",
            where=path,
            found=f"{type(e).__name__}: {e}",
            expected="a file that `Scalers.save` wrote",
            remedy="Run the same command again to fit them anew.",
        ) from e


def smooth(
    traces: np.ndarray,
    mask: np.ndarray | None,
    alpha: float | None,
    state: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Causal exponential smoothing, y_t = a x_t + (1 - a) y_{t-1}, started at y_0 = x_0.

    Per neuron the first valid sample starts it and an invalid one holds the state,
    y_t = y_{t-1}; before the first valid sample y is NaN. `alpha` None leaves valid
    samples as they are. A long range can be smoothed piece by piece: the returned
    state, given with the next piece, continues it.

    Shapes: traces (T, N), mask (T, N) bool or None, state (N,) with NaN where not
    started, or None -> y (T, N) float32, state (N,) float32.
    """
    traces = np.asarray(traces, np.float32)
    if state is None:
        state = np.full(traces.shape[1], np.nan, np.float32)
    mask = None if mask is None or mask.all() else np.broadcast_to(mask, traces.shape)
    if mask is None:
        y = _filter(traces, alpha, state)
        return y, y[-1]
    # Valid samples are moved to the front, filtered as if there were no holes, and
    # every frame then takes the latest of them.
    order = np.argsort(~mask, axis=0, kind="stable")
    y = _filter(np.take_along_axis(traces, order, 0), alpha, state)
    latest = np.cumsum(mask, 0) - 1
    y = np.where(latest < 0, state, np.take_along_axis(y, np.maximum(latest, 0), 0))
    return y, y[-1]


def _filter(x: np.ndarray, alpha: float | None, state: np.ndarray) -> np.ndarray:
    if alpha is None:
        return x
    import scipy.signal  # takes a second, and most runs do not smooth

    start = np.where(np.isnan(state), x[0], state)
    b, a = np.float32([alpha]), np.float32([1.0, -(1.0 - alpha)])
    zi = (-a[1] * start)[None].astype(np.float32)
    return scipy.signal.lfilter(b, a, x, axis=0, zi=zi)[0].astype(
        np.float32, copy=False
    )


class _Moments:
    """Count, mean and sum of squared deviations, merged piece by piece in float64."""

    def __init__(self, neurons: int) -> None:
        self.n = np.zeros(neurons)
        self.mean = np.zeros(neurons)
        self.m2 = np.zeros(neurons)

    def add(self, x: np.ndarray, mask: np.ndarray) -> None:
        """Merges x (T, N) where mask is True (Chan, Golub and LeVeque 1979)."""
        n = mask.sum(0).astype(np.float64)
        mean = np.sum(x, 0, dtype=np.float64, where=mask) / np.maximum(n, 1)
        deviation = np.subtract(x, mean, dtype=np.float64)
        m2 = np.sum(np.square(deviation, out=deviation), 0, where=mask)
        total = np.maximum(self.n + n, 1)
        delta = mean - self.mean
        self.m2 += m2 + delta**2 * self.n * n / total
        self.mean += delta * n / total
        self.n += n


def _scale(
    m: _Moments, settings: config.Preprocess
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mean, divisor and constant flags (N,) from the moments."""
    sd = np.sqrt(m.m2 / np.maximum(m.n, 1))
    # Below the resolution of float32 a spread is rounding, not signal.
    real = sd > 4 * np.finfo(np.float32).eps * np.abs(m.mean)
    typical = float(np.median(sd[real])) if real.any() else 1.0
    constant = ~real | (sd < settings.min_sd * typical)
    if settings.z_score:
        mean, divisor = m.mean, np.where(constant, typical, sd) + settings.epsilon
    else:
        mean, divisor = np.zeros_like(sd), np.ones_like(sd)
    return mean.astype(np.float32), divisor.astype(np.float32), constant


def fit(store: Any, splits: Splits, settings: config.Preprocess) -> Scalers:
    """Mean and SD of every neuron over the valid training samples of its session.

    Held-out sessions too are scaled by their own training part. Reads training
    ranges only, a bounded number of samples at a time; smoothing restarts at every
    range.

    Raises:
      RecordingError: smoothing outside (0, 1].
    """
    _check(settings)
    rows = []
    for i, info in enumerate(store.sessions):
        moments = _Moments(info.n_neurons)
        step = max(1, _SAMPLES // info.n_neurons)
        for start, stop in splits.parts[i]["train"]:
            state = None
            for a in range(int(start), int(stop), step):
                traces, mask = store.read(i, a, min(a + step, int(stop)))
                y, state = smooth(traces, mask, settings.smoothing, state)
                moments.add(y, mask)
        rows.append(_scale(moments, settings))
    mean, sd, constant = zip(*rows, strict=True)
    return Scalers(settings, mean, sd, constant, splits.hash)


def fit_frames(
    traces: np.ndarray, mask: np.ndarray | None, settings: config.Preprocess
) -> Scalers:
    """Scalers of one recording (session 0) from the frames given, for one never seen.

    Shapes: traces (T, N), mask (T, N) bool or None for all valid. Give frames before
    the forecast origin only.

    Raises:
      RecordingError: smoothing outside (0, 1].
    """
    _check(settings)
    traces = np.asarray(traces, np.float32)
    mask = np.broadcast_to(True if mask is None else mask, traces.shape)
    moments = _Moments(traces.shape[1])
    moments.add(smooth(traces, mask, settings.smoothing)[0], mask)
    mean, sd, constant = _scale(moments, settings)
    return Scalers(settings, (mean,), (sd,), (constant,))


def _check(settings: config.Preprocess) -> None:
    a = settings.smoothing
    if a is not None and not 0 < a <= 1:
        raise RecordingError(
            "no such smoothing",
            where="preprocess.smoothing",
            found=a,
            expected="a number in (0, 1], or None for no smoothing",
        )
