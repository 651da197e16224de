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

_Ends = tuple[Speed, float]  # as measured, and when a stage has to end


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
    e = _chosen(experiment, prepared, seed, folder)
    stages, nominal = (e.tokenizer_training, e.transformer_training), _nominal(e, prepared)
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
    training = _scaled(stages[0], int(_AHEAD * count), evaluations[0])
    e, first = _tokenizer(e, training, prepared, folder, (speeds[0], until))
    until = begin + budget_seconds * (1 - _RESERVE)
    count = speeds[1].steps(until - time.monotonic(), evaluations[1])
    training = _scaled(stages[1], int(_AHEAD * count), evaluations[1])
    return _transformer(e, training, prepared, folder, (speeds[1], until), [first])


def fit_steps(
    experiment: config.Experiment, prepared: Prepared, *, steps: int, seed: int, folder: Path
) -> Calm:
    """Tokenizer and transformer of an experiment, the transformer trained for `steps` steps.

    The steps of the tokenizer change with them, to no more than the experiment has, and both
    stages keep their validations and early stopping. Unlike with `fit`, the result does not
    depend on the speed of the machine.
    """
    e = _chosen(experiment, prepared, seed, folder)
    nominal = _nominal(e, prepared)
    stages = (e.tokenizer_training, e.transformer_training)
    counts = max(10, round(nominal[0] * min(1.0, steps / nominal[1]))), steps
    trainings = [
        _scaled(t, count, max(1, n // t.eval_every))
        for t, n, count in zip(stages, nominal, counts)
    ]
    e, first = _tokenizer(e, trainings[0], prepared, folder)
    return _transformer(e, trainings[1], prepared, folder, None, [first])


def _chosen(
    experiment: config.Experiment, prepared: Prepared, seed: int, folder: Path
) -> config.Experiment:
    """The experiment with the transformer that fits the recordings; an empty folder."""
    check(experiment)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    choice = choose(experiment, prepared)
    return dataclasses.replace(tailored(experiment, choice.variant), seed=seed)


def _tokenizer(
    e: config.Experiment,
    training: config.Training,
    prepared: Prepared,
    folder: Path,
    ends: _Ends | None = None,
) -> tuple[config.Experiment, dict]:
    """Trains the tokenizer into the folder: (experiment as trained, facts)."""
    tok = Tokenization(e.tokenizer, training, prepared, seed=e.seed, steps=training.steps)
    found, facts = _stage(tok, training, Path(folder) / "tokenizer", e.seed, ends)
    runs.save_arrays(Path(folder) / "tokenizer" / "model.npz", merged(found))
    return dataclasses.replace(e, tokenizer_training=training), facts


def _transformer(
    e: config.Experiment,
    training: config.Training,
    prepared: Prepared,
    folder: Path,
    ends: _Ends | None,
    facts: list[dict],
) -> Calm:
    """Trains the transformer on the tokenizer of the folder, which becomes a finished run."""
    tokenizer = runs.load_tokenizer(runs.Run(Path(folder), e))
    codes = None
    if e.transformer.tokens == "exported":
        longest = max(int(b - a) for _, a, b in prepared.splits.ranges("train"))
        segment = min(e.transformer_training.window or longest, longest)
        exported.export(tokenizer, prepared, Path(folder) / "codes.h5", segment=segment)
        codes = exported.Codes(Path(folder) / "codes.h5")
    dat = NextCode(
        e.transformer, training, prepared, tokenizer, codes, seed=e.seed, steps=training.steps
    )
    found, own = _stage(dat, training, Path(folder) / "transformer", e.seed, ends)
    e = dataclasses.replace(e, transformer_training=training)
    _as_run(Path(folder), e, prepared, fill_untrained(found.params, prepared))
    trained = runs.load(folder)
    return Calm(trained, prepared, np.arange(len(prepared.store.sessions)), [*facts, own])


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


def _scaled(training: config.Training, steps: int, evaluations: int) -> config.Training:
    """The training with other steps and as many validations."""
    every = max(1, steps // evaluations)
    return dataclasses.replace(training, steps=steps, epochs=None, eval_every=every)


def _stage(
    task: Any, training: config.Training, folder: Path, seed: int, ends: _Ends | None
) -> tuple[Any, dict]:
    """Trains; with `ends` in time, at a speed that was measured."""
    start = time.monotonic()
    deadline = None
    if ends is not None:
        deadline = Deadline(ends[1], step=ends[0].step, check=ends[0].evaluate)
    found = train(
        task, training, folder, seed=seed, steps=training.steps, log=Log.silent(),
        deadline=deadline,
    )  # fmt: skip
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    seconds = time.monotonic() - start
    facts = {
        "stage": task.name,
        "steps": found.taken,
        "used_step": round(found.step * found.taken / max(found.at, 1)),
        "validation": found.best_metrics.get("loss"),
        "step_seconds": round(ends[0].step if ends else seconds / max(found.taken, 1), 4),
        "seconds": round(seconds, 2),
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
