"""A run's forecasts scored: on its own test part, or on recordings of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from calm_jax import (
    baselines,
    config,
    evaluation,
    quantile_files,
    rows,
    runs,
    stacking,
    uncertainty,
    weights,
)
from calm_jax import scored_windows as scored
from calm_jax.baselines.windows import Forecaster
from calm_jax.calibration import quantile_rows
from calm_jax.errors import CalmError, RecordingError
from calm_jax.forecasting import CalmForecaster, all_constant
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.formats import sessions_in
from calm_jax.recordings.loading import load_session
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.store import open_store
from calm_jax.report import console as tables
from calm_jax.runs import Trained

_NEURONS_AT_ONCE = 4096  # windows x neurons of one forecast: bounds its memory
_BATCH = 16  # windows of one call of a forecaster
NETWORK = "calm_network"  # the network alone, where "calm" is more than that


class Found(NamedTuple):
    """Rows, scores, fitted quantiles by protocol, and what was scored as "calm"."""

    rows: list[rows.Row]
    scores: list[evaluation.Score]
    residuals: dict[str, uncertainty.Residuals]
    calm: Forecaster


def baselines_of(experiment: config.Experiment, prepared: Prepared) -> dict[str, Forecaster]:
    """The baselines that stand beside every evaluation, fitted when first used."""
    return baselines.fit_all(prepared, prepared.splits, experiment.forecasting.horizon)


def forecast_rows(
    trained: Trained,
    prepared: Prepared,
    methods: dict[str, Forecaster],
    *,
    known: bool = True,
    part: str = "test",
) -> Found:
    """Rows and scores of the model beside its baselines; its quantiles by protocol.

    With members to weigh (`forecasting.stack`) "calm" is the weighted forecast and
    "calm_network" the network alone. Weights that the run does not have yet are fitted.

    The quantiles of every method come from its errors on the validation part
    (`uncertainty`), and are scored on `part` as the forecasts are; without a validation
    window there are none.

    Args:
      known: False when the sessions are not those of the run (mean embeddings).
    """
    experiment = trained.run.experiment
    settings, sessions = experiment.forecasting, prepared.store.sessions
    most = max(s.n_neurons for s in sessions)
    network = CalmForecaster(
        trained.model,
        trained.offsets() if known else None,
        most,
        mode=settings.mode,
        batch=min(max(_NEURONS_AT_ONCE // most, 1), 16),
        samples=settings.samples if settings.mode == "sample" else 0,
        seed=experiment.seed,
    )
    own, alone = network, {}
    if known and settings.stack:
        network = stacking.Remembered(network)
        own, maps = stacked(trained, prepared, network, methods)
        alone = {NETWORK: network}
        methods = {name: maps.get(name, f) for name, f in methods.items()}
    every = {"calm": own, **alone, **methods}
    scores, spread, fitted = [], [], {}
    index_of = {
        protocol: [
            i
            for i in range(len(sessions))
            if scored.plan(prepared, prepared.splits, i, part, protocol, settings) is not None
        ]
        for protocol in settings.protocols
    }
    for i in set(range(len(sessions))).difference(*index_of.values()):
        evaluation.score_forecasts(  # says that the session cannot be forecast
            prepared, prepared.splits, every, settings, part, sessions=[i]
        )
    for protocol, index in index_of.items():
        if not index or not uncertainty.possible(prepared, settings, protocol):
            scores += evaluation.score_forecasts(
                prepared, prepared.splits, every, settings, part,
                sessions=index, protocols=[protocol], batch=_BATCH,
            )  # fmt: skip
            continue
        inner = None
        if alone:
            inner = uncertainty.fit(prepared, network, settings, protocol, batch=_BATCH)
            fitted[protocol + uncertainty.ALONE] = inner
        for name, f in every.items():
            residuals = inner
            if name != NETWORK:
                residuals = uncertainty.fit(prepared, f, settings, protocol, batch=_BATCH)
            if name == "calm":
                residuals = residuals if inner is None else uncertainty.centred(residuals, inner)
                fitted[protocol] = residuals
            both = uncertainty.Calibrated(f, residuals)
            for i in index:
                scores += evaluation.score_forecasts(
                    prepared, prepared.splits, {name: both}, settings, part,
                    sessions=[i], protocols=[protocol], batch=_BATCH,
                )  # fmt: skip
                spread += quantile_rows(
                    prepared, prepared.splits, name, both, settings, protocol, part,
                    sessions=[i], seed=experiment.seed, batch=_BATCH,
                )  # fmt: skip
                both.forget()
    found = evaluation.rows_of(scores, experiment.seed) + rows.averaged(spread)
    return Found(found, scores, fitted, own)


def stacked(
    trained: Trained,
    prepared: Prepared,
    network: Forecaster,
    methods: Mapping[str, Forecaster],
) -> tuple[stacking.Stack, dict[str, Forecaster]]:
    """The network weighted with closed-form maps, and these; weights of the run, or fitted and
    kept. The maps remember: each is asked for itself too, and some hold few fitted sessions."""
    settings, path = trained.run.experiment.forecasting, trained.run.path(stacking.FILE)
    others = {
        name: stacking.Remembered(f)
        for name, f in stacking.members(settings.stack, prepared, settings.horizon, methods).items()
    }
    weights = stacking.load(path)
    if weights is None:
        weights = {}
        for protocol in settings.protocols:
            found = stacking.fit(prepared, network, others, settings, protocol, batch=_BATCH)
            if found is not None:
                weights[settings.context_a if protocol == "A" else settings.context] = found
        stacking.save(path, weights)
    return stacking.Stack(network, others, weights), others


def evaluate_run(
    folder: Path,
    *,
    data: Path | None = None,
    options: Sequence[str] = (),
    out: Path | None = None,
) -> list[rows.Row]:
    """Scores a run on its test part, or on other recordings, beside the baselines.

    Other recordings are split like those of the run: baselines and scalers are fitted
    on their training part, the model itself is not (mean embeddings). `options` are the
    reader's, `name=value`.

    Raises:
      RunError, RecordingError: for a run or recordings that cannot be used.
    """
    trained = weights.load(folder)
    run, e = trained.run, trained.run.experiment
    console = Console(stderr=True, highlight=False)
    say = lambda text: console.print(text, soft_wrap=True, markup=False)
    if data is None:
        weights.check_recordings(run)
        store = open_store(build(e.data, console))
        prepared = Prepared(store, runs.load_split(run, store), trained.scalers)
        made = forecast_rows(trained, prepared, baselines_of(e, prepared))
        _keep(run, made.residuals, say)
        found = rows.read(run.path("evaluation", "tokenizer.json")) + made.rows
    else:
        store = MemoryStore(recordings_of(data, e, options))
        made = splits.make_split(store, e.split)
        scalers = preprocess.fit(store, made, e.preprocess)
        check_varying(made.sessions, scalers)
        prepared = Prepared(store, made, scalers)
        say(
            f"{data}: scored as recordings never seen in training, with {trained.for_strangers}"
        )
        methods = baselines_of(e, prepared)
        found = forecast_rows(trained, prepared, methods, known=False).rows
    if out is not None:
        rows.write(found, Path(out))
        say(f"wrote {len(found)} rows to {out}")
    tables.print_summary(found, Console(highlight=False))
    return found


def _keep(run: runs.Run, fitted: dict[str, uncertainty.Residuals], say: Any) -> None:
    """Gives a run of an earlier version the quantiles that `calm-jax forecast` writes."""
    path = run.path(quantile_files.FILE)
    if path.exists():
        return
    try:
        quantile_files.save(path, fitted)
    except (OSError, CalmError) as e:
        say(f"the quantiles of its forecasts could not be kept in the run: {e}")
    else:
        say(f"wrote {path}: forecasts of this run have quantiles from now on")


def recordings_of(path: Path, e: config.Experiment, options: Sequence[str]) -> list[Any]:
    """The sessions of a file or folder, long enough to be scored."""
    path, settings = Path(path), e.forecasting
    files = sessions_in(path) if path.is_dir() else [path]
    found = [load_session(p, options, e.data.rate) for p in files]
    needed, seen = settings.context + settings.horizon, set()
    for session in found:
        if session.n_frames < needed:
            raise RecordingError(
                "fewer frames than context + horizon",
                where=f"{path}, session {session.session}",
                found=session.n_frames,
                expected=f"at least {settings.context} + {settings.horizon}",
                remedy="Leave the recording out.",
            )
        key = (session.animal, session.session)
        if key in seen:
            raise RecordingError(
                f"two recordings of animal {key[0]!r} have the session id {key[1]!r}",
                where=path,
                remedy="Give each its own `session`, or leave one of the files out.",
            )
        seen.add(key)
    return found


def check_varying(sessions: Sequence[str], scalers: preprocess.Scalers) -> None:
    """Raises a `RecordingError` for a session without a single neuron that varies."""
    for session, constant in zip(sessions, scalers.constant, strict=True):
        if constant.all():
            raise all_constant(session, constant.size)
