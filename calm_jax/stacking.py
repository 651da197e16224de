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

What weighs how much also depends on the trace: where it moves from frame to frame within the
context, other members are right than where it is smooth. Windows and neurons above the median
of `roughness` may have weights of their own; whether they do is chosen with lambda, too. The
arithmetic is in `stack_weights`.

Few windows tell little of a single step: weights of step h may be those of all the steps from
h / (1 + b) to h (1 + b), with b of `BREADTHS` chosen likewise.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax import baselines, config
from calm_jax import scored_windows as scored
from calm_jax.baselines.windows import Forecaster, roughness
from calm_jax.errors import ConfigError, RecordingError
from calm_jax.files import replacing
from calm_jax.fitted_files import fitted_file
from calm_jax.recordings.batches import Prepared
from calm_jax.stack_weights import NETWORK, Weights, solved

FILE = "evaluation/stack.npz"
_REMEMBERED = 1 << 28  # bytes of forecasts of one member
_WINDOWS = 400  # validation windows of a session that are looked at


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
        each = own.of(session, context, horizon)
        total = next(each) * made
        for name, w in zip(own.members[1:], each, strict=True):
            if w.any():
                total += w * self._members[name](context, session, mask, horizon)
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
    plans: dict[int, scored.Plan] = {}
    for i in prepared.splits.training_index:
        own = settings if isinstance(settings, config.Forecasting) else settings[i]
        plan = scored.fitting_plan(prepared, prepared.splits, i, protocol, own)
        if plan is not None:
            plans[i] = _spread(plan)
    cut = _median_roughness(prepared, plans, batch)
    every = {NETWORK: network, **others}
    for i, plan in plans.items():
        try:
            moments = _moments(prepared, i, plan, [every[n] for n in names], batch, cut)
        except RecordingError:  # a session that is too short for a member of its own
            continue
        if moments[..., -1, -1].any():
            found.append(moments)
            sessions.append(i)
    if not found:
        return None
    horizon = max(m.shape[2] for m in found)
    room = lambda m: ((0, 0), (0, 0), (0, horizon - m.shape[2]), (0, 0), (0, 0))
    return solved(names, [np.pad(m, room(m)) for m in found], sessions, cut)


def _spread(plan: scored.Plan) -> scored.Plan:
    """The plan with at most `_WINDOWS` windows."""
    if len(plan.origin) <= _WINDOWS:
        return plan
    rows = np.linspace(0, len(plan.origin) - 1, _WINDOWS).round().astype(int)
    return dataclasses.replace(plan, trial=plan.trial[rows], origin=plan.origin[rows])


def _median_roughness(prepared: Prepared, plans: Mapping[int, scored.Plan], batch: int) -> float:
    """Over windows and neurons that vary; every window looked at counts."""
    found = []
    for i, plan in plans.items():
        keep = ~prepared.scalers.constant[i]
        found += [
            roughness(b.context)[: len(b.truth), keep].ravel()
            for b in scored.batches(prepared, i, plan, batch)
        ]
    return float(np.median(np.concatenate(found))) if any(f.size for f in found) else np.inf


def _moments(
    prepared: Prepared, i: int, plan: scored.Plan, every: Sequence[Forecaster], batch: int,
    cut: float,
) -> np.ndarray:  # fmt: skip
    """(2 strata, 2 halves, H, M + 2, M + 2) sums of v vᵀ, v = (forecasts, truth, 1) of valid
    samples, smooth and rough."""
    keep = ~prepared.scalers.constant[i]
    half = (len(plan.origin) + 1) // 2
    steps = plan.horizon - plan.skip
    out = np.zeros((2, 2, steps, len(every) + 2, len(every) + 2))
    done = 0
    for b in scored.batches(prepared, i, plan, batch):
        n = len(b.truth)
        made = [np.asarray(f(b.context, i, b.seen, plan.horizon))[:n] for f in every]
        ones = np.ones_like(b.truth)
        v = np.stack([*made, b.truth, ones], -1)[:, plan.skip :].astype(np.float64)
        v *= (b.valid & keep)[:, plan.skip :, :, None]
        which = (done + np.arange(n)) >= half
        rough = (roughness(b.context)[:n] >= cut)[:, None, :, None]
        for k in (0, 1):
            part, above = v[which == bool(k)], rough[which == bool(k)]
            both = np.einsum("whna,whnb->hab", part, part, optimize=True)
            out[1, k] += (own := np.einsum("whna,whnb->hab", part * above, part, optimize=True))
            out[0, k] += both - own
        done += n
    skipped = np.zeros((2, 2, plan.skip, *out.shape[3:]))
    return np.concatenate([skipped, out], 2)


def described(fitted: Mapping[int, Weights]) -> dict[str, dict[str, list[float]]]:
    """Length of context -> member -> weights at the first, middle and last step ahead; those of
    rough traces, where they have their own, under "48, rough"."""
    rows = lambda t: np.round(t[[0, (len(t) - 1) // 2, -1]].T, 3).tolist()
    out = {str(c): dict(zip(w.members, rows(w.table))) for c, w in fitted.items()}
    for c, w in fitted.items():
        if w.rough is not None:
            out[f"{c}, rough"] = dict(zip(w.members, rows(w.rough)))
    return out


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
        if w.rough is not None:
            arrays |= {f"{context}/rough": w.rough, f"{context}/cut": w.cut}
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
    rough = a.get(f"{c}/rough")  # files of before have none, nor a breadth
    if rough is not None and rough.shape != table.shape:
        raise ValueError("shapes that do not belong together")
    for t in (table, rough):
        if t is not None and not (np.isfinite(t).all() and (t >= 0).all()):
            raise ValueError("weights that are not finite or negative")
    if not set(names[1:]) <= set(baselines.METHODS):
        raise ValueError("members that are not known")
    return Weights(
        names, table, float(a[f"{c}/shrinkage"]), tuple(a[f"{c}/errors"].tolist()),
        tuple(int(i) for i in a[f"{c}/sessions"]),
        float(a.get(f"{c}/breadth", 0.0)), rough, float(a.get(f"{c}/cut", np.inf)),
    )  # fmt: skip
