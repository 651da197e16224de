"""How well a movie is reconstructed, and how much of that retrieval alone would give.

A decoder can score well by recognising which training frame the activity resembles. So
beside the model there are always: the mean training frame; the frame shown before; the
training frame whose activity is nearest; the frame that the time in the movie alone points to;
and the training frame of highest SSIM, which no retrieval can beat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import movie_losses
from calm_jax.recordings.stimuli import Shown
from calm_jax.rows import Row, row
from calm_jax.tasks.movie import MovieReconstruction

METHODS = (
    "poyo", "mean_frame", "previous_frame", "nearest", "nearest_template", "time_only",
    "best_training_frame",
)  # fmt: skip
METRICS = ("ssim", "mse", "correlation")
_BLOCK = 64  # pairs of images scored at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Sheet:
    """Examples for a figure. E examples.

    Attributes:
      frame: (E,) int, number of the movie frame. true, reconstructed, nearest: (E, H, W)
        float32. ssim: (E, 2) of reconstructed and nearest. nearest_frame: (E,) int.
      holdout: of `Movie`. Examples are in the order of the movie.
    """

    frame: np.ndarray
    true: np.ndarray
    reconstructed: np.ndarray
    nearest: np.ndarray
    nearest_frame: np.ndarray
    ssim: np.ndarray
    holdout: str


@dataclasses.dataclass(frozen=True, eq=False)
class MovieScores:
    """What `movie_rows` gives.

    Attributes:
      rows: per session, method and metric. sheet: examples. statement: one paragraph that
        says which part of the score is retrieval.
    """

    rows: list[Row]
    sheet: Sheet
    statement: str


def movie_rows(
    task: MovieReconstruction,
    params: dict,
    part: str = "test",
    *,
    seed: int,
    limit: int | None = 300,
    examples: int = 8,
) -> MovieScores:
    """Scores of the model and of every retrieval on the frames of `part`.

    Args:
      limit: windows per session, evenly spaced in time; None = all.
      examples: columns of the contact sheet.

    Protocols are "movie_repeat_holdout" and "movie_frame_block_holdout". Metrics: `ssim`
    (data range 1), `mse`, `correlation` over pixels, and for the model `copied`: the share of
    windows whose reconstruction is more similar to another frame of the training part
    than to the frame that was shown. Baselines see training windows of the same session.
    """
    frames, train = task.frames, task.shown["train"]
    shown = per_session(task, task.shown[part], limit)
    seen = np.unique(train.label)
    protocol = f"movie_{task.movie.holdout}"
    made = _model(task, params, shown, seen)
    chosen = {
        "previous_frame": (shown.label - 1) % len(frames),
        "time_only": seen[np.abs(seen[None] - shown.label[:, None]).argmin(1)],
        "best_training_frame": best_frames(frames, shown.label, seen),
        **retrieved(task, shown),
    }
    mean = task.mean_frame()
    scores = {"poyo": made["scores"]}
    truth = frames[shown.label]
    scores["mean_frame"] = score(np.broadcast_to(mean, truth.shape), truth)
    for name, index in chosen.items():
        scores[name] = score_index(frames, index, shown.label)
    rows: list[Row] = []
    for i in np.unique(shown.session):
        here = shown.session == i
        about = task.store.sessions[int(i)]
        own = {"session": about.session, "animal": about.animal, "seed": seed}
        for method in METHODS:
            for k, metric in enumerate(METRICS):
                rows.append(row(protocol, method, metric, scores[method][here, k].mean(), **own))
        rows.append(row(protocol, "poyo", "copied", made["copied"][here].mean(), **own))
        rows.append(row(protocol, "poyo", "n_windows", here.sum(), **own))
    pick = _examples(shown, examples)
    near = chosen["nearest"][pick]
    sheet = Sheet(
        shown.label[pick], truth[pick], made["first"](pick), frames[near], near,
        np.column_stack([scores["poyo"][pick, 0], scores["nearest"][pick, 0]]), task.movie.holdout,
    )  # fmt: skip
    means = {m: float(scores[m][:, 0].mean()) for m in METHODS}
    share = float(np.isin(shown.label, seen).mean())
    text = statement(task.movie.holdout, means, share, float(made["copied"].mean()))
    return MovieScores(rows, sheet, text)


def statement(
    holdout: str, ssim: dict[str, float], seen: float, copied: float
) -> str:
    """One paragraph that says which part of a score is retrieval.

    Args:
      ssim: method -> mean SSIM. seen: share of the test windows whose frame is a training
        frame. copied: share whose reconstruction is more like another training frame.
    """
    model = ssim["poyo"]
    rival, level = max(
        ((m, ssim[m]) for m in ("mean_frame", "nearest", "nearest_template")), key=lambda x: x[1]
    )
    gain = model - level
    out = [
        f"SSIM {model:.3f} with {holdout}: {seen:.0%} of the test frames were seen in training."
    ]
    if seen > 0.5:
        out.append(
            f"All of this score is within reach of retrieval: the best training frame scores "
            f"{ssim['best_training_frame']:.3f}, knowing only the time {ssim['time_only']:.3f}."
        )
    else:
        out.append(
            f"No single training frame can exceed {ssim['best_training_frame']:.3f} here (the best "
            "one, chosen with knowledge of the answer)."
        )
    names = {"mean_frame": "the mean frame", "nearest": "the training frame of nearest activity",
             "nearest_template": "the training frame of nearest mean activity"}  # fmt: skip
    better = "above" if gain > 0 else "not above"
    out.append(
        f"Without a model, {names[rival]} scores {level:.3f}: the model is {better} it "
        f"({gain:+.3f}). {copied:.0%} of the reconstructions are more like another training frame "
        "than like the frame shown."
    )
    return " ".join(out)


def per_session(task: MovieReconstruction, shown: Shown, limit: int | None) -> Shown:
    """At most `limit` rows of every session, evenly spaced."""
    if limit is None:
        return shown
    rows = []
    for i in np.unique(shown.session):
        own = np.flatnonzero(shown.session == i)
        rows.append(own[np.linspace(0, own.size - 1, min(limit, own.size)).round().astype(int)])
    return shown.take(np.concatenate(rows))


# Scores


@jax.jit
def _scores(x: jax.Array, y: jax.Array) -> jax.Array:
    mse = jnp.mean(jnp.square(x - y), (-2, -1))
    return jnp.stack(
        [movie_losses.ssim(x, y), mse, movie_losses.pixel_correlation(x, y)], axis=-1
    )


def score(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(R, 3) of METRICS for images x and y (R, H, W)."""
    out = []
    for a in range(0, len(x), _BLOCK):
        rows = np.minimum(np.arange(a, a + _BLOCK), len(x) - 1)
        out.append(np.asarray(_scores(x[rows], y[rows]))[: len(x) - a])
    return np.concatenate(out)


