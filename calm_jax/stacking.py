"""CalM's forecast: the network and maps in closed form, weighted on the validation part.

    f_h = sum_m w[h, m] f_m,h,    0 <= w <= 2,  h = steps ahead

Stacked regression (Wolpert 1992; Breiman 1996): members err differently, and what weighs how
much depends on the recording and on how far ahead one looks. Weights of a step are shared by
all neurons and sessions,

    w = argmin  mean over sessions of mean (y - sum_m w_m f_m)^2 + lambda g |w - e|^2,

e the network alone and g the mean square of the members. lambda is the one of `SHRINKAGE` with
the least error of weights fitted on the first half of every session's validation windows on
the second, and the other way round. The network alone is among them (lambda = inf), so that
nothing is added where it does not help on windows that it was not fitted on.

The upper bound matters far ahead, where a rolled out forecast has all but reached the mean: what
is left of it may follow a few validation windows by chance and would weigh tens of times.

Few windows tell little of a single step: weights of step h may be those of all the steps from
h / (1 + b) to h (1 + b), with b of `BREADTHS` chosen together with lambda.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear, nnls

from calm_jax import baselines, config
from calm_jax import scored_windows as scored
from calm_jax.baselines.windows import Forecaster
from calm_jax.errors import ConfigError, RecordingError
from calm_jax.files import replacing
from calm_jax.fitted_files import fitted_file
from calm_jax.recordings.batches import Prepared

FILE = "evaluation/stack.npz"
NETWORK = "network"
SHRINKAGE = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, float("inf"))
BREADTHS = (0.0, 0.25, float("inf"))
MOST = 2.0  # of a weight
_REMEMBERED = 1 << 28  # bytes of forecasts of one member
_WINDOWS = 400  # validation windows of a session that are looked at


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Fitted weights of one length of context.

    Attributes:
      members: names, the network first. table: (H, members) float64.
      shrinkage: lambda. breadth: b. errors: of every lambda with that breadth,
        cross-validated MSE; NaN where a half of the validation part is empty.
      sessions: those with members of their own; others take the network alone.
    """

    members: tuple[str, ...]
    table: np.ndarray
    shrinkage: float
    errors: tuple[float, ...]
    sessions: tuple[int, ...]
    breadth: float = 0.0

    def of(self, session: int, horizon: int) -> np.ndarray:
        """(horizon, members); steps beyond those fitted weigh as the last one."""
        if session not in self.sessions:
            return np.tile([1.0] + [0.0] * (len(self.members) - 1), (horizon, 1))
        return self.table[np.minimum(np.arange(horizon), len(self.table) - 1)]


def check(names: Sequence[str]) -> None:
    """Raises `ConfigError` for members that are not closed-form baselines."""
    known = [n for n, m in baselines.METHODS.items() if not getattr(m, "TRAINED", False)]
    wrong = [n for n in names if n not in known] or [n for n in names if names.count(n) > 1]
    if wrong:
        raise ConfigError(
            "a forecast cannot be weighted with this",
            where="forecasting.stack",
            found=wrong[0],
            expected=f"each once of {', '.join(known)}",
        )


class Remembered:
    """A forecaster that keeps its last forecasts, for it is asked about them more than once."""

    def __init__(self, forecaster: Forecaster, size: int = _REMEMBERED) -> None:
        self._forecaster, self._size, self._held = forecaster, size, 0
        self._made: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self.tuning = getattr(forecaster, "tuning", [])

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N)."""
        seen = hashlib.blake2b(np.ascontiguousarray(context))
        seen.update(np.ascontiguousarray(mask))
        key = (session, horizon, context.shape, seen.digest())
        if key not in self._made:
            made = np.asarray(self._forecaster(context, session, mask, horizon))
            self._made[key] = made
            self._held += made.nbytes
            while self._held > self._size and len(self._made) > 1:
                self._held -= self._made.popitem(last=False)[1].nbytes
        return self._made[key]


class Stack:
    """The weighted forecast as a `baselines.windows.Forecaster`.

    Args:
      network: the model, kept as an attribute. members: name -> forecaster, those of
        `Weights.members` at least.
      weights: by length of context; another length takes the network alone.
    """

    def __init__(
        self,
        network: Forecaster,
        members: Mapping[str, Forecaster],
        weights: Mapping[int, Weights],
    ) -> None:
        self.network, self._members, self.weights = network, members, dict(weights)
        self.tuning = getattr(network, "tuning", [])

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N)."""
        made = np.asarray(self.network(context, session, mask, horizon), np.float32)
        own = self.weights.get(context.shape[1])
        if own is None:
            return made
        w = own.of(session, horizon).astype(np.float32)
        total = w[:, :1] * made
        for name, column in zip(own.members[1:], w.T[1:]):
            if column.any():
                total += column[:, None] * self._members[name](context, session, mask, horizon)
        return total


