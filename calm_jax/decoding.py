"""Behaviour decoded from a run: heads trained on its features, baselines beside them."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from calm_jax import config, pooled_decoder, runs, weights
from calm_jax import decoding_scores as scores
from calm_jax.baselines.behavior import linear
from calm_jax.baselines.behavior.tcn import TCNNetwork
from calm_jax.decoding_files import Saved, neuron_rows, save
from calm_jax.decoding_scores import DecodingRow
from calm_jax.errors import CalmError, RunError
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.conditioning import align_behavior
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import open_store
from calm_jax.recordings.targets import Target, make_targets
from calm_jax.runs import Trained
from calm_jax.scoring import check_varying, recordings_of
from calm_jax.tasks.behavior import Behavior, Network, Populations, network_size
from calm_jax.tasks.behavior_heads import FeatureReader, FrozenHead, TunedHead
from calm_jax.training.log import Log
from calm_jax.training.loop import train

PARTS = splits.PARTS


@dataclasses.dataclass(frozen=True, eq=False)
class Recordings:
    """What is decoded from.

    Attributes:
      sessions: with behaviour on the imaging frames. prepared: their traces.
      table: per session the rows (N,) in the backbone's tables and the session's row, -1
        for the mean rows. notes: what was decided, one line each.
    """

    sessions: tuple[Session, ...]
    prepared: Prepared
    table: tuple[tuple[np.ndarray, int], ...]
    notes: tuple[str, ...]


def recordings(trained: Trained, data: Path | None, options: Sequence[str] = ()) -> Recordings:
    """The recordings at `data`, or those of the run, split and scaled as a run does it.

    A session that trained the run keeps its embeddings; others take the mean embeddings.

    Raises:
      RunError: for a session of the run whose split is another one here: frames that the
        run was trained on would be tested.
      RecordingError: for recordings that cannot be used.
    """
    e, notes = trained.run.experiment, []
    if data is None:
        weights.check_recordings(trained.run)
        store = open_store(build(e.data, Console(stderr=True, highlight=False)))
        prepared = Prepared(store, runs.load_split(trained.run, store), trained.scalers)
        sessions = [store.session(i) for i in range(len(store.sessions))]
    else:
        sessions = recordings_of(Path(data), e, options)
        store = MemoryStore(sessions)
        made = splits.make_split(store, e.split)
        scalers = preprocess.fit(store, made, e.preprocess)
        check_varying(made.sessions, scalers)
        prepared = Prepared(store, made, scalers)
    table, held_out, strangers = [], trained.held_out(), []
    for i, s in enumerate(sessions):
        row = trained.table.find(s.session, s.animal, s.neurons.id)
        if row is not None and not held_out[row]:
            if data is not None:
                _check_split(trained, row, prepared.splits, i)
            own = trained.table.offset[row] + np.arange(s.n_neurons)
            table.append((own.astype(np.int32), int(row)))
        else:
            strangers.append(s.session)
            table.append((np.full(s.n_neurons, -1, np.int32), -1))
    if strangers:
        some = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        notes.append(
            f"{len(strangers)} of {len(sessions)} sessions never trained the run ({some}): "
            "they take the mean embeddings"
        )
    aligned = tuple(align_behavior(s) for s in sessions)
    return Recordings(aligned, prepared, tuple(table), tuple(notes))


def _check_split(trained: Trained, row: int, made: splits.Splits, i: int) -> None:
    wanted = splits.read_parts(trained.run.path("split.json"), row)
    same = all(np.array_equal(wanted[p], made.parts[i][p]) for p in PARTS)
    if not same:
        raise RunError(
            "a recording of the run is not as it was there: its split would be another one",
            where=f"session {made.sessions[i]}",
            found=f"{made.n_frames[i]} frames",
            remedy="Give the recording that the run was trained on, or a run without it.",
        )


def limited(made: splits.Splits, sessions: Sequence[Session], minutes: float | None) -> Any:
    """The split with the first `minutes` of training frames of each session alone."""
    if minutes is None:
        return made
    parts = []
    for own, s in zip(made.parts, sessions, strict=True):
        left, kept = max(int(minutes * 60 * s.rate), 1), []
        for a, b in own["train"].tolist():
            if left > 0:
                kept.append([a, min(b, a + left)])
                left -= b - a
        parts.append({**own, "train": np.array(kept, np.int64)})
    return dataclasses.replace(made, parts=tuple(parts))


class Rows:
    """Gathers the rows of all sessions; shuffles of one session become one set of rows."""

    def __init__(self) -> None:
        self.rows: list[DecodingRow] = []
        self._shuffled: dict[tuple, list[dict[str, float]]] = {}
        self._of: dict[tuple, tuple[Target, Session]] = {}

    def put(
        self, method: str, target: Target, session: Session, seed: int | None, **values: float
    ) -> None:
        """One row per metric."""
        for metric, value in values.items():
            self.rows.append(
                DecodingRow(
                    method=method,
                    target=target.name,
                    session=session.session,
                    animal=session.animal,
                    seed=seed,
                    metric=metric,
                    value=float(value),
                )
            )

    def score(
        self,
        method: str,
        target: Target,
        session: Session,
        seed: int | None,
        outputs: np.ndarray,
        truth: np.ndarray,
    ) -> None:
        """The scores of outputs (T, O)."""
        found = scores.score(outputs, truth, target, null=method != "shuffled")
        if method != "shuffled":
            self.put(method, target, session, seed, **found)
            return
        known = [*scores.CONTINUOUS, *scores.CLASSES]
        kept = {k: v for k, v in found.items() if k in known}
        self._shuffled.setdefault((target.name, id(session)), []).append(kept)
        self._of[target.name, id(session)] = (target, session)

    def finish(self) -> list[DecodingRow]:
        """All rows with their means; decoders of shifted labels as mean and 95 % interval."""
        for key, found in self._shuffled.items():
            target, session = self._of[key]
            main = "r" if target.classes is None else "balanced_accuracy"
            values = {m: np.array([f[m] for f in found]) for m in found[0]}
            low, high = np.quantile(values[main], (0.025, 0.975))
            self.put("shuffled", target, session, None, **{m: v.mean() for m, v in values.items()})
            interval = {f"{main}_null_low": low, f"{main}_null_high": high}
            self.put("shuffled", target, session, None, **interval, n_null=len(found))
        self._shuffled = {}
        return scores.averaged(self.rows)


def decode(
    folder: Path | str,
    targets: Sequence[str],
    *,
    data: Path | None = None,
    classify: Sequence[str] = (),
    settings: config.Decoding | None = None,
    look_ahead: float | None = None,
    seeds: int = 3,
    baselines: bool = True,
    start: Path | None = None,
    name: str = "decoder",
    options: Sequence[str] = (),
    out: Path | None = None,
    console: Console | None = None,
) -> list[DecodingRow]:
    """Trains, evaluates and saves decoders of behaviour; prints and returns the rows.

    Args:
      folder: of the run. data: recordings; None = those of the run.
      targets: behaviour channels, or `trial/<column>`. classify: those to be classes.
      look_ahead: seconds after t that the decoder of frame t may read, in place of
        `settings.look_ahead`; at most so many whole frames.
      seeds: decoders trained. baselines: beside them.
      start: a saved decoder to begin with; its settings count where they make its shape.
      name: of the folder below `decoders/` of the run that the decoders are saved in.

    Raises:
      CalmError: for a run, recordings, targets or settings that cannot be used.
    """
    say = lambda text: (console or Console(stderr=True, highlight=False)).print(  # noqa: E731
        text, soft_wrap=True, markup=False
    )
    settings = settings or config.Decoding()
    saved = None if start is None else Saved.read(start)
    if saved is not None:
        settings = saved.adapt(settings)
    elif settings.rows_only:
        raise CalmError(
            "rows of neurons alone can be trained for a decoder that is given",
            where="--rows-only",
            remedy="Name it with --from.",
        )
    settings = pooled_decoder.settled(settings)
    trained = weights.load(folder)
    given = recordings(trained, data, options)
    rate = float(np.median([s.rate for s in given.sessions]))
    if look_ahead is not None:
        settings = dataclasses.replace(settings, look_ahead=int(look_ahead * rate + 1e-6))
    made = limited(given.prepared.splits, given.sessions, settings.minutes)
    wanted, notes = make_targets(
        given.sessions, made, targets, classify, None if saved is None else saved.classes()
    )
    if saved is not None:
        saved.check_targets(wanted)
    for note in (*given.notes, *notes):
        say(f"note: {note}")
    a = settings.look_ahead
    reads = "nothing after t" if a == 0 else f"up to {a} frames ({a / rate:.3g} s) after t"
    say(f"look-ahead: the decoder of frame t reads {reads}; so do the baselines")
    rows = Rows()
    problem = _Problem(trained, given, made, wanted, settings, rows)
    method = f"calm_{settings.head}" + ("_tuned" if settings.fine_tune else "")
    home = trained.run.path("decoders", name)
    if settings.head == "pooled":  # in closed form: the same for every seed
        fitted = problem.pooled(saved)
        problem.score(method, fitted.predict, None)
        save(home, trained, given.sessions, wanted, settings, rate)
        runs.save_arrays(home / "seed0.npz", fitted.arrays())
        for note in fitted.notes:
            say(f"{method}: {note}")
    else:
        network, populations = problem.own(saved)
        for seed in range(seeds):
            state, task = problem.train(network, populations, seed, home, saved)
            problem.score(method, _predictor(task, state), seed)
            if seed == 0:
                save(home, trained, given.sessions, wanted, settings, rate)
            runs.save_arrays(home / f"seed{seed}.npz", state.params)
            say(f"{method}, seed {seed}: step {state.step} of {settings.training.steps}")
    if baselines:
        problem.linear_baselines()
        tcn, traces = problem.tcn()
        for seed in range(seeds):
            state, task = problem.train(tcn, traces, seed, home, None)
            problem.score("tcn", _predictor(task, state), seed)
    found = rows.finish()
    if out is not None:
        scores.write(found, out)
        say(f"wrote {len(found)} rows to {out}")
    scores.write(found, home / "rows.json")
    scores.print_summary(found, wanted, console or Console(highlight=False))
    return found


def _predictor(task: Behavior, state: Any) -> Callable[[int, int, int], np.ndarray]:
    return lambda i, a, b: task.predict(state.params, state.extra, i, a, b)


class _Problem:
    """The recordings and targets, and the methods on them."""

    def __init__(
        self,
        trained: Trained,
        given: Recordings,
        made: splits.Splits,
        targets: Sequence[Target],
        settings: config.Decoding,
        rows: Rows,
    ):
        self.trained, self.given, self.splits = trained, given, made
        self.targets, self.settings, self.rows = targets, settings, rows
        counts = [s.n_neurons for s in given.sessions]
        self.offset = np.concatenate([[0], np.cumsum(counts)])
        self.outputs = network_size(targets)

    def _window(self) -> int:
        """Frames of the windows that the transformer was trained on."""
        longest = self.given.prepared.splits.ranges("train", range(len(self.given.sessions)))
        longest = int((longest[:, 2] - longest[:, 1]).max())
        return min(self.trained.run.experiment.transformer_training.window or longest, longest)

    def _traces(self, i: int, a: int, b: int) -> np.ndarray:
        return self.given.prepared.range(i, a, b)[0]

    def own(self, saved: Saved | None) -> tuple[Network, Populations]:
        """The head, on features or with its backbone."""
        model, s = self.trained.model, self.settings
        rows = int(self.offset[-1])
        if s.fine_tune:
            read = self._traces
            network: Network = TunedHead(model, s, rows, self.outputs, s.window)
        else:
            read = FeatureReader(model, self.given.prepared, self.given.table, s, self._window())
            network = FrozenHead(model, s, rows, self.outputs)
        return network, Populations(self.splits, read, self.offset, self.given.table)

    def pooled(self, saved: Saved | None) -> pooled_decoder.PooledDecoder:
        """The pooled decoder, fitted."""
        read = FeatureReader(
            self.trained.model, self.given.prepared, self.given.table, self.settings, self._window()
        )
        made = pooled_decoder.PooledDecoder(
            self._traces, read, self.splits, self.offset, self.targets, self.settings
        )
        width = self.trained.model.transformer.config.width + len(pooled_decoder.TAUS) + 1
        made.fit(None if saved is None else saved.directions(width))
        return made

    def tcn(self) -> tuple[Network, Populations]:
        """The TCN, on scaled traces."""
        network = TCNNetwork(self.settings, int(self.offset[-1]), self.outputs)
        populations = Populations(self.splits, self._traces, self.offset, self.given.table)
        return network, populations

    def train(
        self, network: Network, data: Populations, seed: int, home: Path, saved: Saved | None
    ) -> tuple[Any, Behavior]:
        """A trained decoder and its task."""
        s = self.settings
        start = None
        if saved is not None:
            start = neuron_rows(saved, self.given.sessions, self.offset, network, seed)
        else:
            s = dataclasses.replace(s, rows_only=False)
        task = Behavior(network, data, self.targets, s, seed=seed, start=start)
        training = dataclasses.replace(s.training, batch=task.rows)
        home.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".training-", dir=home))
        try:
            steps = s.training.steps
            return train(task, training, place, seed=seed, steps=steps, log=Log.silent()), task
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def score(
        self, method: str, predict: Callable[[int, int, int], np.ndarray], seed: int | None
    ) -> None:
        """Rows of the test part of every session; `predict(i, a, b)` decodes a range."""
        for i, session in enumerate(self.given.sessions):
            ranges = self.splits.parts[i]["test"].tolist()
            pred = None
            first = 0
            for t in self.targets:
                known = np.concatenate([t.known[i][a:b] for a, b in ranges])
                if known.any():
                    if pred is None:
                        pred = np.concatenate([predict(i, a, b) for a, b in ranges])
                    truth = np.concatenate([t.values[i][a:b] for a, b in ranges])[known]
                    outputs = pred[known, first : first + t.outputs]
                    self.rows.score(method, t, session, seed, outputs, truth)
                first += t.outputs

    def linear_baselines(self) -> None:
        """Ridge, reduced rank, logistic, time alone, the constants and shifted labels."""
        for i, session in enumerate(self.given.sessions):
            linear.run(
                self._traces,
                self.splits,
                i,
                session.n_frames,
                len(session.trials) > 0,
                self.targets,
                self.settings,
                lambda method, t, outputs, truth, s=session: self.rows.score(
                    method, t, s, None, outputs, truth
                ),
                lambda method, t, metric, value, s=session: self.rows.put(
                    method, t, s, None, **{metric: value}
                ),
            )

