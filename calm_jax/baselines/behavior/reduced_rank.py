"""Reduced-rank regression (Izenman 1975): ridge weights of rank at most r over the outputs.

W_r = W V V', V the first r right singular vectors of the fitted values: with the penalty
as extra rows of X (sqrt(alpha) I) this minimises the penalised error under rank(W) <= r.
Rank and penalty are chosen on validation, one pair for all outputs. With a single output
it is ridge regression.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calm_jax.baselines.behavior import ridge


def reduce(model: ridge.Linear, x: np.ndarray, alpha: float, rank: int) -> ridge.Linear:
    """The best approximation of a ridge solution with so many ranks. Shapes: x (T, P)."""
    mean = x.mean(0, dtype=np.float64)
    w = model.weights.astype(np.float64)
    fitted = (x - mean) @ w
    # Right singular vectors of [X; sqrt(alpha) I] W.
    _, vectors = np.linalg.eigh(fitted.T @ fitted + alpha * w.T @ w)
    v = vectors[:, ::-1][:, :rank]
    low = w @ v @ v.T
    y_mean = model.bias + mean @ w
    return ridge.Linear(low.astype(np.float32), (y_mean - mean @ low).astype(np.float32))


def fit(
    x: np.ndarray,
    y: np.ndarray,
    x_valid: np.ndarray,
    y_valid: np.ndarray,
    alphas: Sequence[float] = ridge.ALPHAS,
) -> ridge.Linear:
    """Rank and alpha with the least validation error. Shapes as for `ridge.fit`."""
    best: tuple[float, ridge.Linear | None] = (np.inf, None)
    for alpha, model in zip(alphas, ridge.path(x, y, alphas), strict=True):
        for rank in range(1, y.shape[1] + 1):
            found = reduce(model, x, alpha, rank)
            error = float(np.square(found(x_valid) - y_valid).mean())
            if error < best[0] or best[1] is None:
                best = (error, found)
    return best[1]
