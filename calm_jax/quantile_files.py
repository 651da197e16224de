"""Quantiles fitted by `calm_jax.uncertainty`, kept with a run as npz without pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax import uncertainty
from calm_jax.files import replacing
from calm_jax.fitted_files import fitted_file

FILE = "evaluation/quantiles.npz"


def save(path: Path, fitted: Mapping[str, uncertainty.Residuals]) -> None:
    """Writes residual quantiles by protocol as npz without pickles."""
    arrays: dict[str, Any] = {"levels": uncertainty.GRID}
    for protocol, r in fitted.items():
        sessions = sorted(r.sigma)
        arrays |= {
            f"{protocol}/tables": r.tables.astype(np.float32),
            f"{protocol}/weight": r.weight,
            f"{protocol}/ratio": r.ratio,
            f"{protocol}/floor": r.floor,
            f"{protocol}/chosen": np.array(r.chosen),
            f"{protocol}/centre": np.array(r.centre),
            f"{protocol}/session": np.array(sessions, np.int64),
            f"{protocol}/count": np.array([len(r.sigma[i]) for i in sessions], np.int64),
            f"{protocol}/sigma": np.concatenate([r.sigma[i] for i in sessions]),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> dict[str, uncertainty.Residuals] | None:
    """What `save` wrote, by protocol; None when there is no such file.

    Raises:
      RunError: when the file is damaged.
    """
    return fitted_file(path, _every)


def _every(a: Mapping[str, np.ndarray]) -> dict[str, uncertainty.Residuals]:
    if not np.array_equal(a["levels"], uncertainty.GRID):
        raise ValueError("other levels")
    return {p: _loaded(a, p) for p in sorted({k.split("/")[0] for k in a} - {"levels"})}


def _loaded(a: Mapping[str, np.ndarray], p: str) -> uncertainty.Residuals:
    edges = np.concatenate([[0], np.cumsum(a[f"{p}/count"])])
    sigma = {int(i): a[f"{p}/sigma"][x:y] for i, x, y in zip(a[f"{p}/session"], edges, edges[1:])}
    tables, ratio = a[f"{p}/tables"], a[f"{p}/ratio"]
    if tables.shape != (2, len(uncertainty.GRID), len(ratio)) or edges[-1] != len(a[f"{p}/sigma"]):
        raise ValueError("shapes that do not belong together")
    if not (np.isfinite(tables).all() and (np.diff(tables, axis=1) >= 0).all()):
        raise ValueError("quantiles that are not finite or cross")
    centre = str(a.get(f"{p}/centre", uncertainty.FORECAST))  # files of version 0.1 have none
    if centre not in (uncertainty.FORECAST, uncertainty.NETWORK):
        raise ValueError("another centre")
    return uncertainty.Residuals(
        tables, float(a[f"{p}/weight"]), ratio, float(a[f"{p}/floor"]), sigma,
        tuple(a[f"{p}/chosen"].tolist()), centre,
    )  # fmt: skip
