"""A trained run, adapted to recordings it has never seen.

A model with rows for neurons and sessions gets new rows, trained on the minutes that are
given while everything else stays as it is to the bit. A model that knows no neuron by name
has no rows: there the linear path of its read-out is moved by ridge regression towards
where it stands (`linear_adaptation`). Either is kept only where validation inside the
minutes says that it forecasts better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from calm_jax import config, linear_adaptation, runs
from calm_jax.adaptation_data import Given
from calm_jax.errors import RunError
from calm_jax.forecasting import CalmForecaster
from calm_jax.models.dual_axis import DualAxisTransformer
from calm_jax.models.forecaster import CalM
from calm_jax.recordings.batches import Windows
from calm_jax.runs import Run, Trained
from calm_jax.tasks.new_rows import NewRows, joined, mean_rows, tables_of
from calm_jax.tasks.next_code import NextCode
from calm_jax.training.log import Log
from calm_jax.training.loop import train

STEPS = 100
RATE = 1e-2  # learning rate of rows; the run's own moves whole networks
_EVALUATIONS, _PATIENCE = 10, 3
_NEURONS_AT_ONCE = 4096  # windows x neurons of one forecast: bounds its memory

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """A model and what was done to it.

    Attributes:
      model: knows the new recordings; their rows come first in its tables.
      params: of its transformer, nested by name.
      how: "rows", "linear" or "none". text: one line for people. facts: for `stages.json`.
    """

    model: CalM
    params: dict
    how: str
    text: str
    facts: dict


def adapt(
    trained: Trained,
    given: Given,
    folder: Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    log: Log | None = None,
) -> Adapted:
    """The run's model, adapted to the minutes given.

    Args:
      folder: for checkpoints while rows are trained; the same call goes on from them.

    Raises:
      RunError: when training fails.
    """
    params = parameters(trained.model)
    if not given.fits:
        return _as_it_was(trained, given, params, "the minutes hold no two windows")
    if tables_of(params):
        return _rows(trained, given, params, folder, steps, seed, log)
    return _linear(trained, given, params)


def parameters(model: CalM) -> dict:
    """The parameters of a model's transformer as a nested dictionary of numpy arrays."""
    found = nnx.to_pure_dict(nnx.state(model.transformer, nnx.Param))
    return jax.tree.map(np.asarray, found)


def transformer_of(
    e: config.Experiment, params: dict, *, neurons: int, sessions: int
) -> DualAxisTransformer:
    """The transformer with these parameters; `e` is the tailored experiment."""
    like = jax.eval_shape(
        lambda: DualAxisTransformer(
            e.transformer,
            codes=e.tokenizer.codes,
            patch=e.tokenizer.patch,
            neurons=neurons,
            sessions=sessions,
            rngs=nnx.Rngs(0),
        )
    )
    return nnx.merge(nnx.graphdef(like), nnx.State(jax.tree.map(jax.numpy.asarray, params)))


