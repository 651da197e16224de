"""The linear baselines and their controls on one session, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calm_jax import config
from calm_jax.baselines.behavior import (
    constant,
    logistic,
    reduced_rank,
    ridge,
    shuffled,
    time_only,
)
from calm_jax.baselines.behavior.lagged import design
from calm_jax.recordings.splits import PARTS, Splits
from calm_jax.recordings.targets import Target

Read = Callable[[int, int, int], np.ndarray]
Put = Callable[[str, Target, np.ndarray, np.ndarray], None]
SHUFFLES = {"continuous": 20, "classes": 5}  # decoders trained on shifted labels


class _Parts:
    """The three parts of a session: labels, and designs by name."""

    def __init__(self, splits: Splits, i: int, targets: Sequence[Target], designs: dict):
        self.designs = designs
        self.values, self.known = (
            {
                part: np.stack(
                    [
                        np.concatenate([getattr(t, name)[i][a:b] for a, b in splits.parts[i][part]])
                        for t in targets
                    ],
                    1,
                )
                for part in PARTS
            }
            for name in ("values", "known")
        )

    def usable(self, k: int) -> bool:
        """Whether target k has labels in every part."""
        return all(self.known[p][:, k].any() for p in PARTS)

    def labelled(self, name: str, part: str, columns: Sequence[int]) -> tuple:
        """Design and labels of the frames where all these targets are known."""
        there = self.known[part][:, columns].all(1)
        return self.designs[name][part][there], self.values[part][there][:, columns]


def run(
    read: Read,
    splits: Splits,
    i: int,
    frames: int,
    trials: bool,
    targets: Sequence[Target],
    settings: config.Decoding,
    put: Put,
    put_row: Callable[[str, Target, str, float], None],
) -> None:
    """Fits every linear baseline and control on session `i`.

    Args:
      read: scaled traces (T, N) of a range. frames, trials: of the session.
      put: takes (method, target, outputs (T, O), truth (T,)) on the known test frames.
      put_row: takes (method, target, metric, value), for what has no outputs.
    """
    lags, ahead = settings.lags, settings.look_ahead
    own = splits.parts[i]
    designs = {
        "lagged": {
            p: design([read(i, int(a), int(b)) for a, b in own[p]], lags, ahead) for p in PARTS
        },
        "time": {p: time_only.design(own[p].tolist(), frames, trials) for p in PARTS},
    }
    parts = _Parts(splits, i, targets, designs)
    usable = [k for k in range(len(targets)) if parts.usable(k)]
    for k in usable:
        one = _classes if targets[k].classes else _continuous
        one(parts, k, targets[k], settings, put, put_row)
    joint = [k for k in usable if targets[k].classes is None]
    if joint and all(parts.known[p][:, joint].all(1).any() for p in PARTS):
        model = reduced_rank.fit(
            *parts.labelled("lagged", "train", joint), *parts.labelled("lagged", "valid", joint)
        )
        x, y = parts.labelled("lagged", "test", joint)
        outputs = model(x)
        for column, k in enumerate(joint):
            put("reduced_rank", targets[k], outputs[:, [column]], y[:, column])


def _continuous(
    parts: _Parts, k: int, target: Target, settings: config.Decoding, put: Put, put_row: Callable
) -> None:
    for method, name in (("ridge", "lagged"), ("time_only", "time")):
        train, valid, test = (parts.labelled(name, p, [k]) for p in PARTS)
        put(method, target, ridge.fit(*train, *valid)(test[0]), test[1][:, 0])
    train, valid, test = (parts.labelled("lagged", p, [k]) for p in PARTS)
    put("mean", target, constant.mean(train[1], len(test[1]))[:, None], test[1][:, 0])
    # Every shift is one more output of the same regression.
    count, t = SHUFFLES["continuous"], np.arange(len(train[1]))
    if len(t) < 10:
        return
    y = np.stack([train[1][(t + s) % len(t), 0] for s in shuffled.shifts(len(t), count)], 1)
    outputs = ridge.fit(train[0], y, valid[0], np.repeat(valid[1], count, 1))(test[0])
    for c in range(count):
        put("shuffled", target, outputs[:, [c]], test[1][:, 0])


def _classes(
    parts: _Parts, k: int, target: Target, settings: config.Decoding, put: Put, put_row: Callable
) -> None:
    size = len(target.classes)
    train, valid, test = (parts.labelled("lagged", p, [k]) for p in PARTS)
    labels, truth = train[1][:, 0], test[1][:, 0]
    put("majority", target, constant.majority(labels, len(truth), size), truth)
    for metric, value in constant.chance(labels, truth, size).items():
        put_row("chance", target, metric, value)
    if len(np.unique(labels)) < 2:
        return
    for method, name in (("logistic", "lagged"), ("time_only", "time")):
        x, xv, xt = (parts.labelled(name, p, [k])[0] for p in PARTS)
        model = logistic.fit(x, labels, xv, valid[1][:, 0], size, balanced=settings.balanced)
        put(method, target, model(xt), truth)
    t = np.arange(len(labels))
    if len(t) < 10:
        return
    for s in shuffled.shifts(len(t), SHUFFLES["classes"]):
        model = logistic.fit(
            train[0],
            labels[(t + s) % len(t)],
            valid[0],
            valid[1][:, 0],
            size,
            balanced=settings.balanced,
            strengths=logistic.STRENGTHS[1::3],
        )
        put("shuffled", target, model(test[0]), truth)
