"""Weights of a stack, from moments of its members on the validation part: see `stacking`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import lsq_linear, nnls

from calm_jax.baselines.windows import roughness

NETWORK = "network"
SHRINKAGE = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, float("inf"))  # lambda
BREADTHS = (0.0, 0.25, float("inf"))  # b
MOST = 2.0  # of a weight
STRATA = (1, 2)  # one table of weights, or one for smooth and one for rough traces


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Fitted weights of one length of context.

    Attributes:
      members: names, the network first. table: (H, members) float64.
      shrinkage: lambda. breadth: b. errors: of every lambda with that breadth and those strata,
        cross-validated MSE; NaN where a half of the validation part is empty.
      rough: (H, members), what takes the place of `table` where `roughness` is at least `cut`;
        None = nothing does.
      sessions: those with members of their own; others take the network alone.
    """

    members: tuple[str, ...]
    table: np.ndarray
    shrinkage: float
    errors: tuple[float, ...]
    sessions: tuple[int, ...]
    breadth: float = 0.0
    rough: np.ndarray | None = None
    cut: float = float("inf")

    def of(self, session: int, context: np.ndarray, horizon: int) -> Iterator[np.ndarray]:
        """Weights (B or 1, horizon, N or 1) float32 of contexts (B, C, N), one member after the
        other; steps beyond those fitted weigh as the last one."""
        steps = np.minimum(np.arange(horizon), len(self.table) - 1)
        if session not in self.sessions:
            yield from (np.full((1, 1, 1), m == 0, np.float32) for m in range(len(self.members)))
            return
        column = lambda table, m: table[steps, m].astype(np.float32)[None, :, None]
        if self.rough is not None:
            above = (roughness(context) >= self.cut)[:, None, :]
        for m in range(len(self.members)):
            w = column(self.table, m)
            yield w if self.rough is None else np.where(above, column(self.rough, m), w)


def solved(
    names: tuple[str, ...], found: list[np.ndarray], sessions: list[int], cut: float
) -> Weights:
    """The weights from moments (2 strata, 2 halves, H, M + 2, M + 2) of every session, sums of v vᵀ
    with v = (forecasts, truth, 1)."""
    errors = np.full((len(STRATA), len(BREADTHS), len(SHRINKAGE)), np.nan)
    if all(any(m[:, k, :, -1, -1].any() for m in found) for k in (0, 1)):
        for block, strata in zip(errors, STRATA, strict=True):
            halves = [[_strata(m[:, k], strata) for m in found] for k in (0, 1)]
            for row, breadth in zip(block, BREADTHS, strict=True):
                fitted = [_tables(half, breadth) for half in halves]
                row[:] = np.mean(
                    [[_error(halves[1 - k], t) for t in fitted[k]] for k in (0, 1)], axis=0
                )
    strata, at, best = 0, 0, len(SHRINKAGE) - 1
    if np.isfinite(errors).any():
        strata, at, best = (
            int(i) for i in np.unravel_index(np.nanargmin(errors), errors.shape)
        )
    whole = _tables([_strata(m.sum(1), STRATA[strata]) for m in found], BREADTHS[at])[best]
    table, *rough = whole
    return Weights(
        names, table, SHRINKAGE[best], tuple(float(e) for e in errors[strata, at]),
        tuple(sessions), BREADTHS[at], rough[0] if rough else None, cut if rough else np.inf,
    )  # fmt: skip


def _strata(m: np.ndarray, strata: int) -> np.ndarray:
    """(strata, H, ...) of moments (2, H, ...)."""
    return m.sum(0, keepdims=True) if strata == 1 else m


def _tables(found: Sequence[np.ndarray], breadth: float) -> np.ndarray:
    """(lambdas, strata, H, M) weights from moments (strata, H, M + 2, M + 2) of each session."""
    each = [_solve_all([m[g] for m in found], breadth) for g in range(len(found[0]))]
    return np.stack(each, 1)


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
            out[k, h] = _bounded(gram + ridge * np.eye(m), cross + ridge * alone)
    # What no step told weighs as the nearest one that did.
    known = np.flatnonzero(a[:, -1, -1] > 0)
    if known.size:
        near = known[np.abs(np.arange(steps)[:, None] - known).argmin(1)]
        out = out[:, near]
    return out


def _bounded(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """argmin wᵀ gram w - 2 crossᵀ w over 0 <= w <= `MOST`; members may forecast the same."""
    s, u = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(s, 1e-12 * s[-1]))
    a, b = (u * root).T, (u / root).T @ cross
    w = nnls(a, b)[0]
    if w.max() > MOST:
        w = lsq_linear(a, b, (0, MOST), method="bvls").x.clip(0, MOST)
    return w


def _average(found: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over sessions of moments per sample: every session counts the same."""
    count = np.stack([m[:, -1, -1] for m in found])
    each = np.stack(found) / np.maximum(count, 1)[..., None, None]
    return (each * (count > 0)[..., None, None]).sum(0) / np.maximum(
        (count > 0).sum(0), 1
    )[:, None, None]


def _error(found: Sequence[np.ndarray], tables: np.ndarray) -> float:
    """Mean squared error of weights (strata, H, M) over the steps of moments
    (strata, H, M + 2, M + 2); every session counts the same."""
    both = np.concatenate([tables, -np.ones((*tables.shape[:2], 1))], 2)
    error = [np.einsum("gha,ghab,ghb->h", both, m[..., :-1, :-1], both) for m in found]
    count = np.stack([m[..., -1, -1].sum(0) for m in found])
    each = np.stack(error) / np.maximum(count, 1)
    known = (count > 0).any(0)
    return float((each.sum(0)[known] / (count > 0).sum(0)[known]).mean())
