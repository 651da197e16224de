"""Networks tuned on validation within so many seconds, by the one training loop."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from calm_jax import config
from calm_jax.baselines import windows as W
from calm_jax.baselines.networks import Forecasting, Make
from calm_jax.errors import RunError
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits
from calm_jax.training.budget import Speed, measure
from calm_jax.training.deadline import Deadline
from calm_jax.training.log import Log
from calm_jax.training.loop import train

_SERIES = 16_384  # neurons x windows of a step, about
_EVALUATIONS = 8  # in one training
_EARLY_STOP = 5  # evaluations without improvement
_AHEAD = 1.2  # steps of a schedule, as a multiple of those that should fit
_TUNING = 0.5  # of the budget, shared evenly by the grid; the rest trains the best again
_TRAINING = ("learning_rate", "weight_decay")  # what of a grid point is not the network



class Network:
    """A trained network as a forecaster; longer horizons are rolled out.

    Attributes:
      tuning: one dictionary per training: the grid point, steps, step used, validation
        MSE (None where it diverged), seconds; the one that is used has `chosen`.
    """

    def __init__(self, task: Forecasting, params: dict, tuning: list[dict]) -> None:
        self._task, self._params, self.tuning = task, params, tuning

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N)."""
        step = lambda x, _: self._task.forecast(self._params, x, session)  # noqa: E731
        return W.roll(step, context, mask, self._task.sizes.horizon, horizon)


def fit(
    make: Make,
    grid: Sequence[Mapping[str, Any]],
    prepared: Prepared,
    splits: Splits,
    context: int,
    horizon: int,
    *,
    per_session: bool = False,
    series: int = _SERIES,
    budget_seconds: float = 60.0,
    seed: int = 0,
    folder: Path | None = None,
    steps: int | None = None,
) -> Network:
    """The network with the least validation MSE of all that were trained in the budget.

    Half of the budget goes to the grid, evenly; then the best point is trained again
    from the start on the rest, with a schedule of that length. Each training ends within
    its share (`training.deadline`); compilation counts. Where
    compiling would take more than a third of a share, fewer points are tried, in their
    order; where one only could be, it gets the whole budget. The record says so.

    Args:
      make, grid: of the method; a grid point holds learning_rate, weight_decay and
        settings of the network. The first is the one that usually wins.
      per_session: one model per session. series: neurons x windows of a step, about.
      budget_seconds: for everything. seed: of weights and batches.
      folder: where checkpoints are kept while training; default a temporary one.
      steps: of each training, whatever the budget (reproducible to the bit).

    Raises:
      RecordingError: when a session has no window. RunError: when every point diverges.
    """
    begin = time.monotonic()
    most = max(s.n_neurons for s in prepared.store.sessions)
    each = most * (len(splits.training_index) if per_session else 1)
    batch = int(np.clip(series // each, 4, 64))

    @functools.lru_cache
    def task_of(settings: tuple) -> Forecasting:
        return Forecasting(
            make, dict(settings), prepared, splits, context, horizon,
            per_session=per_session, batch=batch, seed=seed,
        )  # fmt: skip

    tuning = _Tuning(task_of, seed, folder)
    points = len(grid)
    if steps is None:
        # The points differ little in speed: one is timed.
        tuning.speed = measure(task_of(_settings(grid[0])))
        half = _TUNING * budget_seconds - (time.monotonic() - begin)
        cost = tuning.speed.compile + _EVALUATIONS * tuning.speed.evaluate
        points = int(np.clip(half / (3 * cost), 1, len(grid)))
    if points > 1:
        now = time.monotonic()
        end = now + max(begin + _TUNING * budget_seconds - now, 0.0)
        for k, point in enumerate(grid[:points]):
            now = time.monotonic()
            tuning.attempt(point, now + (end - now) / (points - k), steps)
    for point in grid[points:]:
        tuning.record.append({**point, "left_out": "the budget is too short for it"})
    tuning.attempt(tuning.point(grid), begin + budget_seconds, steps)
    if tuning.best is None:
        raise tuning.error
    _, task, params, entry = tuning.best
    entry["chosen"] = True
    return Network(task, params, tuning.record)


def _settings(point: Mapping[str, Any]) -> tuple:
    """What of a grid point is the network's, hashable."""
    return tuple(sorted((k, v) for k, v in point.items() if k not in _TRAINING))


class _Tuning:
    """The trainings so far: their record, the best, the last error."""

    def __init__(
        self, task_of: Callable[[tuple], Forecasting], seed: int, folder: Path | None
    ) -> None:
        self._task_of, self._seed, self._folder = task_of, seed, folder
        self.speed: Speed | None = None
        self.record: list[dict] = []
        self.best: tuple[float, Forecasting, dict, dict] | None = None
        self.error: RunError | None = None

    def point(self, grid: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The grid point with the least validation error so far; the first before any."""
        return grid[0] if self.best is None else {k: self.best[3][k] for k in grid[0]}

    def attempt(self, point: Mapping[str, Any], until: float, steps: int | None) -> None:
        """Trains a point until the clock shows `until`, or for so many steps."""
        start = time.monotonic()
        if steps is None and self.best is not None and until - start <= 1.5 * self.speed.compile:
            self.record.append({**point, "left_out": "the budget is over"})
            return
        task = self._task_of(_settings(point))
        n, deadline = steps, None
        if steps is None:
            # A few more than fit: the deadline spreads the schedule over the time there is.
            n = int(_AHEAD * self.speed.steps(until - time.monotonic(), _EVALUATIONS))
            deadline = Deadline(until, step=self.speed.step, check=self.speed.evaluate)
        entry = {**point, "steps": n, "used_step": None, "validation": None}
        try:
            result = _train(task, point, n, self._seed, self._folder, deadline)
        except RunError as e:  # such as a learning rate that diverges
            self.error, entry["error"] = e, e.what
        else:
            value = result.best_metrics["loss"]
            used = result.step if steps else round(result.step * result.taken / max(result.at, 1))
            entry |= {"steps": result.taken or n, "used_step": used, "validation": value}
            if self.best is None or value < self.best[0]:
                self.best = (value, task, jax.device_get(result.params), entry)
            if steps is None:
                self._learn(time.monotonic() - start, result)
        entry["seconds"] = round(time.monotonic() - start, 2)
        self.record.append(entry)

    def _learn(self, seconds: float, result: Any) -> None:
        """The pace of a whole training, with what was not timed alone, holds for the next."""
        left = seconds - self.speed.compile - _EVALUATIONS * self.speed.evaluate
        if left > 0 and result.taken:
            self.speed = dataclasses.replace(self.speed, step=left / result.taken)


def _train(
    task: Forecasting,
    point: Mapping[str, Any],
    steps: int,
    seed: int,
    folder: Path | None,
    deadline: Deadline | None,
) -> Any:
    """One training in a folder of its own, which is removed afterwards."""
    training = config.Training(
        steps=steps,
        batch=task.rows,
        learning_rate=point["learning_rate"],
        final_learning_rate=point["learning_rate"] / 100,
        warmup_fraction=0.05,
        weight_decay=point.get("weight_decay", 0.0),
        # The norm over all sessions would couple models that are to stay apart.
        clip=None if task.per_session else 1.0,
        precision="float32",
        log_every=max(steps, 1),
        eval_every=max(1, steps // _EVALUATIONS),
        early_stop=_EARLY_STOP,
        checkpoint_seconds=1e9,
        keep=1,
    )
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="training-", dir=folder))
    try:
        return train(
            task, training, place, seed=seed, steps=steps, log=Log.silent(), deadline=deadline
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
