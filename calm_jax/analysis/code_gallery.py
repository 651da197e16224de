"""Which codes mean what: mean waveforms, usage, and which code follows which. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from calm_jax.errors import AnalysisError


@dataclasses.dataclass(frozen=True, eq=False)
class Waveforms:
    """What the frames of each code look like. K codes, p frames.

    Attributes:
      count: (K,) patches of each code.
      mean, sd: (K, p) of these patches; NaN for a code that is not used.
      explained: share of the variance of all patches that their code explains,
        1 - sum |x - mean_c(x)|^2 / sum |x - mean|^2.
    """

    count: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    explained: float


class WaveformSums:
    """Adds patches up piece by piece: memory does not grow with the recording."""

    def __init__(self, codes: int, patch: int) -> None:
        self._count = np.zeros(codes)
        self._sum, self._square = np.zeros((2, codes, patch))

    def add(self, codes: np.ndarray, patches: np.ndarray) -> None:
        """codes (M,) in [0, K), patches (M, p)."""
        if codes.shape != patches.shape[:1] or patches.shape[1] != self._sum.shape[1]:
            raise AnalysisError(
                "codes and patches do not belong together",
                found=f"{codes.shape} and {patches.shape}",
                expected=f"(M,) and (M, {self._sum.shape[1]})",
            )
        k, x = len(self._count), patches.astype(np.float64)
        self._count += np.bincount(codes, minlength=k)
        for f in range(x.shape[1]):
            self._sum[:, f] += np.bincount(codes, x[:, f], k)
            self._square[:, f] += np.bincount(codes, x[:, f] ** 2, k)

    def result(self) -> Waveforms:
        """The waveforms so far."""
        n = np.where(self._count > 0, self._count, np.nan)[:, None]
        mean = self._sum / n
        within = self._square / n - mean**2
        total = self._square.sum() - np.square(self._sum.sum(0)).sum() / max(self._count.sum(), 1)
        lost = np.nansum(np.maximum(within, 0) * n)
        explained = 1 - lost / total if total > 0 else np.nan
        sd = np.sqrt(np.maximum(within, 0))
        return Waveforms(self._count.astype(np.int64), mean, sd, float(explained))


def waveforms(codes: np.ndarray, patches: np.ndarray, size: int) -> Waveforms:
    """The waveforms of codes (M,) with patches (M, p); `size` = K."""
    sums = WaveformSums(size, patches.shape[1])
    sums.add(codes, patches)
    return sums.result()


def transitions(sequences: Iterable[tuple[np.ndarray, np.ndarray]], size: int) -> np.ndarray:
    """(K, K) int64: how often code b (column) follows code a (row).

    Args:
      sequences: per range codes (N, S) and valid (N, S) bool; a pair counts where both are
        valid, and never crosses the edge of a range.
    """
    out = np.zeros(size * size, np.int64)
    for codes, valid in sequences:
        if codes.shape[1] < 2:
            continue
        keep = valid[:, :-1] & valid[:, 1:]
        pair = codes[:, :-1].astype(np.int64) * size + codes[:, 1:]
        out += np.bincount(pair[keep], minlength=size * size)
    return out.reshape(size, size)


def transition_matrix(counts: np.ndarray) -> np.ndarray:
    """(K, K) P[a, b] = probability that b follows a; rows of codes never left are 0."""
    total = counts.sum(1, keepdims=True)
    return counts / np.where(total > 0, total, 1)


@dataclasses.dataclass(frozen=True)
class Usage:
    """How evenly codes are used, and how well one tells the next; bits per code.

    Attributes:
      used, size: codes that occur, and K.
      entropy: H(c) = -sum p log2 p. perplexity: 2^H.
      next_entropy: H(c' | c) from the transitions. information: I(c; c') = H(c') - H(c' | c);
        estimated from counts, so slightly too high where transitions are few.
      persistence: share of the transitions that stay at their code.
      transitions: how many were counted.
    """

    used: int
    size: int
    entropy: float
    perplexity: float
    next_entropy: float
    information: float
    persistence: float
    transitions: int


def usage(count: np.ndarray, pairs: np.ndarray) -> Usage:
    """From the counts of codes (K,) and of transitions (K, K).

    Raises:
      AnalysisError: when no code is valid.
    """
    if count.sum() == 0:
        raise AnalysisError("no valid code")
    entropy = entropy_bits(count)
    n = int(pairs.sum())
    nan = float("nan")
    if n:
        joint = entropy_bits(pairs.ravel())
        first, second = entropy_bits(pairs.sum(1)), entropy_bits(pairs.sum(0))
        ahead, shared, stay = joint - first, first + second - joint, np.trace(pairs) / n
    else:
        ahead, shared, stay = nan, nan, nan
    return Usage(
        used=int((count > 0).sum()),
        size=len(count),
        entropy=entropy,
        perplexity=float(2**entropy),
        next_entropy=float(ahead),
        information=float(shared),
        persistence=float(stay),
        transitions=n,
    )


def entropy_bits(count: np.ndarray) -> float:
    """-sum p log2 p of counts of any shape."""
    p = count[count > 0] / count.sum()
    return float(-(p * np.log2(p)).sum())


def by_level(waves: Waveforms) -> np.ndarray:
    """(K,) codes in order of their mean level, those that are not used last."""
    return np.argsort(waves.mean.mean(1), kind="stable")


def strongest(counts: np.ndarray, most: int) -> np.ndarray:
    """(E, 2) the `most` commonest transitions between different codes, commonest first."""
    free = counts.copy()
    np.fill_diagonal(free, 0)
    order = np.argsort(-free.ravel(), kind="stable")[:most]
    order = order[free.ravel()[order] > 0]
    return np.stack(np.unravel_index(order, counts.shape), 1)
