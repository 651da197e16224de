"""Forecasts with a trained run: contexts, batches of windows, its maps and quantiles."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import quantile_files, stacking, uncertainty, weights
from calm_jax.errors import CalmError, RecordingError
from calm_jax.models.forecaster import CalM, Context, Forecast, forecast
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared, bucket
from calm_jax.recordings.build import build
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import open_store
from calm_jax.runs import Trained, load_split
from calm_jax.weights import load

__all__ = ["CalmForecaster", "forecast", "load", "make_context"]

_NEURONS = 8  # neurons are padded to a multiple of this: sessions share compilations


class CalmForecaster:
    """The model as a `baselines.windows.Forecaster`, in batches of one shape.

    Args:
      model: tokenizer and transformer.
      offsets: (S,) first row of each session's neurons in the table, -1 for a session
        that training never saw; None when it saw none of them.
      neurons: width of a batch, at least the neurons of the largest session.
      mode: as in `forecast`. batch: windows at a time.
    """

    def __init__(
        self,
        model: CalM,
        offsets: np.ndarray | None,
        neurons: int,
        *,
        mode: str,
        batch: int = 16,
        samples: int = 0,
        quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9),
        seed: int = 0,
    ):
        self._model, self._offsets, self._mode, self._batch = model, offsets, mode, batch
        self._neurons = bucket(neurons, _NEURONS)
        self._samples, self._quantiles = samples, quantiles
        self._key = jax.random.key(seed)

    def __call__(
        self, context: np.ndarray, session: int, mask: np.ndarray, horizon: int
    ) -> np.ndarray:
        """Shapes: context (B, context, N) scaled -> (B, horizon, N)."""
        return self.predict(context, session, horizon).mean

    def predict(self, context: np.ndarray, session: int, horizon: int) -> Forecast:
        """Mean (B, horizon, N) and quantiles (levels, B, horizon, N) as numpy arrays."""
        n = context.shape[2]
        rows = np.full(self._neurons, -1, np.int32)
        known = -1
        if self._offsets is not None and self._offsets[session] >= 0:
            rows[:n] = self._offsets[session] + np.arange(n)
            known = session
        real = np.arange(self._neurons) < n
        size = self._batch
        means, spreads = [], []
        for first in range(0, len(context), size):
            part = context[first : first + size]
            x = np.zeros((size, context.shape[1], self._neurons), np.float32)
            x[: len(part), :, :n] = part
            given = Context(
                jnp.asarray(x),
                jnp.asarray(np.broadcast_to(rows, (size, rows.size))),
                jnp.full((size,), known, jnp.int32),
                jnp.asarray(np.broadcast_to(real, (size, real.size))),
            )
            out = forecast(
                self._model,
                given,
                horizon,
                key=jax.random.fold_in(self._key, first),
                mode=self._mode,
                samples=self._samples,
                quantiles=self._quantiles,
            )
            means.append(np.asarray(out.mean)[: len(part), :, :n])
            if out.quantiles is not None:
                spreads.append(np.asarray(out.quantiles)[:, : len(part), :, :n])
        return Forecast(np.concatenate(means), np.concatenate(spreads, 1) if spreads else None)


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """A context made from a recording, and the way back to its unit.

    Attributes:
      context: a `Context` with one window (B = 1).
      mean, sd: (N,), traces = scaled * sd + mean.
      session: index in the run, None for a recording or session it was not trained on.
      seen: (frames, N) bool, the valid frames of the context.
      notes: what was decided, one line each.
    """

    context: Context
    mean: np.ndarray
    sd: np.ndarray
    session: int | None
    seen: np.ndarray
    notes: tuple[str, ...]


def make_context(
    trained: Trained, session: Session, frames: int, origin: int | None = None
) -> Given:
    """The scaled `frames` frames before `origin`, with their rows in the tables.

    Only frames before the origin are looked at. A recording of the run keeps its
    scalers and embeddings; any other is scaled by its own frames before the origin and
    takes the mean embeddings, as does a held-out session (a note says so).

    Args:
      origin: first forecast frame; default the end of the recording.

    Raises:
      RecordingError: when the context leaves the recording or crosses a trial's edge,
        or nothing varies before the origin.
    """
    settings = trained.run.experiment.preprocess
    origin = session.n_frames if origin is None else int(origin)
    if not 0 < origin <= session.n_frames:
        raise RecordingError(
            "the origin lies outside the recording",
            where=f"session {session.session}",
            found=f"origin {origin}",
            expected=f"1 to {session.n_frames}",
        )
    first = _first_frame(session, origin)
    if origin - first < frames:
        inside = "of this trial" if len(session.trials) else "of this recording"
        raise RecordingError(
            "fewer frames than the context",
            where=f"session {session.session}",
            found=f"{origin - first} frames {inside} before the origin {origin}",
            expected=f"{frames}",
            remedy="Give a later --origin or a shorter --context.",
        )
    notes = []
    traces, mask = session.traces[:origin], session.mask[:origin]
    i = trained.table.find(session.session, session.animal, session.neurons.id)
    if i is None:
        notes.append(
            "this recording is not part of the run: it is forecast with "
            f"{trained.for_strangers}; adapting the run to it (`calm-jax adapt`) may do better"
        )
        scalers, k = preprocess.fit_frames(traces, mask, settings), 0
        rows, row = np.full(session.n_neurons, -1, np.int32), -1
    else:
        scalers, k, row = trained.scalers, i, i
        rows = (trained.table.offset[i] + np.arange(session.n_neurons)).astype(np.int32)
        if trained.held_out()[i]:
            notes.append(
                "this session was held out from training: it is forecast with "
                f"{trained.for_strangers}"
            )
            rows, row = np.full_like(rows, -1), -1
    constant = int(scalers.constant[k].sum())
    if constant == session.n_neurons:
        raise all_constant(session.session, constant)
    if constant:
        notes.append(f"{constant} of {session.n_neurons} traces are constant or all but silent")
    rate = float(np.median(trained.table.rate))
    if not 0.95 < session.rate / rate < 1.05:
        notes.append(
            f"the recording has {session.rate:.4g} frames per second, the run was trained at "
            f"{rate:.4g}: resample it for a forecast to be trusted"
        )
    z = scalers.apply(k, traces[first:], mask[first:])[-frames:]
    given = Context(
        jnp.asarray(z)[None],
        jnp.asarray(rows)[None],
        jnp.full((1,), row, jnp.int32),
        jnp.ones((1, session.n_neurons), bool),
    )
    seen = mask[first:][-frames:]
    known = None if row < 0 else row
    return Given(given, scalers.mean[k], scalers.sd[k], known, seen, tuple(notes))


def all_constant(session: str, neurons: int) -> RecordingError:
    """The error for a session in which nothing varies."""
    return RecordingError(
        "every trace is constant where the scaling is fitted: there is nothing to forecast",
        where=f"session {session}",
        found=f"{neurons} constant traces",
        remedy="Leave the recording out, or look whether its traces were read correctly.",
    )


def _first_frame(session: Session, origin: int) -> int:
    """The first frame a context may hold: that of the trial the frame before origin is in."""
    trials = session.trials
    inside = np.flatnonzero((trials.start < origin) & (origin <= trials.stop))
    if inside.size:
        return int(trials.start[inside[0]])
    before = trials.stop[trials.stop < origin]
    return int(before[-1]) if before.size else 0


def with_maps(trained: Trained, made: Forecast, given: Given) -> tuple[Forecast, bool, list[str]]:
    """The network's forecast (1, H, N) weighted with the closed-form maps of the run.

    The maps are fitted to the recordings of the run, which have to be there.

    Returns:
      the forecast, whether it is weighted, and what is to be told.

    Raises:
      RunError: when the file of the weights is damaged.
    """
    run, e = trained.run, trained.run.experiment
    context = np.asarray(given.context.traces)
    every = stacking.load(run.path(stacking.FILE)) or {}
    fitted = every.get(context.shape[1])
    if not every or given.session is None:  # of a recording unknown to the run a note tells
        return made, False, []
    if fitted is None or given.session not in fitted.sessions:
        own = [str(c) for c, w in sorted(every.items()) if given.session in w.sessions]
        return made, False, [
            "the network alone: the run has weights of closed-form maps "
            + (f"for contexts of {' and '.join(own)} frames" if own else "for other sessions")
        ]
    try:
        weights.check_recordings(run)
        store = open_store(build(e.data, existing=True))
        prepared = Prepared(store, load_split(run, store), trained.scalers)
        others = stacking.members(fitted.members[1:], prepared, e.forecasting.horizon, {})
        stack = stacking.Stack(
            lambda *_: np.asarray(made.mean), others, {context.shape[1]: fitted}
        )
        mean = stack(context, given.session, given.seen[None], made.mean.shape[1])
    except CalmError as error:
        return made, False, [
            "the network alone: the recordings of the run, which the maps it is weighted with "
            f"are fitted to, cannot be read ({error.what})"
        ]
    return Forecast(mean, None), True, []


def with_quantiles(
    trained: Trained,
    made: Forecast,
    given: Given,
    levels: tuple[float, ...],
    *,
    network: Forecast | None = None,
) -> tuple[Forecast, list[str]]:
    """A forecast (1, H, N) with the quantiles fitted with the run, and what is to be told.

    Protocol B's are used where they reach far enough, else A's.

    Args:
      network: where the forecast is that of `with_maps`, what it was made of; None: the forecast
        is that of the network alone.

    Raises:
      RunError: when their file is damaged. ConfigError: for a level that was not fitted.
    """
    fitted = quantile_files.load(trained.run.path(quantile_files.FILE))
    if not fitted:
        return made, [
            "no quantiles: none were fitted with this run, which is of an earlier version or "
            f"exported; `calm-jax evaluate {trained.run.folder}` fits them"
        ]
    alone = {p for p in fitted if p.endswith(uncertainty.ALONE)}
    if alone and network is None:
        fitted = {p.removesuffix(uncertainty.ALONE): fitted[p] for p in alone}
    else:
        fitted = {p: r for p, r in fitted.items() if p not in alone}
    horizon, notes = made.mean.shape[1], []
    enough = [p for p in ("B", "A") if p in fitted and fitted[p].horizon >= horizon]
    chosen = enough[0] if enough else max(fitted, key=lambda p: fitted[p].horizon)
    residuals = fitted[chosen]
    if not enough:
        notes.append(
            f"quantiles were fitted for {residuals.horizon} frames ahead: later frames have the "
            "width of the last of these, which is too narrow"
        )
    if given.session not in residuals.sigma:
        notes.append(
            "no validation part of this recording is known to the run: its quantiles are scaled "
            "by the context alone, and their coverage here was not measured"
        )
    context = np.asarray(given.context.traces)
    inner = network is not None and residuals.centre == uncertainty.NETWORK
    around = network if inner else made
    q = residuals.quantiles(
        np.asarray(around.mean), context, given.seen[None], given.session, levels
    )
    return Forecast(made.mean, q), notes
