"""The one training loop: any Task, any number of devices, resumable to the bit."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import config
from calm_jax.errors import ConfigError, RunError
from calm_jax.training import mesh as meshes
from calm_jax.training.checkpoint import Checkpoints
from calm_jax.training.deadline import Deadline, moved
from calm_jax.training.log import Log
from calm_jax.training.optimizers import optimizer_of, rate_of
from calm_jax.training.prefetch import Prefetch
from calm_jax.training.signals import Interrupted, StopSignals
from calm_jax.training.state import State, create, evaluated, named
from calm_jax.training.step import all_finite, make_step
from calm_jax.training.task import Task

PyTree = Any

# Fields that change what is kept or printed but no number of the run.
_HARMLESS = ("log_every", "checkpoint_seconds", "keep")
_IN_FLIGHT = 2  # steps dispatched ahead of the device; more would only fill its memory
_SAVE = 1  # a request below every signal number


class TrainResult(NamedTuple):
    """What training gives.

    Attributes:
      params: the parameters to use (the moving average where one is kept), on one device.
      extra: the state beside them.
      step: the step they are of; with early stopping that of the best validation.
      best_metrics: the validation metrics with the lowest loss; {} without validation.
      taken: optimiser steps of this call. at: the step of the schedule where it ended.
    """

    params: PyTree
    extra: PyTree
    step: int
    best_metrics: dict[str, float]
    taken: int = 0
    at: int = 0


@dataclasses.dataclass
class Progress:
    """What a resumed run must know beside the arrays."""

    step: int = 0
    evaluated: int = 0  # the last step that was validated
    best_step: int = 0
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    stale: int = 0  # validations since the best
    finished: bool = False  # by early stopping
    seconds: float = 0.0  # spent in training, over all tries


def train(
    task: Task,
    training: config.Training,
    folder: Path,
    *,
    seed: int,
    steps: int,
    config_fingerprint: str = "",
    log: Log | None = None,
    deadline: Deadline | None = None,
) -> TrainResult:
    """Trains `task` for `steps` steps, or continues where an earlier call stopped.

    With a `deadline` (one process only) it ends in time, and is not repeatable to the bit.

    Checkpoints go to `folder/checkpoints`. A call with the same arguments after an
    interruption gives parameters that are equal to the bit to those of an
    uninterrupted one; after the end it returns the result at once.

    Raises:
      RunError: when the loss becomes NaN or infinite, the disk is full, or the folder
        holds a run of another task or config.
      ConfigError: when the batch does not divide over the devices.
      Interrupted: after SIGTERM or Ctrl-C, once everything is saved (a SystemExit).
    """
    if steps < 1:
        raise ConfigError("no training steps", where="steps", found=steps, expected="1 or more")
    run = _Run(task, training, Path(folder), seed, steps, config_fingerprint, log, deadline)
    run.log.start(run.progress.step, steps, evaluated=run.progress.evaluated)
    try:
        with StopSignals() as signals:
            return run.go(signals)
    finally:
        run.log.finish()


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        task: Task,
        training: config.Training,
        folder: Path,
        seed: int,
        steps: int,
        fingerprint: str,
        log: Log | None,
        deadline: Deadline | None,
    ) -> None:
        self.deadline, self.taken = deadline, 0
        self.task, self.training, self.folder, self.steps = task, training, folder, steps
        if jax.process_index() > 0:
            log = Log.silent()
        self.log = Log(folder, stage=task.name) if log is None else log
        self.identity = {
            "task": task.name,
            "seed": seed,
            "steps": steps,
            "config": fingerprint,
            "training": {
                k: v for k, v in config.to_dict(training).items() if k not in _HARMLESS
            },
        }
        self.mesh = meshes.make_mesh()
        self.checkpoints = Checkpoints(
            folder / "checkpoints", keep=training.keep, notify=self.log.note
        )
        self.no_flags = self._flags(0)
        self.progress, self.saved = Progress(), 0
        init_key, self.key = jax.random.split(jax.random.key(seed))
        self.started = self.last_save = time.monotonic()
        self._begin(init_key)

    def _begin(self, key: jax.Array) -> None:
        """State from the newest checkpoint that verifies, or from `task.init`."""
        newest = self.checkpoints.newest()
        if newest is not None:
            self._check_identity(newest)
        optimizer = optimizer_of(self.task, self.training, self.steps)
        params, extra = self.task.init(key)
        state = create(params, extra, optimizer, self.task.trains, self.training.ema is not None)
        self.names = list(named(state))
        leaves, self.treedef = jax.tree.flatten(state)
        if newest is not None:
            leaves = self._read(newest, leaves)
            self.progress = Progress(**self.checkpoints.meta(newest)["progress"])
            self.saved = newest
            over = self.progress.finished or newest == self.steps
            self.log.note(f"{'is complete at' if over else 'continues from'} step {newest}")
        elif self.checkpoints.steps():
            self.log.note("no checkpoint is usable; starts from step 0")
        self.leaves = meshes.replicate(leaves, self.mesh)

    def _read(self, step: int, like: list[Any]) -> list[np.ndarray]:
        arrays = self.checkpoints.restore(step, dict(zip(self.names, like)))
        return [arrays[n] for n in self.names]

    def _check_identity(self, step: int) -> None:
        found = self.checkpoints.meta(step).get("identity", {})
        wanted = json.loads(json.dumps(self.identity))
        if found != wanted:
            flat_a, flat_b = ({**d.get("training", {}), **d} for d in (found, wanted))
            changed = [
                f"{k} {flat_a.get(k)!r} -> {flat_b.get(k)!r}"
                for k in sorted(flat_a.keys() | flat_b.keys())
                if k != "training" and flat_a.get(k) != flat_b.get(k)
            ]
            raise RunError(
                "the folder holds a run of another experiment",
                where=self.folder,
                found=", ".join(changed),
                remedy="Give the run another folder (--run), or remove this one.",
            )

    def go(self, signals: StopSignals) -> TrainResult:
        """Steps until the end, early stopping or a signal."""
        p = self.progress
        step_function = make_step(
            self.task, self.training, self.steps, self.key, self.mesh, self.treedef
        )
        flying: collections.deque[tuple[int, dict]] = collections.deque()
        due_line: tuple[int, dict] | None = None
        request = 0
        stop = p.step if p.finished else self.steps
        drawn = heard = p.step  # heard: up to which step the task had its events
        with Prefetch(self._batch, p.step, stop) as batches:
            while True:
                request = max(request, self._request(signals))
                improved, begin = False, time.monotonic()
                for step in range(heard, p.step):  # that a deadline jumped over
                    self._event(step)
                if request <= _SAVE and p.step > p.evaluated and self._validates(p.step):
                    due_line = self._print_line(due_line)
                    improved = self._evaluate()
                done = p.finished or p.step == self.steps
                if request or done or (improved and self.training.early_stop is not None):
                    due_line = self._print_line(due_line)
                    self._save()
                    flying.clear()  # their requests are served; a signal is sent again
                if done or request > _SAVE:
                    break
                if self.deadline is not None and p.step == p.evaluated > 0:
                    self.deadline.checked(time.monotonic() - begin)
                request = 0
                self._event(p.step)
                heard = p.step + 1
                metrics = self._dispatch(step_function, self._next(batches, drawn), signals)
                due_line = self._print_line(due_line)
                drawn, self.taken, p.step = drawn + 1, self.taken + 1, self._after(p.step)
                if p.step % self.training.log_every == 0 or p.step == 1:
                    due_line = (p.step, metrics)
                flying.append((p.step, metrics))
                if len(flying) > _IN_FLIGHT:
                    _, old = flying.popleft()
                    jax.block_until_ready(old["loss"])
                    if jax.process_count() > 1:
                        request = int(old["flag"])
        signum = meshes.agree(signals.received or (request if request > _SAVE else 0))
        if signum:
            self.log.note(
                f"stopped at step {p.step} of {self.steps}, everything is saved; "
                "the same command continues from here"
            )
            raise Interrupted(signum)
        return self._result()

    def _validates(self, step: int) -> bool:
        every = self.training.eval_every
        return step // every > self.progress.evaluated // every or step == self.steps

    def _after(self, step: int) -> int:
        """The step that follows; not the next one where time is short."""
        if self.deadline is None:
            return step + 1
        following = self.deadline.after(step, self.steps, self.training.eval_every)
        if following > step + 1:
            self.leaves = moved(self.leaves, self.treedef, following, self.mesh)
        return following

    def _local_request(self, signals: StopSignals) -> int:
        due = time.monotonic() - self.last_save >= self.training.checkpoint_seconds
        # With several processes the clock of the first one counts.
        due = due and jax.process_index() == 0 and self.progress.step > self.saved
        return signals.received or (_SAVE if due else 0)

    def _request(self, signals: StopSignals) -> int:
        """What one process alone wants; several agree through the flags of a step."""
        return self._local_request(signals) if jax.process_count() == 1 else 0

    def _batch(self, step: int) -> dict[str, jax.Array]:
        rows = self.task.batch(step, jax.process_index(), jax.process_count())
        return meshes.shard_batch(rows, self.mesh)

    def _dispatch(self, step_function: Any, batch: dict, signals: StopSignals) -> dict:
        request = self._local_request(signals) if jax.process_count() > 1 else 0
        flags = self._flags(request) if request else self.no_flags
        self.leaves, metrics = step_function(self.leaves, batch, flags)
        return metrics

    def _flags(self, request: int) -> jax.Array:
        """(devices,) int32, the request of each device's process."""
        flags = np.full((jax.local_device_count(),), request, np.int32)
        return meshes.shard_batch({"flags": flags}, self.mesh)["flags"]

    def _next(self, batches: Prefetch, step: int) -> dict[str, jax.Array]:
        try:
            return batches.next(step)
        except Exception:
            if jax.process_count() == 1:  # a recording that cannot be read costs no work
                self._save()
            raise

    def _print_line(self, line: tuple[int, dict] | None) -> None:
        """Writes the metrics of an earlier step, now that a later one is under way."""
        if line is None:
            return
        step, metrics = line
        values = {k: float(v) for k, v in jax.device_get(metrics).items() if k != "flag"}
        bad = int(values.pop("bad"))
        if bad >= 0:
            self._stop_bad(bad)
        rate = rate_of(self.task, self.training, self.steps, step - 1)
        self.log.train(step, {**values, "learning_rate": rate})

    def _stop_bad(self, bad: int) -> None:
        last = self.saved
        kept = f"The last good checkpoint is step {last}" if last else "There is no checkpoint yet"
        raise RunError(
            f"the loss or its gradient is NaN or infinite at step {bad + 1}",
            where=self.folder,
            remedy=f"{kept}; lower learning_rate (now {self.training.learning_rate:g}), set clip, "
            "or look for extreme values in the recordings, and use a new run folder.",
        )

    def _event(self, step: int) -> None:
        """Applies what the task wants to happen before `step`."""
        event = self.task.event(step)
        if event is None:
            return
        state: State = jax.tree.unflatten(self.treedef, self.leaves)
        given = meshes.local((state.params, state.extra))
        before = jax.tree.leaves(given)
        params, extra = event(*given)
        after, treedef = jax.tree.flatten((params, extra))
        if [jnp.shape(x) for x in after] != [x.shape for x in before]:
            raise TypeError(f"the event of {self.task.name} changed the shape of its state")
        params, extra = jax.tree.unflatten(treedef, range(len(after)))
        changed = [i for i, (a, b) in enumerate(zip(before, after)) if a is not b]
        fresh = meshes.replicate(
            [np.asarray(after[i], before[i].dtype) for i in changed], self.mesh
        )
        self._replace(state, dict(zip(changed, fresh)))

    def _replace(self, state: State, fresh: dict[int, jax.Array]) -> None:
        """Puts changed leaves of (params, extra) in; an average restarts from them."""
        leaves, treedef = jax.tree.flatten((state.params, state.extra))
        names = list(named(state.params))
        for i, leaf in fresh.items():
            leaves[i] = leaf
        params, extra = jax.tree.unflatten(treedef, leaves)
        average = state.average
        if average is not None:
            restart = {names[i]: fresh[i] for i in fresh if i < len(names) and names[i] in average}
            restart = meshes.replicate(restart, self.mesh)  # not the buffer of params: both go
            average = {**average, **restart}
        self.leaves = jax.tree.leaves(state._replace(params=params, extra=extra, average=average))

    def _evaluate(self) -> bool:
        """Validates; True when it is the best so far."""
        p = self.progress
        self._check_finite()
        params, extra = self._for_use(self.leaves)
        metrics = {k: float(v) for k, v in self.task.evaluate(params, extra).items()}
        loss = meshes.from_first(metrics["loss"])
        if not math.isfinite(loss):
            raise RunError(
                f"the validation loss is {loss} at step {p.step}",
                where=self.folder,
                remedy="Look for extreme values in the validation part of the recordings.",
            )
        metrics["loss"] = loss
        better = not p.best_metrics or loss < p.best_metrics["loss"]
        p.evaluated = p.step
        p.stale = 0 if better else p.stale + 1
        if better:
            p.best_step, p.best_metrics = p.step, metrics
        limit = self.training.early_stop
        if limit is not None and p.stale >= limit:
            p.finished = True
            self.log.note(f"stops early at step {p.step}: the best was step {p.best_step}")
        self.log.evaluation(p.step, metrics, better)
        return better

    def _for_use(self, leaves: list[jax.Array]) -> tuple[PyTree, PyTree]:
        state: State = jax.tree.unflatten(self.treedef, meshes.local(leaves))
        return evaluated(state), state.extra

    def _check_finite(self) -> None:
        state: State = jax.tree.unflatten(self.treedef, self.leaves)
        if int(state.bad) >= 0 or not all_finite(self.leaves):
            self._stop_bad(int(state.bad) if int(state.bad) >= 0 else self.progress.step - 1)

    def _save(self) -> None:
        """A checkpoint of this step; it never holds NaN."""
        p, now = self.progress, time.monotonic()
        self._check_finite()
        p.seconds, self.started = p.seconds + now - self.started, now
        if p.step > self.saved:  # after a resume the step may stand there already
            meta = {"identity": self.identity, "progress": dataclasses.asdict(p)}
            best = p.best_step if self.training.early_stop is not None else 0
            arrays = dict(zip(self.names, self.leaves))
            self.checkpoints.save(p.step, arrays, meta, best)
            self.saved = p.step
        self.last_save = time.monotonic()

    def _result(self) -> TrainResult:
        p, step, leaves = self.progress, self.progress.step, self.leaves
        if self.training.early_stop is not None and 0 < p.best_step != p.step:
            step = p.best_step
            fault = self.checkpoints.fault(step)
            if fault is not None:
                raise RunError(
                    f"the best checkpoint is damaged: {fault}",
                    where=self.checkpoints.path(step),
                    remedy="Remove the folder of this stage and run the same command again.",
                )
            leaves = meshes.replicate(self._read(step, leaves), self.mesh)
        params, extra = self._for_use(leaves)
        return TrainResult(params, extra, step, p.best_metrics, self.taken, p.step)
