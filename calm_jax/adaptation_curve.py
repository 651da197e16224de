"""Skill against minutes of a new recording: adapted, as it was, from scratch, baselines.

Every method gets the same minutes, split and scaled inside them, and is scored on the
same windows of the test part in the same unit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from calm_jax import (
    adaptation,
    baselines,
    config,
    evaluation,
    pipeline,
    rows,
    runs,
    scoring,
    weights,
)
from calm_jax.adaptation_data import Given, InUnits, given, label_of
from calm_jax.baselines import shared_linear
from calm_jax.baselines.windows import Forecaster
from calm_jax.errors import CalmError, RecordingError, RunError
from calm_jax.minutes import parse_minutes
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.report import adaptation as figure
from calm_jax.report import console as tables
from calm_jax.report import style
from calm_jax.runs import Trained

_BATCH = 16  # windows per call of a forecaster
OTHERS = "shared_linear_others"


def curve(
    folder: Path,
    data: Path,
    *,
    minutes: Sequence[str] = ("all",),
    out: Path | None = None,
    json_out: Path | None = None,
    figure_out: Path | None = None,
    steps: int = adaptation.STEPS,
    seeds: int = 1,
    scratch: bool = True,
    options: Sequence[str] = (),
    rate: float | None = None,
    console: Console | None = None,
) -> list[rows.Row]:
    """Adapts a run to recordings, for every number of minutes, and scores it.

    Args:
      folder: the run. data: a file or folder of recordings it has never seen.
      out: run folder of the adapted model; with several `minutes` a folder of them.
      json_out, figure_out: where rows and the figure (.png and .svg) are written.
      steps: of training rows, and of training from scratch. seeds: of both.
      scratch: whether a model is trained from scratch too.
      options: of the reader, `name=value`. rate: Hz the recordings are resampled to.

    Raises:
      CalmError: for a run, recordings or minutes that cannot be used.
    """
    wanted = parse_minutes(minutes)
    console = console or Console(stderr=True, highlight=False)
    say = lambda text: console.print(text, soft_wrap=True, markup=False)  # noqa: E731
    trained = weights.load(folder)
    e = trained.run.experiment
    source = config.Data(
        name="interchange", source=str(Path(data).resolve()), store=e.data.store,
        read=tuple(options), rate=e.data.rate if rate is None else rate,
    )  # fmt: skip
    store = open_store(build(source, console))
    for note in adaptation.check_rate(trained, store):
        say(note)
    _check_new(trained, store)
    whole = splits.make_split(store, e.split)
    scalers = preprocess.fit(store, whole, e.preprocess)
    scoring.check_varying(whole.sessions, scalers)
    test = Prepared(store, whole, scalers)
    others = _of_others(trained, say)
    found, usable = [], []
    for m in wanted:
        try:
            usable.append(given(store, whole, m, e))
        except RecordingError as problem:
            if m is None or len(wanted) == 1:
                raise
            say(f"{label_of(m)}: left out. {problem}")
    if not usable:
        raise RunError(
            "no number of minutes can be used", where="--minutes", found=", ".join(minutes),
            remedy="Add all.",
        )  # fmt: skip
    for part in usable:
        place = None if out is None else (out if len(wanted) == 1 else out / _folder(part.label))
        found += _scores(
            trained, part, test, others, source, place, steps, seeds, scratch, say
        )
    for part in usable:
        say(_verdict(found, part.label))
    if json_out is not None:
        rows.write(found, json_out)
        say(f"wrote {len(found)} rows to {json_out}")
    if figure_out is not None:
        draw(found, figure_out)
    tables.print_summary(
        [r for r in found if r["metric"] != "minutes"], Console(highlight=False)
    )
    return found


def draw(found: Sequence[rows.Row], path: Path, protocol: str = "B") -> list[Path]:
    """Writes the figure of skill against minutes at `path`.png and .svg."""
    path = Path(path)
    with style.look():
        made, [ax] = style.panels(1, height=3.2, width=5.2)
        figure.skill_against_minutes(ax, figure.curves(found, protocol))
        return style.save(made, path.parent, path.with_suffix("").name)


def _folder(label: str) -> str:
    return re.sub(r"[^0-9a-z.]+", "", label)


def _check_new(trained: Trained, store: Any) -> None:
    """Raises a `RunError` for a recording that the run was trained on."""
    seen = ~trained.held_out()
    for i, info in enumerate(store.sessions):
        k = trained.table.find(info.session, info.animal, store.neuron_ids(i))
        if k is not None and seen[k]:
            raise RunError(
                "the run was trained on this recording: it has rows of its own already",
                where=f"session {info.session}",
                remedy="Give recordings that the run has never seen.",
            )


def _of_others(trained: Trained, say: adaptation.Say) -> Forecaster | None:
    """The linear map fitted on the recordings of the run; None where they are not here."""
    run, settings = trained.run, trained.run.experiment.forecasting
    try:
        store = open_store(build(run.experiment.data))
        prepared = Prepared(store, runs.load_split(run, store), trained.scalers)
        made = baselines.PerContext(
            shared_linear, prepared, prepared.splits, settings.horizon
        )
        blank = np.zeros((1, settings.context, 1), np.float32)
        made(blank, 0, np.ones(blank.shape, bool), settings.horizon)  # what is missing shows now
        return made
    except CalmError as problem:
        say(f"no linear map of the other animals: {problem}")
        return None


def _scores(
    trained: Trained,
    part: Given,
    test: Prepared,
    others: Forecaster | None,
    source: config.Data,
    place: Path | None,
    steps: int,
    seeds: int,
    scratch: bool,
    say: adaptation.Say,
) -> list[rows.Row]:
    """Rows of every method with the same minutes; the adapted run is saved at `place`."""
    e = trained.run.experiment
    methods = baselines.fit_all(part.prepared, part.prepared.splits, e.forecasting.horizon)
    if not part.fits:
        say(f"{part.label}: too few frames for any method that is fitted to windows")
        methods = {name: methods[name] for name in ("copy_last", "mean")}
        scratch, place = False, None
    if others is not None:
        methods[OTHERS] = others
    methods["calm_unadapted"] = adaptation.forecaster(trained, trained.model, part, known=False)
    text = f"{part.label} ({part.minutes:.1f} min)"
    ranges = (p["test"] for p in test.splits.parts)
    frames = sum(int((r[:, 1] - r[:, 0]).sum()) for r in ranges)
    say(f"{text}: scoring {len(methods)} methods on {frames:,} test frames")
    found = _rows(methods, part, test, e, None)
    for seed in range(e.seed, e.seed + seeds):
        with _workplace(place, part, seed) as folder:
            made = adaptation.adapt(trained, part, folder / "rows", steps=steps, seed=seed)
            if seed == e.seed:
                say(f"{text}: {made.text}")
                if place is not None:
                    _save(trained, made, part, source, place, say)
            own = {"calm_adapted": adaptation.forecaster(trained, made.model, part, known=True)}
            if scratch:
                net = adaptation.scratch(
                    trained, part, folder / "scratch", steps=steps, seed=seed
                )
                own["calm_scratch"] = adaptation.forecaster(trained, net, part, known=True)
        found += _rows(own, part, test, e, seed, methods)
    return rows.averaged(found)


def _rows(
    methods: dict[str, Forecaster],
    part: Given,
    test: Prepared,
    e: config.Experiment,
    seed: int | None,
    reference: dict[str, Forecaster] | None = None,
) -> list[rows.Row]:
    """Rows of methods over all steps and per step, their protocol named with the minutes."""
    every = {n: InUnits(f, part.prepared.scalers, test.scalers) for n, f in methods.items()}
    if reference is not None:  # skill is told against copy-last
        every["copy_last"] = reference["copy_last"]
    scores = evaluation.score_forecasts(
        test, test.splits, every, e.forecasting, batch=_BATCH
    )
    found = [r for r in evaluation.rows_of(scores, seed) if r["method"] in methods]
    facts = [
        rows.row(s.protocol, s.method, "minutes", part.minutes, session=s.session,
                 animal=s.animal, seed=seed)
        for s in scores if s.method in methods
    ]  # fmt: skip
    return [{**r, "protocol": f"{r['protocol']}, {part.label}"} for r in found + facts]


def _save(
    trained: Trained,
    made: adaptation.Adapted,
    part: Given,
    source: config.Data,
    place: Path,
    say: adaptation.Say,
) -> None:
    """The adapted run as a run folder with everything that a run has."""
    e = adaptation.experiment_of(trained.run.experiment, source, part.label)
    run = runs.open_run(place, e)
    if not run.done("transformer"):
        adaptation.save(trained, made, part, run)
    pipeline.pretrain(e, place, Console(stderr=True, quiet=True))
    say(f"{part.label}: the adapted run is {place}")


class _workplace:
    """A folder for checkpoints: beside the adapted run, or a temporary one."""

    def __init__(self, place: Path | None, part: Given, seed: int) -> None:
        self._place, self._name = place, f".{_folder(part.label)}.seed{seed}.adapting"

    def __enter__(self) -> Path:
        import tempfile

        if self._place is None:
            self._made = tempfile.TemporaryDirectory()
            return Path(self._made.name)
        self._made = None
        return self._place.parent / f"{self._place.name}{self._name}"

    def __exit__(self, kind: Any, *_: Any) -> None:
        import shutil

        if self._made is not None:
            self._made.cleanup()
        elif kind is None:  # an interrupted one goes on from its checkpoints
            shutil.rmtree(
                self._place.parent / f"{self._place.name}{self._name}", ignore_errors=True
            )


def _verdict(found: Sequence[rows.Row], label: str) -> str:
    """The adapted model beside the best baseline of the same minutes, protocol B."""
    protocol = f"B, {label}"
    try:
        name, error = best_baseline(found, protocol)
    except RunError:  # an experiment that scores protocol A alone
        return f"{label}: protocol B is not scored"
    mse = rows.select(found, protocol=protocol, metric="mse", step=None, animal=None)
    own = np.mean([r["value"] for r in mse if r["method"] == "calm_adapted"])
    return f"{label}: MSE {own:.3f} adapted, {error:.3f} of the best baseline ({name})"


def best_baseline(found: Sequence[rows.Row], protocol: str) -> tuple[str, float]:
    """The baseline with the least MSE under a protocol such as "B, 2 min", and that MSE."""
    means = {
        r["method"]: r["value"]
        for r in rows.select(found, protocol=protocol, metric="mse", step=None, animal=None)
        if not style.own(r["method"]) and np.isfinite(r["value"])
    }
    if not means:
        raise RunError("no baseline was scored", where=protocol)
    name = min(means, key=means.get)
    return name, means[name]

