"""Low-dimensional dynamics of a run's forecasts beside those of POCO and population ridge."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np

from calm_jax.analyses.material import Material, each_session
from calm_jax.analyses.result import Result
from calm_jax.analysis.dynamics import dynamics
from calm_jax.baselines import copy_last, poco, population_ridge
from calm_jax.errors import AnalysisError, CalmError
from calm_jax.files import replacing

TRIALS = 24  # windows forecast per session, drawn with the seed
_TRAINING = 4000  # training frames that the components are fitted on
_RIDGE = 4000  # training windows of the ridge, which reads the last frame alone


def run(material: Material, result: Result) -> None:
    """Projects forecasts of test windows on the components of the training traces."""
    context, horizon, what = plan(material)
    result.facts |= {
        "context": context, "horizon": horizon, "windows": what, "rate": material.rate,
        "sessions": material.names(), "poco_seconds": material.settings.poco_seconds,
    }  # fmt: skip
    windows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for i in each_session(material, result.missing, "dynamics"):
        try:
            windows[i] = material.windows(i, "test", context, horizon, TRIALS)
        except CalmError as e:
            result.missing.append(f"dynamics of session {material.names()[i]}: {e}")
    if not windows:
        result.missing.append("low-dimensional dynamics: no session has a test window")
        return
    methods = _methods(material, result, context, horizon, windows)
    for i, (x, y) in windows.items():
        name, animal = material.names()[i], material.animals()[i]
        alive = material.alive(i)
        made = {"calm": material.forecast(i, x, horizon)[:, :, alive]}
        for method, forecaster in methods.items():
            try:
                made[method] = forecaster(x, i)[:, :, alive]
            except CalmError as e:
                result.missing.append(f"dynamics of {method} in session {name}: {e}")
        train = np.concatenate([z[m.all(1)] for z, m in material.scaled(i, "train")])
        train = train[:: max(1, len(train) // _TRAINING)][:, alive]
        try:
            found = dynamics(y[:, :, alive], made, fit_on=train, seed=result.seed)
        except AnalysisError as e:
            result.missing.append(f"dynamics of session {name}: {e}")
            continue
        result.keep(f"session{i}", found)
        if found.components < found.asked:
            result.missing.append(
                f"session {name}: {found.components} of {found.asked} components, for it has "
                f"{int(alive.sum())} neurons that vary"
            )
        where = {"session": name, "animal": animal}
        for method in made:
            weight = found.share / found.share.sum()
            result.put(method, "r_first", found.r[method][0], **where)
            result.put(method, "r_mean", float(np.nanmean(found.r[method])), **where)
            result.put(method, "r_weighted", float(np.nansum(found.r[method] * weight)), **where)
            explained = float(np.nansum(found.explained[method] * weight))
            result.put(method, "explained_weighted", explained, **where)
            null = float(np.nanmean(found.null[method])) if len(found.null[method]) else np.nan
            result.put(method, "r_null", null, **where)
            result.put(method, "p_first", found.p[method][0], **where)
    _averages(result)


def plan(material: Material) -> tuple[int, int, str]:
    """Context, horizon and what a window is: whole trials as in protocol A, else protocol B."""
    f = material.experiment.forecasting
    lengths = [b - a for i in range(len(material.sessions)) for a, b in material.frames(i, "test")]
    shortest = int(min(lengths))
    trials = all(len(s.trials) for s in material.sessions)
    if trials and shortest > f.context_a + 4:
        # Beyond a minute of frames a forecast is all mean: long trials are cut.
        horizon = min(shortest - f.context_a, 4 * f.horizon)
        return f.context_a, horizon, "trials"
    return f.context, f.horizon, "windows"


def _methods(
    material: Material, result: Result, context: int, horizon: int, windows: dict
) -> dict[str, Callable]:
    """name -> (contexts, session) -> forecasts, of what stands beside the model."""
    prepared, trained = material.prepared, material.experiment.forecasting.horizon
    ridge = population_ridge.fit(prepared, prepared.splits, context, min(trained, horizon),
                                 lags=(1,), limit=_RIDGE)  # fmt: skip
    seen = lambda x: np.ones(x.shape, bool)  # noqa: E731
    copy = copy_last.fit(prepared, prepared.splits, context, horizon)
    methods = {
        "population_ridge": lambda x, i: ridge(x, i, seen(x), horizon),
        "copy_last": lambda x, i: copy(x, i, seen(x), horizon),
    }
    seconds = material.settings.poco_seconds
    if seconds <= 0:
        result.missing.append("POCO: left out, for its budget is 0 s (--poco-seconds)")
        return methods
    try:
        made = _poco(material, context, min(trained, horizon), horizon, windows)
    except CalmError as e:
        result.missing.append(f"POCO: {e}")
        return methods
    return {"poco": lambda x, i: made[i], **methods}


def _poco(
    material: Material, context: int, fitted: int, horizon: int, windows: dict
) -> dict[int, np.ndarray]:
    """Forecasts of POCO for every session; kept in `poco.npz` and made again only where the
    recordings, the windows, the budget or the seed are others."""
    s = material.settings
    digest = hashlib.sha256(
        repr((material.prepared.splits.hash, context, fitted, horizon, s.seed, s.poco_seconds))
        .encode()
    )  # fmt: skip
    for x, _ in windows.values():
        digest.update(np.ascontiguousarray(x).tobytes())
    mark, path = digest.hexdigest()[:16], material.folder / "poco.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["mark"]) == mark:
                return {i: file[str(i)] for i in windows}
    except (OSError, ValueError, KeyError):
        pass  # absent, damaged or of other settings: made anew
    material.say(f"training POCO for {s.poco_seconds:g} s")
    start = time.monotonic()
    net = poco.fit(material.prepared, material.prepared.splits, context, fitted,
                   budget_seconds=s.poco_seconds, seed=s.seed)  # fmt: skip
    material.say(f"POCO took {time.monotonic() - start:.0f} s")
    made = {i: net(x, i, np.ones(x.shape, bool), horizon) for i, (x, _) in windows.items()}
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, mark=mark, **{str(i): v for i, v in made.items()})
    return made


def _averages(result: Result) -> None:
    """Means over sessions of every metric."""
    pairs = dict.fromkeys((r["method"], r["metric"]) for r in result.rows)
    for method, metric in pairs:
        values = [
            r["value"] for r in result.rows
            if r["method"] == method and r["metric"] == metric and r["session"] is not None
        ]  # fmt: skip
        if np.isfinite(values).any():
            result.put(method, metric, float(np.nanmean(values)))
