"""Numbers of a fine-tuned model on the test part, with what stands beside them.

Rows are {"task", "method", "metric", "value"}. Only sessions that all experiments of a table
share are scored (`Cohorts.scored`), whatever else was fine-tuned on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax import gratings_evaluation, movie_evaluation
from calm_jax.recordings.stimuli import Shown
from calm_jax.report import style
from calm_jax.report.movies import contact_sheet
from calm_jax.rows import Row
from calm_jax.tasks.gratings import GratingsDecoding
from calm_jax.tasks.movie import MovieReconstruction
from calm_jax.visual.cohorts import Cohorts
from calm_jax.visual.experiment import VisualExperiment

OWN = "poyo"


def row(task: str, method: str, metric: str, value: float) -> dict[str, Any]:
    """One number."""
    return {"task": task, "method": method, "metric": metric, "value": float(value)}


def scored(shown: Shown, store: Any, who: Cohorts) -> Shown:
    """The presentations of the sessions that are compared."""
    ids = [s.session for s in store.sessions]
    wanted = {ids.index(s) for s in who.scored}
    return shown.take(np.flatnonzero(np.isin(shown.session, sorted(wanted))))


def _means(found: Sequence[Row], task: str) -> list[dict]:
    """Means over sessions of rows of sessions."""
    values: dict[tuple[str, str], list[float]] = {}
    for r in found:
        values.setdefault((r["method"], r["metric"]), []).append(r["value"])
    return [row(task, m, k, np.mean(v)) for (m, k), v in values.items()]


def gratings(
    task: GratingsDecoding, params: dict, e: VisualExperiment, who: Cohorts, folder: Path
) -> tuple[list[dict], str]:
    """Accuracy, beside chance, majority, shuffled labels and a linear decoder per session."""
    task.shown = {**task.shown, "test": scored(task.shown["test"], task.store, who)}
    rows = _means(gratings_evaluation.gratings_rows(task, params, seed=e.seed), "gratings")
    return rows, ""


def movie(
    task: MovieReconstruction, params: dict, e: VisualExperiment, who: Cohorts, folder: Path
) -> tuple[list[dict], str]:
    """SSIM, squared error and correlation, beside the mean frame and all retrievals.

    Means over the sessions that are compared. Writes `contact_sheet.{png,svg}`; the text
    says which part of the score is retrieval.
    """
    task.shown = {**task.shown, "test": scored(task.shown["test"], task.store, who)}
    found = movie_evaluation.movie_rows(task, params, seed=e.seed)
    style.save(contact_sheet(found.sheet), folder, "contact_sheet")
    return _means(found.rows, "movie"), found.statement
