"""Which windows of a session protocols A and B forecast, and those windows in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from calm_jax import config
from calm_jax.baselines.windows import origins
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is forecast in one session.

    Attributes:
      ranges: (R, 2) frames of the trials or blocks. trial: (W,) row of `ranges`.
      origin: (W,) frames. context, horizon: frames. skip: steps ahead not scored.
    """

    ranges: np.ndarray
    trial: np.ndarray
    origin: np.ndarray
    context: int
    horizon: int
    skip: int


class Batch(NamedTuple):
    """Windows of one shape; the last one is filled up with its last window.

    Attributes:
      context, seen: (B, C, N) copies of traces and mask, all that a forecaster gets.
      trial: (b,) row of the plan's ranges. truth, valid: (b, H, N), b <= B real windows.
    """

    context: np.ndarray
    seen: np.ndarray
    trial: np.ndarray
    truth: np.ndarray
    valid: np.ndarray


def plan(
    prepared: Prepared, splits: Splits, i: int, part: str, protocol: str, s: config.Forecasting
) -> Plan | None:
    """The windows of a protocol in session `i`; None when it has none."""
    ranges = splits.parts[i][part]
    length = ranges[:, 1] - ranges[:, 0]
    if protocol == "A":
        if not len(prepared.store.sessions[i].trials):
            return None
        ranges = ranges[length > s.score_from_a]
        if not len(ranges):
            return None
        # One horizon for all trials: one compilation. Of trials of minutes the beginning.
        horizon = min(int((ranges[:, 1] - ranges[:, 0]).max()) - s.context_a, s.horizon_a)
        first = ranges[:, 0] + s.context_a
        skip = s.score_from_a - s.context_a
        return Plan(ranges, np.arange(len(ranges)), first, s.context_a, horizon, skip)
    ranges = ranges[length >= s.context + s.horizon]
    if not len(ranges):
        return None
    each = [origins(a, b, s.context, s.horizon, s.origin_stride) for a, b in ranges]
    trial = np.repeat(np.arange(len(ranges)), [len(o) for o in each])
    return Plan(ranges, trial, np.concatenate(each), s.context, s.horizon, 0)


def fitting_plan(
    prepared: Prepared, splits: Splits, i: int, protocol: str, s: config.Forecasting
) -> Plan | None:
    """The validation windows that weights and quantiles of a protocol are fitted on.

    Those that are scored; of trials longer than the frames protocol A forecasts also further
    windows, one behind the other: a validation part of one long trial would give a single one.
    """
    made = plan(prepared, splits, i, "valid", protocol, s)
    if made is None or protocol != "A" or made.horizon < s.horizon_a:
        return made
    each = [
        np.arange(a + s.context_a, max(b - made.horizon, a + s.context_a) + 1, made.horizon)
        for a, b in made.ranges
    ]
    trial = np.repeat(np.arange(len(each)), [len(o) for o in each])
    return dataclasses.replace(made, trial=trial, origin=np.concatenate(each))


def batches(prepared: Prepared, i: int, plan: Plan, size: int) -> Iterator[Batch]:
    """The windows of a plan, `size` at a time."""
    neurons, n = prepared.store.sessions[i].n_neurons, len(plan.origin)
    size = min(size, n)
    for k in range(0, n, size):
        rows = np.minimum(np.arange(k, k + size), n - 1)
        real = min(size, n - k)
        shape = (size, plan.context, neurons)
        context, seen = np.empty(shape, np.float32), np.empty(shape, bool)
        truth = np.zeros((real, plan.horizon, neurons), np.float32)
        valid = np.zeros(truth.shape, bool)
        for b, w in enumerate(rows):
            start, stop = (int(v) for v in plan.ranges[plan.trial[w]])
            z, mask = prepared.range(i, start, stop)
            o = int(plan.origin[w]) - start
            context[b], seen[b] = z[o - plan.context : o], mask[o - plan.context : o]
            if b < real:
                m = min(plan.horizon, stop - start - o)
                truth[b, :m], valid[b, :m] = z[o : o + m], mask[o : o + m]
        yield Batch(context, seen, plan.trial[rows[:real]], truth, valid)
