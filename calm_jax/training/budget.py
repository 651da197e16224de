"""Training for so many seconds: how long a task takes, and the steps that fit."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import jax

from calm_jax.training.task import Task

_OPTIMIZER = 1.15  # a step with its optimiser, as a multiple of loss and gradient


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds that parts of a training take on this machine.

    Attributes:
      compile: the program of a step, once per training. step: one optimiser step.
      evaluate: one validation.
    """

    compile: float
    step: float
    evaluate: float

    def steps(self, seconds: float, evaluations: int = 0, least: int = 10) -> int:
        """The steps of a training that ends within `seconds`, at least `least`."""
        room = seconds - self.compile - evaluations * self.evaluate
        return max(least, int(room / max(self.step, 1e-6)))


def measure(task: Task, tries: int = 3) -> Speed:
    """Times loss and gradient of a task, its batches and its validation.

    The median of `tries` steps counts. Batches are made in a second thread while a step
    runs, so the slower of the two sets the pace.
    """
    key = jax.random.key(0)
    params, extra = task.init(key)

    def loss(p: Any, e: Any, batch: Any) -> Any:
        return task.loss(p, e, batch, key, jax.numpy.int32(0))

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    seconds, making = [], []
    for k in range(tries + 1):
        begin = time.monotonic()
        batch = task.batch(k)
        made = time.monotonic()
        jax.block_until_ready(step(params, extra, batch))
        making.append(made - begin)
        seconds.append(time.monotonic() - made)
    task.evaluate(params, extra)  # compiles
    begin = time.monotonic()
    task.evaluate(params, extra)
    evaluate = time.monotonic() - begin
    one = max(_OPTIMIZER * statistics.median(seconds[1:]), statistics.median(making))
    return Speed(_OPTIMIZER * max(seconds[0] - one, 0.0), one, evaluate)
