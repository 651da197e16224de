"""Second moments of all windows of traces, without laying the windows out.

The windows of a trace overlap: with G_ij = sum_s x_{s+i} x_{s+j} over the starts s of W
windows, G_{i+1,j+1} = G_ij - x_i x_j + x_{W+i} x_{W+j}. So the products of one row, one for
each lag, give them all: a window of 64 frames costs 64 products, not 64^2.
"""

from __future__ import annotations

import numpy as np

_BLOCKS = 256  # blocks of frames at a time: bounds the memory
_SAMPLES = 1 << 22  # values of a chunk of windows


def of_windows(z: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """(size + 1, size + 1) float64, the sum of v v^T over v = (window of one neuron, 1).

    Windows begin at every frame. Those of a neuron with an invalid sample are left out.

    Args:
      z, mask: (T, N), T >= size; mask False where a sample is invalid.
    """
    whole = mask.all(0)
    out = np.zeros((size + 1, size + 1))
    if whole.any():
        out += _whole(z[:, whole], size)
    if not whole.all():
        out += _one_by_one(z[:, ~whole], mask[:, ~whole], size)
    return out


def _whole(z: np.ndarray, size: int) -> np.ndarray:
    """Neurons without an invalid sample."""
    windows = len(z) - size + 1
    first, last = (x.astype(np.float64) for x in (z[: size - 1], z[windows:]))
    out = np.zeros((size + 1, size + 1))
    out[0, :size] = _lags(z, size, windows)
    change = last @ last.T - first @ first.T
    for i in range(size - 1):
        out[i + 1, i + 1 : size] = out[i, i : size - 1] + change[i, i:]
    upper = np.triu(out[:size, :size], 1)
    out[:size, :size] += upper.T
    begin = z[:windows].sum(dtype=np.float64)
    total = begin + np.concatenate([[0.0], np.cumsum((last - first).sum(1))])
    out[size, :size] = out[:size, size] = total
    out[size, size] = windows * z.shape[1]
    return out


def _lags(z: np.ndarray, size: int, windows: int) -> np.ndarray:
    """(size,) sum over neurons and s < windows of z_s z_{s+j}: products of blocks of frames
    with the frames after them, summed along the diagonals."""
    count = -(-windows // size)
    padded = np.zeros(((count + 1) * size, z.shape[1]), np.float32)
    padded[: len(z)] = z
    starts = padded[: count * size].copy()
    starts[windows:] = 0.0
    starts = starts.reshape(count, size, -1)
    ahead = np.lib.stride_tricks.sliding_window_view(padded, 2 * size, 0)[::size]
    products = np.zeros((size, 2 * size))
    for k in range(0, count, _BLOCKS):
        products += np.matmul(starts[k : k + _BLOCKS], ahead[k : k + _BLOCKS]).sum(
            0, dtype=np.float64
        )
    return np.array([np.trace(products[:, j : j + size]) for j in range(size)])


def _one_by_one(z: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """Windows laid out, those with an invalid sample left out."""
    out = np.zeros((size + 1, size + 1))
    view = np.lib.stride_tricks.sliding_window_view
    step = max(1, _SAMPLES // (size * z.shape[1]))
    all_z, all_mask = view(z, size, 0), view(mask, size, 0)
    for k in range(0, len(all_z), step):
        v = all_z[k : k + step][all_mask[k : k + step].all(-1)]
        total = v.sum(0, dtype=np.float64)
        out[:size, :size] += v.T @ v
        out[:size, size] += total
        out[size, :size] += total
        out[size, size] += len(v)
    return out
