"""Time constants: exponential decays fitted to autocorrelations and to impulse responses.

    y(t) = A exp(-t / tau) + B        (Murray et al. 2014, Nature Neuroscience 17:1661)

For every tau of a grid A and B are linear least squares; tau is where the squared error is
least, refined by a parabola through the three best points. NumPy only.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.errors import AnalysisError

GRID = 240  # time constants tried, evenly spaced in log(tau)


@dataclasses.dataclass(frozen=True, eq=False)
class Decay:
    """Fitted decays of N curves.

    Attributes:
      tau: (N,) in the unit of the times; NaN where the curve does not say: it rises, is flat,
        or the best tau lies at an edge of what was tried.
      amplitude, offset: (N,) A and B. explained: (N,) 1 - SSE / SST.
    """

    tau: np.ndarray
    amplitude: np.ndarray
    offset: np.ndarray
    explained: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """(N,) bool."""
        return np.isfinite(self.tau)


def decay_times(
    times: np.ndarray,
    curves: np.ndarray,
    *,
    offset: bool = True,
    low: float | None = None,
    high: float | None = None,
    explained: float = 0.5,
) -> Decay:
    """tau, A and B of every curve.

    Leave lag 0 of an autocorrelation out: noise of single frames stands there alone.

    Args:
      times: (L,) increasing. curves: (L, N).
      offset: False fits B = 0.
      low, high: of the time constants tried; default half the first step between times,
        and twice the whole time.
      explained: a fit that explains less counts as not known.

    Raises:
      AnalysisError: for fewer than 4 times, or other shapes.
    """
    times, curves = np.asarray(times, np.float64), np.asarray(curves, np.float64)
    if times.ndim != 1 or curves.ndim != 2 or len(curves) != len(times) or len(times) < 4:
        raise AnalysisError(
            "no decay can be fitted",
            found=f"{times.shape} times, curves {curves.shape}",
            expected="at least 4 times (L,), curves (L, N)",
        )
    low = (times[1] - times[0]) / 2 if low is None else low
    high = 2 * (times[-1] - times[0]) if high is None else high
    grid = np.geomspace(low, high, GRID)
    good = np.isfinite(curves).all(0)
    y = np.where(good, curves, 0.0)
    level = y.mean(0) if offset else np.zeros(y.shape[1])
    centred = y - level
    total = np.square(centred).sum(0)
    basis = np.exp(-(times - times[0]) / grid[:, None])  # (G, L)
    middle = basis.mean(1, keepdims=True) if offset else np.zeros((GRID, 1))
    b = basis - middle
    power = np.square(b).sum(1)
    amplitude = (b @ centred) / power[:, None]  # at the first time
    error = total - np.square(b @ centred) / power[:, None]
    best = error.argmin(0)
    column = np.arange(y.shape[1])
    inside = np.clip(best, 1, GRID - 2)
    left, here, right = (error[inside + k, column] for k in (-1, 0, 1))
    bend = left - 2 * here + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1), 0.0)
    tau = np.exp(np.log(grid[inside]) + np.clip(shift, -1, 1) * np.log(grid[1] / grid[0]))
    scale = np.where(total > 0, total, 1)
    r2 = np.where(total > 0, 1 - error[best, column] / scale, np.nan)
    a = amplitude[best, column]
    known = good & (best > 0) & (best < GRID - 1) & (a > 0) & (r2 >= explained)
    shown = lambda x: np.where(good, x, np.nan)  # noqa: E731
    return Decay(
        tau=np.where(known, tau, np.nan),
        amplitude=shown(a * np.exp(times[0] / tau)),
        offset=shown(level - a * middle[best, 0]),
        explained=shown(r2),
    )
