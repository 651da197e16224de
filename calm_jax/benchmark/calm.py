"""CalM in a benchmark: trained within a budget, or a finished run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from calm_jax import config, runs, stacking
from calm_jax import scored_windows as scored
from calm_jax.benchmark import recordings
from calm_jax.errors import RunError
from calm_jax.forecasting import CalmForecaster
from calm_jax.models import tokenizer as tokenizers
from calm_jax.pipeline import check, fill_untrained, merged, total_steps
from calm_jax.recordings.batches import Prepared, Windows
from calm_jax.tailoring import choose, tailored
from calm_jax.tasks import codes as exported
from calm_jax.tasks.next_code import NextCode
from calm_jax.tasks.tokenization import Tokenization
from calm_jax.training.budget import Speed, measure
from calm_jax.training.deadline import Deadline
from calm_jax.training.log import Log
from calm_jax.training.loop import train

_NEURONS_AT_ONCE = 4096  # windows x neurons of one forecast: bounds its memory
_AHEAD = 1.2  # steps of a schedule, as a multiple of those that should fit
_MOST = 0.8  # of the budget for the tokenizer, however slow it is
_RESERVE = 0.03  # of the budget, for checkpoints and what was not measured


class Calm(CalmForecaster):
    """A trained model as a benchmark asks for it.

    Args:
      index: (S,) of each session of the benchmark the index in the run, -1 = not there.

    Attributes:
      tuning: what was trained, one dictionary per stage. settings: how the run forecasts.
    """

    def __init__(
        self, trained: runs.Trained, prepared: Prepared, index: np.ndarray, tuning: list[dict]
    ) -> None:
        offsets = np.append(trained.offsets(), -1)  # the last stands for the unknown ones
        self._index = np.where(index < 0, len(offsets) - 1, index)
        experiment = trained.run.experiment
        most = max(s.n_neurons for s in prepared.store.sessions)
        settings = experiment.forecasting
        super().__init__(
            trained.model,
            offsets,
            most,
            mode=settings.mode,
            batch=min(max(_NEURONS_AT_ONCE // most, 1), 16),
            samples=settings.samples if settings.mode == "sample" else 0,
            seed=experiment.seed,
        )
        self.tuning, self.settings = tuning, settings

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) scaled -> (B, horizon, N)."""
        return self.predict(context, int(self._index[session]), horizon).mean


class Maps:
    """The closed-form maps that a network is weighted with, fitted when made, so that what is
    left of a budget is known (`calm_jax.stacking`)."""

    def __init__(
        self, prepared: Prepared, settings: config.Forecasting, protocol: str, batch: int
    ) -> None:
        self._prepared, self._protocol, self._batch = prepared, protocol, batch
        self._each = [
            recordings.settings_of(prepared, i, settings)
            for i in range(len(prepared.splits.sessions))
        ]
        self._others = stacking.members(settings.stack, prepared, settings.horizon, {})
        self._context = settings.context_a if protocol == "A" else settings.context
        for i, own in enumerate(self._each):
            plan = scored.plan(prepared, prepared.splits, i, "valid", protocol, own)
            if plan is not None:
                first = next(scored.batches(prepared, i, plan, 1))
                for f in self._others.values():
                    f(first.context, i, first.seen, plan.horizon)

    def stacked(self, network: Calm) -> Calm | stacking.Stack:
        """The network weighted with the maps, on the validation part; as it is without any."""
        if not self._others:
            return network
        known = stacking.Remembered(network)
        found = stacking.fit(
            self._prepared, known, self._others, self._each, self._protocol, batch=self._batch
        )
        weights = {} if found is None else {self._context: found}
        return stacking.Stack(known, self._others, weights)


