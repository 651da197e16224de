"""Leave one animal out: pretrain on the others, forecast the one left out, adapt to it.

    python -m benchmarks.leave_one_out --experiment celegans --source FOLDER --out loo

Every session of the data set is left out once. A fold is the experiment with
`data.held_out`, its tokenizer and transformer trained on the others; then what
`calm-jax adapt` does with the recording left out; with `--decode TARGET ...` behaviour: a
decoder of the others is handed on to the one left out, a curve against minutes of labels.
Folds that are finished are not run again. Fields of the experiment may follow, to cut training
down for a quick look; `--steps` is of adapting and of training from scratch. Writes
OUT/rows.json, OUT/table.md and OUT/minutes.png and .svg, or OUT/decoding.json, .md, .png, .svg.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calm_jax import (
    adaptation_curve,
    compilation,
    config,
    decoding_curve,
    decoding_scores,
    experiments_loader,
    rows,
    runs,
)
from calm_jax import decoding as decode
from calm_jax.allocator import prefer_large_pages
from calm_jax.commands.fields import override
from calm_jax.pipeline import train_models
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.conditioning import align_behavior
from calm_jax.recordings.formats.interchange import write_interchange
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import open_store
from calm_jax.report import decoding_curve as decoding_figure
from calm_jax.report import style
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


def write(session: Session, folder: Path) -> Path:
    """The session as an interchange file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{session.session}.npz"
    if not path.is_file():
        write_interchange(session, path)
    return path


def decoding(
    run: runs.Run, sessions: Sequence[Session], left: int, known: argparse.Namespace
) -> list[dict]:
    """Decoders of all sessions but one handed on to it: the rows of the curve."""
    name = sessions[left].session
    out = known.out / "decoding" / f"{name}.json"
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        others = known.out / "others" / name
        for i, s in enumerate(sessions):
            if i != left:
                write(s, others)
        how = {"classify": [c for c in known.classify if c in known.decode]}
        settings = config.Decoding()
        decode.decode(
            run.folder, known.decode, data=others, settings=settings, seeds=1, baselines=False,
            name="others", **how,
        )  # fmt: skip
        steps = dataclasses.replace(settings.training, steps=known.decode_steps)
        decoding_curve.curve(
            run.folder, known.decode, minutes=known.minutes,
            data=write(sessions[left], known.out / "one" / name),
            settings=dataclasses.replace(settings, rows_only=True, training=steps), seeds=1,
            start=run.path("decoders", "others"), name="left_out", out=out, **how,
        )  # fmt: skip
    rows_ = json.loads(out.read_text())
    return [{**r, "value": math.nan if r["value"] is None else r["value"]} for r in rows_]


def decoding_summary(found: Sequence[dict], folder: Path) -> str:
    """The table over animals, by minutes as they were named; the figure beside it."""
    each = [r for r in found if r["session"] is not None]
    labels = list(dict.fromkeys(r["given"] for r in each))
    pooled, lines = [], []
    for label in labels:
        own = [r for r in each if r["given"] == label]
        minutes = float(np.mean([r["minutes"] for r in own]))
        means = decoding_scores.averaged([{k: r[k] for k in decoding_scores.FIELDS} for r in own])
        pooled += [decoding_curve.CurveRow(**r, minutes=minutes, given=label) for r in means]
    decoding_scores.write(pooled, folder / "decoding.json")
    targets = list(dict.fromkeys(r["target"] for r in each))
    with style.look():
        made, axes = style.panels(len(targets), height=3.0, width=5.6)
        for ax, target in zip(axes, targets, strict=True):
            metric = _metric(pooled, target)
            decoding_figure.score_against_minutes(ax, pooled, target, metric)
            lines += [f"{target}, {metric}", "", "| method | " + " | ".join(labels) + " |"]
            lines.append("|---" * (1 + len(labels)) + "|")
            for method in dict.fromkeys(r["method"] for r in pooled if r["target"] == target):
                cells = []
                for label in labels:
                    own = [r for r in pooled if r["given"] == label]
                    found_ = decoding_scores.summary(own, target, method, metric)
                    cells.append(decoding_scores.cell(*found_))
                if any(c != "-" for c in cells):
                    lines.append(f"| {method} | " + " | ".join(cells) + " |")
            lines.append("")
        style.save(made, folder, "decoding")
    text = "\n".join(lines)
    (folder / "decoding.md").write_text(text)
    return text


def _metric(found: Sequence[dict], target: str) -> str:
    known = {r["metric"] for r in found if r["target"] == target}
    return "r2" if "r2" in known else "balanced_accuracy"


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
    parser.add_argument("--decode", nargs="+", default=[], help="behaviour, in place of forecasts")
    parser.add_argument("--classify", nargs="+", default=[], help="of it, what holds labels")
    parser.add_argument("--decode-steps", type=int, default=200, help="of the TCN")
    known, fields = parser.parse_known_args(arguments)
    prefer_large_pages()
    compilation.enable()
    experiment = experiments_loader.load_experiment(known.experiment)
    given = [] if known.source is None else ["--data.source", known.source]
    experiment = override(experiment, [*given, *fields])
    store = open_store(build(experiment.data))
    names = known.only or [s.session for s in store.sessions]
    found, decoded = [], []
    for name in names:
        i = [s.session for s in store.sessions].index(name)
        run = pretrain_without(experiment, name, known.out / "runs" / name)
        if known.pretrain_only:
            continue
        if known.decode:
            sessions = [align_behavior(store.session(k)) for k in range(len(store.sessions))]
            decoded += decoding(run, sessions, i, known)
            continue
        path = write(store.session(i), known.out / "recordings")
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
    if decoded:
        print(decoding_summary(decoded, known.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
