"""Leave one animal out: pretrain on the others, forecast the one left out, adapt to it.

    python -m benchmarks.leave_one_out --experiment celegans --source FOLDER --out loo

Every session of the data set is left out once. A fold is the experiment with
`data.held_out`, its tokenizer and transformer trained on the others; then what
`calm-jax adapt` does with the recording left out. Folds that are finished are not run
again. Fields of the experiment may follow, to cut training down for a quick look; `--steps`
is of adapting and of training from scratch. Writes OUT/rows.json, OUT/table.md and
OUT/minutes.png and .svg.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calm_jax import adaptation_curve, compilation, config, experiments_loader, rows, runs
from calm_jax.allocator import prefer_large_pages
from calm_jax.commands.fields import override
from calm_jax.pipeline import train_models
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import open_store
from calm_jax.tailoring import choose


def pretrain_without(experiment: config.Experiment, session: str, folder: Path) -> runs.Run:
    """A run whose training never saw the session: models only, no report."""
    data = dataclasses.replace(experiment.data, held_out=(session,))
    experiment = dataclasses.replace(experiment, data=data)
    store = open_store(build(data))
    made = splits.make_split(store, experiment.split, data.held_out)
    scalers = preprocess.fit(store, made, experiment.preprocess)
    prepared = Prepared(store, made, scalers)
    run = runs.open_run(folder, experiment)
    if not run.done("prepare"):
        with run.stage("prepare") as facts:
            made.save(run.path("split.json"))
            scalers.save(run.path("scalers.npz"))
            runs.table_of(store).save(run.path("sessions.npz"))
            facts["choice"] = dataclasses.asdict(choose(experiment, prepared))
    train_models(run, prepared)
    return run


def write_interchange(session: Session, path: Path) -> Path:
    """The session as an interchange file: traces, times, trials, ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {
        "traces": session.traces, "rate": session.rate, "session": session.session,
        "animal": session.animal, "times": session.times, "unit": session.unit,
        "neuron_id": session.neurons.id,
    }  # fmt: skip
    if not session.mask.all():
        fields["valid"] = session.mask
    if len(session.trials):
        fields |= {"trial_start": session.trials.start, "trial_stop": session.trials.stop}
    with open(path, "wb") as file:
        np.savez(file, **fields)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all folds; the rest of the arguments are fields of the experiment."""
    parser = argparse.ArgumentParser(prog="leave_one_out", description=__doc__.split("\n")[0])
    parser.add_argument("--experiment", default="celegans")
    parser.add_argument("--source", help="folder of the data set's recordings")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", nargs="+", default=["1", "2", "5", "all"])
    parser.add_argument("--steps", type=int, default=100, help="of adapting, and from scratch")
    parser.add_argument("--only", nargs="+", help="sessions to leave out; default: each once")
    parser.add_argument("--no-scratch", action="store_true")
    parser.add_argument("--pretrain-only", action="store_true")
    known, fields = parser.parse_known_args(arguments)
    prefer_large_pages()
    compilation.enable()
    experiment = experiments_loader.load_experiment(known.experiment)
    given = [] if known.source is None else ["--data.source", known.source]
    experiment = override(experiment, [*given, *fields])
    store = open_store(build(experiment.data))
    names = known.only or [s.session for s in store.sessions]
    found = []
    for name in names:
        i = [s.session for s in store.sessions].index(name)
        run = pretrain_without(experiment, name, known.out / "runs" / name)
        if known.pretrain_only:
            continue
        path = write_interchange(store.session(i), known.out / "recordings" / f"{name}.npz")
        json_ = known.out / "rows" / f"{name}.json"
        if not json_.is_file():
            adaptation_curve.curve(
                run.folder, path, minutes=known.minutes, steps=known.steps, json_out=json_,
                scratch=not known.no_scratch,
            )  # fmt: skip
        found += rows.read(json_)
    if found:
        found = rows.averaged(found)
        rows.write(found, known.out / "rows.json")
        text = rows.table([r for r in found if r["metric"] in ("mse", "r", "skill")])
        (known.out / "table.md").write_text(text)
        adaptation_curve.draw(found, known.out / "minutes")
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
