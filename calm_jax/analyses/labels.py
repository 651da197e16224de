"""Two classes of epochs from what was recorded beside the traces: trials, behaviour, intervals."""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np

from calm_jax.analyses.material import Material
from calm_jax.errors import AnalysisError
from calm_jax.recordings.targets import TRIAL

SEGMENT = 2.0  # s, epochs of labels that are given per frame
_PURE = 0.75  # share of a segment's frames that must have its label


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """A label of two classes.

    Attributes:
      name: of the label. classes: (first, second); what is not one of them is left out.
      epochs: per session (K, 2) frames [start, stop) of the training part.
      values: per session (K,) text, "" where neither.
      kind: what an epoch is, in words.
    """

    name: str
    classes: tuple[str, str]
    epochs: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    kind: str


def known_names(material: Material) -> list[str]:
    """What can be a label in these recordings."""
    found = [TRIAL + n for s in material.sessions for n in s.trials.columns]
    found += [
        n for s in material.sessions for n, c in s.behavior.items() if c.values.ndim == 1
    ]
    return list(dict.fromkeys(found))


def chosen(material: Material) -> list[str]:
    """The labels asked for; else cue and choice of the trials where there are any."""
    if material.settings.labels:
        return list(material.settings.labels)
    return [n for n in (TRIAL + "cue", TRIAL + "choice") if n in known_names(material)]


def make(material: Material, name: str) -> Label:
    """A label in the training part of all sessions that have it.

    A column of the trials gives one label per trial. A channel of behaviour gives one per
    segment of 2 s: its label where three quarters of the frames have it, or, for numbers,
    their sign, or the side of the training median where one sign is rare. The two
    commonest classes are compared.

    Raises:
      AnalysisError: for a name no session has, or fewer than two classes.
    """
    names = known_names(material)
    if name not in names and TRIAL + name in names:
        name = TRIAL + name
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        raise AnalysisError(
            f"no label {name!r} in these recordings",
            where="--labels",
            expected=", ".join(names) or "recordings with trials or behaviour: these have none",
            remedy=f"Did you mean {near[0]}?" if near else None,
        )
    if name.startswith(TRIAL):
        pairs = [_trials(material, i, name.removeprefix(TRIAL)) for i in _all(material)]
        kind = "trials"
    else:
        pairs = [_segments(material, i, name) for i in _all(material)]
        kind = f"segments of {SEGMENT:g} s"
    values = np.concatenate([v for _, v in pairs])
    found, count = np.unique(values[values != ""], return_counts=True)
    if len(found) < 2:
        raise AnalysisError(
            "a label needs two classes in the training part",
            where=name,
            found=", ".join(found) or "none",
        )
    two = sorted(found[np.argsort(-count, kind="stable")[:2]].tolist())
    kept = tuple(np.where(np.isin(v, two), v, "") for _, v in pairs)
    return Label(name, (two[0], two[1]), tuple(e for e, _ in pairs), kept, kind)


def _all(material: Material) -> range:
    return range(len(material.sessions))


def _text(values: np.ndarray) -> np.ndarray:
    """Labels as text; "" for missing ones (NaN, negative, empty)."""
    if values.dtype.kind == "f":
        whole = np.isfinite(values)
        text = np.array([f"{v:g}" for v in np.where(whole, values, 0)], dtype=object)
        return np.where(whole, text, "").astype(str)
    if values.dtype.kind == "i":
        return np.where(values < 0, "", values.astype(str))
    return values.astype(str)


def _trials(material: Material, i: int, column: str) -> tuple[np.ndarray, np.ndarray]:
    trials = material.sessions[i].trials
    if column not in trials.columns:
        return np.zeros((0, 2), int), np.zeros(0, "<U1")
    edges = np.stack([trials.start, trials.stop], 1)
    train = material.frames(i, "train")
    inside = np.array(
        [((train[:, 0] <= a) & (b <= train[:, 1])).any() for a, b in edges], bool
    ).reshape(-1)
    return edges[inside], _text(trials.columns[column])[inside]


def _segments(material: Material, i: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    session = material.sessions[i]
    channel = session.behavior.get(name)
    if channel is None:
        return np.zeros((0, 2), int), np.zeros(0, "<U1")
    size = max(1, round(SEGMENT * session.rate))
    starts = [np.arange(a, b - size + 1, size) for a, b in material.frames(i, "train")]
    start = np.concatenate(starts) if starts else np.zeros(0, int)
    epochs = np.stack([start, start + size], 1)
    frames = start[:, None] + np.arange(size)
    raw = channel.values
    if channel.kind == "categorical" or len(np.unique(raw[np.isfinite(raw)])) <= 2:
        labels = _text(raw)[frames]
    else:
        train = np.concatenate([raw[a:b] for a, b in material.frames(i, "train")])
        train = train[np.isfinite(train)]
        positive = float((train > 0).mean()) if train.size else 0.0
        level = 0.0 if 0.1 <= positive <= 0.9 else float(np.median(train)) if train.size else 0.0
        high, low = ("above 0", "below 0") if level == 0 else ("above median", "below median")
        labels = np.where(np.isfinite(raw), np.where(raw > level, high, low), "")[frames]
    out = np.full(len(start), "", dtype=object)
    for k, row in enumerate(labels):
        found, count = np.unique(row, return_counts=True)
        best = int(count.argmax())
        if count[best] >= _PURE * size:
            out[k] = found[best]
    return epochs, out.astype(str)
