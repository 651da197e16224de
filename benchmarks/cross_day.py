"""What cell identity buys across days: position decoded on a later day without its labels.

    python -m benchmarks.cross_day --source FOLDER --out cross_day.json

Mouse CA1 (data/mouse_ca1_sheintuch2020). Cells registered on all days, those that vary most on
the training days; traces at --rate Hz by causal means, z-scored per day and cell (from the
traces of that day alone, no label). Decoders are trained on the first days, tested on the last one:

  identity     days joined (`recordings.registration.join`): a cell keeps its embedding and its row
  mean_rows    days are sessions of their own; the last one takes mean embeddings and the mean row
  glm          ridge regression on the same cells, present and 4 frames before, alpha by validation
  mean         the mean position of the training days

The backbone is trained once per mouse, on the training days. R2 and Pearson r of position over
the runs of the last day; `r_null` is the 95 % interval of r under circular shifts of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from calm_jax import CalMDecoder, CalMForecaster, compilation
from calm_jax.estimators.inputs import known
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.conditioning import condition
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.parts import Trials
from calm_jax.recordings.registration import COLUMN, join
from calm_jax.recordings.session import Session

LAGS = 5


def main() -> None:
    """Parses, measures, writes after every mouse and seed."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--source", type=Path, required=True)
    p.add_argument("--mice", nargs="+", default=["C11_M1", "C12_M4"])
    p.add_argument("--environment", default="A")
    p.add_argument("--days", type=int, default=3, help="training days; the next one is tested")
    p.add_argument("--cells", type=int, default=40)
    p.add_argument("--rate", type=float, default=4.0)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--steps", type=int, default=200, help="of the head")
    p.add_argument("--backbone-steps", type=int, default=100)
    p.add_argument("--out", type=Path, required=True)
    known_ = p.parse_args()
    compilation.prepare("quick")
    compilation.enable()
    rows: list[dict] = []
    for mouse in known_.mice:
        days = load(known_, mouse)
        print(mouse, days[0].n_neurons, "cells", [s.n_frames for s in days], flush=True)
        for row in measure(days, known_, mouse):
            rows.append(row)
            print(row, flush=True)
            known_.out.write_text(json.dumps(rows, indent=1) + "\n")


def load(a: argparse.Namespace, mouse: str) -> list[Session]:
    """The days, frames of runs alone, the same cells in the same order, z-scored per day."""
    from data.mouse_ca1_sheintuch2020.builder import read_ca1

    paths = [
        a.source / f"{mouse}_env{a.environment}_s{k + 1}.npz" for k in range(a.days + 1)
    ]
    days = [_runs(condition(read_ca1(path), a.rate, causal=True)) for path in paths]
    cells = join(days, least=len(days)).neurons.id
    spread = np.zeros(len(cells))
    for day in days[: a.days]:
        spread += day.traces[:, _columns(day, cells)].std(0)
    cells = cells[np.sort(np.argsort(-spread)[: a.cells])]
    out = []
    for day in days:
        day = day.take_neurons(_columns(day, cells))
        z = (day.traces - day.traces.mean(0)) / (day.traces.std(0) + 1e-6)
        out.append(day.replace(traces=z, unit="z"))
    return out


def _columns(day: Session, cells: np.ndarray) -> np.ndarray:
    names = day.neurons.columns[COLUMN].tolist()
    return np.array([names.index(c) for c in cells.tolist()])


def _runs(day: Session) -> Session:
    """The frames of runs, end to end; each run stays a trial."""
    index = np.concatenate([np.arange(x, y) for x, y in zip(day.trials.start, day.trials.stop)])
    length = day.trials.stop - day.trials.start
    stop = np.cumsum(length)
    channels = {
        k: dataclasses.replace(c, values=c.values[index]) for k, c in day.behavior.items()
    }
    return day.replace(
        traces=day.traces[index],
        valid=None if day.valid is None else day.valid[index],
        timestamps=None,
        trials=Trials(stop - length, stop),
        behavior={k: c for k, c in channels.items() if k == "position"},
    )