def small_training(
    e: config.Experiment, given: Given, steps: int, rate: float | None = None
) -> config.Training:
    """The run's training cut down to `steps`, with early stopping and the best kept.

    One validation sees each of the minutes' validation windows about once.
    """
    own = e.transformer_training
    windows = Windows(given.prepared.splits.ranges("valid"), own.window, e.seed).per_epoch
    return dataclasses.replace(
        own,
        steps=steps,
        epochs=None,
        learning_rate=own.learning_rate if rate is None else rate,
        eval_every=max(min(steps, 5), steps // _EVALUATIONS),
        eval_batches=min(own.eval_batches, -(-windows // own.batch)),
        early_stop=_PATIENCE,
        watch="mse" if e.transformer.readout_frames else "loss",
        checkpoint_seconds=1e9,
    )


def _as_it_was(trained: Trained, given: Given, params: dict, why: str) -> Adapted:
    """The run's model with the mean rows for the new recordings."""
    params = jax.tree.map(np.asarray, joined(params, mean_rows(params, given.prepared.store)))
    net = _with_rows(trained, given, params)
    text = f"nothing was changed: {why}"
    return Adapted(CalM(trained.model.tokenizer, net), params, "none", text, {"steps": 0})


def _with_rows(trained: Trained, given: Given, params: dict) -> DualAxisTransformer:
    """The transformer of parameters whose tables hold the new rows and the old ones."""
    own, old, tables = given.prepared.store, trained.table, tables_of(params)
    count = lambda name: params[name]["embedding"].shape[0]  # noqa: E731
    named = next((n for n in ("neuron", "coupling") if n in tables), None)
    return transformer_of(
        trained.run.tailored(),
        params,
        neurons=count(named) if named else own.n_neurons + int(old.offset[-1]),
        sessions=count("session") if "session" in tables else len(own.sessions) + len(old.session),
    )


def _rows(
    trained: Trained,
    given: Given,
    frozen: dict,
    folder: Path,
    steps: int,
    seed: int,
    log: Log | None,
) -> Adapted:
    e = trained.run.tailored()
    training = small_training(e, given, steps, RATE)
    task = NewRows(
        dataclasses.replace(e.transformer, tokens="encoded"),
        training,
        given.prepared,
        trained.model.tokenizer,
        frozen=frozen,
        seed=seed,
        steps=steps,
    )
    start, extra = task.init(jax.random.key(seed))
    before = task.evaluate(start, extra)["loss"]
    print_ = config.fingerprint(e.transformer)
    split = given.prepared.splits.hash
    result = train(
        task, training, folder, seed=seed, steps=steps,
        config_fingerprint=f"{print_} {split}", log=log or Log.silent(),
    )  # fmt: skip
    after = result.best_metrics["loss"]
    better = after < before
    rows = jax.tree.map(np.asarray, result.params if better else start)
    params = jax.tree.map(np.asarray, joined(frozen, rows))
    net = _with_rows(trained, given, params)
    what = f"validation {training.watch} {before:.4f} of the mean rows"
    text = (
        f"rows of {', '.join(task.tables)} trained: {what}, {after:.4f} at step {result.step}"
        if better
        else f"the mean rows stay: {what}, at best {after:.4f} with rows of their own"
    )
    facts = {
        "steps": steps, "used_step": result.step if better else 0,
        "validation": {"before": before, "after": min(before, after)},
    }  # fmt: skip
    model = CalM(trained.model.tokenizer, net)
    return Adapted(model, params, "rows" if better else "none", text, facts)


def _linear(trained: Trained, given: Given, params: dict) -> Adapted:
    """The linear path of a model without rows, or the model as it is."""
    e = trained.run.tailored()
    settings, frames = e.forecasting, e.transformer.readout_frames
    nothing = lambda why: _as_it_was(trained, given, params, why)  # noqa: E731
    if settings.mode != "readout" or e.transformer.linear_context < 2:
        return nothing("the model has no rows of neurons, and no linear path to its forecasts")
    own = forecaster(trained, trained.model, given, known=False)
    context = min(settings.context, e.transformer.linear_context)
    found = linear_adaptation.fit(own, given, context, frames)
    if not np.isfinite(found.alpha):
        return nothing(
            "the model has no rows of neurons, and no change of its linear path lowers the "
            f"error in every quarter of the {found.windows} windows"
        )
    readout = params["readout"]
    kernel = linear_adaptation.applied(readout["linear"]["kernel"], found.delta)
    params = {**params, "readout": {**readout, "linear": {"kernel": kernel}}}
    net = _with_rows(trained, given, params)
    text = (
        "the model has no rows of neurons: the linear path of its read-out was moved, which "
        f"lowers the error of cross-validation by {100 * (1 - found.gain):.1f}% "
        f"({found.windows} windows, alpha {found.alpha:.3g})"
    )
    facts = {"steps": 0, "alpha": found.alpha, "gain": found.gain}
    return Adapted(CalM(trained.model.tokenizer, net), params, "linear", text, facts)


def scratch(trained: Trained, given: Given, folder: Path, *, steps: int, seed: int) -> CalM:
    """The same transformer trained on the minutes alone, with the tokenizer of the run."""
    e = trained.run.tailored()
    training = small_training(e, given, steps)
    task = NextCode(
        dataclasses.replace(e.transformer, tokens="encoded"),
        training, given.prepared, trained.model.tokenizer, None, seed=seed, steps=steps,
    )  # fmt: skip
    mark = f"scratch {config.fingerprint(e.transformer)} {given.prepared.splits.hash}"
    result = train(
        task, training, folder, seed=seed, steps=steps, config_fingerprint=mark, log=Log.silent()
    )
    store = given.prepared.store
    net = transformer_of(
        e, result.params, neurons=store.n_neurons, sessions=len(store.sessions)
    )
    return CalM(trained.model.tokenizer, net)


def forecaster(trained: Trained, model: CalM, given: Given, *, known: bool) -> CalmForecaster:
    """A model as a forecaster of the new sessions, with their own rows or the mean ones."""
    settings, store = trained.run.experiment.forecasting, given.prepared.store
    most = max(s.n_neurons for s in store.sessions)
    offsets = np.array([store.neuron_offset(i) for i in range(len(store.sessions))])
    return CalmForecaster(
        model,
        offsets if known else None,
        most,
        mode=settings.mode,
        batch=min(max(_NEURONS_AT_ONCE // most, 1), 16),
        samples=settings.samples if settings.mode == "sample" else 0,
        seed=trained.run.experiment.seed,
    )


def experiment_of(e: config.Experiment, data: config.Data, label: str) -> config.Experiment:
    """The experiment of the adapted run: that of the run, on the new recordings."""
    return dataclasses.replace(
        e,
        name=f"{e.name}_adapted",
        purpose=f"{e.name} adapted to {Path(str(data.source)).name}, {label}",
        data=data,
    )


def save(trained: Trained, adapted: Adapted, given: Given, run: Run) -> None:
    """Writes what makes `run.folder` a finished training of its own.

    The rows of the recordings that the run was trained on stay in the tables behind the new
    ones, without names: their mean is what a recording never seen is forecast with.
    """
    stages = trained.run.stages()
    with run.stage("prepare", choice=stages.get("prepare", {}).get("choice", {})) as facts:
        facts["sessions"] = len(given.prepared.store.sessions)
        facts["minutes"] = round(given.minutes, 3)
        given.prepared.splits.save(run.path("split.json"))
        given.prepared.scalers.save(run.path("scalers.npz"))
        _table(trained, given, bool(tables_of(adapted.params))).save(run.path("sessions.npz"))
    with run.stage("tokenizer", **_kept(stages.get("tokenizer", {}))):
        state = nnx.to_pure_dict(nnx.state(trained.model.tokenizer))
        runs.save_arrays(run.path("tokenizer", "model.npz"), state)
    with run.stage("transformer", adapted=adapted.how, text=adapted.text, **adapted.facts):
        runs.save_arrays(run.path("transformer", "model.npz"), adapted.params)


def _kept(facts: dict) -> dict:
    """The facts of a stage of the old run, without when it was done."""
    return {k: v for k, v in facts.items() if k not in ("seconds", "finished")}


def _table(trained: Trained, given: Given, rows: bool) -> runs.Table:
    """The new sessions, and behind them the rows of the old ones, without names."""
    new = runs.table_of(given.prepared.store)
    if not rows:
        return new
    old = trained.table
    return runs.Table(
        np.concatenate([new.session, [f"(pretraining) {s}" for s in old.session]]),
        np.concatenate([new.animal, old.animal]),
        np.concatenate([new.rate, old.rate]),
        np.concatenate([new.offset, new.offset[-1] + old.offset[1:]]),
        np.concatenate([new.neuron, np.full(len(old.neuron), "")]),
    )


def check_rate(trained: Trained, store: Any) -> list[str]:
    """Notes on recordings whose rate is not that of the run by more than 5%.

    Raises:
      RunError: for one that is off by more than a half.
    """
    rate, notes = float(np.median(trained.table.rate)), []
    for info in store.sessions:
        if not 1 / 1.5 <= info.rate / rate <= 1.5:
            raise RunError(
                "the recording has another frame rate than those of the run",
                where=f"session {info.session}",
                found=f"{info.rate:.4g} Hz",
                expected=f"about {rate:.4g} Hz",
                remedy=f"Give --rate {rate:.4g} to resample it.",
            )
        if not 0.95 < info.rate / rate < 1.05:
            notes.append(
                f"session {info.session} has {info.rate:.4g} frames per second, the run was "
                f"trained at {rate:.4g}: with --rate {rate:.4g} it is resampled"
            )
    return notes

