"""What a decoder is to learn: y of one recording or of several as Targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from calm_jax.estimators.inputs import InputError, several
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import Splits
from calm_jax.recordings.targets import Target


def columns(X: Any, y: Any, sessions: Sequence[Session]) -> list[np.ndarray]:
    """y of every recording as (T, K).

    Raises:
      ValueError: where there is none, or it does not fit X.
    """
    if y is None:
        raise InputError(
            "This estimator requires y to be passed, but the target y is None", where="y"
        )
    given = list(y) if several(X) else [y]
    if len(given) != len(sessions):
        raise InputError(
            "one y per recording is needed", where="y", found=len(given), expected=len(sessions)
        )
    out = []
    for one, s in zip(given, sessions):
        one = np.asarray(one)
        if one.ndim not in (1, 2) or one.size == 0:
            raise InputError(
                "y of another shape",
                where="y",
                found=f"shape {one.shape}",
                expected=f"({s.n_frames},) or ({s.n_frames}, K)",
            )
        if len(one) != s.n_frames:
            raise InputError(
                "y of another length than X",
                where="y",
                found=f"{len(one)} frames",
                expected=f"{s.n_frames}",
            )
        if one.dtype.kind == "c":
            raise InputError("Complex data not supported", where="y", found=str(one.dtype))
        if one.dtype.kind == "f" and np.isinf(one).any():
            raise InputError(
                "Input y contains infinity or a value too large for dtype('float64')",
                where="y",
                remedy="NaN stands for a missing value.",
            )
        out.append(one.reshape(len(one), -1))
    widths = {v.shape[1] for v in out}
    if len(widths) > 1:
        raise InputError("y of different widths", where="y", found=sorted(widths))
    return out


def are_labels(values: Sequence[np.ndarray], classify: bool | None) -> bool:
    """Whether y holds labels: as said, else integers, booleans and text do."""
    if classify is not None:
        return bool(classify)
    kinds = set()
    for v in values:
        kinds |= {type(x) for x in v.ravel()[:1000]} if v.dtype.kind == "O" else {v.dtype.kind}
    return not kinds <= {"f", float, np.float64, np.float32}


def continuous(values: Sequence[np.ndarray], made: Splits) -> list[Target]:
    """One target a column, scaled by the training frames of each recording.

    Raises:
      ValueError: for what is no number, or has none in the training frames.
    """
    out = []
    for k in range(values[0].shape[1]):
        scaled, known, means, sds = [], [], [], []
        for i, v in enumerate(values):
            try:
                x = v[:, k].astype(np.float64)
            except (TypeError, ValueError) as e:
                raise InputError(
                    "y holds what is no number",
                    where="y",
                    found=str(e),
                    remedy="With classify=True they are labels.",
                ) from e
            there = np.isfinite(x)
            train = np.concatenate([x[a:b] for a, b in made.parts[i]["train"]])
            train = train[np.isfinite(train)]
            if not train.size:
                raise InputError(
                    "no value in the training frames of a recording",
                    where=f"y, recording {i}, column {k}",
                )
            mean, sd = float(train.mean()), float(train.std())
            sd = sd if sd > 1e-12 * max(abs(mean), 1e-30) else 1.0
            scaled.append(np.where(there, (x - mean) / sd, 0).astype(np.float32))
            known.append(there)
            means.append(mean)
            sds.append(sd)
        out.append(Target(f"y{k}", None, tuple(scaled), tuple(known), tuple(means), tuple(sds)))
    return out


def classes(values: Sequence[np.ndarray], made: Splits) -> tuple[list[Target], list[np.ndarray]]:
    """One target a column with its labels, which are sorted; NaN is a missing label.

    Raises:
      ValueError: for what are no labels, or fewer than two of them.
    """
    out, found = [], []
    for k in range(values[0].shape[1]):
        own = [column_or_1d(v[:, k]) for v in values]
        there = [known(v) for v in own]
        every = np.concatenate([v[t] for v, t in zip(own, there)])
        check_classification_targets(every)
        labels = np.unique(every)
        if len(labels) < 2:
            raise InputError(
                "y has a single class",
                where=f"y, column {k}",
                found=f"1 class, {labels[0]!r}" if len(labels) else "0 classes",
                expected="two classes or more",
            )
        index = [
            np.where(t, np.searchsorted(labels, np.where(t, v, labels[0])), 0).astype(np.float32)
            for v, t in zip(own, there)
        ]
        n = len(own)
        out.append(
            Target(
                f"y{k}",
                tuple(map(str, labels)),
                tuple(index),
                tuple(there),
                (0.0,) * n,
                (1.0,) * n,
            )
        )
        found.append(labels)
    return out, found


def known(v: np.ndarray) -> np.ndarray:
    """(T,) bool, False for NaN."""
    if v.dtype.kind == "f":
        return np.isfinite(v)
    if v.dtype.kind == "O":
        return np.array([x == x and x is not None for x in v])
    return np.ones(len(v), bool)
