"""How well traces come back from their codes: the tokenizer's own evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from calm_jax import rows
from calm_jax.evaluation import Sums
from calm_jax.models import tokenizer as tokenizers
from calm_jax.recordings.batches import bucket
from calm_jax.tasks.codes import Codes

PROTOCOL, METHOD, BASELINE = "tokenizer", "calm_tokenizer", "kmeans_patches"
# Traces and codes of a range (session, start, stop): (T, N) frames and (N, T') codes.
Reconstruct = Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]
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
    reconstruct: Reconstruct, prepared: Any, i: int, part: str, patch: int, k: int
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics of one session's part, and the usage of every code (K,).

    `pearson` is the mean over neurons and trials of the correlation of a neuron's
    trace with its reconstruction within the trial; constant neurons are left out.
    `r2` is 1 - squared error / squared deviation from the neuron-trial mean.
    """
    ranges = prepared.splits.parts[i][part]
    if part == "train" and len(ranges) > TRAINING_RANGES:
        ranges = ranges[np.linspace(0, len(ranges) - 1, TRAINING_RANGES).astype(int)]
    neurons = prepared.store.sessions[i].n_neurons
    sums, usage = Sums((len(ranges), neurons)), np.zeros(k)
    for row, (a, b) in enumerate(ranges):
        z, mask = prepared.range(i, int(a), int(b))
        pred, found = reconstruct(i, int(a), int(b))
        t = len(pred)
        sums.add(row, pred, z[:t], mask[:t], axis=0)
        valid = tokenizers.token_mask(mask[:t].T, patch)
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


class KMeansPatches:
    """The baseline: k-means of single patches, no network, no past; fitted on training.

    As many codes of as many frames as the tokenizer has; each patch becomes its nearest
    centre. Patches with an invalid frame are not learned from.
    """

    def __init__(self, prepared: Any, patch: int, k: int, seed: int):
        from sklearn.cluster import MiniBatchKMeans

        rng = np.random.default_rng(seed)
        ranges = prepared.splits.ranges("train")
        chosen = ranges[rng.permutation(len(ranges))[:FITTED_RANGES]]
        each = max(FITTED_PATCHES // max(len(chosen), 1), 1)
        sample = []
        for i, a, b in chosen:
            z, mask = prepared.range(int(i), int(a), int(b))
            alive = ~prepared.scalers.constant[int(i)]
            x = _patches(z[:, alive], patch).reshape(-1, patch)
            x = x[_patches(mask[:, alive], patch).all(-1).reshape(-1)]
            sample.append(x[rng.permutation(len(x))[:each]])
        x = np.concatenate(sample)
        k = min(k, len(x))
        model = MiniBatchKMeans(k, random_state=seed, batch_size=8192, n_init=3, max_iter=50)
        self._model, self._prepared, self._patch = model.fit(x), prepared, patch

    def __call__(self, i: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames (T' patch, N) and codes (N, T') of a range."""
        x = _patches(self._prepared.range(i, start, stop)[0], self._patch)
        codes = self._model.predict(x.reshape(-1, self._patch)).reshape(x.shape[:2])
        return self._model.cluster_centers_[codes].reshape(len(x), -1).T, codes


# What k-means learns from: ranges, and patches of them in all.
FITTED_RANGES, FITTED_PATCHES = 200, 200_000


def _patches(x: np.ndarray, patch: int) -> np.ndarray:
    """(T, N) -> (N, T', patch)."""
    t = len(x) // patch * patch
    return np.ascontiguousarray(x[:t].T).reshape(x.shape[1], -1, patch)


def evaluate(
    tokenizer: tokenizers.Tokenizer, prepared: Any, codes_file: Path, seed: int = 0
) -> tuple[list[rows.Row], dict[str, np.ndarray]]:
    """Rows of every session, metrics named `test_pearson`, ..., and code usage per part.

    Held-out sessions have rows too; the tokenizer never saw them. Beside the tokenizer
    stands k-means of single patches with as many codes, on the test part.
    """
    codes, patch, k = Codes(codes_file), tokenizer.config.patch, tokenizer.config.codes

    def own(i: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        found = codes.range(i, start, stop)
        return decoded(tokenizer, found, codes.segment), found

    baseline = KMeansPatches(prepared, patch, k, seed)
    found: list[rows.Row] = []
    usage = {part: np.zeros(k) for part in PARTS}
    for i, info in enumerate(prepared.store.sessions):
        where = {"session": info.session, "animal": info.animal, "seed": seed}
        for method, part in ((METHOD, "train"), (METHOD, "test"), (BASELINE, "test")):
            reconstruct = own if method == METHOD else baseline
            metrics, used = score(reconstruct, prepared, i, part, patch, k)
            if method == METHOD:
                usage[part] += used
            found += [
                rows.row(PROTOCOL, method, f"{part}_{name}", value, **where)
                for name, value in metrics.items()
            ]
    return rows.averaged(found), usage


def line(found: list[rows.Row], usage: dict[str, np.ndarray]) -> str:
    """One line for people."""
    mean = lambda m, method=METHOD: rows.select(  # noqa: E731
        found, metric=m, method=method, animal=None
    )[0]["value"]
    used = int((usage["test"] > 0).sum())
    return (
        f"correlation of trace and reconstruction {mean('test_pearson'):.3f} on the test part "
        f"(k-means of patches {mean('test_pearson', BASELINE):.3f}), "
        f"{mean('train_pearson'):.3f} on the training part; "
        f"{used} of {usage['test'].size} codes in use"
    )
