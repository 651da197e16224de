"""Worked examples of a run for its report: reconstructions, forecasts, usage, neurons."""

from __future__ import annotations

from typing import Any

import numpy as np

from calm_jax import config, evaluation
from calm_jax.baselines.windows import Forecaster, origins
from calm_jax.files import replacing
from calm_jax.models.forecaster import CalM
from calm_jax.reconstruction import decoded
from calm_jax.runs import Trained
from calm_jax.tasks.codes import Codes
from calm_jax.uncertainty import Residuals, centre_of

RECONSTRUCTIONS = 6
FORECASTS = 6
FRAMES = 400  # of a reconstruction that is drawn


def write(
    trained: Trained,
    prepared: Any,
    scores: list[evaluation.Score],
    own: Forecaster,
    methods: dict[str, Forecaster],
    usage: dict[str, np.ndarray],
    residuals: Residuals | None = None,
) -> None:
    """Writes `evaluation/examples.npz`; what it holds is listed at `report.page`.

    `own` is the forecaster of the run; `residuals` give its forecasts of protocol B their
    quantiles.
    Examples are drawn from the test part with the seed of the run, not chosen.
    """
    run, experiment = trained.run, trained.run.experiment
    rng = np.random.default_rng(experiment.seed)
    arrays: dict[str, Any] = {f"usage_{part}": counts for part, counts in usage.items()}
    arrays |= reconstructions(trained.model, prepared, Codes(run.path("codes.h5")), rng)
    arrays |= forecasts(experiment.forecasting, prepared, own, methods, rng, residuals)
    arrays |= neuron_correlations(scores)
    arrays["rate"] = prepared.store.sessions[0].rate
    unit = prepared.store.sessions[0].unit
    arrays["unit"] = "z-scored" if experiment.preprocess.z_score else unit
    with replacing(run.path("evaluation", "examples.npz")) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def _draw(prepared: Any, rng: np.random.Generator, frames: int) -> tuple[int, int, int, int] | None:
    """A random session, test range of at least `frames` frames, and neuron that varies."""
    index = rng.permutation(len(prepared.store.sessions))
    for i in (int(i) for i in index):
        ranges = prepared.splits.parts[i]["test"]
        ranges = ranges[ranges[:, 1] - ranges[:, 0] >= frames]
        alive = np.flatnonzero(~prepared.scalers.constant[i])
        if len(ranges) and len(alive):
            a, b = ranges[rng.integers(len(ranges))]
            return i, int(a), int(b), int(rng.choice(alive))
    return None


def _label(prepared: Any, i: int, a: int, n: int) -> str:
    info = prepared.store.sessions[i]
    return f"{info.session}, neuron {prepared.store.neuron_ids(i)[n]}, frame {a}"


def reconstructions(
    model: CalM, prepared: Any, codes: Codes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """recon_true, recon_pred (R, T) with NaN behind short trials, recon_label (R,)."""
    patch = model.tokenizer.config.patch
    true, pred, label = [], [], []
    for _ in range(RECONSTRUCTIONS):
        drawn = _draw(prepared, rng, patch)
        if drawn is None:
            return {}
        i, a, b, n = drawn
        z, _ = prepared.range(i, a, b)
        found = codes.range(i, a, b)[n : n + 1]
        frames = decoded(model.tokenizer, found, codes.segment)[:FRAMES, 0]
        true.append(z[: len(frames), n])
        pred.append(frames)
        label.append(_label(prepared, i, a, n))
    size = max(map(len, true))
    pad = lambda rows: np.stack(  # noqa: E731
        [np.pad(r, (0, size - len(r)), constant_values=np.nan) for r in rows]
    )
    return {"recon_true": pad(true), "recon_pred": pad(pred), "recon_label": np.array(label)}


def forecasts(
    s: config.Forecasting,
    prepared: Any,
    own: Forecaster,
    methods: dict[str, Forecaster],
    rng: np.random.Generator,
    residuals: Residuals | None = None,
) -> dict[str, np.ndarray]:
    """Protocol B windows with their quantiles where fitted; keys begin with fc_."""
    out: dict[str, list] = {k: [] for k in ("context", "true", "mean", "quantiles", "baselines")}
    label = []
    for _ in range(FORECASTS):
        drawn = _draw(prepared, rng, s.context + s.horizon)
        if drawn is None:
            return {}
        i, a, b, n = drawn
        z, mask = prepared.range(i, a, b)
        o = int(rng.choice(origins(a, b, s.context, s.horizon, 1))) - a
        context, seen = z[None, o - s.context : o], mask[None, o - s.context : o]
        made = own(context, i, seen, s.horizon)
        out["context"].append(context[0, :, n])
        out["true"].append(z[o : o + s.horizon, n])
        out["mean"].append(made[0, :, n])
        if residuals is not None:
            centre = centre_of(own, residuals)
            around = made if centre is own else centre(context, i, seen, s.horizon)
            spread = residuals.quantiles(around, context, seen, i, s.quantiles)
            out["quantiles"].append(spread[:, 0, :, n])
        others = [f(context, i, seen, s.horizon)[0, :, n] for f in methods.values()]
        out["baselines"].append(np.stack(others))
        label.append(_label(prepared, i, a + o, n))
    arrays = {f"fc_{k}": np.stack(v) for k, v in out.items() if v}
    if residuals is not None:
        arrays |= {"fc_levels": np.array(s.quantiles), "fc_spread": np.array("validation")}
    return arrays | {
        "fc_baseline_names": np.array(list(methods)),
        "fc_label": np.array(label),
    }


def neuron_correlations(scores: list[evaluation.Score]) -> dict[str, np.ndarray]:
    """neuron_r (methods, neurons), protocol B where it was scored, and neuron_r_names."""
    protocol = "B" if any(s.protocol == "B" for s in scores) else "A"
    by_method: dict[str, list] = {}
    for s in scores:
        if s.protocol == protocol:
            by_method.setdefault(s.method, []).append(s.per_neuron()["r"])
    if not by_method:
        return {}
    return {
        "neuron_r": np.stack([np.concatenate(v) for v in by_method.values()]),
        "neuron_r_names": np.array(list(by_method)),
    }
