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
from calm_jax.baselines.behavior.poyo import PoyoDecoding
from calm_jax.baselines.behavior.tcn import TCNNetwork
from calm_jax.decoding_data import (
    Read,
    Recordings,
    Told,
    beginnings,
    limited,
    minutes_of,
    recordings,
)
from calm_jax.decoding_files import Saved, neuron_rows, save
from calm_jax.decoding_rows import Rows
from calm_jax.decoding_scores import DecodingRow
from calm_jax.errors import CalmError
from calm_jax.recordings import splits
from calm_jax.recordings.targets import Target, make_targets
from calm_jax.runs import Trained
from calm_jax.tasks.behavior import Behavior, Network, Populations, network_size
from calm_jax.tasks.behavior_heads import FeatureReader, FrozenHead, TunedHead
from calm_jax.training.log import Log
from calm_jax.training.loop import train

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What every decoder of a command starts from.

    Attributes:
      settings: complete, for the head. saved: the decoder to begin with, if any.
      features: (session, start, stop) -> (steps, N, D) of the backbone; not with a tuned one.
      rate: frames per second, the median of the sessions.
    """

    trained: Trained
    given: Recordings
    settings: config.Decoding
    saved: Saved | None
    features: Read | None
    rate: float


def opened(
    folder: Path | str,
    *,
    data: Path | None = None,
    settings: config.Decoding | None = None,
    look_ahead: float | None = None,
    start: Path | None = None,
    options: Sequence[str] = (),
    say: Say = lambda text: None,
) -> Setup:
    """Run, recordings and settings; arguments as in `decode`."""
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
    for note in given.notes:
        say(f"note: {note}")
    rate = float(np.median([s.rate for s in given.sessions]))
    if look_ahead is not None:
        settings = dataclasses.replace(settings, look_ahead=int(look_ahead * rate + 1e-6))
    a = settings.look_ahead
    reads = "nothing after t" if a == 0 else f"up to {a} frames ({a / rate:.3g} s) after t"
    say(f"look-ahead: the decoder of frame t reads {reads}; so do the baselines")
    features = None
    if not settings.fine_tune:
        made = given.prepared.splits
        every = range(len(given.sessions))
        longest = made.ranges("train", every)
        longest = int((longest[:, 2] - longest[:, 1]).max())
        # As the transformer was trained.
        window = min(trained.run.experiment.transformer_training.window or longest, longest)
        frames = sum(int(b - a) for part in splits.PARTS for _, a, b in made.ranges(part, every))
        told = Told("features of the model", frames, "frames", say)
        reader = FeatureReader(trained.model, given.prepared, given.table, settings, window, told)
        patch = trained.model.tokenizer.config.patch
        features = beginnings(reader, made, 1 if settings.every_frame else patch)
    return Setup(trained, given, settings, saved, features, rate)


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
    poyo: bool = False,
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
      seeds: decoders trained. baselines: beside them. poyo: the POYO+ read-out too.
      start: a saved decoder to begin with; its settings count where they make its shape.
      name: of the folder below `decoders/` of the run that the decoders are saved in.

    Raises:
      CalmError: for a run, recordings, targets or settings that cannot be used.
    """
    say = saying(console)
    setup = opened(
        folder, data=data, settings=settings, look_ahead=look_ahead, start=start,
        options=options, say=say,
    )  # fmt: skip
    found, wanted = decoded(
        setup, targets, classify, seeds=seeds, baselines=baselines, poyo=poyo, name=name, say=say
    )
    if out is not None:
        scores.write(found, out)
        say(f"wrote {len(found)} rows to {out}")
    scores.print_summary(found, wanted, console or Console(highlight=False))
    return found


def saying(console: Console | None) -> Say:
    """Prints a line as it is."""
    console = console or Console(stderr=True, highlight=False)
    return lambda text: console.print(text, soft_wrap=True, markup=False)