def members(
    names: Sequence[str], prepared: Prepared, horizon: int, known: Mapping[str, Forecaster]
) -> dict[str, Forecaster]:
    """The closed-form members by name; those of `known` are taken, not fitted again."""
    out: dict[str, Forecaster] = {}
    for name in names:
        extra = {}
        if name == "population_change":  # stands on an autoregression: one is enough
            base = out.get("autoregression") or known.get("autoregression")
            extra = {} if base is None else {"base": base}
        out[name] = known.get(name) or baselines.PerContext(
            baselines.METHODS[name], prepared, prepared.splits, horizon, **extra
        )
    return out


def fit(
    prepared: Prepared,
    network: Forecaster,
    others: Mapping[str, Forecaster],
    settings: config.Forecasting | Sequence[config.Forecasting],
    protocol: str,
    *,
    batch: int = 16,
) -> Weights | None:
    """Weights on the validation part; None where no training session has a window there.

    Args:
      settings: context, horizon and origins, for all sessions or one for each.
    """
    names = (NETWORK, *others)
    found: list[np.ndarray] = []
    sessions: list[int] = []
    for i in prepared.splits.training_index:
        own = settings if isinstance(settings, config.Forecasting) else settings[i]
        plan = scored.fitting_plan(prepared, prepared.splits, i, protocol, own)
        if plan is None:
            continue
        every = {NETWORK: network, **others}
        try:
            moments = _moments(prepared, i, plan, [every[n] for n in names], batch)
        except RecordingError:  # a session that is too short for a member of its own
            continue
        if moments[..., -1, -1].any():
            found.append(moments)
            sessions.append(i)
    if not found:
        return None
    horizon = max(m.shape[1] for m in found)
    found = [np.pad(m, ((0, 0), (0, horizon - m.shape[1]), (0, 0), (0, 0))) for m in found]
    return _fit(names, found, sessions)


def _moments(
    prepared: Prepared, i: int, plan: scored.Plan, every: Sequence[Forecaster], batch: int
) -> np.ndarray:
    """(2 halves, H, M + 2, M + 2) sums of v vᵀ, v = (forecasts, truth, 1) of valid samples."""
    rows = np.arange(len(plan.origin))
    if len(rows) > _WINDOWS:
        rows = np.linspace(0, len(rows) - 1, _WINDOWS).round().astype(int)
        plan = dataclasses.replace(plan, trial=plan.trial[rows], origin=plan.origin[rows])
    keep = ~prepared.scalers.constant[i]
    half = (len(plan.origin) + 1) // 2
    steps = plan.horizon - plan.skip
    out = np.zeros((2, steps, len(every) + 2, len(every) + 2))
    done = 0
    for b in scored.batches(prepared, i, plan, batch):
        n = len(b.truth)
        made = [np.asarray(f(b.context, i, b.seen, plan.horizon))[:n] for f in every]
        ones = np.ones_like(b.truth)
        v = np.stack([*made, b.truth, ones], -1)[:, plan.skip :].astype(np.float64)
        v *= (b.valid & keep)[:, plan.skip :, :, None]
        which = (done + np.arange(n)) >= half
        for k in (0, 1):
            part = v[which == bool(k)]
            out[k] += np.einsum("whna,whnb->hab", part, part, optimize=True)
        done += n
    skipped = np.zeros((2, plan.skip, *out.shape[2:]))
    return np.concatenate([skipped, out], 1)


def _fit(names: tuple[str, ...], found: list[np.ndarray], sessions: list[int]) -> Weights:
    halves = [[m[k] for m in found] for k in (0, 1)]
    errors = np.full((len(BREADTHS), len(SHRINKAGE)), np.nan)
    if all(any(m[..., -1, -1].any() for m in half) for half in halves):
        for row, breadth in zip(errors, BREADTHS, strict=True):
            tables = [_solve_all(half, breadth) for half in halves]
            row[:] = np.mean(
                [[_error(halves[1 - k], t) for t in tables[k]] for k in (0, 1)], axis=0
            )
    at, best = 0, len(SHRINKAGE) - 1
    if np.isfinite(errors).any():
        at, best = (int(i) for i in np.unravel_index(np.nanargmin(errors), errors.shape))
    whole = _solve_all([m.sum(0) for m in found], BREADTHS[at])
    return Weights(
        names, whole[best], SHRINKAGE[best], tuple(float(e) for e in errors[at]),
        tuple(sessions), BREADTHS[at],
    )  # fmt: skip


