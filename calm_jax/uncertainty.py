"""Quantiles for any forecaster, from the errors it makes on the validation part.

Split conformal prediction with locally weighted residuals (Papadopoulos et al. 2002; Lei
et al. 2018, section 5.2). A residual is e = y - f; e / s is pooled over neurons, windows and
sessions, apart for every step h ahead, and a new forecast f' has the quantiles f' + s' q_h:

  s^2 = (1 - w) sigma_n^2 + w rho_h^2 d_h^2
    sigma_n  RMS of neuron n's residuals on the validation part,
    d_h      RMS of x[t] - x[t - h] over the context of this forecast (lag at most a third
             of it): how restless the neuron is right now,
    rho_h    RMS residual / RMS d_h on the validation part, all neurons together,
    w        in WEIGHTS, by cross-validated CRPS over the two halves of the validation part.

Quantiles need not lie around f symmetrically, and f is not moved. A forecast that is a
weighted sum may trouble traces that are silent: where quantiles around its network alone have
the lower cross-validated CRPS they are made around that (`centred`). A session without
validation windows has no sigma_n: its scale is the local one alone (w = 1), with a table of
its own. Only the context of a forecast is looked at; the test part is not touched.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import config
from calm_jax import scored_windows as scored
from calm_jax.baselines.windows import Forecaster
from calm_jax.calibration import LEVELS
from calm_jax.errors import ConfigError, RecordingError
from calm_jax.recordings.batches import Prepared

GRID = np.arange(1, 200) / 200  # levels of the tables: 0.005 to 0.995
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
FORECAST, NETWORK = "forecast", "network"  # centres
ALONE = "-network"  # behind a protocol: of the network without what it is weighted with
_VALUES = 1 << 23  # residuals kept of all sessions together
_FLOOR = 0.05  # of the median sigma: the least scale, for a neuron silent in the context


@dataclasses.dataclass(frozen=True, eq=False)
class Residuals:
    """Fitted residual quantiles of one forecaster under one protocol.

    Attributes:
      tables: (2, len(GRID), H) quantiles of e / s: own scale, then the local one alone.
      weight: w. ratio: (H,) rho_h. floor: least scale.
      sigma: session -> (N,); sessions without validation windows are absent.
      chosen: CRPS of every weight in the cross-validation.
      centre: what the quantiles lie around, the forecast or that of the network in it.
    """

    tables: np.ndarray
    weight: float
    ratio: np.ndarray
    floor: float
    sigma: Mapping[int, np.ndarray]
    chosen: tuple[float, ...] = ()
    centre: str = FORECAST

    @property
    def horizon(self) -> int:
        """Steps ahead that were fitted; later steps use the quantiles of the last one."""
        return self.tables.shape[2]

    def quantiles(
        self,
        forecast: np.ndarray,
        context: np.ndarray,
        mask: np.ndarray | None,
        session: int | None,
        levels: Sequence[float],
    ) -> np.ndarray:
        """Shapes: forecast (B, H, N), context and mask (B, C, N) -> (levels, B, H, N).

        Args:
          forecast: what the quantiles lie around, see `centre`.
          session: index of the session; None or one that was not fitted = local scale.

        Raises:
          ConfigError: for a level outside those that were fitted.
        """
        check_levels(levels)
        sigma = None if session is None else self.sigma.get(int(session))
        steps = np.minimum(np.arange(forecast.shape[1]), self.horizon - 1)
        d = restlessness(context, mask, forecast.shape[1])
        s = scale(d, sigma, self.ratio[steps], 1.0 if sigma is None else self.weight, self.floor)
        table = self.tables[int(sigma is None)][:, steps]
        q = np.stack([np.interp(levels, GRID, column) for column in table.T], 1)
        return (forecast + q[:, None, :, None] * s).astype(np.float32)


def centred(weighted: Residuals, network: Residuals) -> Residuals:
    """The quantiles of a weighted forecast: its own, or those around its network alone where
    their cross-validated CRPS is lower."""
    own, other = (np.nanmin([np.inf, *r.chosen]) for r in (weighted, network))
    if not other < own:
        return weighted
    return dataclasses.replace(network, centre=NETWORK)


def centre_of(forecaster: Forecaster, residuals: Residuals) -> Forecaster:
    """The forecaster whose forecasts the quantiles lie around: itself, or its network."""
    return forecaster.network if residuals.centre == NETWORK else forecaster


def check_levels(levels: Sequence[float]) -> None:
    """Raises `ConfigError` for levels that are not increasing within those of the tables."""
    inside = all(GRID[0] <= q <= GRID[-1] for q in levels)
    if not levels or not inside or (np.diff(levels) <= 0).any():
        raise ConfigError(
            "quantiles that cannot be read from residuals",
            where="forecasting.quantiles",
            found=tuple(levels),
            expected=f"increasing numbers from {GRID[0]} to {GRID[-1]}",
        )


class Calibrated:
    """A forecaster with quantiles from its own residuals.

    Forecasts are remembered until `forget`, so that scoring them twice, as they are and with
    their quantiles, makes them once.

    Attributes:
      residuals: as fitted. tuning: of the forecaster, where it has one.
    """

    def __init__(self, forecaster: Forecaster, residuals: Residuals) -> None:
        self._forecaster, self.residuals = forecaster, residuals
        self.tuning = getattr(forecaster, "tuning", [])
        self._made: dict[tuple, np.ndarray] = {}

    def forget(self) -> None:
        """Drops the forecasts made so far."""
        self._made.clear()

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N)."""
        seen = hashlib.blake2b(np.ascontiguousarray(context))
        seen.update(np.ascontiguousarray(mask))
        key = (session, horizon, context.shape, seen.digest())
        if key not in self._made:
            self._made[key] = np.asarray(self._forecaster(context, session, mask, horizon))
        return self._made[key]

    def quantiles(
        self,
        context: np.ndarray,
        session: int,
        mask: np.ndarray,
        horizon: int,
        levels: tuple[float, ...],
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (levels, B, horizon, N)."""
        centre = centre_of(self._forecaster, self.residuals)
        made = (self if centre is self._forecaster else centre)(context, session, mask, horizon)
        return self.residuals.quantiles(made, context, mask, session, levels)


def restlessness(context: np.ndarray, mask: np.ndarray | None, horizon: int) -> np.ndarray:
    """d_h^2: mean squared change over h frames in each context; NaN where none is known.

    Shapes: context, mask (B, C, N) -> (B, horizon, N), float64.
    """
    context = np.asarray(context, np.float64)
    b, c, n = context.shape
    most = max(1, min(horizon, c // 3))
    out = np.full((b, horizon, n), np.nan)
    for lag in range(1, min(most, c - 1) + 1):
        square = np.square(context[:, lag:] - context[:, :-lag])
        if mask is None:
            out[:, lag - 1] = square.mean(1)
            continue
        both = mask[:, lag:] & mask[:, :-lag]
        count = both.sum(1)
        total = np.where(both, square, 0).sum(1)
        out[:, lag - 1] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    out[:, most:] = out[:, most - 1 : most]
    return out


def scale(
    d: np.ndarray, sigma: np.ndarray | None, ratio: np.ndarray, weight: float, floor: float
) -> np.ndarray:
    """s of every forecast value.

    Shapes: d (B, H, N) squared changes, sigma (N,), ratio (H,) -> (B, H, N).
    """
    own = np.nan if sigma is None else np.square(sigma)
    local = np.square(ratio)[:, None] * d
    unknown = np.square(floor / _FLOOR) if sigma is None else own  # no change is known
    local = np.where(np.isnan(local), unknown, local)
    square = local if weight == 1.0 else (1 - weight) * own + weight * local
    return np.sqrt(np.maximum(square, floor**2))


@dataclasses.dataclass(frozen=True, eq=False)
class _Errors:
    """Residuals (W, H, N), NaN where invalid, and squared changes of the contexts alike."""

    session: int
    e: np.ndarray
    d: np.ndarray

    def half(self, k: int) -> _Errors:
        cut = (len(self.e) + 1) // 2
        rows = slice(0, cut) if k == 0 else slice(cut, None)
        return _Errors(self.session, self.e[rows], self.d[rows])


def fit(
    prepared: Prepared,
    forecaster: Forecaster,
    settings: config.Forecasting | Sequence[config.Forecasting],
    protocol: str,
    *,
    sessions: Sequence[int] | None = None,
    batch: int = 16,
) -> Residuals:
    """Residual quantiles of a forecaster on the validation part.

    Args:
      settings: context, horizon and origins, for all sessions or one for each.
      sessions: indices; default all that have validation windows.

    Raises:
      RecordingError: when no session has a validation window.
    """
    index = range(len(prepared.splits.sessions)) if sessions is None else sessions
    all_neurons = sum(prepared.store.sessions[i].n_neurons for i in index)
    found = []
    for i in index:
        own = settings if isinstance(settings, config.Forecasting) else settings[i]
        plan = scored.fitting_plan(prepared, prepared.splits, i, protocol, own)
        if plan is not None:
            found.append(_errors(prepared, i, forecaster, plan, all_neurons, batch))
    found = [x for x in found if np.isfinite(x.e).any()]
    if not found:
        raise RecordingError(
            "no validation range is long enough to fit the quantiles of forecasts",
            where=f"protocol {protocol}",
            remedy="Use a shorter context or horizon, or longer recordings.",
        )
    return _fit(found)


def possible(prepared: Prepared, settings: config.Forecasting, protocol: str) -> bool:
    """Whether any session has a validation window to fit quantiles on."""
    return any(
        scored.plan(prepared, prepared.splits, i, "valid", protocol, settings) is not None
        for i in range(len(prepared.splits.sessions))
    )


def _errors(
    prepared: Prepared, i: int, forecaster: Forecaster, plan: scored.Plan, neurons: int, batch: int
) -> _Errors:
    """Evenly strided windows of a plan, as many as the memory allows."""
    most = max(16, _VALUES // (plan.horizon * neurons))
    if len(plan.origin) > most:
        rows = np.linspace(0, len(plan.origin) - 1, most).round().astype(int)
        plan = dataclasses.replace(plan, trial=plan.trial[rows], origin=plan.origin[rows])
    constant = prepared.scalers.constant[i]
    e, d = [], []
    for b in scored.batches(prepared, i, plan, batch):
        n = len(b.truth)
        made = np.asarray(forecaster(b.context, i, b.seen, plan.horizon), np.float32)[:n]
        error = np.where(b.valid & ~constant, b.truth - made, np.nan)
        e.append(error.astype(np.float32))
        d.append(restlessness(b.context[:n], b.seen[:n], plan.horizon).astype(np.float32))
    return _Errors(i, np.concatenate(e), np.concatenate(d))


def _fit(found: list[_Errors]) -> Residuals:
    """Tables and weight; where a half is empty the weight is 0."""
    scores = np.full(len(WEIGHTS), np.nan)
    halves = [[h for x in found if np.isfinite((h := x.half(k)).e).any()] for k in (0, 1)]
    if all(halves):
        scores = np.mean([
            [_crps(b, a, w) for w in WEIGHTS] for a, b in (halves, halves[::-1])
        ], 0)  # fmt: skip
    best = float(WEIGHTS[int(np.nanargmin(scores))]) if np.isfinite(scores).any() else 0.0
    sigma, ratio, floor = _moments(found)
    tables = np.stack([_table(found, sigma, ratio, w, floor) for w in (best, 1.0)])
    return Residuals(tables, best, ratio, floor, sigma, tuple(float(x) for x in scores))


def _moments(found: list[_Errors]) -> tuple[dict[int, np.ndarray], np.ndarray, float]:
    """sigma of every neuron (the median neuron's where unknown), rho, the floor."""
    each = {x.session: np.sqrt(_mean(np.square(x.e, dtype=np.float64), (0, 1))) for x in found}
    known = np.concatenate(list(each.values()))
    known = known[np.isfinite(known) & (known > 0)]
    typical = float(np.median(known)) if known.size else 1e-6
    floor = _FLOOR * typical
    sigma = {i: np.maximum(np.where(np.isfinite(s), s, typical), floor) for i, s in each.items()}
    sums = np.zeros((2, 2, found[0].e.shape[1]))
    for x in found:
        both = np.isfinite(x.e) & np.isfinite(x.d)
        for k, v in enumerate((np.square(x.e, dtype=np.float64), x.d)):
            sums[k] += np.where(both, v, 0).sum((0, 2)), both.sum((0, 2))
    mean = sums[:, 0] / np.maximum(sums[:, 1], 1)
    usable = (mean > 0).all(0)
    ratio = np.sqrt(np.where(usable, mean[0] / np.where(usable, mean[1], 1), 1.0))
    return sigma, ratio, floor


def _scaled(x: _Errors, sigma: Mapping, ratio: np.ndarray, w: float, floor: float) -> np.ndarray:
    return scale(x.d, sigma.get(x.session), ratio, w if x.session in sigma else 1.0, floor)


def _table(
    found: list[_Errors], sigma: Mapping, ratio: np.ndarray, w: float, floor: float
) -> np.ndarray:
    """(len(GRID), H) quantiles; a step without a valid sample takes those before it."""
    values = [x.e / _scaled(x, sigma, ratio, w, floor) for x in found]
    out = np.zeros((len(GRID), values[0].shape[1]))
    for h in range(out.shape[1]):
        v = np.concatenate([x[:, h].ravel() for x in values])
        v = v[np.isfinite(v)]
        # ceil((n + 1) q) / n, the finite-sample rank of conformal prediction, both ways.
        out[:, h] = _ranked(v) if v.size else out[:, h - 1]
    return out


def _ranked(v: np.ndarray) -> np.ndarray:
    """Quantiles at GRID with ranks (n + 1) q, held at the extremes."""
    rank = np.clip((len(v) + 1) * GRID - 1, 0, len(v) - 1)
    return np.interp(rank, np.arange(len(v)), np.sort(v))


def _crps(test: list[_Errors], fitted: list[_Errors], w: float) -> float:
    """CRPS on one half of quantiles fitted on the other, mean over sessions."""
    sigma, ratio, floor = _moments(fitted)
    table = _table(fitted, sigma, ratio, w, floor)
    q = np.stack([np.interp(LEVELS, GRID, column) for column in table.T], 1)
    edges = np.diff(np.concatenate([[0], (np.array(LEVELS[1:]) + LEVELS[:-1]) / 2, [1]]))
    out = []
    for x in test:
        s = _scaled(x, sigma, ratio, w, floor)
        total = 0.0
        for level, weight, row in zip(LEVELS, edges, q):
            u = x.e - row[:, None] * s
            total += 2 * weight * float(np.nanmean(np.maximum(level * u, (level - 1) * u)))
        out.append(total)
    return float(np.mean(out))


def _mean(x: np.ndarray, axis: Any) -> np.ndarray:
    known = np.isfinite(x)
    n = known.sum(axis)
    return np.where(n > 0, np.where(known, x, 0).sum(axis) / np.maximum(n, 1), np.nan)