def decoded(
    setup: Setup,
    targets: Sequence[str],
    classify: Sequence[str] = (),
    *,
    seeds: int,
    baselines: bool,
    poyo: bool = False,
    name: str,
    say: Say,
) -> tuple[list[DecodingRow], tuple[Target, ...]]:
    """(rows, targets) of decoders that are trained and saved, arguments as in `decode`."""
    given, settings, saved = setup.given, setup.settings, setup.saved
    made = limited(given.prepared.splits, given.sessions, settings.minutes)
    there = minutes_of(made, given.sessions)
    if settings.minutes is not None and there < 0.99 * settings.minutes:
        say(f"note: the training part has {there:.2f} min (mean over sessions), all are given")
    wanted, notes = make_targets(
        given.sessions, made, targets, classify, None if saved is None else saved.classes()
    )
    if saved is not None:
        saved.check_targets(wanted)
    for note in notes:
        say(f"note: {note}")
    rows = Rows()
    problem = _Problem(setup, made, wanted, rows)
    method = f"calm_{settings.head}" + ("_tuned" if settings.fine_tune else "")
    home = setup.trained.run.path("decoders", name)
    keep = lambda: save(home, setup.trained, given.sessions, wanted, settings, setup.rate)  # noqa: E731
    if settings.head == "pooled":  # in closed form: the same for every seed
        fitted = problem.pooled()
        problem.score(method, fitted.predict, None)
        keep()
        runs.save_arrays(home / "seed0.npz", fitted.arrays())
        for note in fitted.notes:
            say(f"{method}: {note}")
    else:
        network, populations = problem.own()
        for seed in range(seeds):
            state, task = problem.train(network, populations, seed, home, saved)
            problem.score(method, _predictor(task, state), seed)
            if seed == 0:
                keep()
            runs.save_arrays(home / f"seed{seed}.npz", state.params)
            say(f"{method}, seed {seed}: step {state.step} of {settings.training.steps}")
    if baselines:
        say("baselines: linear ones with their controls, then a TCN")
        problem.linear_baselines()
        tcn, traces = problem.tcn()
        for seed in range(seeds):
            state, task = problem.train(tcn, traces, seed, home, None)
            problem.score("tcn", _predictor(task, state), seed)
            say(f"tcn, seed {seed}: step {state.step} of {settings.training.steps}")
    if poyo:
        for seed in range(seeds):
            state, task = problem.poyo(seed, home)
            problem.score("poyo", _predictor(task, state), seed)
            say(f"poyo, seed {seed}: step {state.step} of {settings.training.steps}")
    found = rows.finish()
    scores.write(found, home / "rows.json")
    return found, wanted


def _predictor(task: Behavior | PoyoDecoding, state: Any) -> Callable[[int, int, int], np.ndarray]:
    return lambda i, a, b: task.predict(state.params, state.extra, i, a, b)


class _Problem:
    """The recordings and targets, and the methods on them."""

    def __init__(self, setup: Setup, made: splits.Splits, targets: Sequence[Target], rows: Rows):
        self.setup, self.given, self.splits = setup, setup.given, made
        self.targets, self.settings, self.rows = targets, setup.settings, rows
        counts = [s.n_neurons for s in self.given.sessions]
        self.offset = np.concatenate([[0], np.cumsum(counts)])
        self.outputs = network_size(targets)

    def _traces(self, i: int, a: int, b: int) -> np.ndarray:
        return self.given.prepared.range(i, a, b)[0]

    def own(self) -> tuple[Network, Populations]:
        """The head, on features or with its backbone."""
        model, s = self.setup.trained.model, self.settings
        rows, read = int(self.offset[-1]), self.setup.features
        if read is None:
            read = self._traces
            network: Network = TunedHead(model, s, rows, self.outputs, s.window)
        else:
            network = FrozenHead(model, s, rows, self.outputs)
        return network, Populations(self.splits, read, self.offset, self.given.table)

    def pooled(self) -> pooled_decoder.PooledDecoder:
        """The pooled decoder, fitted."""
        made = pooled_decoder.PooledDecoder(
            self._traces, self.setup.features, self.splits, self.offset, self.targets,
            self.settings,
        )  # fmt: skip
        saved, model = self.setup.saved, self.setup.trained.model
        width = model.transformer.config.width + len(pooled_decoder.TAUS) + 1
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
        return self._trained(task, s.training, seed, home)

    def poyo(self, seed: int, home: Path) -> tuple[Any, PoyoDecoding]:
        """The trained POYO+ read-out and its task."""
        task = PoyoDecoding(
            self._traces, self.splits, self.offset, self.targets, self.settings, seed=seed
        )
        return self._trained(task, task.training, seed, home)

    def _trained(
        self, task: Any, training: config.Training, seed: int, home: Path
    ) -> tuple[Any, Any]:
        training = dataclasses.replace(training, batch=task.rows)
        home.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".training-", dir=home))
        try:
            steps = training.steps
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
