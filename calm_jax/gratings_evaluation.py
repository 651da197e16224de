"""How well gratings are decoded, beside what needs no model: chance, majority, shuffled labels,
and a linear decoder of the same windows."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from calm_jax.recordings.stimuli import Shown
from calm_jax.rows import Row, row
from calm_jax.tasks.gratings import GratingsDecoding

PROTOCOL = "gratings"
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the regularisation of the linear decoder
_PERMUTATIONS = 200


def gratings_rows(
    task: GratingsDecoding, params: dict, part: str = "test", *, seed: int, linear: bool = True
) -> list[Row]:
    """Rows of metric `accuracy` per session of `part`; `n_presentations` beside it.

    Methods: `poyo` (the model); `chance` = 1 / classes; `majority`, the class most frequent in
    the training part of the session; `shuffled`, the mean accuracy of the model's answers when
    the labels of the part are permuted, and `shuffled_95`, the 95th percentile of it; with
    `linear` also `linear`, a logistic regression on the mean activity of the window, per
    session, its strength chosen on the validation part.

    Rows are of sessions; `rows.averaged` gives the means over sessions and animals.
    """
    shown, train, valid = (task.shown[p] for p in (part, "train", "valid"))
    answer = task.logits(params, shown).argmax(1)
    rng = np.random.default_rng([seed, 77])
    out: list[Row] = []
    for i in np.unique(shown.session):
        here = shown.session == i
        label, said = shown.label[here], answer[here]
        about = task.store.sessions[int(i)]
        own = {"session": about.session, "animal": about.animal, "seed": seed}
        mixed = np.stack([rng.permutation(label) for _ in range(_PERMUTATIONS)])
        null = (mixed == said).mean(1)
        frequent = np.bincount(train.label[train.session == i]).argmax()
        values = {
            "poyo": (said == label).mean(),
            "chance": 1.0 / task.classes.size,
            "majority": (label == frequent).mean(),
            "shuffled": null.mean(),
            "shuffled_95": np.percentile(null, 95),
        }
        if linear:
            values["linear"] = _linear(task, train, valid, shown, int(i))
        for method, value in values.items():
            out.append(row(PROTOCOL, method, "accuracy", value, **own))
        out.append(row(PROTOCOL, "poyo", "n_presentations", here.sum(), **own))
    return out


def _activity(task: GratingsDecoding, shown: Shown, i: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, N) mean activity of the windows of session i, and their labels (R,)."""
    rows = np.flatnonzero(shown.session == i)
    frames = task._frames[i]
    x = [task.prepared.window(i, int(a), int(a) + frames)[0].mean(0) for a in shown.start[rows]]
    return np.array(x), shown.label[rows]


def _linear(task: GratingsDecoding, train: Shown, valid: Shown, test: Shown, i: int) -> float:
    (x, y), (xv, yv), (xt, yt) = (_activity(task, s, i) for s in (train, valid, test))
    if np.unique(y).size < 2:
        return float((yt == y[0]).mean())
    best = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in _STRENGTHS:
            made = LogisticRegression(C=strength, max_iter=200).fit(x, y)
            score = made.score(xv, yv) if len(yv) else 0.0
            if best is None or score > best[0]:
                best = (score, made)
    return float(best[1].score(xt, yt))
