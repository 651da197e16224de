"""What estimators are given: one array, one Session, or a list of either, as Sessions."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import check_array, validate_data

from calm_jax.errors import CalmError
from calm_jax.recordings.arrays import from_array
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import Splits

PATCH = 4  # frames per code of the models that estimators train


class InputError(CalmError, ValueError):
    """What an estimator was given is not usable; a ValueError, as scikit-learn has it."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A recording that an estimator was fitted on."""

    session: str
    animal: str
    neurons: tuple[str, ...]
    rate: float


def known(session: Session) -> Known:
    """What tells a recording from others: its ids and its neurons."""
    ids = tuple(session.neurons.id.tolist())
    return Known(session.session, session.animal, ids, session.rate)


def several(X: Any) -> bool:
    """Whether X is a list of recordings: Sessions, or arrays with two axes."""
    if not isinstance(X, (list, tuple)) or not len(X):
        return False
    return all(isinstance(x, Session) or getattr(x, "ndim", 0) == 2 for x in X)


def read(estimator: Any, X: Any, *, reset: bool, least: int = 1) -> list[Session]:
    """The recordings in X; arrays are (T, N), a NaN is a missing sample.

    Sets or checks `n_features_in_` as scikit-learn wants it.

    Args:
      reset: True in `fit`. least: frames that a recording must have.

    Raises:
      ValueError: naming what does not fit.
    """
    if several(X):
        out = [_one(estimator, x, f"array{i}", least) for i, x in enumerate(X)]
        widths = {s.n_neurons for s in out}
        if reset:
            estimator.n_features_in_ = widths.pop() if len(widths) == 1 else None
        return out
    if isinstance(X, Session):
        if reset:
            estimator.n_features_in_ = X.n_neurons
        return [_one(estimator, X, "", least)]
    if not reset and getattr(estimator, "n_features_in_", 0) is None:
        raise InputError(
            "the recordings that it was fitted on have different numbers of neurons",
            where="X",
            remedy="Give a list with as many arrays, or Sessions.",
        )
    array = validate_data(
        estimator,
        X,
        reset=reset,
        dtype=[np.float64, np.float32],
        ensure_all_finite="allow-nan",
        ensure_min_samples=least,
    )
    return [_session(estimator, array, "array0")]


def _one(estimator: Any, x: Any, name: str, least: int) -> Session:
    if not isinstance(x, Session):
        x = check_array(
            x,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
            ensure_min_samples=least,
            input_name=name,
        )
        return _session(estimator, x, name)
    if x.n_frames < least:
        raise InputError(
            "too few frames",
            where=f"session {x.session}",
            found=x.n_frames,
            expected=f"at least {least}",
        )
    return x


def _session(estimator: Any, array: np.ndarray, name: str) -> Session:
    if not (isinstance(estimator.rate, (int, float)) and estimator.rate > 0):
        raise InputError("the frame rate must be positive", where="rate", found=estimator.rate)
    return from_array(
        array, rate=float(estimator.rate), orientation="time,neurons", session=name, animal="array"
    )


def places(fitted: Sequence[Known], sessions: Sequence[Session], X: Any) -> list[int]:
    """Which of the fitted recordings each session is more frames of.

    Raises:
      InputError: for one that is none of them.
    """
    if not several(X) and not isinstance(X, Session) and len(fitted) > 1:
        raise InputError(
            f"it was fitted on {len(fitted)} recordings, and one array does not tell which",
            where="X",
            remedy="Give a list with as many arrays, or a Session.",
        )
    index = {(k.session, k.animal, k.neurons): i for i, k in enumerate(fitted)}
    out = []
    for s in sessions:
        k = known(s)
        i = index.get((k.session, k.animal, k.neurons))
        if i is None:
            raise InputError(
                "not a recording of the neurons that it was fitted on",
                where=f"session {s.session} of animal {s.animal}",
                found=f"{s.n_neurons} neurons",
                expected="; ".join(
                    f"{f.session} of {f.animal} with {len(f.neurons)}" for f in fitted[:3]
                ),
                remedy="Fit on it too; with run= no model is trained for that.",
            )
        out.append(i)
    return out


def pieces(session: Session) -> list[tuple[int, int]]:
    """Frame ranges that cover a recording and never cross a trial's edge."""
    edges = {0, session.n_frames, *session.trials.start.tolist(), *session.trials.stop.tolist()}
    cuts = sorted(edges)
    return list(itertools.pairwise(cuts))


def split(sessions: Sequence[Session], fraction: float, seed: int) -> Splits:
    """Training and validation ranges: the last frames, or trials at random; no test part.

    A recording too short for a validation part of two codes is validated on its training part.
    """
    parts = []
    for s in sessions:
        if len(s.trials) > 1:
            ranges = np.stack([s.trials.start, s.trials.stop], 1).astype(np.int64)
            order = np.random.default_rng(seed).permutation(len(ranges))
            held = np.sort(order[: max(round(fraction * len(ranges)), 1)])
            train, valid = np.delete(ranges, held, 0), ranges[held]
        else:
            a, b = (s.trials.start[0], s.trials.stop[0]) if len(s.trials) else (0, s.n_frames)
            count = round(fraction * (b - a))
            train = valid = np.array([[a, b]], np.int64)
            if count >= 2 * PATCH and b - a - count >= 4 * PATCH:
                train = np.array([[a, b - count - PATCH]], np.int64)
                valid = np.array([[b - count, b]], np.int64)
        parts.append({"train": train, "valid": valid, "test": np.zeros((0, 2), np.int64)})
    names = tuple(f"{s.animal}/{s.session}" for s in sessions)
    return Splits(names, tuple(s.n_frames for s in sessions), tuple(parts), names, gap=PATCH)


def fingerprint(sessions: Sequence[Session]) -> str:
    """A hash of the recordings, so that a folder is not gone on with for others."""
    h = hashlib.sha256()
    for s in sessions:
        h.update(repr((known(s), s.traces.shape, s.trials.start.tolist())).encode())
        h.update(np.ascontiguousarray(s.traces).tobytes())
        h.update(np.ascontiguousarray(s.mask).tobytes())
    return h.hexdigest()[:16]
