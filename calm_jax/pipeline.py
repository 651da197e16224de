"""A run from recordings to report: its stages, in order, each done once.

prepare -> tokenizer -> codes -> transformer -> evaluation -> weights -> report. The same call
again continues where the last one stopped; a finished stage is not run twice.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from calm_jax import (
    compilation,
    config,
    evaluation,
    examples,
    quantile_files,
    reconstruction,
    rows,
    runs,
    scoring,
    stacking,
    uncertainty,
    weights,
)
from calm_jax.errors import ConfigError
from calm_jax.forecast_files import forecast_file
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared, Windows
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.report import console as tables
from calm_jax.report.page import write_report
from calm_jax.runs import Run, load, open_run
from calm_jax.scoring import evaluate_run
from calm_jax.tailoring import choose, tailored
from calm_jax.tasks import codes as exported
from calm_jax.tasks.next_code import NextCode
from calm_jax.tasks.tokenization import Tokenization
from calm_jax.training.log import Log
from calm_jax.training.loop import train
from calm_jax.training.mesh import agree, barrier

__all__ = ["evaluate_run", "forecast_file", "pretrain", "train_models", "write_report"]


def pretrain(experiment: config.Experiment, folder: Path, console: Console | None = None) -> Run:
    """Runs an experiment in `folder`, or continues it; returns the finished run.

    Raises:
      CalmError: for a config, recordings or a folder that cannot be used.
    """
    say = _Say(console)
    check(experiment)
    run = open_run(Path(folder), experiment)
    say(f"run {run.folder}: {experiment.purpose or experiment.name}")
    prepared = _prepare(run, say)
    with compilation.effort(experiment.compilation):
        _tokenizer(run, prepared, say)
        tokenizer = runs.load_tokenizer(run)
        _codes(run, prepared, tokenizer, say)
        _transformer(run, prepared, tokenizer, say)
        if jax.process_index() == 0:
            _evaluation(run, prepared, say)
            _weights(run, say)
            _report(run, say)
    barrier("run")
    return run


def train_models(run: Run, prepared: Prepared, console: Console | None = None) -> None:
    """The tokenizer and the transformer of a run, on recordings that are prepared already.

    What the run folder holds is not trained again.

    Raises:
      CalmError: for a config or recordings that cannot be used.
    """
    say = _Say(console)
    with compilation.effort(run.experiment.compilation):
        _tokenizer(run, prepared, say)
        tokenizer = runs.load_tokenizer(run)
        if run.tailored().transformer.tokens == "exported":
            _codes(run, prepared, tokenizer, say)
        _transformer(run, prepared, tokenizer, say)


def check(experiment: config.Experiment) -> None:
    """Raises `ConfigError` for what would only fail after hours of training."""
    f, e = experiment.forecasting, tailored(experiment, "alternative")
    uncertainty.check_levels(f.quantiles)
    stacking.check(f.stack)
    if experiment.alternative.rule == "never":
        e = experiment
    for where, t in (("transformer", experiment), ("alternative.transformer", e)):
        if f.mode == "readout" and not t.transformer.readout_frames:
            raise ConfigError(
                "forecasts from a read-out need one",
                where="forecasting.mode",
                found=f"readout with {where}.readout_frames = 0",
                remedy=f"Set {where}.readout_frames, or another mode.",
            )
    for name, training in (
        ("tokenizer_training", experiment.tokenizer_training),
        ("transformer_training", experiment.transformer_training),
        ("alternative.training", e.transformer_training),
    ):
        if (training.steps is None) == (training.epochs is None):
            raise ConfigError(
                "give steps or epochs",
                where=name,
                found=f"steps={training.steps}, epochs={training.epochs}",
            )
    if min(f.context, f.context_a) < experiment.tokenizer.patch:
        raise ConfigError(
            "the context is shorter than one code",
            where="forecasting.context",
            found=min(f.context, f.context_a),
            expected=f"at least the patch, {experiment.tokenizer.patch} frames",
        )
    if f.horizon_a <= f.score_from_a - f.context_a:
        raise ConfigError(
            "protocol A forecasts no frame that is scored",
            where="forecasting.horizon_a",
            found=f.horizon_a,
            expected=f"more than score_from_a - context_a = {f.score_from_a - f.context_a} frames",
        )


class _Say:
    """Lines for people, from the first process only."""

    def __init__(self, console: Console | None):
        self.console = console or Console(stderr=True, highlight=False)
        self.shown = jax.process_index() == 0

    def __call__(self, text: str) -> None:
        if self.shown:
            self.console.print(text, soft_wrap=True, markup=False)


# Stages


def _done(run: Run, stage: str) -> bool:
    """Whether a stage of all processes is complete, the same for all of them.

    One that looks a moment later may see what the first has made since, leave out what the
    others wait for, and all would wait for ever. Nobody begins before all have looked.
    """
    return bool(agree(int(run.done(stage))))


def _prepare(run: Run, say: _Say) -> Prepared:
    """Store, split and scalers."""
    experiment = run.experiment
    store = open_store(build(experiment.data, say.console))
    if not _done(run, "prepare"):
        if jax.process_index() == 0:
            counts = {"sessions": len(store.sessions), "neurons": store.n_neurons}
            with run.stage("prepare", **counts) as facts:
                made = splits.make_split(store, experiment.split, experiment.data.held_out)
                scalers = preprocess.fit(store, made, experiment.preprocess)
                made.save(run.path("split.json"))
                scalers.save(run.path("scalers.npz"))
                runs.table_of(store).save(run.path("sessions.npz"))
                choice = choose(experiment, Prepared(store, made, scalers))
                facts["choice"] = dataclasses.asdict(choice)
        barrier("prepare")
    split = runs.load_split(run, store)
    scalers = runs.load_scalers(run)
    scoring.check_varying(split.sessions, scalers)
    constant = sum(int(c.sum()) for c in scalers.constant)
    say(
        f"data {experiment.data.name}: {len(store.sessions)} sessions, {store.n_neurons} neurons, "
        + ", ".join(f"{len(split.ranges(p))} {p}" for p in ("train", "valid", "test"))
        + " ranges"
        + (f"; {constant} constant or all but silent traces are left out of every score"
           if constant else "")
    )
    return Prepared(store, split, scalers)


def total_steps(training: config.Training, windows: int) -> int:
    """Optimiser steps of a stage with so many training windows in an epoch."""
    if training.steps is not None:
        return training.steps
    return max(1, math.ceil(training.epochs * windows / training.batch))


def _tokenizer(run: Run, prepared: Prepared, say: _Say) -> None:
    if _done(run, "tokenizer"):
        say("tokenizer: done before")
        return
    e = run.experiment
    training = e.tokenizer_training
    windows = Windows(prepared.splits.ranges("train"), training.window, e.seed).per_epoch
    index = prepared.splits.training_index
    neurons = np.mean([prepared.store.sessions[i].n_neurons for i in index])
    steps = total_steps(training, int(windows * neurons))
    task = Tokenization(e.tokenizer, training, prepared, seed=e.seed, steps=steps)
    with run.stage("tokenizer") as facts:
        result = train(
            task,
            training,
            run.path("tokenizer"),
            seed=e.seed,
            steps=steps,
            config_fingerprint=config.fingerprint(e.tokenizer),
            log=_log(run, task.name, say),
        )
        facts |= {"steps": steps, "used_step": result.step, "validation": result.best_metrics}
        if jax.process_index() == 0:
            runs.save_arrays(run.path("tokenizer", "model.npz"), merged(result))
    barrier("tokenizer")


def merged(result: Any) -> dict:
    """Parameters and state of a model as one nested dictionary."""

    def merge(a: Any, b: Any) -> Any:
        if not (isinstance(a, dict) and isinstance(b, dict)):
            return a
        return {k: merge(a[k], b[k]) if k in a and k in b else {**b, **a}[k] for k in {**b, **a}}

    return merge(result.params, result.extra)


def _codes(run: Run, prepared: Prepared, tokenizer: Any, say: _Say) -> None:
    if _done(run, "codes"):
        say("codes: done before")
        return
    if jax.process_index() == 0:
        with run.stage("codes") as facts:
            longest = max(int(b - a) for _, a, b in prepared.splits.ranges("train"))
            segment = min(run.experiment.tokenizer_training.window or longest, longest)
            path = exported.export(tokenizer, prepared, run.path("codes.h5"), segment=segment)
            facts["mebibytes"] = round(path.stat().st_size / 2**20, 1)
            found, usage = reconstruction.evaluate(
                tokenizer, prepared, run.path("codes.h5"), run.experiment.seed
            )
            rows.write(found, run.path("evaluation", "tokenizer.json"))
            facts["usage"] = {part: counts.astype(int).tolist() for part, counts in usage.items()}
        say("codes: " + reconstruction.line(found, usage))
    barrier("codes")


def _transformer(run: Run, prepared: Prepared, tokenizer: Any, say: _Say) -> None:
    if _done(run, "transformer"):
        say("transformer: done before")
        return
    e = run.tailored()
    training = e.transformer_training
    windows = Windows(prepared.splits.ranges("train"), training.window, e.seed).per_epoch
    steps = total_steps(training, windows)
    kept = e.transformer.tokens == "exported"
    codes = exported.Codes(run.path("codes.h5")) if kept else None
    task = NextCode(
        e.transformer, training, prepared, tokenizer, codes, seed=e.seed, steps=steps
    )
    with run.stage("transformer") as facts:
        result = train(
            task,
            training,
            run.path("transformer"),
            seed=e.seed,
            steps=steps,
            config_fingerprint=config.fingerprint((e.transformer, e.tokenizer)),
            log=_log(run, task.name, say),
        )
        facts |= {"steps": steps, "used_step": result.step, "validation": result.best_metrics}
        if jax.process_index() == 0:
            params = fill_untrained(result.params, prepared)
            runs.save_arrays(run.path("transformer", "model.npz"), params)
    barrier("transformer")


def fill_untrained(params: dict, prepared: Prepared) -> dict:
    """Gives held-out sessions, whose rows no gradient reached, the mean of the trained rows.

    The mean embeddings of a recording that was never seen then hold trained rows only.
    """
    held_out = prepared.splits.held_out_index
    if not held_out:
        return params
    store = prepared.store
    sessions = np.zeros(len(store.sessions), bool)
    neurons = np.zeros(store.n_neurons, bool)
    for i in held_out:
        first = store.neuron_offset(i)
        sessions[i], neurons[first : first + store.sessions[i].n_neurons] = True, True
    for name, untrained in (("session", sessions), ("neuron", neurons)):
        if params.get(name):
            table = np.array(params[name]["embedding"])
            table[untrained] = table[~untrained].mean(0)
            params = {**params, name: {**params[name], "embedding": table}}
    return params


def _log(run: Run, stage: str, say: _Say) -> Log:
    return Log(run.folder, stage=stage, console=say.console, shown=say.shown)


def _evaluation(run: Run, prepared: Prepared, say: _Say) -> None:
    if run.done("evaluation"):
        say("evaluation: done before")
        return
    trained = load(run.folder)
    with run.stage("evaluation") as facts:
        methods = scoring.baselines_of(run.experiment, prepared)
        # Weights of an evaluation that was interrupted may be of other weights of the network.
        run.path(stacking.FILE).unlink(missing_ok=True)
        made = scoring.forecast_rows(trained, prepared, methods)
        quantile_files.save(run.path(quantile_files.FILE), made.residuals)
        if isinstance(made.calm, stacking.Stack):
            facts["weights"] = stacking.described(made.calm.weights)
        found = rows.read(run.path("evaluation", "tokenizer.json")) + made.rows
        rows.write(found, run.path("evaluation", "rows.json"))
        evaluation.write_neurons(made.scores, prepared, run.path("evaluation", "neurons.csv"))
        usage = {k: np.array(v) for k, v in run.stages()["codes"]["usage"].items()}
        examples.write(
            trained, prepared, made.scores, made.calm, methods, usage, made.residuals.get("B")
        )
    if say.shown:
        tables.print_summary(found, say.console)


def _weights(run: Run, say: _Say) -> None:
    """The run as one model to hand on, beside what it leaves for itself."""
    if not run.done("weights"):
        with run.stage("weights") as facts:
            facts["sha256"] = weights.export(run.folder, run.path(weights.FOLDER))
    say(f"weights: {run.path(weights.FOLDER)}")


def _report(run: Run, say: _Say) -> None:
    if not run.done("report"):
        with run.stage("report"):
            write_report(run.folder)
    say(f"report: {run.path('report.html')}")
