"""Folders as Suite2p writes them, made by tests."""

import numpy as np

REG = {"yoff": np.zeros(3, np.int32), "meanImg": np.ones((4, 5), np.float32)}


def fluorescence(rois, frames, seed=0):
    """F and Fneu (rois, frames) float32: a baseline of 200-500 and transients."""
    rng = np.random.default_rng(seed)
    fneu = rng.uniform(50, 100, (rois, 1)) + rng.normal(0, 2, (rois, frames))
    events = rng.poisson(0.02, (rois, frames)) * rng.uniform(50, 200, (rois, frames))
    f = rng.uniform(200, 500, (rois, 1)) + events + 0.7 * fneu + rng.normal(0, 3, (rois, frames))
    return f.astype(np.float32), fneu.astype(np.float32)


def stat(rois):
    """Statistics of ROIs as Suite2p keeps them: pixels as arrays, numbers of many types."""
    return np.array(
        [
            {
                "ypix": np.arange(i + 3), "xpix": np.arange(i + 3) + 1, "lam": np.ones(i + 3),
                "med": [10 + i, 20 + i], "npix": np.int64(i + 3), "radius": np.float64(2.5),
                "overlap": np.zeros(i + 3, bool),
            }
            for i in range(rois)
        ],
        dtype=object,
    )  # fmt: skip


def write_plane(folder, f, fneu, *, iscell=None, layout="ops", fs=10.0, **settings):
    """One plane folder; `layout` is "ops" (0.x), "settings" (1.x), "both" or "neither"."""
    folder.mkdir(parents=True, exist_ok=True)
    rois = len(f)
    np.save(folder / "F.npy", f)
    np.save(folder / "Fneu.npy", fneu)
    np.save(folder / "spks.npy", np.maximum(f - 200, 0))
    np.save(folder / "stat.npy", stat(rois))
    flags = np.ones(rois) if iscell is None else np.asarray(iscell, float)
    np.save(folder / "iscell.npy", np.stack([flags, np.linspace(0.1, 0.9, rois)], 1))
    if layout in ("ops", "both"):
        np.save(folder / "ops.npy", {"fs": fs, "nplanes": 1, **REG, **settings})
    if layout in ("settings", "both"):
        known = {
            "neucoeff": ("extraction", "neuropil_coefficient"),
            "win_baseline": ("dcnv_preprocess", "win_baseline"),
            "sig_baseline": ("dcnv_preprocess", "sig_baseline"),
        }
        nested = {"fs": fs, "torch_device": "cuda", "extraction": {}, "dcnv_preprocess": {}}
        for name, (group, inner) in known.items():
            if name in settings:
                nested[group][inner] = settings[name]
        np.save(folder / "settings.npy", nested)
        np.save(folder / "db.npy", {"nplanes": 1, "data_path": ["somewhere"]})
        other = {k: v for k, v in settings.items() if k not in known}
        np.save(folder / "reg_outputs.npy", REG | other)
    return folder
