"""Ridge regression (GLM with Gaussian noise); its penalty is chosen on validation.

W = argmin ||Y - b - X W||^2 + alpha ||W||^2, the bias b not penalised. One
eigendecomposition of the smaller of X'X and XX' serves every alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ALPHAS = tuple(10.0 ** np.arange(-1, 7.5, 0.5))


class Linear(NamedTuple):
    """y = x @ weights + bias; weights (P, O), bias (O,)."""

    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weights + self.bias


def path(x: np.ndarray, y: np.ndarray, alphas: Sequence[float]) -> list[Linear]:
    """The solution for every alpha. Shapes: x (T, P), y (T, O)."""
    x_mean, y_mean = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
    a = x.astype(np.float64) - x_mean
    b = y.astype(np.float64) - y_mean
    primal = a.shape[1] <= a.shape[0]
    values, vectors = np.linalg.eigh(a.T @ a if primal else a @ a.T)
    left = vectors if primal else a.T @ vectors
    inner = vectors.T @ (a.T @ b if primal else b)
    values = np.maximum(values, 0)
    out = [left @ (inner / (values + alpha)[:, None]) for alpha in alphas]
    return [
        Linear(w.astype(np.float32), (y_mean - x_mean @ w).astype(np.float32)) for w in out
    ]


def fit(
    x: np.ndarray,
    y: np.ndarray,
    x_valid: np.ndarray,
    y_valid: np.ndarray,
    alphas: Sequence[float] = ALPHAS,
) -> Linear:
    """The best alpha of each output on validation.

    Shapes: x (T, P), y (T, O), of the training part; the same of the validation part.
    """
    models = path(x, y, alphas)
    errors = np.array([np.square(m(x_valid) - y_valid).mean(0) for m in models])
    best = errors.argmin(0)
    pick = range(y.shape[1])
    return Linear(
        np.stack([models[best[o]].weights[:, o] for o in pick], 1),
        np.array([models[best[o]].bias[o] for o in pick]),
    )