def _broadened(a: np.ndarray, breadth: float) -> np.ndarray:
    """Moments (H, ...) of every step, those of steps around it in; see `BREADTHS`."""
    if breadth == 0:
        return a
    step = np.arange(1, len(a) + 1)
    ratio = np.maximum(step / step[:, None], step[:, None] / step)
    return np.tensordot((ratio <= 1 + breadth).astype(float), a, 1)


def _solve_all(found: Sequence[np.ndarray], breadth: float) -> np.ndarray:
    """(lambdas, H, M) weights from moments (H, M + 2, M + 2) of each session."""
    a = _broadened(_average(found), breadth)
    steps, m = len(a), a.shape[1] - 2
    alone = np.eye(m)[0]
    out = np.tile(alone, (len(SHRINKAGE), steps, 1))
    for h in range(steps):
        if not a[h, -1, -1]:  # a step that is not scored
            continue
        gram, cross = a[h, :m, :m], a[h, :m, m]
        scale = np.trace(gram) / m
        for k, strength in enumerate(SHRINKAGE):
            if np.isinf(strength) or not scale > 0:
                continue
            ridge = (strength + 1e-8) * scale
            low = np.linalg.cholesky(gram + ridge * np.eye(m))
            right = np.linalg.solve(low, cross + ridge * alone)
            out[k, h] = nnls(low.T, right)[0]
            if out[k, h].max() > MOST:
                out[k, h] = lsq_linear(low.T, right, (0, MOST), method="bvls").x.clip(0, MOST)
    # What no step told weighs as the nearest one that did.
    known = np.flatnonzero(a[:, -1, -1] > 0)
    if known.size:
        near = known[np.abs(np.arange(steps)[:, None] - known).argmin(1)]
        out = out[:, near]
    return out


def _average(found: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over sessions of moments per sample: every session counts the same."""
    count = np.stack([m[:, -1, -1] for m in found])
    each = np.stack(found) / np.maximum(count, 1)[..., None, None]
    return (each * (count > 0)[..., None, None]).sum(0) / np.maximum(
        (count > 0).sum(0), 1
    )[:, None, None]


def _error(found: Sequence[np.ndarray], table: np.ndarray) -> float:
    """Mean squared error of weights (H, M) over the steps of the moments."""
    a = _average(found)
    both = np.concatenate([table, -np.ones((len(table), 1))], 1)
    error = np.einsum("ha,hab,hb->h", both, a[:, :-1, :-1], both)
    known = a[:, -1, -1] > 0
    return float(error[known].mean())


def described(fitted: Mapping[int, Weights]) -> dict[str, dict[str, list[float]]]:
    """Length of context -> member -> weights at the first, middle and last step ahead."""
    rows = lambda w: np.round(w.table[[0, (len(w.table) - 1) // 2, -1]].T, 3)
    return {str(c): dict(zip(w.members, rows(w).tolist())) for c, w in fitted.items()}


def save(path: Path, fitted: Mapping[int, Weights]) -> None:
    """Writes weights by length of context as npz without pickles."""
    arrays: dict[str, Any] = {}
    for context, w in fitted.items():
        arrays |= {
            f"{context}/members": np.array(w.members),
            f"{context}/table": w.table,
            f"{context}/shrinkage": w.shrinkage,
            f"{context}/errors": np.array(w.errors),
            f"{context}/breadth": w.breadth,
            f"{context}/sessions": np.array(w.sessions, np.int64),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> dict[int, Weights] | None:
    """What `save` wrote; None when there is no such file.

    Raises:
      RunError: when the file is damaged.
    """
    parse = lambda a: {int(c): _loaded(a, c) for c in sorted({k.split("/")[0] for k in a})}
    return fitted_file(path, parse)


def _loaded(a: Mapping[str, np.ndarray], c: str) -> Weights:
    names, table = tuple(str(x) for x in a[f"{c}/members"]), a[f"{c}/table"]
    if table.ndim != 2 or table.shape[1] != len(names) or names[0] != NETWORK:
        raise ValueError("shapes that do not belong together")
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise ValueError("weights that are not finite or negative")
    if not set(names[1:]) <= set(baselines.METHODS):
        raise ValueError("members that are not known")
    return Weights(
        names, table, float(a[f"{c}/shrinkage"]), tuple(a[f"{c}/errors"].tolist()),
        tuple(int(i) for i in a[f"{c}/sessions"]),
        float(a.get(f"{c}/breadth", 0.0)),  # files of before have none
    )  # fmt: skip