def measure(days: list[Session], a: argparse.Namespace, mouse: str):
    """Yields the rows of a mouse."""
    train, test = days[:-1], days[-1]
    ys = [s.behavior["position"].values for s in train]
    truth = test.behavior["position"].values
    joined = join(train)
    base = CalMForecaster(
        width=16, layers=1, codes=32, tokenizer_steps=a.backbone_steps, steps=a.backbone_steps,
        context=32, horizon=8, rate=a.rate, random_state=0,
    ).fit(joined)  # fmt: skip

    def row(method: str, seed: int | None, guess: np.ndarray) -> dict:
        there = np.isfinite(truth)
        y, g = truth[there], guess[there]
        r = lambda y: float(np.corrcoef(y, g)[0, 1]) if g.std() > 0 else 0.0  # noqa: E731
        rng = np.random.default_rng(0)
        shifts = rng.integers(len(y) // 10, len(y) - len(y) // 10, 200)
        null = np.quantile([r(np.roll(y, k)) for k in shifts], (0.025, 0.975))
        return {
            "mouse": mouse, "method": method, "seed": seed, "r2": float(r2_score(y, g)),
            "r": r(y), "r_null": null.tolist(), "frames": int(there.sum()),
        }  # fmt: skip

    mean = np.nanmean(np.concatenate(ys))
    yield row("mean", None, np.full(len(truth), mean))
    yield row("glm", None, glm(train, ys, test))
    for seed in range(a.seeds):
        head = dict(run=base.trained_, decoder_steps=a.steps, rate=a.rate, random_state=seed)
        one = CalMDecoder(**head).fit(joined, np.concatenate(ys))
        later = join([test]).replace(session=joined.session)
        later = later.take_neurons([later.neurons.id.tolist().index(c) for c in joined.neurons.id])
        later = later.replace(neurons=joined.neurons)
        yield row("identity", seed, one.predict(later))
        many = CalMDecoder(**head).fit(list(train), list(ys))
        yield row("mean_rows", seed, stranger(many, test).predict(test))


def stranger(decoder: CalMDecoder, test: Session) -> CalMDecoder:
    """The decoder with a recording it never saw: mean embeddings and the mean row of its head."""
    rows = decoder.head_["head/rows"]
    decoder.head_["head/rows"] = np.concatenate(
        [rows, np.tile(rows.mean(0, keepdims=True), (test.n_neurons, 1, 1))]
    )
    settings = decoder.scalers_.config
    whole = np.array([[0, test.n_frames]])
    made = splits.Splits(
        (test.session,), (test.n_frames,),
        ({"train": whole, "valid": whole, "test": whole},), (test.session,),
    )  # fmt: skip
    own = preprocess.fit(MemoryStore([test]), made, settings)
    s = decoder.scalers_
    decoder.scalers_ = preprocess.Scalers(
        settings, s.mean + own.mean, s.sd + own.sd, s.constant + own.constant
    )
    k = len(decoder.recordings_)
    decoder.recordings_ = (*decoder.recordings_, known(test))
    decoder.rows_ = (*decoder.rows_, -1)
    # The scale of a continuous target: the mean over the training days.
    decoder.targets_ = tuple(
        (n, (*m, float(np.mean(m[:k]))), (*sd, float(np.mean(sd[:k]))))
        for n, m, sd in decoder.targets_
    )
    return decoder


def glm(train: list[Session], ys: list[np.ndarray], test: Session) -> np.ndarray:
    """Ridge on lagged traces; alpha by the last fifth of the runs of every training day."""
    x, y, valid = [], [], []
    for s, labels in zip(train, ys):
        held = s.trials.start >= s.trials.start[int(0.8 * len(s.trials))]
        frames = np.zeros(s.n_frames, bool)
        for a, b in zip(s.trials.start[held], s.trials.stop[held]):
            frames[a:b] = True
        x.append(lagged(s))
        y.append(labels)
        valid.append(frames)
    x, y, valid = np.concatenate(x), np.concatenate(y), np.concatenate(valid)
    there = np.isfinite(y)
    fit = lambda alpha, keep: Ridge(alpha).fit(x[keep], y[keep])  # noqa: E731
    score = lambda m: m.score(x[there & valid], y[there & valid])  # noqa: E731
    best = max(10.0 ** np.arange(-1, 6), key=lambda alpha: score(fit(alpha, there & ~valid)))
    return fit(best, there).predict(lagged(test))


def lagged(s: Session) -> np.ndarray:
    """(T, N x LAGS) the present and the frames before it, within each run."""
    out = np.zeros((s.n_frames, LAGS, s.n_neurons), np.float32)
    for a, b in zip(s.trials.start, s.trials.stop):
        for k in range(min(LAGS, b - a)):
            out[a + k : b, k] = s.traces[a : b - k]
    return out.reshape(s.n_frames, -1)


if __name__ == "__main__":
    main()
