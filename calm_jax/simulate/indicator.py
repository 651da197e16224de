"""From calcium to dF/F with a given skewness and kurtosis, cell by cell.

With x = c^p (a supralinear indicator) and white noise that leaves the share q of the
variance to x, skewness becomes s(x) q^1.5 and excess kurtosis k(x) q^2: p and q are two
knobs for the two statistics.
"""

from __future__ import annotations

import numpy as np

POWERS = np.geomspace(0.35, 5.0, 28)
LARGEST_SHARE = 0.97  # of the variance that is signal: every recording has noise


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(SD, skewness g1, excess kurtosis) of the columns of x (T, N), in float64."""
    d = np.asarray(x, np.float64)
    d = d - d.mean(0)
    square = d * d
    v = np.maximum(square.mean(0), 1e-30)
    return np.sqrt(v), (square * d).mean(0) / v**1.5, (square * square).mean(0) / v**2 - 3


def calibrated(
    calcium: np.ndarray, skewness: np.ndarray, kurtosis: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(clean, noisy) dF/F (T, N) float32 with about the skewness and Pearson kurtosis (N,) given.

    The power of each cell is the one among `POWERS` that brings both closest to their targets
    in the logarithm, with the noise that the skewness asks for. The clean signal has SD 0.1.
    A cell without any event is noise alone.
    """
    calcium = np.maximum(np.asarray(calcium, np.float32), 0)
    top = np.maximum(calcium.max(0), 1e-12)
    # Logarithms once, powers as exponentials: half of the cost of `power`.
    log = np.log(np.maximum(calcium / top, 1e-12))
    n = calcium.shape[1]
    best = np.full(n, np.inf)
    power, share = np.ones(n), np.full(n, LARGEST_SHARE)
    for p in POWERS:
        _, s, k = moments(np.exp(np.float32(p) * log))
        q = np.clip((skewness / np.maximum(s, 1e-6)) ** (2 / 3), 0.02, LARGEST_SHARE)
        got_s, got_k = np.maximum(s * q**1.5, 1e-6), np.maximum(3 + k * q**2, 1e-6)
        cost = np.abs(np.log(got_s / skewness)) + np.abs(np.log(got_k / kurtosis))
        better = cost < best
        best = np.where(better, cost, best)
        power, share = np.where(better, p, power), np.where(better, q, share)
    clean = np.exp(power.astype(np.float32) * log)
    sd, _, _ = moments(clean)
    silent = calcium.max(0) <= 0
    clean *= np.where(silent, 0, 0.1 / np.maximum(sd, 1e-12)).astype(np.float32)
    noise = rng.standard_normal(clean.shape, np.float32)
    noise *= (0.1 * np.sqrt(1 / share - 1)).astype(np.float32)
    return clean, clean + noise
