"""Skewness and kurtosis of traces, from central moments that can be merged.

One pass over blocks of frames; the moments of two blocks, or of two sessions of the same
cell, give those of both together (Pebay 2008, eq. 2.1; float64 throughout).
"""

from __future__ import annotations

import dataclasses

import numpy as np

_BLOCK = 1 << 21  # samples brought to float64 at a time


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and the sums of (x - mean)^p, p = 2, 3, 4; each (N,) float64."""

    n: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    m3: np.ndarray
    m4: np.ndarray

    def merged(self, other: Moments) -> Moments:
        """The moments of the samples of both."""
        na, nb = self.n, other.n
        n = na + nb
        safe = np.maximum(n, 1)
        d = np.where((na > 0) & (nb > 0), other.mean - self.mean, 0.0)
        mean = np.where(na > 0, self.mean, other.mean) + d * nb / safe
        m2 = self.m2 + other.m2 + d**2 * na * nb / safe
        m3 = self.m3 + other.m3 + d**3 * na * nb * (na - nb) / safe**2
        m3 += 3 * d * (na * other.m2 - nb * self.m2) / safe
        m4 = self.m4 + other.m4 + d**4 * na * nb * (na**2 - na * nb + nb**2) / safe**3
        m4 += 6 * d**2 * (na**2 * other.m2 + nb**2 * self.m2) / safe**2
        m4 += 4 * d * (na * other.m3 - nb * self.m3) / safe
        return Moments(n, mean, m2, m3, m4)

    def take(self, index: np.ndarray) -> Moments:
        """The moments of the neurons at `index`."""
        return Moments(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))

    def skewness(self) -> np.ndarray:
        """(N,) g1 = (m3 / n) / (m2 / n)^1.5; NaN for a trace that does not vary."""
        varies = self.varies()
        m2 = np.where(varies, self.m2, 1.0)
        return np.where(varies, np.sqrt(np.maximum(self.n, 1)) * self.m3 / m2**1.5, np.nan)

    def kurtosis(self, *, excess: bool) -> np.ndarray:
        """(N,) b2 = (m4 / n) / (m2 / n)^2, 3 for a normal distribution; `excess` takes 3 off.

        NaN for a trace that does not vary.
        """
        varies = self.varies()
        m2 = np.where(varies, self.m2, 1.0)
        return np.where(varies, self.n * self.m4 / m2**2 - (3.0 if excess else 0.0), np.nan)

    def varies(self) -> np.ndarray:
        """(N,) bool: at least four samples, and more spread than rounding makes."""
        noise = np.maximum(self.n, 1) * (1e-7 * np.abs(self.mean)) ** 2
        return (self.n >= 4) & (self.m2 > noise) & (self.m2 > 1e-140)


def nothing(neurons: int) -> Moments:
    """The moments of no samples."""
    return Moments(*(np.zeros(neurons) for _ in range(5)))


def moments_of(traces: np.ndarray, mask: np.ndarray | None = None) -> Moments:
    """Moments of every neuron over its valid samples.

    Args:
      traces: (T, N). mask: (T, N) bool, True = valid; None = all are.
    """
    frames, neurons = traces.shape
    step = max(16, _BLOCK // max(neurons, 1))
    out = nothing(neurons)
    for a in range(0, frames, step):
        x = traces[a : a + step].astype(np.float64)
        w = np.ones_like(x) if mask is None else mask[a : a + step].astype(np.float64)
        n = w.sum(0)
        mean = (x * w).sum(0) / np.maximum(n, 1)
        d = (x - mean) * w
        square = d * d
        out = out.merged(
            Moments(n, mean, square.sum(0), (square * d).sum(0), (square * square).sum(0))
        )
    return out
