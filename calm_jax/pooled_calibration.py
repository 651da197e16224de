"""Outputs of the pooled decoder, calibrated on the validation part.

Numbers: a factor in [0, 1], and a shift where the validation part agrees on one: fitted on
either half of it, the shift has to lower the error on the other half. A population that
drifts keeps its offset for a while; a shift that holds in one half alone is chance.

Classes: one factor and one shift per class, which turn least-squares scores into logits.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from calm_jax.pooled_ridge import Labels

_FEW = 10  # frames; a half that is shorter says nothing about a shift


def calibrated(outputs: np.ndarray, labels: Labels, classes: bool) -> tuple[float, np.ndarray]:
    """(factor, shift (O,)) of outputs (T, O) of the validation part, T > 0."""
    if classes:
        return _logits(outputs, labels)
    factor, shift = numbers(outputs[:, 0], labels.y[:, 0])
    return factor, np.full(1, shift)


def numbers(p: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(factor in [0, 1], shift) with the least squared error, in the order of time (T,)."""
    p, y = p.astype(np.float64), y.astype(np.float64)
    return _line(p, y, _agreed(p, y))


def _line(p: np.ndarray, y: np.ndarray, shifted: bool) -> tuple[float, float]:
    a, b = (p.mean(), y.mean()) if shifted else (0.0, 0.0)
    factor = np.clip((p - a) @ (y - b) / max(float((p - a) @ (p - a)), 1e-12), 0, 1)
    return float(factor), float(b - factor * a)


def _agreed(p: np.ndarray, y: np.ndarray) -> bool:
    """Whether a shift found in either half lowers the error in the other."""
    half = len(y) // 2
    if half < _FEW:
        return False
    first, second = slice(0, half), slice(half, None)

    def error(fitted: slice, tested: slice, shifted: bool) -> float:
        factor, shift = _line(p[fitted], y[fitted], shifted)
        return float(np.square(factor * p[tested] + shift - y[tested]).mean())

    return all(
        error(a, b, True) < error(a, b, False) for a, b in ((first, second), (second, first))
    )


def _logits(outputs: np.ndarray, labels: Labels) -> tuple[float, np.ndarray]:
    """The factor and one shift per class that maximise the weighted likelihood of logits.

    As if ten frames more had said that the shifts are about 0 +- 1: validation parts are
    short and labels slow.
    """
    w = labels.weight / max(labels.weight.sum(), 1e-12)
    true = labels.y.argmax(1)

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        logits = np.exp(v[0]) * outputs + v[1:]
        top = logits.max(1, keepdims=True)
        log_z = top + np.log(np.exp(logits - top).sum(1, keepdims=True))
        log_p = logits - log_z
        nll = -(w * log_p[np.arange(len(true)), true]).sum()
        slope = w[:, None] * (np.exp(log_p) - np.eye(outputs.shape[1])[true])
        pull = 10 / len(true)
        gradient = [np.exp(v[0]) * (slope * outputs).sum(), *(slope.sum(0) + pull * v[1:])]
        return nll + pull * np.square(v[1:]).sum() / 2, np.array(gradient)

    begin = np.zeros(1 + outputs.shape[1])
    limits = [(-3.0, 4.0), *[(-5.0, 5.0)] * outputs.shape[1]]
    found = minimize(loss, begin, jac=True, bounds=limits, method="L-BFGS-B").x
    return float(np.exp(found[0])), found[1:]
