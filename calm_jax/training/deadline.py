"""Training that ends at a time: the schedule is walked through faster when steps are slow."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

import jax
import numpy as np
import optax

from calm_jax.training import mesh as meshes
from calm_jax.training.state import State

_WINDOW = 32  # steps over which the pace is measured


class Deadline:
    """When a training has to end, and how far its schedule moves on with every step.

    Steps of a schedule are planned from a measured speed. When the machine is slower than
    it was then, one optimiser step moves the schedule (learning rate, warm-up, annealing,
    events, validations) on by more than one of its steps, so that it ends complete and in
    time. With a pace to spare every step moves it by one. What a training gives then depends
    on the clock: it cannot be repeated to the bit, nor resumed.

    Args:
      until: of `clock`, when the last validation and checkpoint have to be done.
      step, check: seconds that a step and a validation take, as far as known.
    """

    def __init__(
        self,
        until: float,
        *,
        step: float = 0.0,
        check: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.until, self.clock = until, clock
        self._pace, self._check, self._lost = step, check, 0.0
        self._ends: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._place, self.taken = 0.0, 0

    def checked(self, seconds: float) -> None:
        """A validation or a checkpoint took so long."""
        self._lost += seconds
        self._check = max(self._check, seconds)

    def after(self, step: int, steps: int, every: int) -> int:
        """The step of the schedule that follows `step`; called once per optimiser step.

        Args:
          steps: of the whole schedule. every: its steps between validations.
        """
        now = self.clock()
        self.taken += 1
        if self.taken > 1:  # the first one compiles
            self._ends.append(now - self._lost)
        if len(self._ends) > 3:
            self._pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        ahead = steps - step
        checks = -(-ahead // every)
        possible = (self.until - now - checks * self._check) / max(self._pace, 1e-9)
        if possible < 1:  # the time is over, or gone before the next step ends
            return steps
        self._place = max(self._place, step) + max(1.0, ahead / possible)
        return min(max(int(self._place), step + 1), steps)


def moved(leaves: list, treedef: object, step: int, mesh: jax.sharding.Mesh) -> list:
    """The leaves of a `State` with its step, and that of the schedule, set to `step`."""
    state: State = jax.tree.unflatten(treedef, leaves)
    fresh = lambda: meshes.replicate([np.asarray(step, np.int32)], mesh)[0]  # noqa: E731
    here = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
    opt = jax.tree.map(
        lambda x: x._replace(count=fresh()) if here(x) else x, state.opt, is_leaf=here
    )
    return jax.tree.leaves(state._replace(step=fresh(), opt=opt))
