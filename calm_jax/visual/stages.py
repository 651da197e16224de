"""One visual experiment from recordings to numbers; each stage is done once.

    cohorts -> pretraining (latent masking) -> gratings, movie (fine-tuned) -> results

Pretraining lies in a folder named by all that it depends on, so that experiments that differ
only in what comes after share it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from calm_jax import compilation, movies
from calm_jax import config as configs
from calm_jax.errors import ConfigError, RunError, writing
from calm_jax.files import replacing
from calm_jax.recordings import preprocess, splits, stimuli
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.runs import load_arrays, save_arrays
from calm_jax.tasks.gratings import GratingsDecoding
from calm_jax.tasks.latent_masking import LatentMasking
from calm_jax.tasks.movie import MovieReconstruction
from calm_jax.training.log import Log
from calm_jax.training.loop import train
from calm_jax.training.mesh import agree, barrier
from calm_jax.visual import cohorts as parts
from calm_jax.visual import scores
from calm_jax.visual.experiment import VisualExperiment, check

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an experiment keeps what it makes.

    Attributes:
      folder: of this experiment and seed. shared: of pretrainings.
    """

    folder: Path
    shared: Path


def run(experiment: VisualExperiment, store: Any, place: Place, say: Say) -> dict[str, Any]:
    """The results of an experiment, made or taken from its folder.

    Returns:
      {"experiment", "fingerprint", "cohorts", "pretraining", "rows", "said", "seconds"};
      rows are {"task", "method", "metric", "value"}, see `scores`.

    Raises:
      CalmError: for a configuration, recordings or a folder that cannot be used.
    """
    check(experiment)
    done = place.folder / "results.json"
    mark = configs.fingerprint(experiment)
    if _there(done):
        found = read(done)
        if found.get("fingerprint") == mark:
            say(f"{experiment.name}, seed {experiment.seed}: done before")
            return found
        raise RunError(
            "the folder holds results of another experiment",
            where=place.folder,
            remedy="Name another folder, or remove this one.",
        )
    start = time.monotonic()
    e = experiment
    who = parts.make(store, e.diet, e.split, e.seed)
    say(
        f"{e.name}, seed {e.seed}: {len(who.pretrain)} sessions pretrain, {len(who.finetune)} "
        f"are fine-tuned on, {len(who.scored)} of them scored"
    )
    with compilation.effort(e.compilation):
        report, rows, said = _stages(e, store, who, place, say)
    out = {
        "experiment": configs.to_dict(e),
        "fingerprint": mark,
        "cohorts": dataclasses.asdict(who),
        "pretraining": report,
        "rows": rows,
        "said": said,
        "seconds": round(time.monotonic() - start, 1),
    }
    if jax.process_index() == 0:
        with writing(done), replacing(done) as part:
            part.write_text(json.dumps(out, indent=1) + "\n")
    barrier(f"results of {e.name}")
    return read(done)


def _there(path: Path) -> bool:
    """Whether a file is there; all processes see it the same and must call.

    None of them can have written it meanwhile: the others are still to look.
    """
    return bool(agree(int(path.is_file())))


def _stages(
    e: VisualExperiment, store: Any, who: parts.Cohorts, place: Place, say: Say
) -> tuple[dict | None, list[dict], dict[str, str]]:
    """(what is told of the pretraining, rows, words by task); the last two of process 0 alone."""
    pretrained, report = None, None
    if e.diet.pretrain != "none":
        pretrained, report = _pretrained(e, store, who, place.shared, say)
    rows: list[dict] = []
    said: dict[str, str] = {}
    for name in e.tasks:
        task, training = task_of(name, e, store, who, pretrained, report, say)
        result = _train(task, training, place.folder / name, e, say)
        score = {"gratings": scores.gratings, "movie": scores.movie}[name]
        if jax.process_index() == 0:
            found, said[name] = score(task, result.params, e, who, place.folder / name)
            rows += found
            save_arrays(place.folder / name / "model.npz", result.params)
        barrier(f"scores of {e.name} {name}")
    return report, rows, said


