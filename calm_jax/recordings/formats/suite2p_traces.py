"""From Suite2p's mapped F and Fneu to traces, a few ROIs at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.baselines import dff, running_baseline
from calm_jax.recordings.formats.suite2p_plane import Plane

_BLOCK = 1 << 22  # samples worked on at a time


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How traces are made.

    Attributes:
      traces: "dff", "F" or "spks".
      neuropil: c of F - c Fneu.
      baseline, window (s), percentile, smooth (frames), causal: see `running_baseline`.
      rate: Hz.
      floor: the least baseline that is divided by, in median raw fluorescences.
    """

    traces: str
    neuropil: float
    baseline: str
    window: float
    percentile: float
    smooth: float
    causal: bool
    rate: float
    floor: float

    @property
    def unit(self) -> str:
        return {"dff": "dF/F", "F": "fluorescence (a.u.)", "spks": "deconvolved (a.u.)"}[
            self.traces
        ]

    def told(self) -> list[str]:
        """What was done, one line each."""
        if self.traces == "spks":
            return ["traces are Suite2p's deconvolved activity (spks.npy)"]
        corrected = f"F - {self.neuropil:g} Fneu" if self.neuropil else "F, no neuropil taken off"
        if self.traces == "F":
            return [f"traces are {corrected}"]
        how = (
            f"Gaussian of {self.smooth:g} frames, minimum then maximum"
            if self.baseline == "maximin"
            else f"percentile {self.percentile:g}"
        )
        look = (
            "looks back only"
            if self.causal
            else "also looks ahead: causal=true makes it look back only"
        )
        return [
            f"dF/F of {corrected}; baseline {self.baseline} ({how}) in windows of "
            f"{self.window:g} s, which {look}"
        ]


def write_traces(
    planes: Sequence[Plane],
    rois: Sequence[np.ndarray],
    frames: int,
    recipe: Recipe,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Traces (T, N) float32, mask (T, N) or None for all valid, and keep (all ROIs,) bool.

    Raises:
      RecordingError: where a value is not finite, or no ROI has a usable baseline.
    """
    total = sum(map(len, rois))
    out = np.empty((frames, total), np.float32)
    unsafe: dict[int, np.ndarray] = {}
    at = 0
    step = max(1, _BLOCK // frames)
    for plane, some in zip(planes, rois, strict=True):
        for a in range(0, some.size, step):
            block = some[a : a + step]
            values, safe = _made(plane, block, frames, recipe)
            out[:, at : at + block.size] = values
            if safe is not None:
                unsafe |= {at + int(j): safe[:, j] for j in np.flatnonzero(~safe.all(0))}
            at += block.size
    keep = np.ones(total, bool)
    names = [f"{p.number}_{r}" for p, some in zip(planes, rois, strict=True) for r in some]
    keep[[j for j, safe in unsafe.items() if safe.mean() < 0.5]] = False
    if not keep.all():
        notes.append(
            f"{int((~keep).sum())} ROIs have a baseline below {recipe.floor:.0%} of their median "
            f"fluorescence and are left out: {_some([names[j] for j in np.flatnonzero(~keep)])}; "
            "traces=F keeps them"
        )
        if not keep.any():
            raise RecordingError(
                "no ROI has a baseline to divide by",
                found=f"F - {recipe.neuropil:g} Fneu near zero or below it",
                remedy="Give traces=F, or a smaller neuropil.",
            )
    partly = [j for j in unsafe if keep[j]]
    mask = None
    if partly:
        mask = np.ones((frames, total), bool)
        for j in partly:
            mask[:, j] = unsafe[j]
        notes.append(
            f"{len(partly)} ROIs have a baseline below {recipe.floor:.0%} of their median "
            f"fluorescence at times and miss samples there: {_some([names[j] for j in partly])}"
        )
    if not keep.all():
        out = _without(out, keep)
        mask = None if mask is None else _without(mask, keep)
    return out, mask, keep


def _without(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """values[:, keep], moved together in place: `values` is used up."""
    frames, left = values.shape[0], int(keep.sum())
    flat = values.reshape(-1)
    step = max(1, _BLOCK // values.shape[1])
    for a in range(0, frames, step):
        b = min(a + step, frames)
        flat[a * left : b * left] = values[a:b, keep].reshape(-1)
    return flat[: frames * left].reshape(frames, left)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _made(
    plane: Plane, rois: np.ndarray, frames: int, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray | None]:
    """(T, n) traces of some ROIs, and where they are safe (None: everywhere)."""
    take = lambda name: np.asarray(plane.arrays[name][rois, :frames].T, np.float32)  # noqa: E731
    if recipe.traces == "spks":
        return _finite(take("spks"), plane, "spks.npy", rois), None
    raw = _finite(take("F"), plane, "F.npy", rois)
    values = raw
    if recipe.neuropil:
        fneu = _finite(take("Fneu"), plane, "Fneu.npy", rois)
        values = raw - np.float32(recipe.neuropil) * fneu
    if recipe.traces == "F":
        return values, None
    bad = plane.bad_frames()
    base = running_baseline(
        values,
        recipe.rate,
        recipe.baseline,
        recipe.window,
        recipe.percentile,
        smooth_frames=recipe.smooth,
        mask=None if bad is None else ~bad[:frames],
        causal=recipe.causal,
    )
    # The median, or with an even number of frames the upper of the two in the middle.
    level = np.abs(np.partition(raw.T, frames // 2, axis=1)[:, frames // 2])
    # A silent ROI has no level of its own: any positive floor marks it.
    return dff(values, base, np.maximum(recipe.floor * level, np.finfo(np.float32).tiny))


def _finite(values: np.ndarray, plane: Plane, name: str, rois: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        bad = ~np.isfinite(values)
        t, j = (int(x[0]) for x in np.nonzero(bad))
        raise RecordingError(
            "values that are not finite",
            where=plane.folder / name,
            found=f"ROI {rois[j]}, frame {t} is the first of {int(bad.sum())}",
            remedy="Leave the ROI out in iscell.npy, or run Suite2p again.",
        )
    return values
