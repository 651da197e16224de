"""Nearest neighbours of points, by a tree in few dimensions and by blocks in many."""

from __future__ import annotations

import numpy as np


def nearest(points: np.ndarray, k: int, queries: np.ndarray | None = None) -> tuple:
    """Distances (Q, k), ascending, and indices (Q, k) of the k nearest points (Euclid).

    Without queries the points are their own, and a point is no neighbour of itself.

    Shapes: points (n, D), queries (Q, D).
    """
    from sklearn.neighbors import NearestNeighbors

    points = np.ascontiguousarray(points, np.float64)
    # A tree is no faster than all pairs beyond some 15 dimensions.
    kind = "kd_tree" if points.shape[1] <= 15 else "brute"
    search = NearestNeighbors(n_neighbors=k, algorithm=kind).fit(points)
    return search.kneighbors(queries)


def local_variance(values: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Variance of the values of the k neighbours about their mean, averaged over columns.

        1 / (D k) sum_j sum_d (x_jd - mean_j x_jd)^2

    Shapes: values (n, D), neighbours (Q, k) indices -> (Q,) in the squared unit of the values.
    """
    out = np.empty(len(neighbours))
    step = max(1, 2**23 // (neighbours.shape[1] * values.shape[1]))
    for start in range(0, len(neighbours), step):
        chosen = values[neighbours[start : start + step]].astype(np.float64)  # (q, k, D)
        out[start : start + step] = chosen.var(1).mean(1)
    return out