def read(path: Path) -> dict:
    """A JSON file of results. Raises: RunError when it is damaged."""
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    raise RunError("the file is damaged", where=path, remedy="Remove it.")


def _held_out(store: Any, training: Sequence[str]) -> tuple[str, ...]:
    return tuple(s.session for s in store.sessions if s.session not in training)


def _prepared(e: VisualExperiment, store: Any, made: splits.Splits) -> Prepared:
    return Prepared(store, made, preprocess.fit(store, made, e.preprocess))


def _train(task: Any, training: configs.Training, folder: Path, e: VisualExperiment, say: Say):
    stage = f"{e.name} {folder.name}"
    return train(
        task,
        training,
        folder,
        seed=e.seed,
        steps=training.steps,
        config_fingerprint=configs.fingerprint(e),
        log=Log(folder, stage=stage, tensorboard=False, shown=jax.process_index() == 0),
    )


# Pretraining


def pretraining_fingerprint(e: VisualExperiment, sessions: Sequence[str]) -> str:
    """Of all that the pretrained weights depend on."""
    parts = ("seed", "data", "preprocess", "split", "encoder", "units", "masking", "labels")
    own = {name: configs.to_dict(getattr(e, name)) for name in (*parts, "pretraining")}
    own["optimizer"] = e.pretraining_optimizer
    return configs.fingerprint({**own, "sessions": list(sessions)})


def _pretrained(
    e: VisualExperiment, store: Any, who: parts.Cohorts, shared: Path, say: Say
) -> tuple[dict, dict]:
    """(params, {steps, step, validation}) of the pretraining, made or found."""
    mark = pretraining_fingerprint(e, who.pretrain)
    folder = shared / mark
    made = splits.make_split(store, e.split, _held_out(store, who.pretrain))
    task = LatentMasking(
        e.encoder, e.masking, e.pretraining, _prepared(e, store, made),
        seed=e.seed, steps=e.pretraining.steps, units=e.units, labels=e.labels,
        optimizer=e.pretraining_optimizer,
    )  # fmt: skip
    like = jax.eval_shape(lambda key: task.init(key)[0], jax.random.key(0))
    path = folder / "pretraining.json"
    if _there(path):
        say(f"  pretraining {mark}: done before")
        return load_arrays(folder / "model.npz", like), read(path)
    alone = dataclasses.replace(e, name=f"pretraining {mark}")
    result = train(
        task,
        e.pretraining,
        folder,
        seed=e.seed,
        steps=e.pretraining.steps,
        config_fingerprint=mark,
        log=Log(folder, stage=alone.name, tensorboard=False, shown=jax.process_index() == 0),
    )
    report = {"folder": mark, "steps": e.pretraining.steps, "step": result.step}
    report["validation"] = result.best_metrics
    report["classes"] = task.classes.tolist()  # what the read-out of the weak labels knows
    if jax.process_index() == 0:
        save_arrays(folder / "model.npz", result.params)
        with writing(path), replacing(path) as part:
            part.write_text(json.dumps(report, indent=1) + "\n")
    barrier(f"pretraining {mark}")
    return result.params, report


def pretrained_weights(
    e: VisualExperiment, store: Any, who: parts.Cohorts, shared: Path
) -> tuple[dict | None, dict | None]:
    """(params, what is told) of the pretraining of a finished experiment; nothing is trained.

    Raises:
      RunError: when they are not there, or damaged.
    """
    if e.diet.pretrain == "none":
        return None, None
    folder = shared / pretraining_fingerprint(e, who.pretrain)
    if not (folder / "pretraining.json").is_file():
        raise RunError("the pretrained encoder of this run is missing", where=folder)
    return _pretrained(e, store, who, shared, lambda _: None)


# Fine-tuning


