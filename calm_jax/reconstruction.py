"""How well traces come back from their codes: the tokenizer's own evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from calm_jax import rows
from calm_jax.evaluation import Sums
from calm_jax.models import tokenizer as tokenizers
from calm_jax.recordings.batches import bucket
from calm_jax.tasks.codes import Codes

PROTOCOL, METHOD = "tokenizer", "calm_tokenizer"
PARTS = ("train", "test")
# Ranges of the training part that are looked at, evenly spread: its score is for
# comparison with the test part only.
TRAINING_RANGES = 24
_FRAMES, _NEURONS = 32, 8  # padded sizes are multiples of these: few compilations


@jax.jit
def _decode(tokenizer: tokenizers.Tokenizer, codes: jax.Array) -> jax.Array:
    return tokenizers.decode(tokenizer, codes)


def decoded(tokenizer: tokenizers.Tokenizer, codes: np.ndarray, segment: int) -> np.ndarray:
    """Frames (T' * patch, N) of exported codes (N, T') of one range, padded to a few shapes.

    Args:
      segment: frames that were encoded together; they are decoded together.
    """
    patch = tokenizer.config.patch
    n, size = codes.shape[0], segment // patch
    out = []
    for first in range(0, codes.shape[1], size):
        piece = codes[:, first : first + size]
        t = piece.shape[1]
        padded = np.zeros((bucket(n, _NEURONS), bucket(t, _FRAMES // patch)), np.int32)
        padded[:n, :t] = piece
        out.append(np.asarray(_decode(tokenizer, padded))[:n, : t * patch])
    return np.concatenate(out, axis=1).T


def score(
    tokenizer: tokenizers.Tokenizer, prepared: Any, codes: Codes, i: int, part: str
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics of one session's part, and the usage of every code (K,).

    `pearson` is the mean over neurons and trials of the correlation of a neuron's
    trace with its reconstruction within the trial; constant neurons are left out.
    `r2` is 1 - squared error / squared deviation from the neuron-trial mean.
    """
    ranges = prepared.splits.parts[i][part]
    if part == "train" and len(ranges) > TRAINING_RANGES:
        ranges = ranges[np.linspace(0, len(ranges) - 1, TRAINING_RANGES).astype(int)]
    k = tokenizer.config.codes
    neurons = prepared.store.sessions[i].n_neurons
    sums, usage = Sums((len(ranges), neurons)), np.zeros(k)
    for row, (a, b) in enumerate(ranges):
        z, mask = prepared.range(i, int(a), int(b))
        found = codes.range(i, int(a), int(b))
        pred = decoded(tokenizer, found, codes.segment)
        t = len(pred)
        sums.add(row, pred, z[:t], mask[:t], axis=0)
        valid = tokenizers.token_mask(mask[:t].T, tokenizer.config.patch)
        usage += np.bincount(np.asarray(found)[np.asarray(valid)], minlength=k)
    keep = ~prepared.scalers.constant[i]
    n = np.maximum(sums.n, 1)
    variance = (sums.yy / n - (sums.y / n) ** 2)[:, keep]
    p = usage[usage > 0] / max(usage.sum(), 1)
    metrics = {
        "pearson": float(np.nanmean(sums.r[:, keep])),
        "mse": float(np.nanmean(sums.mse[:, keep])),
        "r2": float(1 - np.nansum(sums.mse[:, keep]) / max(np.nansum(variance), 1e-12)),
        "codes_used": float((usage > 0).sum()),
        "perplexity": float(2 ** -np.sum(p * np.log2(p))),
    }
    return metrics, usage


def evaluate(
    tokenizer: tokenizers.Tokenizer, prepared: Any, codes_file: Path, seed: int | None = None
) -> tuple[list[rows.Row], dict[str, np.ndarray]]:
    """Rows of every session, metrics named `test_pearson`, ..., and code usage per part.

    Held-out sessions have rows too; the tokenizer never saw them.
    """
    codes = Codes(codes_file)
    found: list[rows.Row] = []
    usage = {part: np.zeros(tokenizer.config.codes) for part in PARTS}
    for i, info in enumerate(prepared.store.sessions):
        for part in PARTS:
            metrics, used = score(tokenizer, prepared, codes, i, part)
            usage[part] += used
            where = {"session": info.session, "animal": info.animal, "seed": seed}
            found += [
                rows.row(PROTOCOL, METHOD, f"{part}_{name}", value, **where)
                for name, value in metrics.items()
            ]
    return rows.averaged(found), usage


def line(found: list[rows.Row], usage: dict[str, np.ndarray]) -> str:
    """One line for people."""
    mean = lambda m: rows.select(found, metric=m, animal=None)[0]["value"]  # noqa: E731
    used = int((usage["test"] > 0).sum())
    return (
        f"correlation of trace and reconstruction {mean('test_pearson'):.3f} on the test part, "
        f"{mean('train_pearson'):.3f} on the training part; "
        f"{used} of {usage['test'].size} codes in use"
    )
