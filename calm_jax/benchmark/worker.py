"""One method and seed, fitted and scored in a process of its own, for its own peak memory.

`python -m calm_jax.benchmark.worker JOB.json` writes the result that the job names.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax import compilation, config, evaluation, stacking, uncertainty
from calm_jax import scored_windows as scored
from calm_jax.baselines import copy_last
from calm_jax.benchmark import calm, methods, recordings
from calm_jax.benchmark.methods import Method
from calm_jax.benchmark.recordings import Source
from calm_jax.calibration import QuantileForecaster, quantile_rows
from calm_jax.errors import CalmError
from calm_jax.files import replacing
from calm_jax.recordings.batches import Prepared
from calm_jax.rows import averaged, row

BATCH = 16  # windows of one call of a forecaster


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
      source, experiment: the recordings and the settings of their preparation.
      method, seed: what is fitted. protocol: A or B.
      budget_seconds: of a trained method.
      folder: for what is kept of the training. out: the file that is written.
    """

    source: Source
    experiment: config.Experiment
    method: Method
    seed: int
    protocol: str
    budget_seconds: float
    folder: str
    out: str

    def dumps(self) -> str:
        """JSON."""
        return json.dumps(config.to_dict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        """The job from JSON."""
        data = json.loads(text)
        return cls(
            source=Source(
                config.from_dict(config.Data, data["source"]["data"]), data["source"]["path"]
            ),
            experiment=config.from_dict(config.Experiment, data["experiment"]),
            method=Method(**data["method"]),
            **{k: data[k] for k in ("seed", "protocol", "budget_seconds", "folder", "out")},
        )

    @property
    def context(self) -> int:
        """Frames given."""
        f = self.experiment.forecasting
        return f.context_a if self.protocol == "A" else f.context


def fit(job: Job, prepared: Prepared) -> Any:
    """The forecaster of a job, fitted on the training and validation parts."""
    folder = Path(job.folder)
    if job.method.kind == "calm":
        begin = time.monotonic()
        maps = calm.Maps(prepared, job.experiment.forecasting, job.protocol, BATCH)
        left = job.budget_seconds - (time.monotonic() - begin)
        network = calm.fit(
            job.experiment, prepared, budget_seconds=left, seed=job.seed, folder=folder
        )
        return maps.stacked(network)
    if job.method.kind == "run":
        network = calm.finished(Path(job.method.path), prepared)
        return calm.Maps(prepared, network.settings, job.protocol, BATCH).stacked(network)
    extra: dict[str, Any] = {}
    if job.method.trained:
        extra = {"budget_seconds": job.budget_seconds, "seed": job.seed, "folder": folder}
    module = methods.module_of(job.method)
    horizon = job.experiment.forecasting.horizon
    return module.fit(prepared, prepared.splits, job.context, horizon, **extra)


def run(job: Job, prepared: Prepared | None = None) -> dict[str, Any]:
    """Fits and scores; the result as JSON values.

    `seconds` ends with the first forecast of a validation window of every session, since
    some methods fit or compile then. `peak_mib` is the highest memory of this process,
    recordings and scoring included.
    """
    prepared = recordings.prepare(job.source, job.experiment) if prepared is None else prepared
    begin = time.monotonic()
    forecaster = fit(job, prepared)
    _touch(job, prepared, forecaster)
    seconds = time.monotonic() - begin
    name, seed = job.method.name, job.seed
    each = [
        recordings.settings_of(prepared, i, job.experiment.forecasting)
        for i in range(len(prepared.splits.sessions))
    ]
    spread = forecaster
    if not isinstance(forecaster, QuantileForecaster):
        errors = lambda f: uncertainty.fit(prepared, f, each, job.protocol, batch=BATCH)  # noqa: E731
        fitted = errors(forecaster)
        if isinstance(forecaster, stacking.Stack):
            fitted = uncertainty.centred(fitted, errors(forecaster.network))
        spread = uncertainty.Calibrated(forecaster, fitted)
    scores, rows = [], []
    for i, settings in enumerate(each):
        if job.protocol == "A" and not len(prepared.store.sessions[i].trials):
            continue  # nothing to forecast there
        both = {name: spread, "copy_last": copy_last.CopyLast()}
        scores += evaluation.score_forecasts(
            prepared, prepared.splits, both, settings,
            sessions=[i], protocols=[job.protocol], batch=BATCH,
        )  # fmt: skip
        rows += quantile_rows(
            prepared, prepared.splits, name, spread, settings, job.protocol,
            sessions=[i], seed=seed, batch=BATCH,
        )  # fmt: skip
        if spread is not forecaster:
            spread.forget()
    rows += [r for r in evaluation.rows_of(scores, seed) if r["method"] == name]
    rows = averaged(rows)
    rows.append(row(job.protocol, name, "seconds", seconds, seed=seed))
    rows.append(row(job.protocol, name, "peak_mib", peak_mib(), seed=seed))
    windows = [
        {
            "session": s.session,
            "animal": s.animal,
            "trial": s.trial.tolist(),
            "errors": s.errors.tolist(),
        }
        for s in scores
        if s.method == name
    ]
    return {"rows": rows, "windows": windows, "tuning": _plain(forecaster)}


def _touch(job: Job, prepared: Prepared, forecaster: Any) -> None:
    for i in range(len(prepared.splits.sessions)):
        settings = recordings.settings_of(prepared, i, job.experiment.forecasting)
        plan = scored.plan(prepared, prepared.splits, i, "valid", job.protocol, settings)
        if plan is not None:
            batch = next(scored.batches(prepared, i, plan, BATCH))
            forecaster(batch.context, i, batch.seen, plan.horizon)


def _plain(forecaster: Any) -> list[dict]:
    """The record of the tuning, as JSON values."""
    return [
        {k: v.item() if isinstance(v, np.generic) else v for k, v in entry.items()}
        for entry in getattr(forecaster, "tuning", [])
    ]


def peak_mib() -> float:
    """The highest resident memory of this process so far, MiB."""
    try:
        # Unlike getrusage, not that of the process this one was started from.
        text = Path("/proc/self/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def finish(job: Any, run: Callable[[Any], dict]) -> int:
    """Writes what `run(job)` gives to `job.out`; a mistake of the user's is the result then.

    Args:
      job: with `experiment` (how programs are compiled) and `out` (a path).
    """
    compilation.enable()
    try:
        with compilation.effort(job.experiment.compilation):
            result = run(job)
    except CalmError as e:
        result = {"error": str(e)}
    with replacing(job.out) as part:
        part.write_text(json.dumps(result))
    return 0


def main(path: str) -> int:
    """Runs the job at `path`."""
    return finish(Job.loads(Path(path).read_text()), run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