def task_of(
    name: str,
    e: VisualExperiment,
    store: Any,
    who: parts.Cohorts,
    pretrained: dict | None,
    report: dict | None,
    say: Say,
) -> tuple[GratingsDecoding | MovieReconstruction, configs.Training]:
    """The fine-tuning "gratings" or "movie" of an experiment, and how it is trained.

    Args:
      pretrained, report: of `pretrained_weights`; None from scratch.
    """
    make = {"gratings": _gratings, "movie": _movie}[name]
    return make(e, store, who, pretrained, report, say)


def _gratings(
    e: VisualExperiment,
    store: Any,
    who: parts.Cohorts,
    pretrained: dict | None,
    report: dict | None,
    say: Say,
) -> tuple[GratingsDecoding, configs.Training]:
    made = stimuli.gratings_split(store, e.gratings, e.split, _held_out(store, who.finetune))
    values = None
    if report is not None and len(report["classes"]) > 1:  # the read-out of the labels goes on
        values = np.array(report["classes"])
        own = stimuli.classes(store, e.gratings, made.training_index)
        new = sorted(set(own.tolist()) - set(values.tolist()))
        if new:
            raise ConfigError(
                "pretraining never saw some of the gratings",
                where=f"{e.gratings.intervals}/{e.gratings.column}",
                found=f"{new[0]:g} and {len(new) - 1} more" if len(new) > 1 else f"{new[0]:g}",
                expected=", ".join(f"{v:g}" for v in values),
            )
    task = GratingsDecoding(
        e.encoder, e.gratings, e.gratings_training, _prepared(e, store, made),
        seed=e.seed, steps=e.gratings_training.steps, units=e.units, tuning=e.gratings_tuning,
        pretrained=pretrained, values=values, shuffled=e.shuffled_labels,
    )  # fmt: skip
    return task, e.gratings_training


def _movie(
    e: VisualExperiment,
    store: Any,
    who: parts.Cohorts,
    pretrained: dict | None,
    report: dict | None,
    say: Say,
) -> tuple[MovieReconstruction, configs.Training]:
    made = stimuli.movie_split(store, e.movie, e.split, _held_out(store, who.finetune))
    frames = movies.movie_frames(
        e.data, e.movie.name, e.decoder.height, e.decoder.width, file=e.movie.file
    )
    encoder = e.mlp if e.encoder_kind == "mlp" else e.encoder
    task = MovieReconstruction(
        encoder, e.decoder, e.movie_loss, e.movie, e.movie_training,
        _prepared(e, store, made), frames,
        seed=e.seed, steps=e.movie_training.steps, units=e.units, tuning=e.movie_tuning,
        pretrained=pretrained, notify=say,
    )  # fmt: skip
    return task, e.movie_training


# One experiment as a run


def pretrain(experiment: VisualExperiment, folder: Path, say: Say) -> dict[str, Any]:
    """Runs one experiment in `folder`, or continues it, and writes its report.

    Raises:
      CalmError: for a configuration, recordings or a folder that cannot be used.
    """
    from calm_jax.visual import report

    check(experiment)
    folder = Path(folder)
    note = folder / "experiment.json"
    text = configs.dumps(experiment)
    if note.is_file() and note.read_text() != text:
        raise RunError(
            "the folder holds a run of another experiment",
            where=folder,
            remedy="Name another run folder with --run, or remove this one.",
        )
    if jax.process_index() == 0:
        with writing(note):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(note) as part:
                part.write_text(text)
    barrier("run folder")
    store = open_store(build(experiment.data))
    place = Place(folder, folder / "pretrained")
    found = run(experiment, store, place, say)
    if jax.process_index() == 0:
        for r in found["rows"]:
            if r["metric"] in ("accuracy", "ssim"):
                say(f"{r['task']:9s} {r['method']:20s} {r['metric']} {r['value']:.3f}")
        for text in found["said"].values():
            if text:
                say(text)
        say(f"report: {report.write(experiment, found, folder, place.shared)}")
    barrier("report")
    return found
