"""The reconstruction-loss landscape over the first two principal components (Fig. 2).

POYO-SSL section 3.3.1: population activity is projected on its first two components; at each
point g of a grid the loss is estimated from its k = 5 nearest frames z_j,

    L(g) = [ variance of the z_j about their mean + penalty * mean_j |g - z_j|^2 ] / N,

in (trace unit)^2 per neuron. The paper says "the local variance of nearby data points and a
distance penalty" without an equation: `of = "plane"` takes the variance within the two
components, as its basins around the data suggest; `of = "activity"` that of all N neurons,
which is what a reconstruction from two components cannot know. The surface is smoothed
(Gaussian, sigma 1 grid point) to be looked at; roughness is that of the unsmoothed one,
minima are counted in the smoothed.

Nor is there an equation of its roughness sigma_L (2.41 and 878.24): the symbol suggests the SD
of the loss over the grid, which is `roughness` here; it has a unit and grows with the
penalty. `ruggedness` has no unit: SD of the Laplacian over SD of the loss; 0 for a plane or a
parabolic bowl.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.analysis import components as pca
from calm_jax.analysis.checks import some, table
from calm_jax.analysis.neighbours import local_variance, nearest
from calm_jax.errors import AnalysisError


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """A loss surface over two principal components.

    Attributes:
      x, y: (G,) grid, in the unit of the traces. loss, smooth: (G, G) at [y, x], unit^2.
      points: (M, 2) the frames. ratio: (2,) share of the variance of each component.
      roughness: SD of the loss, unit^2. ruggedness: without unit.
      minima: local minima of the smoothed surface. n: frames. neurons: N.
    """

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    smooth: np.ndarray
    points: np.ndarray
    ratio: np.ndarray
    roughness: float
    ruggedness: float
    minima: int
    n: int
    neurons: int


def landscape(
    activity: np.ndarray,
    *,
    neighbours: int = 5,
    grid: int = 50,
    sigma: float = 1.0,
    of: str = "plane",
    penalty: float = 1.0,
    most: int = 5000,
    seed: int = 0,
) -> Landscape:
    """The loss landscape of population activity.

    Args:
      activity: (T, N), one unit for all that are compared. grid: points a side, which span
        the frames and a tenth of their extent around. sigma: of the smoothing, grid points;
        0 leaves it out. of: "plane" or "activity", see above. most: frames used, drawn by `seed`.

    Raises:
      AnalysisError: fewer than two neurons that vary, or not more frames than neighbours.
    """
    what = "loss landscape"
    activity = table(activity, what, "frames", "neurons", least=neighbours + 2)
    if activity.shape[1] < 2:
        raise AnalysisError("a plane needs two neurons", where=what, found=activity.shape[1])
    if of not in ("plane", "activity"):
        raise AnalysisError("unknown variance", where=what, found=of, expected="plane or activity")
    if grid < 5:
        raise AnalysisError("too coarse a grid", where=what, found=grid, expected="at least 5")
    activity = activity[some(len(activity), most, seed)]
    fitted = pca.fit(activity, 2, seed=seed, what=what, rows="frames", columns="neurons")
    points = pca.project(fitted, activity)
    low, high = points.min(0), points.max(0)
    margin = 0.1 * (high - low)
    x, y = (np.linspace(a, b, grid) for a, b in zip(low - margin, high + margin))
    at = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    distance, index = nearest(points, neighbours, at)
    n = activity.shape[1]
    values = points if of == "plane" else activity
    spread = values.shape[1] * local_variance(values, index)
    loss = ((spread + penalty * np.mean(distance**2, 1)) / n).reshape(grid, grid)
    smooth = smoothed(loss, sigma)
    return Landscape(
        x, y, loss, smooth, points, fitted.ratio, roughness(loss), ruggedness(loss),
        local_minima(smooth), len(points), n,
    )  # fmt: skip


def smoothed(loss: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian filter of a surface (G, G), sigma in grid points; the edge is repeated."""
    from scipy import ndimage

    return ndimage.gaussian_filter(loss, sigma, mode="nearest") if sigma > 0 else loss.copy()


def roughness(loss: np.ndarray) -> float:
    """SD of a surface, in its unit."""
    return float(np.std(loss))


def ruggedness(loss: np.ndarray) -> float:
    """RMS of Laplacian - mean over RMS of loss - mean, inside the edge; NaN for a flat surface.

    The Laplacian is that of four neighbours, of grid points at unit distance.
    """
    inner = loss[1:-1, 1:-1]
    around = loss[:-2, 1:-1] + loss[2:, 1:-1] + loss[1:-1, :-2] + loss[1:-1, 2:]
    spread = np.std(loss)
    if spread <= 1e-12 * np.abs(loss).max(initial=0):
        return float("nan")
    return float(np.std(around - 4 * inner) / spread)


def local_minima(surface: np.ndarray) -> int:
    """Points inside the edge that lie below all eight neighbours."""
    inner = surface[1:-1, 1:-1]
    below = np.ones(inner.shape, bool)
    rows, columns = surface.shape
    for i in range(3):
        for j in range(3):
            if (i, j) != (1, 1):
                below &= inner < surface[i : rows - 2 + i, j : columns - 2 + j]
    return int(below.sum())
