"""Multinomial logistic regression (L2), its penalty chosen on validation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

STRENGTHS = tuple(10.0 ** np.arange(-6, 1.5, 1.0))  # C, one over the penalty


def fit(
    x: np.ndarray,
    labels: np.ndarray,
    x_valid: np.ndarray,
    labels_valid: np.ndarray,
    classes: int,
    *,
    balanced: bool,
    strengths: Sequence[float] = STRENGTHS,
) -> Callable[[np.ndarray], np.ndarray]:
    """Log-probabilities (T, classes) of the C with the least validation loss.

    Shapes: x (T, P), labels (T,) of the training part, two classes or more in it; the same
    of the validation part. Classes that are not in the training part have probability ~0.

    `balanced` weighs classes by one over their share, in training and in validation.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean = x.mean(0)
    labels, labels_valid = labels.astype(int), labels_valid.astype(int)
    count = np.bincount(labels, minlength=classes)
    weights = np.where(count > 0, 1 / np.maximum(count, 1), 0) if balanced else count * 0 + 1.0
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    found = np.flatnonzero(count)
    for c in strengths:
        model = LogisticRegression(
            C=c, class_weight="balanced" if balanced else None, max_iter=200, tol=1e-3
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x - mean, labels)
        weight, bias = _scores(model, classes, found)
        log_p = _log_softmax((x_valid - mean) @ weight + bias)
        w = weights[labels_valid]
        nll = -(w * log_p[np.arange(len(log_p)), labels_valid]).sum() / max(w.sum(), 1e-12)
        if best is None or nll < best[0]:
            best = (float(nll), weight, bias)
    _, weight, bias = best
    return lambda x: _log_softmax((x - mean) @ weight + bias)


def _scores(model: object, classes: int, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (P, classes) and biases (classes,) of all classes; two have one row in sklearn."""
    coef, intercept = model.coef_, model.intercept_
    if len(found) == 2:
        coef = np.concatenate([np.zeros_like(coef), coef])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    weight = np.zeros((coef.shape[1], classes), np.float32)
    bias = np.full(classes, -30.0, np.float32)
    weight[:, found], bias[found] = coef.T, intercept
    return weight, bias


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))
