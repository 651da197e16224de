"""The decoders that read nothing: the mean, the most frequent class, and chance."""

from __future__ import annotations

import numpy as np


def mean(y: np.ndarray, frames: int) -> np.ndarray:
    """(frames,) the mean of the training labels y (T,)."""
    return np.full(frames, y.mean(), np.float32)


def majority(labels: np.ndarray, frames: int, classes: int) -> np.ndarray:
    """(frames, classes) scores, 1 for the most frequent class of the training labels (T,)."""
    out = np.zeros((frames, classes), np.float32)
    out[:, np.bincount(labels.astype(int), minlength=classes).argmax()] = 1
    return out


def chance(labels: np.ndarray, test: np.ndarray, classes: int) -> dict[str, float]:
    """What drawing labels at random by their training shares is expected to reach.

    accuracy = sum_c p_c q_c (p training, q test shares), balanced accuracy = mean of p_c
    over the classes of the test part.
    """
    p = np.bincount(labels.astype(int), minlength=classes) / max(len(labels), 1)
    count = np.bincount(test.astype(int), minlength=classes)
    q = count / max(count.sum(), 1)
    present = count > 0
    return {
        "accuracy": float((p * q).sum()),
        "balanced_accuracy": float(p[present].mean()) if present.any() else float("nan"),
    }
