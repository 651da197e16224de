"""Ridge regression whose prior is pooled over neurons and sessions, in closed form.

Session s with neurons n has K features per neuron and frame, x_{t n}. With R directions
L (K, R) that all neurons of all sessions share,

    y_t = b_s + N_s^{-1/2} sum_n  v_n . L' x_{t n},    v_n ~ N(0, I)

so that a neuron's weights w_n = L v_n have the prior covariance L L'. Given L, every
session is a ridge regression in its dual form (a T x T kernel, whatever N and K are).
L is learned by rounds of empirical Bayes: it begins as given, and after each round turns
into L M^{1/2} with

    M = mean over sessions of  R V'V / tr V'V,    V (N_s, R) the rows of v_n fitted in it:

features that weigh in one neuron, or in one animal, come cheaper in all others (the
expectation step of a hierarchical model without the posterior covariance). How many
rounds are worth it, and the penalty, are for the caller to choose on a validation part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

# Penalties in units of the mean squared length of a frame's features, per frame.
ALPHAS = (1e-7, 1e-6, 1e-5, *(10.0 ** np.arange(-4.0, 0.6, 0.5)))
# The intercept is one more feature of this size: it is next to free.
_CONSTANT = 100.0

# Features of a session's frames, (T, N, K) float32.
Features = np.ndarray


class Labels(NamedTuple):
    """What frames are to give: y (T, O), weight (T,) of each frame, mean one."""

    y: np.ndarray
    weight: np.ndarray


class Fit(NamedTuple):
    """A session's solution: y_t = bias + N^{-1/2} sum_n x_{t n} L rows_n.

    rows (N, R, O), bias (O,).
    """

    rows: np.ndarray
    bias: np.ndarray


def project(x: Features, directions: np.ndarray) -> np.ndarray:
    """(T, N * R) features along the directions (K, R), over the root of N."""
    return (x @ (directions * x.shape[1] ** -0.5)).reshape(len(x), -1)


def energy(q: np.ndarray) -> float:
    """Mean squared length of projected frames (T, P) about their mean."""
    return float(np.square(q - q.mean(0)).sum(1).mean())


def path(
    q: np.ndarray, labels: Labels, alphas: Sequence[float], unit: float = 1.0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weights (P, O), bias (O,)) for every penalty alpha * unit * frames.

    Minimises sum_t weight_t |y_t - b - q_t W|^2 + alpha unit T |W|^2. Shapes: q (T, P).
    """
    # Few frames: single precision would not bear the smallest penalties.
    q = q.astype(np.float64 if len(q) < 256 else np.float32)
    mean = q.mean(0)
    centred = q - mean
    root = np.sqrt(labels.weight)[:, None].astype(np.float64)
    big = _CONSTANT * unit
    kernel = (centred @ centred.T).astype(np.float64) + big
    kernel = root * kernel * root.T
    out = []
    for alpha in alphas:
        penalised = kernel.copy()
        penalised[np.diag_indices_from(penalised)] += alpha * unit * len(q)
        factor = cho_factor(penalised, lower=True, overwrite_a=True)
        dual = root * cho_solve(factor, root * labels.y)
        weights = centred.T @ dual.astype(q.dtype)
        out.append((weights, big * dual.sum(0) - mean @ weights))
    return out


def sharpen(directions: np.ndarray, fits: Sequence[Fit], rank: int) -> np.ndarray:
    """The directions after one more round: L M^{1/2}, its `rank` largest.

    Shapes: directions (K, R), rows of the fits (N, R, O) -> (K, min(R, rank)).
    """
    size = directions.shape[1]
    m = np.zeros((size, size))
    for f in fits:
        v = np.moveaxis(f.rows, 1, 2).reshape(-1, size).astype(np.float64)
        gram = v.T @ v
        m += gram * (size / max(np.trace(gram), 1e-30)) / len(fits)
    values, vectors = np.linalg.eigh(m)
    keep = np.argsort(-values)[:rank]
    scaled = vectors[:, keep] * np.sqrt(np.maximum(values[keep], 0))
    return (directions @ scaled).astype(np.float32)
