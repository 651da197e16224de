"""A recording in, its forecast out: an npz in the unit of the input, or a copy of an NWB file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from calm_jax.files import replacing
from calm_jax.forecasting import make_context, with_maps, with_quantiles
from calm_jax.models.forecaster import Forecast, forecast
from calm_jax.recordings import nwb_results
from calm_jax.recordings.loading import load_session
from calm_jax.recordings.session import Session
from calm_jax.weights import load


def forecast_file(
    run: Path | str,
    file: Path | str,
    *,
    context: int | None = None,
    horizon: int | None = None,
    origin: int | None = None,
    samples: int = 0,
    options: tuple[str, ...] = (),
    out: Path | str | None = None,
    nwb: Path | str | None = None,
) -> tuple[Forecast, tuple[str, ...]]:
    """Forecasts a recording and writes it in the unit of the input.

    The npz at `out` holds `mean` (horizon, N), `origin`, `rate`, `neuron` (ids), `unit`,
    `quantiles` (levels, horizon, N) and `levels`. Quantiles come from the errors of the run's
    forecasts on its validation part (`uncertainty`), or, with samples, from so many
    trajectories of drawn codes, whose spread is not calibrated. A run whose recordings
    were resampled (`data.rate`) forecasts this one at the same rate.

    Args:
      options: of the reader, `name=value`.
      nwb: where `file` is an NWB 2 file, the copy of it to write with the forecast
        (`recordings.nwb_results.add_predictions`).

    Returns:
      the forecast in the unit of the input, and the notes.

    Raises:
      RunError, RecordingError: for a run or file that cannot be used.
    """
    if nwb is not None:
        nwb_results.check(file, nwb)
    trained = load(run)
    settings = trained.run.experiment.forecasting
    session = load_session(file, options, trained.run.experiment.data.rate)
    frames = settings.context if context is None else context
    horizon = settings.horizon if horizon is None else horizon
    given = make_context(trained, session, frames, origin)
    made = forecast(
        trained.model,
        given.context,
        horizon,
        key=jax.random.key(trained.run.experiment.seed),
        mode=settings.mode,
        samples=samples or (settings.samples if settings.mode == "sample" else 0),
        quantiles=settings.quantiles,
        temperature=settings.temperature,
    )
    notes = list(given.notes)
    if made.quantiles is None:
        network = made
        made, weighted, more = with_maps(trained, made, given)
        notes += more
        made, more = with_quantiles(
            trained, made, given, settings.quantiles, network=network if weighted else None
        )
        notes += more
    back = lambda z: np.asarray(z)[..., 0, :, :] * given.sd + given.mean  # noqa: E731
    result = Forecast(back(made.mean), None if made.quantiles is None else back(made.quantiles))
    arrays: dict[str, Any] = {
        "mean": result.mean.astype(np.float32),
        "origin": session.n_frames if origin is None else int(origin),
        "rate": session.rate,
        "neuron": session.neurons.id,
        "unit": session.unit,
    }
    if result.quantiles is not None:
        arrays["quantiles"] = result.quantiles.astype(np.float32)
        arrays["levels"] = np.asarray(settings.quantiles)
    if out is not None:
        with replacing(Path(out)) as part, open(part, "wb") as f:
            np.savez(f, **arrays)
    if nwb is not None:
        nwb_results.add_predictions(
            file,
            nwb,
            result.mean,
            _frame_times(session, arrays["origin"], horizon),
            neurons=session.neurons.id,
            unit=session.unit,
            description=f"calm_jax forecast of frame {arrays['origin']} and those after it, "
            f"from the {frames} frames before",
            quantiles=result.quantiles,
            levels=settings.quantiles,
        )
    return result, tuple(notes)


def _frame_times(session: Session, first: int, count: int) -> np.ndarray:
    """(count,) seconds of the frames from `first`; regular beyond the end of the recording."""
    times = session.times
    beyond = times[-1] + np.arange(1, count + 1) / session.rate
    return np.concatenate([times[first:], beyond])[:count]
