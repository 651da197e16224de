"""Where a pretrained encoder keeps what it knows: fine-tuning with parts of it frozen.

POYO-SSL appendix J and Fig. S6: fine-tuning is repeated with none, all, or the first, middle
or last third of the encoder frozen, and reconstructions lose high-frequency detail. Compared
here: the scores over seeds (mean, 95 % interval with the t quantile, paired t-test against a
reference), how far latents move from the pretrained ones, and detail by spatial frequency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from calm_jax.analysis.latents import cka, intrinsic_dimension, procrustes
from calm_jax.errors import AnalysisError

VARIANTS = ("none", "all", "first", "middle", "last")


@dataclasses.dataclass(frozen=True, eq=False)
class Freezing:
    """Scores of the variants, each (V,) in the order of `variants`.

    Attributes:
      mean. low, high: 95 % interval of the mean, t with S - 1 degrees of freedom; NaN for one seed.
      difference: from the reference, mean over seeds. p: paired two-sided t-test; NaN for one seed.
      scores: (V, S). reference: name.
    """

    variants: tuple[str, ...]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    difference: np.ndarray
    p: np.ndarray
    scores: np.ndarray
    reference: str


@dataclasses.dataclass(frozen=True, eq=False)
class Change:
    """How far latents moved: CKA (1: not at all), Procrustes disparity (0: not at all), dimensions.

    Attributes:
      cka, procrustes: between before and after. before, after: intrinsic dimensions, NaN where
        there are too few points. n: rows.
    """

    cka: float
    procrustes: float
    before: float
    after: float
    n: int


@dataclasses.dataclass(frozen=True, eq=False)
class Detail:
    """Images compared by spatial frequency, low and high, the mean of the image left out.

    Attributes:
      energy_low, energy_high: energy of the reconstruction over that of the truth; below 1 at
        high frequencies is blur.
      coherence_low, coherence_high: correlation of the two spectra, in [-1, 1].
      cutoff: between low and high, as a share of the Nyquist frequency. frames: F.
    """

    energy_low: float
    energy_high: float
    coherence_low: float
    coherence_high: float
    cutoff: float
    frames: int


def frozen_blocks(depth: int, variant: str) -> np.ndarray:
    """Which of the encoder's blocks do not learn. Shapes: -> (depth,) bool.

    Block i is in third floor(3 i / depth): what cannot be shared evenly goes to the first ones.
    """
    if variant not in VARIANTS:
        raise AnalysisError("unknown variant", where="encoder freezing", found=variant,
                            expected=", ".join(VARIANTS))  # fmt: skip
    if variant in ("none", "all"):
        return np.full(depth, variant == "all")
    if depth < 3:
        raise AnalysisError("thirds need three blocks", where="encoder freezing", found=depth)
    third = np.arange(depth) * 3 // depth
    return third == ("first", "middle", "last").index(variant)


def freezing(scores: Mapping[str, np.ndarray], *, reference: str = "none") -> Freezing:
    """Compares variants over seeds.

    Args:
      scores: variant -> (S,), the same seeds in the same order. reference: a variant.

    Raises:
      AnalysisError: fewer than two variants, no reference, or scores that cannot be paired.
    """
    from scipy import stats

    what = "encoder freezing"
    if len(scores) < 2 or reference not in scores:
        raise AnalysisError("variants to compare are missing", where=what,
                            found=", ".join(scores) or "none",
                            expected=f"{reference} and another")  # fmt: skip
    variants = tuple(scores)
    arrays = [np.atleast_1d(np.asarray(scores[v], np.float64)) for v in variants]
    if len({a.shape for a in arrays}) > 1 or arrays[0].ndim != 1:
        found = ", ".join(f"{v}: {a.size}" for v, a in zip(variants, arrays))
        raise AnalysisError("scores of different numbers of seeds", where=what, found=found)
    table = np.stack(arrays)
    if not np.isfinite(table).all():
        raise AnalysisError("scores that are not finite", where=what)
    seeds = table.shape[1]
    mean = table.mean(1)
    gap = table - table[variants.index(reference)]
    half, p = np.full(len(table), np.nan), np.full(len(table), np.nan)
    if seeds > 1:
        half = stats.t.ppf(0.975, seeds - 1) * table.std(1, ddof=1) / np.sqrt(seeds)
        error = gap.std(1, ddof=1) / np.sqrt(seeds)
        t = gap.mean(1) / np.where(error > 0, error, np.nan)
        p = 2 * stats.t.sf(np.abs(t), seeds - 1)
    return Freezing(variants, mean, mean - half, mean + half, gap.mean(1), p, table, reference)


def representation_change(before: np.ndarray, after: Mapping[str, np.ndarray]) -> dict[str, Change]:
    """Latents of the pretrained encoder against those of each fine-tuned variant.

    Args:
      before: (n, D) latents of the same inputs. after: variant -> (n, E).
    """
    out = {}
    start = _dimension(before)
    for variant, latents in after.items():
        out[variant] = Change(cka(before, latents), procrustes(before, latents), start,
                              _dimension(latents), len(latents))  # fmt: skip
    return out


def detail(truth: np.ndarray, frames: np.ndarray, *, cutoff: float = 0.25) -> Detail:
    """Energy and coherence of reconstructed images below and above a spatial frequency.

    Of the 2-D Fourier transforms X (truth) and Y: energy sum |Y|^2 / sum |X|^2, coherence
    Re sum X* Y / sqrt(sum |X|^2 sum |Y|^2), over radial frequencies up to, and above, `cutoff`
    times 0.5 cycles per pixel.

    Shapes: truth, frames (F, H, W).

    Raises:
      AnalysisError: other shapes, or no energy in the truth below or above the cutoff.
    """
    what = "spatial detail"
    truth, frames = np.asarray(truth, np.float64), np.asarray(frames, np.float64)
    if truth.ndim != 3 or truth.shape != frames.shape or not truth.size:
        raise AnalysisError("another shape", where=what, found=frames.shape,
                            expected=f"{truth.shape}, (frames, height, width)")  # fmt: skip
    _, height, width = truth.shape
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    low = (radius > 0) & (radius <= 0.5 * cutoff)
    high = radius > 0.5 * cutoff
    sums = np.zeros((3, 2))
    step = max(1, 2**22 // (height * width))
    for start in range(0, len(truth), step):
        x = np.fft.fft2(truth[start : start + step])
        y = np.fft.fft2(frames[start : start + step])
        for j, chosen in enumerate((low, high)):
            a, b = x[:, chosen], y[:, chosen]
            sums[:, j] += [np.sum(np.abs(a) ** 2), np.sum(np.abs(b) ** 2),
                           np.sum((a.conj() * b).real)]  # fmt: skip
    if (sums[0] <= 0).any():
        raise AnalysisError("the true images have no energy on one side of the cutoff", where=what,
                            found=cutoff)  # fmt: skip
    energy = sums[1] / sums[0]
    norm = np.sqrt(sums[0] * sums[1])
    coherence = np.where(norm > 0, sums[2] / np.where(norm > 0, norm, 1), 0.0)
    return Detail(*map(float, energy), *map(float, coherence), cutoff, len(truth))


def _dimension(latents: np.ndarray) -> float:
    try:
        return intrinsic_dimension(latents).value
    except AnalysisError:
        return float("nan")