def score_index(frames: np.ndarray, guess: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(R, 3) of METRICS for frames guessed by number; every pair is scored once."""
    pairs, back = np.unique(np.stack([guess, label]), axis=1, return_inverse=True)
    return score(frames[pairs[0]], frames[pairs[1]])[back.reshape(-1)]


_against = jax.jit(movie_losses.ssim)


def best_frames(frames: np.ndarray, label: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(R,) the frame among `seen` of highest SSIM to the frame shown; that itself if seen."""
    out = {int(k): int(k) for k in np.intersect1d(label, seen)}
    training = jnp.asarray(frames[seen])
    for k in np.setdiff1d(label, seen):
        out[int(k)] = int(seen[int(jnp.argmax(_against(training, frames[k][None])))])
    return np.array([out[int(k)] for k in label], np.int64)


# The model and its rivals


def _model(task: MovieReconstruction, params: dict, shown: Shown, seen: np.ndarray) -> dict:
    """Scores of the model, which reconstructions are copies, and a way to see some again."""
    flat = task.frames[seen].reshape(len(seen), -1)
    norm = (flat.astype(np.float64) ** 2).sum(1)
    scores, copied, at = [], [], 0
    for x in task.reconstructions(params, shown):
        label = shown.label[at : at + len(x)]
        at += len(x)
        truth = task.frames[label]
        scores.append(score(x, truth))
        own = ((x - truth) ** 2).sum((1, 2))
        apart = norm - 2 * (x.reshape(len(x), -1) @ flat.T) + (x**2).sum((1, 2))[:, None]
        apart = np.where(seen[None] == label[:, None], np.inf, apart)
        copied.append(apart.min(1) < own - 1e-6)

    def again(rows: np.ndarray) -> np.ndarray:
        return np.concatenate(list(task.reconstructions(params, shown.take(rows))))

    return {"scores": np.concatenate(scores), "copied": np.concatenate(copied), "first": again}


def activity(task: MovieReconstruction, shown: Shown, i: int) -> Iterator[np.ndarray]:
    """The windows (frames x neurons, flat) of session i, one after the other."""
    frames = task._frames[i]
    for start in shown.start[shown.session == i]:
        yield task.prepared.window(i, int(start), int(start) + frames)[0].reshape(-1)


def retrieved(task: MovieReconstruction, shown: Shown) -> dict[str, np.ndarray]:
    """Movie frames by nearest activity: "nearest" and "nearest_template", each (R,).

    Euclidean distance between whole windows of z-scored activity of one session. "nearest"
    takes the nearest training window; "nearest_template" the frame whose training windows,
    averaged over repeats, are nearest.
    """
    train = task.shown["train"]
    one, mean = np.zeros(len(shown), np.int64), np.zeros(len(shown), np.int64)
    for i in np.unique(shown.session):
        here = np.flatnonzero(shown.session == i)
        x = np.array(list(activity(task, train, int(i))))
        y = np.array(list(activity(task, shown, int(i))))
        label = train.label[train.session == i]
        one[here] = label[_nearest(y, x)]
        frames, back = np.unique(label, return_inverse=True)
        total = np.zeros((frames.size, x.shape[1]), np.float32)
        np.add.at(total, back, x)
        template = total / np.bincount(back)[:, None]
        mean[here] = frames[_nearest(y, template)]
    return {"nearest": one, "nearest_template": mean}


def _nearest(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(R,) row of x (M, D) nearest to each row of y (R, D)."""
    square = (x.astype(np.float64) ** 2).sum(1)
    return np.concatenate(
        [(square - 2 * (y[a : a + 256] @ x.T)).argmin(1) for a in range(0, len(y), 256)]
    )


def _examples(shown: Shown, count: int) -> np.ndarray:
    """Rows of one session, evenly spaced over its frames."""
    first = np.flatnonzero(shown.session == shown.session[0])
    order = first[np.argsort(shown.label[first], kind="stable")]
    return order[np.linspace(0, order.size - 1, min(count, order.size)).round().astype(int)]
