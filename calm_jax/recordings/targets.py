"""What a decoder is to decode: behaviour on the imaging frames, scaled or as classes.

Only training ranges decide on the scaling and on the classes.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.parts import Channel
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import Splits

TRIAL = "trial/"  # a target of this prefix is a column of the trials, one label a trial
_MOST_CLASSES = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """One number, or one label, per frame.

    Attributes:
      name: of the channel, with [d] behind it where the channel has columns.
      classes: labels as text, in order; None for a continuous target.
      values: per session (T,) float32, scaled, or the index of the class; 0 where missing.
      known: per session (T,) bool.
      mean, sd: per session, of the training frames in the unit of the recording; 0 and 1
        for classes.
    """

    name: str
    classes: tuple[str, ...] | None
    values: tuple[np.ndarray, ...]
    known: tuple[np.ndarray, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]

    @property
    def outputs(self) -> int:
        """Numbers that a decoder gives for it."""
        return 1 if self.classes is None else len(self.classes)


def make_targets(
    sessions: Sequence[Session],
    splits: Splits,
    names: Sequence[str],
    classify: Sequence[str] = (),
    classes: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[list[Target], list[str]]:
    """The targets and the notes on what is missing in which session.

    Behaviour channels must be on the imaging frames already (`conditioning.align_behavior`).
    Categorical channels and trial columns become classes, as do continuous channels named in
    `classify`. A session without a channel has no labels of it. `classes` names the labels
    of targets, in order, where they are not to be found from the training part.

    Raises:
      RecordingError: for a name that no session has (with the nearest), a target without
        labels in the training or in the test part, of one class, or that does not vary.
    """
    if not names:
        raise RecordingError("no target named", where="--target", expected=_known(sessions))
    wanted = list(dict.fromkeys(names))
    stray = [n for n in classify if n not in wanted]
    if stray:
        raise RecordingError(
            f"{stray[0]!r} is to be classified and is no target",
            where="--classify",
            expected=", ".join(wanted),
        )
    targets, notes = [], []
    for name in wanted:
        channels = [_channel(s, name) for s in sessions]
        if all(c is None for c in channels):
            near = difflib.get_close_matches(name, _names(sessions), 1)
            raise RecordingError(
                f"no behaviour channel {name!r}",
                where="--target",
                expected=_known(sessions),
                remedy=f"Did you mean {near[0]}?" if near else None,
            )
        notes += [
            f"{name}: not in session {s.session}, which has no labels of it"
            for s, c in zip(sessions, channels, strict=True)
            if c is None
        ]
        first = next(c for c in channels if c is not None)
        as_classes = name in classify or first.kind == "categorical"
        for column in range(1 if first.values.ndim == 1 else first.values.shape[1]):
            label = name if first.values.ndim == 1 else f"{name}[{column}]"
            raw = [_column(s, c, column, label) for s, c in zip(sessions, channels, strict=True)]
            if as_classes:
                given = (classes or {}).get(label)
                targets.append(_classes(label, raw, sessions, splits, notes, given))
            else:
                targets.append(_scaled(label, raw, sessions, splits, notes))
    return targets, notes


def _names(sessions: Sequence[Session]) -> list[str]:
    found = [n for s in sessions for n in s.behavior]
    found += [TRIAL + n for s in sessions for n in s.trials.columns]
    return list(dict.fromkeys(found))


def _known(sessions: Sequence[Session]) -> str:
    return ", ".join(_names(sessions)) or "recordings with behaviour: these have none"


def _channel(session: Session, name: str) -> Channel | None:
    """The channel of that name; a column of the trials as one label per frame."""
    if not name.startswith(TRIAL):
        return session.behavior.get(name)
    column = session.trials.columns.get(name.removeprefix(TRIAL))
    if column is None:
        return None
    column = np.asarray(column)
    text = column.dtype.kind in "US"
    if column.dtype.kind == "f" and not np.all(column[np.isfinite(column)] % 1 == 0):
        values = np.full(session.n_frames, np.nan, np.float32)
    else:
        values = np.zeros(session.n_frames, column.dtype) if text else None
    kind = "continuous" if values is not None and not text else "categorical"
    if values is None:
        values = np.full(session.n_frames, -1, np.int64)
        column = np.where(np.isfinite(column), column, -1).astype(np.int64)
    for start, stop, value in zip(session.trials.start, session.trials.stop, column):
        values[start:stop] = value
    return Channel(values, kind)


def _column(session: Session, channel: Channel | None, column: int, name: str) -> np.ndarray:
    """(T,) one column of a channel; NaN, "" or -1 where missing."""
    if channel is None:
        return np.full(session.n_frames, np.nan, np.float32)
    values = channel.values
    columns = 1 if values.ndim == 1 else values.shape[1]
    if column >= columns or channel.times is not None or len(values) != session.n_frames:
        raise RecordingError(
            "a target of another length or width",
            where=f"session {session.session}, behavior/{name}",
            found=f"shape {values.shape}",
            expected=f"{session.n_frames} frames, and as many columns in every session",
        )
    return values if values.ndim == 1 else values[:, column]


def _part(splits: Splits, i: int, part: str, frames: int) -> np.ndarray:
    """(T,) bool, the frames of a part of session `i`."""
    out = np.zeros(frames, bool)
    for start, stop in splits.parts[i][part]:
        out[start:stop] = True
    return out


def _check_labels(name: str, known: Sequence[np.ndarray], splits: Splits) -> None:
    for part in ("train", "valid", "test"):
        if not any((k & _part(splits, i, part, len(k))).any() for i, k in enumerate(known)):
            nothing = not any(k.any() for k in known)
            raise RecordingError(
                "every label is missing" if nothing else f"no label in the {part} part",
                where=f"target {name}",
                found=f"{sum(int(k.sum()) for k in known)} labels "
                f"in {sum(len(k) for k in known)} frames",
                expected="labels in the training, the validation and the test part",
                remedy="Leave the target out, or give recordings in which it was scored.",
            )


def _scaled(
    name: str,
    raw: Sequence[np.ndarray],
    sessions: Sequence[Session],
    splits: Splits,
    notes: list[str],
) -> Target:
    """z-scored with mean and SD of the training frames of each session."""
    if any(x.dtype.kind in "US" for x in raw):
        raise RecordingError(
            "labels of two kinds: numbers in one session, text in another", where=f"target {name}"
        )
    known = [np.isfinite(x) for x in raw]
    _check_labels(name, known, splits)
    values, means, sds = [], [], []
    for i, (x, k) in enumerate(zip(raw, known)):
        train = x[k & _part(splits, i, "train", len(x))].astype(np.float64)
        mean = float(train.mean()) if train.size else 0.0
        sd = float(train.std()) if train.size else 0.0
        if k.any() and not sd > 1e-6 * max(abs(mean), 1e-30):
            why = "does not vary" if train.size else "has no label"
            notes.append(
                f"{name}: {why} in the training part of session {sessions[i].session}, "
                "which is left out of it"
            )
            known[i], sd = np.zeros_like(k), 1.0
        sd = sd if sd > 0 else 1.0
        z = (np.where(known[i], x, mean) - mean) / sd
        values.append(z.astype(np.float32))
        means.append(mean)
        sds.append(sd)
    if not any(k.any() for k in known):
        raise RecordingError(
            "the target does not vary in the training part of any session",
            where=f"target {name}",
            remedy="Leave it out.",
        )
    return Target(name, None, tuple(values), tuple(known), tuple(means), tuple(sds))


def _classes(
    name: str,
    raw: Sequence[np.ndarray],
    sessions: Sequence[Session],
    splits: Splits,
    notes: list[str],
    given: tuple[str, ...] | None = None,
) -> Target:
    """Indices into the labels that stand in the training part of any session."""
    texts, known = [], []
    for x in raw:
        if x.dtype.kind in "US":
            k = x != ""
            text = x.astype(str)
        else:
            k = np.isfinite(x) if x.dtype.kind == "f" else x >= 0
            whole = x[k] if x.dtype.kind != "f" else x[k][np.mod(x[k], 1) == 0]
            if whole.size < k.sum():
                raise RecordingError(
                    "numbers that are no labels are to be classified",
                    where=f"target {name}",
                    found=float(x[k][np.mod(x[k], 1) != 0][0]),
                    expected="whole numbers or text",
                    remedy="Leave it out of --classify to decode it as a number.",
                )
            text = np.where(k, x, 0).astype(np.int64).astype(str)
        texts.append(text)
        known.append(k)
    _check_labels(name, known, splits)
    found = set()
    for i, (text, k) in enumerate(zip(texts, known)):
        found |= set(text[k & _part(splits, i, "train", len(k))].tolist())
    numeric = all(s.lstrip("-").isdigit() for s in found)
    classes = given or tuple(sorted(found, key=int if numeric else str))
    if len(classes) == 1:
        raise RecordingError(
            "the target has a single class in the training part",
            where=f"target {name}",
            found=repr(classes[0]),
            expected="two classes or more",
            remedy="Leave it out, or give recordings with both.",
        )
    if len(classes) > _MOST_CLASSES:
        raise RecordingError(
            "too many classes",
            where=f"target {name}",
            found=f"{len(classes)} different labels",
            expected=f"at most {_MOST_CLASSES}",
            remedy="Leave it out of --classify to decode it as a number.",
        )
    index = {c: j for j, c in enumerate(classes)}
    values = []
    for i, (text, k) in enumerate(zip(texts, known)):
        new = k & ~np.isin(text, classes)
        if new.any():
            notes.append(
                f"{name}: {int(new.sum())} frames of session {sessions[i].session} have a label "
                "that no training frame has; they are left out"
            )
            known[i] = k & ~new
        unique, back = np.unique(text, return_inverse=True)
        values.append(np.array([index.get(u, 0) for u in unique], np.float32)[back])
    n = len(raw)
    return Target(name, classes, tuple(values), tuple(known), (0.0,) * n, (1.0,) * n)