def fit(
    experiment: config.Experiment,
    prepared: Prepared,
    *,
    budget_seconds: float,
    seed: int,
    folder: Path,
) -> Calm:
    """Tokenizer and transformer of an experiment, trained in `budget_seconds` together.

    Both are timed first; then the steps of both stages are multiplied by one factor, so
    that they keep the proportion of the experiment. What the tokenizer leaves goes to the
    transformer. Warm-up, annealing and the cosine are fractions of the steps, so they fit;
    each stage ends in its time also where the machine gets slower (`training.deadline`).
    `folder` becomes a run folder.
    """
    begin = time.monotonic()
    check(experiment)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    choice = choose(experiment, prepared)
    e = dataclasses.replace(tailored(experiment, choice.variant), seed=seed)
    stages = (e.tokenizer_training, e.transformer_training)
    nominal = _nominal(e, prepared)
    tok = Tokenization(e.tokenizer, stages[0], prepared, seed=seed, steps=nominal[0])
    untrained = tokenizers.init(e.tokenizer, jax.random.key(seed))
    free = dataclasses.replace(e.transformer, tokens="encoded")  # no codes on disk yet
    dat = NextCode(free, stages[1], prepared, untrained, None, seed=seed, steps=nominal[1])
    speeds = (measure(tok), measure(dat))
    evaluations = [max(1, n // t.eval_every) for n, t in zip(nominal, stages)]
    fixed = sum(s.compile + k * s.evaluate for s, k in zip(speeds, evaluations))
    room = budget_seconds * (1 - _RESERVE) - (time.monotonic() - begin) - fixed
    factor = max(room, 0.0) / sum(n * s.step for n, s in zip(nominal, speeds))
    count = max(10, int(factor * nominal[0]))
    own = speeds[0].compile + evaluations[0] * speeds[0].evaluate + count * speeds[0].step
    until = min(time.monotonic() + own, begin + _MOST * budget_seconds)

    training, steps = _scaled(stages[0], int(_AHEAD * count), evaluations[0])
    tok = Tokenization(e.tokenizer, training, prepared, seed=seed, steps=steps)
    place = Path(folder) / "tokenizer"
    found, first = _stage(tok, training, place, seed, steps, speeds[0], until)
    e = dataclasses.replace(e, tokenizer_training=training)
    runs.save_arrays(Path(folder) / "tokenizer" / "model.npz", merged(found))
    tokenizer = runs.load_tokenizer(runs.Run(Path(folder), e))
    codes = None
    if e.transformer.tokens == "exported":
        longest = max(int(b - a) for _, a, b in prepared.splits.ranges("train"))
        segment = min(training.window or longest, longest)
        exported.export(tokenizer, prepared, Path(folder) / "codes.h5", segment=segment)
        codes = exported.Codes(Path(folder) / "codes.h5")

    until = begin + budget_seconds * (1 - _RESERVE)
    count = speeds[1].steps(until - time.monotonic(), evaluations[1])
    training, steps = _scaled(stages[1], int(_AHEAD * count), evaluations[1])
    dat = NextCode(
        e.transformer, training, prepared, tokenizer, codes, seed=seed, steps=steps
    )
    place = Path(folder) / "transformer"
    found, second = _stage(dat, training, place, seed, steps, speeds[1], until)
    e = dataclasses.replace(e, transformer_training=training)
    _as_run(Path(folder), e, prepared, fill_untrained(found.params, prepared))
    trained = runs.load(folder)
    return Calm(trained, prepared, np.arange(len(prepared.store.sessions)), [first, second])


def _nominal(e: config.Experiment, prepared: Prepared) -> tuple[int, int]:
    """Steps of both stages as the experiment has them."""
    ranges = prepared.splits.ranges("train")
    sessions = prepared.store.sessions
    neurons = np.mean([sessions[i].n_neurons for i in prepared.splits.training_index])
    windows = [
        Windows(ranges, t.window, e.seed).per_epoch
        for t in (e.tokenizer_training, e.transformer_training)
    ]
    return (
        total_steps(e.tokenizer_training, int(windows[0] * neurons)),
        total_steps(e.transformer_training, windows[1]),
    )


def _scaled(
    training: config.Training, steps: int, evaluations: int
) -> tuple[config.Training, int]:
    """The training with other steps and as many validations."""
    every = max(1, steps // evaluations)
    return dataclasses.replace(training, steps=steps, epochs=None, eval_every=every), steps


def _stage(
    task: Any,
    training: config.Training,
    folder: Path,
    seed: int,
    steps: int,
    speed: Speed,
    until: float,
) -> tuple[Any, dict]:
    start = time.monotonic()
    deadline = Deadline(until, step=speed.step, check=speed.evaluate)
    found = train(
        task, training, folder, seed=seed, steps=steps, log=Log.silent(), deadline=deadline
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    facts = {
        "stage": task.name,
        "steps": found.taken,
        "used_step": round(found.step * found.taken / max(found.at, 1)),
        "validation": found.best_metrics.get("loss"),
        "step_seconds": round(speed.step, 4),
        "seconds": round(time.monotonic() - start, 2),
    }
    return found, facts


def _as_run(folder: Path, e: config.Experiment, prepared: Prepared, params: dict) -> None:
    """Writes what makes a folder a finished training: `calm-jax forecast` takes it."""
    run = runs.Run(folder, e)
    (folder / "experiment.json").write_text(config.dumps(e))
    with run.stage("prepare"):
        prepared.splits.save(run.path("split.json"))
        prepared.scalers.save(run.path("scalers.npz"))
        runs.table_of(prepared.store).save(run.path("sessions.npz"))
    with run.stage("tokenizer"):
        pass  # its file stands there already
    with run.stage("transformer"):
        runs.save_arrays(run.path("transformer", "model.npz"), params)


def finished(folder: Path, prepared: Prepared) -> Calm:
    """A finished run on these recordings: its own rows for sessions it was trained on,
    mean embeddings for others.

    Raises:
      RunError: when the run saw frames that are tested here, or prepares traces in
        another way.
    """
    trained = runs.load(folder)
    own = trained.run.experiment
    if own.preprocess != prepared.scalers.config:
        raise RunError(
            "the run prepares its traces in another way than the benchmark",
            where=folder,
            found="; ".join(config.differences(prepared.scalers.config, own.preprocess)),
            remedy="Give the benchmark the experiment of the run (--experiment).",
        )
    seen, index = ~trained.held_out(), []
    parts = json.loads(trained.run.path("split.json").read_text())["sessions"]
    for i, info in enumerate(prepared.store.sessions):
        k = trained.table.find(info.session, info.animal, prepared.store.neuron_ids(i))
        if k is not None and seen[k]:
            test = prepared.splits.parts[i]["test"]
            _check_unseen(folder, info.session, parts[k]["parts"], test)
        index.append(-1 if k is None else k)
    return Calm(trained, prepared, np.array(index), [])


def _check_unseen(folder: Path, session: str, parts: dict, test: np.ndarray) -> None:
    """Refuses a run whose training or validation frames are among the test frames."""
    for name in ("train", "valid"):
        for a, b in np.asarray(parts[name]).reshape(-1, 2):
            hit = (test[:, 0] < b) & (a < test[:, 1])
            if hit.any():
                raise RunError(
                    f"frames that are tested here belong to the {name} part of the run",
                    where=f"{folder}, session {session}",
                    found=f"{name} [{a}, {b})",
                    remedy="Give --experiment an experiment with the same split.",
                )
