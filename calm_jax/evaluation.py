"""Forecasts scored, protocols A and B: forecasters in, rows out.

A (the paper's): the first `context_a` frames of a trial are given, the rest of the
trial (at most `horizon_a` frames) is forecast, frames from `score_from_a` on are scored.
Sessions without trials have no protocol A. B (the field's): `context` frames, `horizon`
frames, origins every `origin_stride` frames of every test range.

Metrics, per neuron, over valid samples only, then averaged neuron -> trial -> session
-> animal -> all; constant neurons are left out and counted:
  mse, mae  errors; with `step` per step ahead (1 = the first frame forecast).
  r         correlation of a neuron over ALL scored (trial, origin, step) samples of the
            session together, averaged over neurons. This is the correlation of the
            benchmark table; with `step` over the (trial, origin) pairs at that step.
  r_trial   correlation of a neuron within one trial (all its origins and steps).
  skill     1 - mse / mse of copy-last, with `step` likewise.
  n_neurons, n_constant, n_trials, n_windows  counts; constant neurons are not in n_neurons.
A constant forecast has r = 0; a target that is constant where scored has none.

Nothing at or after an origin reaches a forecaster: it is handed a copy of its context.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from calm_jax import config
from calm_jax import scored_windows as scored
from calm_jax.baselines import copy_last, mean
from calm_jax.baselines.windows import Forecaster
from calm_jax.errors import CalmError, RecordingError
from calm_jax.files import replacing
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits
from calm_jax.rows import Row, averaged, row

_RELATIVE = 1e-6  # an SD below this share of the root mean square is rounding


class Sums:
    """Streamed moments of (forecast, truth) in float64, over any leading shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.n = np.zeros(shape)
        self.x, self.y, self.xx, self.yy, self.xy = np.zeros((5, *shape))
        self.absolute = np.zeros(shape)

    def add(self, where: object, x: np.ndarray, y: np.ndarray, mask: np.ndarray, axis: int) -> None:
        """Adds forecasts x and truths y, summed over `axis`, at index `where`."""
        x = np.where(mask, x, 0).astype(np.float64)
        y = np.where(mask, y, 0).astype(np.float64)
        terms = (mask, x, y, x * x, y * y, x * y, np.abs(x - y))
        names = ("n", "x", "y", "xx", "yy", "xy", "absolute")
        for name, term in zip(names, terms):
            np.add.at(getattr(self, name), where, term.sum(axis))

    def pooled(self) -> Sums:
        """The sums over the first axis."""
        out = Sums(self.n.shape[1:])
        for name, value in vars(self).items():
            setattr(out, name, value.sum(0))
        return out

    @property
    def mse(self) -> np.ndarray:
        """mean (x - y)^2; NaN where nothing was valid."""
        return self._mean(self.xx - 2 * self.xy + self.yy).clip(0)

    @property
    def mae(self) -> np.ndarray:
        """mean |x - y|; NaN where nothing was valid."""
        return self._mean(self.absolute)

    @property
    def r(self) -> np.ndarray:
        """Pearson; 0 for a constant forecast, NaN for a constant truth."""
        n = np.maximum(self.n, 1)
        var_x = self.xx / n - (self.x / n) ** 2
        var_y = self.yy / n - (self.y / n) ** 2
        cov = self.xy / n - self.x * self.y / n**2
        real_x = var_x > _RELATIVE**2 * self.xx / n
        real_y = (var_y > _RELATIVE**2 * self.yy / n) & (self.n > 1)
        scale = np.sqrt(np.where(real_x & real_y, var_x * var_y, 1.0))
        r = np.where(real_x, np.clip(cov / scale, -1, 1), 0.0)
        return np.where(real_y, r, np.nan)

    def _mean(self, total: np.ndarray) -> np.ndarray:
        return np.where(self.n > 0, total / np.maximum(self.n, 1), np.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """One method on one session under one protocol.

    Attributes:
      protocol, method, session, animal: what was scored.
      trials: sums per trial and neuron (R, N). steps: per step ahead and neuron (H, N).
      constant: (N,) bool, neurons left out of every mean.
      windows: forecasts made.
      first_step: the first step ahead that is scored, 1 = the frame at the origin.
      trial: (windows,) row of `trials` of each forecast, in time order.
      errors: (windows,) mean squared error of each forecast; NaN where nothing was valid.
    """

    protocol: str
    method: str
    session: str
    animal: str
    trials: Sums
    steps: Sums
    constant: np.ndarray
    windows: int
    first_step: int
    trial: np.ndarray
    errors: np.ndarray

    def per_neuron(self) -> dict[str, np.ndarray]:
        """mse, mae and r (N,) over all scored samples; NaN for constant neurons."""
        pooled = self.trials.pooled()
        values = {"mse": pooled.mse, "mae": pooled.mae, "r": pooled.r}
        return {k: np.where(self.constant, np.nan, v) for k, v in values.items()}


def score_forecasts(
    prepared: Prepared,
    splits: Splits,
    forecasters: Mapping[str, Forecaster],
    settings: config.Forecasting,
    part: str = "test",
    *,
    sessions: Sequence[int] | None = None,
    protocols: Sequence[str] | None = None,
    batch: int = 64,
) -> list[Score]:
    """Every forecaster on every session; arguments as for `evaluate_forecasts`.

    Raises:
      RecordingError: when a session has no range long enough for any protocol.
      CalmError: when a forecaster returns another shape, or NaN.
    """
    index = range(len(splits.sessions)) if sessions is None else sessions
    out = []
    for i in index:
        plans = {}
        for protocol in protocols or settings.protocols:
            plan = scored.plan(prepared, splits, i, part, protocol, settings)
            if plan is not None:
                plans[protocol] = plan
        if not plans:
            ranges = splits.parts[i][part]
            raise RecordingError(
                f"no {part} range is long enough to be forecast",
                where=f"session {splits.sessions[i]}",
                found=f"at most {int((ranges[:, 1] - ranges[:, 0]).max())} frames",
                expected=f"context + horizon = {settings.context} + {settings.horizon}",
                remedy="Use a shorter context or horizon, or longer recordings.",
            )
        for protocol, plan in plans.items():
            for method, forecaster in forecasters.items():
                out.append(_score(prepared, i, protocol, method, forecaster, plan, batch))
    return out


def _score(
    prepared: Prepared,
    i: int,
    protocol: str,
    method: str,
    forecaster: Forecaster,
    plan: scored.Plan,
    batch: int,
) -> Score:
    info = prepared.store.sessions[i]
    trials = Sums((len(plan.ranges), info.n_neurons))
    steps = Sums((plan.horizon - plan.skip, info.n_neurons))
    constant = prepared.scalers.constant[i]
    errors = []
    for part in scored.batches(prepared, i, plan, batch):
        pred = np.asarray(forecaster(part.context, i, part.seen, plan.horizon), np.float32)
        expected = (len(part.context), plan.horizon, info.n_neurons)
        if pred.shape != expected or not np.isfinite(pred).all():
            bad = pred.shape != expected
            raise CalmError(
                "a forecaster returned " + ("another shape" if bad else "NaN or infinity"),
                where=f"method {method}, session {info.session}",
                found=f"shape {pred.shape}" if bad else int((~np.isfinite(pred)).sum()),
                expected=f"{expected}" if bad else "finite values",
            )
        pred = pred[: len(part.truth), plan.skip :]
        truth, valid = part.truth[:, plan.skip :], part.valid[:, plan.skip :]
        trials.add(part.trial, pred, truth, valid, axis=1)
        steps.add(slice(None), pred, truth, valid, axis=0)
        keep = valid & ~constant
        square = np.where(keep, np.square(pred - truth), 0).sum((1, 2), np.float64)
        count = keep.sum((1, 2))
        errors.append(np.where(count > 0, square / np.maximum(count, 1), np.nan))
    return Score(
        protocol,
        method,
        info.session,
        info.animal,
        trials,
        steps,
        constant,
        len(plan.origin),
        plan.skip + 1,
        plan.trial,
        np.concatenate(errors),
    )


def rows_of(scores: Iterable[Score], seed: int | None = None) -> list[Row]:
    """The rows of scores: per session, animal and in all; skill where copy-last is there."""
    scores = list(scores)
    rows: list[Row] = []
    reference = {(s.protocol, s.session, s.animal): s for s in scores if s.method == "copy_last"}
    for s in scores:
        keep = ~s.constant
        copy = reference.get((s.protocol, s.session, s.animal))

        def put(metric: str, value: float, step: int | None = None, s: Score = s) -> None:
            where = {"session": s.session, "animal": s.animal, "seed": seed}
            rows.append(row(s.protocol, s.method, metric, value, step=step, **where))

        # Neurons first, then trials: every trial counts the same.
        for metric in ("mse", "mae"):
            put(metric, _mean(_mean(getattr(s.trials, metric)[:, keep], 1)))
        put("r", _mean(s.trials.pooled().r[keep]))
        put("r_trial", _mean(_mean(s.trials.r[:, keep], 1)))
        if copy is not None:
            error, base = (_mean(_mean(c.trials.mse[:, keep], 1)) for c in (s, copy))
            put("skill", _skill(error, base))
        put("n_neurons", int(keep.sum()))
        put("n_constant", int(s.constant.sum()))
        put("n_trials", len(s.trials.n))
        put("n_windows", s.windows)
        values = {m: _mean(getattr(s.steps, m)[:, keep], 1) for m in ("mse", "mae", "r")}
        if copy is not None:
            values["skill"] = _skill(values["mse"], _mean(copy.steps.mse[:, keep], 1))
        for metric, array in values.items():
            for h, value in enumerate(array):
                put(metric, value, step=s.first_step + h)
    return averaged(rows)


def write_neurons(scores: Iterable[Score], prepared: Prepared, path: str | os.PathLike) -> None:
    """Writes the per-neuron table as CSV: mse, mae and r of every method and neuron.

    One line per protocol, method, session and neuron, over all its scored samples;
    `constant` marks the neurons that are left out of every mean, their cells are empty.
    """
    store = prepared.store
    index = {(s.session, s.animal): i for i, s in enumerate(store.sessions)}
    with replacing(path) as part, open(part, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["protocol", "method", "session", "animal", "neuron", "constant", *_TABLE])
        for s in scores:
            ids = store.neuron_ids(index[s.session, s.animal])
            columns = s.per_neuron()
            for n, name in enumerate(ids):
                cells = [columns[m][n] for m in _TABLE]
                writer.writerow(
                    [s.protocol, s.method, s.session, s.animal, name, int(s.constant[n])]
                    + ["" if np.isnan(v) else f"{v:.6g}" for v in cells]
                )


_TABLE = ("mse", "mae", "r")


def _mean(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(x)
    n = known.sum(axis)
    return np.where(n > 0, np.where(known, x, 0).sum(axis) / np.maximum(n, 1), np.nan)


def _skill(error: np.ndarray, base: np.ndarray) -> np.ndarray:
    """1 - error / base; NaN where copy-last makes no error."""
    base = np.asarray(base)
    return np.where(base > 0, 1 - error / np.where(base > 0, base, 1), np.nan)


def evaluate_forecasts(
    prepared: Prepared,
    splits: Splits,
    forecasters: Mapping[str, Forecaster],
    settings: config.Forecasting,
    part: str = "test",
    *,
    seed: int | None = None,
    sessions: Sequence[int] | None = None,
    protocols: Sequence[str] | None = None,
    batch: int = 64,
) -> list[Row]:
    """Rows of every forecaster; copy-last and mean stand beside them always.

    Args:
      prepared, splits: the recordings and their parts.
      forecasters: method name -> forecaster, called with contexts of one session.
      settings: context, horizon, origins of the protocols.
      part: the part that is scored.
      seed: written into the rows. sessions: indices, None = all, held-out ones too.
      protocols: None = those of `settings`. batch: windows per call of a forecaster.

    Raises:
      RecordingError: when a session has no range long enough for any protocol.
      CalmError: when a forecaster returns another shape, or NaN.
    """
    sizes = (settings.context, settings.horizon)
    simple = {
        "copy_last": copy_last.fit(prepared, splits, *sizes),
        "mean": mean.fit(prepared, splits, *sizes),
    }
    scores = score_forecasts(
        prepared,
        splits,
        {**simple, **forecasters},
        settings,
        part,
        sessions=sessions,
        protocols=protocols,
        batch=batch,
    )
    return rows_of(scores, seed)
