"""Task, all that the training loop knows of what it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax import Array

PyTree = Any
Event = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


@runtime_checkable
class Task(Protocol):
    """A model, its loss, its batches and its validation.

    `params` is the pytree that the optimiser changes, `extra` the pytree that the
    loss hands on itself (a moving-average codebook, say). Both may hold Flax NNX
    modules. Shapes and types of all leaves stay the same during a run. A task may have
    `optimizer(training, steps)`, a gradient transformation over parameters by path that
    takes the place of AdamW and of `decays`, and with it `learning_rate(step)` for the log.
    """

    name: str  # stands in checkpoints and logs

    def init(self, key: Array) -> tuple[PyTree, PyTree]:
        """(params, extra) at step 0."""

    def loss(
        self, params: PyTree, extra: PyTree, batch: dict[str, Array], key: Array, step: Array
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        """(loss, (extra, metrics)); pure, traced by the loop, metrics are scalars.

        The batch is the global one: a mean over its leading axis is the mean over
        all devices and processes. `key` differs at each step; `step` is int32.
        """

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Rows `part` of `parts` of the global batch, leading axis first.

        A pure function of (seed, step); called from a second thread, in order.
        """

    def event(self, step: int) -> Event | None:
        """What happens on the host before step `step` (k-means start, revival), or None.

        The function gets (params, extra) and returns them; deterministic.
        """

    def evaluate(self, params: PyTree, extra: PyTree) -> dict[str, float]:
        """Validation metrics, `loss` among them (lower is better); deterministic."""

    def decays(self, path: str) -> bool:
        """Whether weight decay applies to the parameter at `path` ("blocks/0/up/kernel")."""

    def trains(self, path: str) -> bool:
        """Whether the parameter at `path` is trained; the others stay as they are."""
