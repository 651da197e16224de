"""Uncertainty scored: CRPS and coverage of forecasters that give quantiles.

A forecaster gives quantiles when it has a method `quantiles(context, session, mask,
horizon, levels) -> (levels, B, horizon, N)`; arguments as for the forecast itself.

  crps          continuous ranked probability score from the quantiles at `LEVELS`, in the
                unit of the traces (training SD); for a forecast without spread the MAE.
  coverage_50   share of true values within the central 50 % interval; 80 and 95 alike.

Averaged neuron -> trial -> session as the errors are; `crps` also per step ahead.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from calm_jax import config
from calm_jax import scored_windows as scored
from calm_jax.errors import CalmError
from calm_jax.metrics import crps_quantiles
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits
from calm_jax.rows import Row, averaged, row

INTERVALS = (50, 80, 95)  # per cent
LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)


@runtime_checkable
class QuantileForecaster(Protocol):
    """A forecaster that knows its own uncertainty."""

    def quantiles(
        self,
        context: np.ndarray,
        session: int,
        mask: np.ndarray,
        horizon: int,
        levels: tuple[float, ...],
    ) -> np.ndarray:
        """Shapes: context (B, C, N) -> (levels, B, horizon, N), not decreasing in levels."""
        ...


def quantile_rows(
    prepared: Prepared,
    splits: Splits,
    method: str,
    forecaster: QuantileForecaster,
    settings: config.Forecasting,
    protocol: str,
    part: str = "test",
    *,
    sessions: Any = None,
    seed: int | None = None,
    batch: int = 16,
) -> list[Row]:
    """Rows `crps`, `coverage_50`, `coverage_80`, `coverage_95` of one method.

    Raises:
      CalmError: when the quantiles have another shape, are NaN, or cross.
    """
    out: list[Row] = []
    for i in range(len(splits.sessions)) if sessions is None else sessions:
        plan = scored.plan(prepared, splits, i, part, protocol, settings)
        if plan is None:
            continue
        info = prepared.store.sessions[i]
        keep = ~prepared.scalers.constant[i]
        steps = plan.horizon - plan.skip
        # Per trial and neuron: crps, then one count per interval, then valid samples.
        sums = np.zeros((len(plan.ranges), 2 + len(INTERVALS), int(keep.sum())))
        ahead = np.zeros((2, steps, int(keep.sum())))
        for b in scored.batches(prepared, i, plan, batch):
            q = _quantiles(forecaster, b, i, plan.horizon, f"{method}, session {info.session}")
            q = q[:, : len(b.truth), plan.skip :][..., keep]
            truth = b.truth[:, plan.skip :][..., keep]
            valid = b.valid[:, plan.skip :][..., keep]
            crps = np.where(valid, np.asarray(crps_quantiles(q, LEVELS, truth)), 0)
            inside = [(truth >= q[k]) & (truth <= q[-1 - k]) & valid for k in (2, 1, 0)]
            terms = np.stack([crps, *inside, valid], 1)  # (b, terms, H, n)
            np.add.at(sums, b.trial, terms.sum(2))
            ahead += np.stack([crps.sum(0), valid.sum(0)])
        where = {"session": info.session, "animal": info.animal, "seed": seed}
        names = ("crps", *(f"coverage_{k}" for k in INTERVALS))
        for k, name in enumerate(names):
            out.append(row(protocol, method, name, _mean(sums[:, k], sums[:, -1]), **where))
        for h in range(steps):
            value = _mean(ahead[0, h : h + 1], ahead[1, h : h + 1])
            out.append(row(protocol, method, "crps", value, step=plan.skip + 1 + h, **where))
    return averaged(out)


def _quantiles(
    forecaster: QuantileForecaster, b: scored.Batch, i: int, horizon: int, where: str
) -> np.ndarray:
    q = np.asarray(forecaster.quantiles(b.context, i, b.seen, horizon, LEVELS), np.float32)
    expected = (len(LEVELS), len(b.context), horizon, b.context.shape[2])
    wrong = None
    if q.shape != expected:
        wrong = f"shape {q.shape}, not {expected}"
    elif not np.isfinite(q).all():
        wrong = "NaN or infinity"
    elif (np.diff(q, axis=0) < -1e-4).any():
        wrong = "quantiles that cross"
    if wrong is not None:
        raise CalmError("a forecaster returned wrong quantiles", where=where, found=wrong)
    return q


def _mean(total: np.ndarray, count: np.ndarray) -> float:
    """Mean over neurons, then trials, of total / count where anything was counted."""
    each = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    known = ~np.isnan(each)
    rows = known.any(1)
    if not rows.any():
        return float("nan")
    means = np.where(known, each, 0).sum(1)[rows] / known.sum(1)[rows]
    return float(means.mean())
