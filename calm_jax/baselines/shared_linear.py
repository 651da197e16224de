"""One linear map context -> horizon, shared by all neurons of all sessions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calm_jax.baselines import moments
from calm_jax.baselines import windows as W
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.splits import Splits

ALPHAS = tuple(10.0 ** np.arange(-6.0, 3.0))  # times the mean diagonal of the Gram matrix


def fit(
    prepared: Prepared,
    splits: Splits,
    context: int,
    horizon: int,
    *,
    alphas: Sequence[float] = ALPHAS,
    differences: Sequence[bool] = (True, False),
    sessions: Sequence[int] | None = None,
) -> SharedLinear:
    """Ridge in closed form from streamed second moments of (context, target, 1).

    Two versions, y = W x + b and y - x_last = W (x - x_last) + b (which follows a
    trace that drifts), those of them in `differences`, each with every alpha; the least
    validation error wins. Windows of a neuron with an invalid sample, and constant neurons,
    are left out. Memory does not grow with the data. `sessions` = those to learn from, by
    default the split's training sessions.

    Raises:
      RecordingError: when no training or validation range is long enough.
    """
    index = splits.training_index if sessions is None else sessions
    train, valid = (
        _moments(prepared, index, part, context, horizon) for part in ("train", "valid")
    )
    best = None
    for difference in differences:
        change = _change(context, horizon, difference)
        a, v = change @ train @ change.T, change @ valid @ change.T
        gram, cross = a[:-horizon, :-horizon], a[:-horizon, -horizon:]
        ridge = np.full(context + 1, np.trace(gram[:context, :context]) / context)
        ridge[-1] = 0.0  # the bias is free
        for alpha in alphas:
            w = np.linalg.lstsq(gram + alpha * np.diag(ridge), cross, rcond=None)[0]
            both = np.vstack([-w, np.eye(horizon)])
            error = np.trace(both.T @ v @ both) / valid[-1, -1] / horizon
            if best is None or error < best[0]:
                best = (error, w, difference, alpha)
    error, w, difference, alpha = best
    return SharedLinear(w.astype(np.float32), difference, float(alpha), float(error))


def _moments(
    prepared: Prepared, index: Sequence[int], part: str, context: int, horizon: int
) -> np.ndarray:
    """Sum of v v^T, v = (context, target, 1) of one neuron's window; float64."""
    size = context + horizon
    out = np.zeros((size + 1, size + 1))
    for i in index:
        keep = ~prepared.scalers.constant[i]
        for a, b in prepared.splits.parts[i][part]:
            if b - a >= size:
                z, mask = prepared.range(i, a, b)
                out += moments.of_windows(z[:, keep], mask[:, keep], size)
    if out[size, size] == 0:
        raise W.too_short(prepared, index[0], part, context, horizon)
    return out


def _change(context: int, horizon: int, difference: bool) -> np.ndarray:
    """(context, target, 1) -> (features, 1, target), less the last value where asked."""
    size = context + horizon
    eye = np.eye(size + 1)
    if difference:
        eye[:size, context - 1] -= 1
    return np.concatenate([eye[:context], eye[size:], eye[context:size]])


class SharedLinear:
    """The fitted map; longer horizons are rolled out.

    Attributes:
      weights: (context + 1, horizon), the bias last.
      difference: whether it maps differences from the last value.
      alpha: chosen on the validation part. error: validation MSE.
    """

    def __init__(self, weights: np.ndarray, difference: bool, alpha: float, error: float) -> None:
        self.weights, self.difference = weights, difference
        self.alpha, self.error = alpha, error

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) -> (B, horizon, N)."""
        return W.roll(self._step, context, mask, self.weights.shape[1], horizon)

    def _step(self, context: np.ndarray, mask: np.ndarray) -> np.ndarray:
        last = context[:, -1:] if self.difference else np.float32(0)
        w, bias = self.weights[:-1], self.weights[-1]
        return np.einsum("btn,th->bhn", context - last, w, optimize=True) + bias[:, None] + last
