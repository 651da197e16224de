"""Where the pretrained encoder keeps what it knows (POYO-SSL, appendix J and Fig. S6).

Fine-tuning is repeated with none, all, or one third of the encoder frozen, from the same
pretrained weights and on the same parts. It is a training, so it is bounded in steps, and every
repetition is kept in `<analysis>/freezing/` and done once.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from calm_jax import config as configs
from calm_jax import movie_evaluation
from calm_jax.analyses.result import Result, load
from calm_jax.analysis import freezing
from calm_jax.errors import AnalysisError, CalmError, RunError, writing
from calm_jax.files import replacing
from calm_jax.runs import load_arrays, save_arrays
from calm_jax.training.log import Log
from calm_jax.training.loop import train
from calm_jax.visual import latents, scores
from calm_jax.visual.experiment import VisualExperiment
from calm_jax.visual.material import VisualMaterial, VisualSettings

STEPS = 100  # of each fine-tuning, unless the run itself took fewer
FRAMES = 200  # of the movie whose spatial detail is measured
_SCORED = 300  # windows per session, as everywhere
_METRIC = {"gratings": "accuracy", "movie": "ssim"}
# What the run itself was compared with, on the same test part.
_BESIDE = {"gratings": ("chance", "linear"), "movie": ("mean_frame", "nearest")}


def wanted(settings: VisualSettings, only: Sequence[str]) -> bool:
    """Whether fine-tuning was asked for: by name, or by its steps."""
    return "freezing" in only or settings.freezing_steps > 0


def possible(material: VisualMaterial) -> bool:
    """Whether there is a pretrained encoder."""
    return material.run.experiment.diet.pretrain != "none"


def made(home: Path) -> bool:
    """Whether scores of it are kept in the folder of analyses."""
    try:
        found = load(home, "freezing")
    except RunError:
        return False
    return found is not None and bool(found.rows)


def hint(material: VisualMaterial) -> str:
    """The line that stands where fine-tuning was not asked for."""
    tasks = material.run.experiment.tasks
    steps = max(_steps(material, t) for t in tasks)
    count = len(_variants(material.run.experiment)) * len(tasks)
    return (
        f"encoder freezing: it fine-tunes {count} times; `calm-jax analyze RUN --only freezing` "
        f"does so with {steps} steps each (--freezing-steps N --freezing-seeds S for more)"
    )


def run_freezing(material: VisualMaterial, result: Result) -> None:
    """Scores, change of the latents and spatial detail with parts of the encoder frozen."""
    run, e = material.run, material.run.experiment
    if not possible(material):
        raise AnalysisError("this run was not pretrained: a random encoder would be frozen")
    run.pretrained  # noqa: B018  (told before anything is trained when it is not there)
    variants = _variants(e)
    if e.encoder.depth < 3:
        result.missing.append(
            f"thirds of the encoder: it has {e.encoder.depth} "
            f"block{'' if e.encoder.depth == 1 else 's'}, three are needed"
        )
    seeds = material.settings.freezing_seeds
    result.facts |= {"tasks": list(e.tasks), "seeds": seeds, "metrics": _METRIC, "steps": {},
                     "own_steps": {}, "sessions": len(run.cohorts.scored)}  # fmt: skip
    for name in e.tasks:
        steps = _steps(material, name)
        result.facts["steps"][name] = steps
        result.facts["own_steps"][name] = _training(e, name).steps
        found: dict[str, list[float]] = {v: [] for v in variants}
        for k in range(seeds):
            states: dict[str, list[np.ndarray]] = {}
            for variant in variants:
                changed = _variant(e, name, variant, steps, e.seed + k)
                task, training = run.task(name, changed), _training(changed, name)
                folder = material.folder / "freezing" / f"{name}_{variant}_seed{changed.seed}"
                params = _trained(task, training, changed, folder, material)
                found[variant].append(_score(material, task, params))
                result.put(f"{name}/{variant}", f"{_METRIC[name]}_seed{changed.seed}",
                           found[variant][-1])  # fmt: skip
                if k:
                    continue
                states[variant] = _states(material, task, params)
                if "start" not in states:
                    begin = task.init(jax.random.key(changed.seed))[0]
                    states["start"] = _states(material, task, begin)
                if name == "movie":
                    _detail(material, result, task, params, variant)
            if states:
                _changes(result, name, states)
        _compare(material, result, name, found)


def _compare(
    material: VisualMaterial, result: Result, name: str, found: dict[str, list[float]]
) -> None:
    """The variants over seeds, and what needs no encoder."""
    made = freezing.freezing({k: np.array(v) for k, v in found.items()})
    result.keep(f"{name}.scores", made)
    for i, variant in enumerate(made.variants):
        for metric, values in ((_METRIC[name], made.mean), ("low", made.low), ("high", made.high),
                               ("difference", made.difference), ("p", made.p)):  # fmt: skip
            result.put(f"{name}/{variant}", metric, float(values[i]))
    for r in material.run.results["rows"]:
        if r["task"] == name and r["metric"] == _METRIC[name] and (
            r["method"] in _BESIDE[name] or r["method"] == scores.OWN
        ):  # fmt: skip
            result.put(f"{name}/{r['method']}", _METRIC[name], r["value"])


def _changes(result: Result, name: str, states: dict[str, list[np.ndarray]]) -> None:
    """How far each variant moved the latents from where fine-tuning began, session by session."""
    before = states.pop("start")
    values: dict[tuple[str, str], list[float]] = {}
    for k, start in enumerate(before):
        try:
            made = freezing.representation_change(start, {v: x[k] for v, x in states.items()})
        except AnalysisError as e:
            result.missing.append(f"change of the latents of {name}: {e}")
            continue
        for variant, change in made.items():
            for metric in ("cka", "procrustes", "before", "after", "n"):
                values.setdefault((variant, metric), []).append(getattr(change, metric))
    for (variant, metric), x in values.items():
        told = {"cka": "cka_with_start", "procrustes": "procrustes_to_start", "n": "windows",
                "before": "dimension_before", "after": "dimension_after"}[metric]  # fmt: skip
        if np.isfinite(x).any():
            result.put(f"{name}/{variant}", told, float(np.nanmean(x)))


def _states(material: VisualMaterial, task: Any, params: dict) -> list[np.ndarray]:
    """Latents (R, D) of the test windows of each session that is compared, at most 8."""
    shown = latents.windows(task, material.run)
    space = latents.Space(task, params)
    own = np.unique(shown.session)[: latents.SESSIONS]
    return [space.states(shown.take(np.flatnonzero(shown.session == i))) for i in own]


def _detail(
    material: VisualMaterial, result: Result, task: Any, params: dict, variant: str
) -> None:
    shown = scores.scored(task.shown["test"], material.run.store, material.run.cohorts)
    shown = task.spaced(shown, FRAMES)
    made = np.concatenate(list(task.reconstructions(params, shown)))
    try:
        found = freezing.detail(task.frames[shown.label], made)
    except AnalysisError as e:
        result.missing.append(f"spatial detail with {variant} frozen: {e}")
        return
    result.keep(f"movie.detail.{variant}", found)
    for metric in ("energy_low", "energy_high", "coherence_low", "coherence_high"):
        result.put(f"movie/{variant}", metric, getattr(found, metric))


def _score(material: VisualMaterial, task: Any, params: dict) -> float:
    """Accuracy or SSIM on the test part, mean over the sessions that are compared."""
    shown = scores.scored(task.shown["test"], material.run.store, material.run.cohorts)
    if task.name == "gratings":
        right = task.logits(params, shown).argmax(1) == shown.label
    else:
        shown = movie_evaluation.per_session(task, shown, _SCORED)
        found, at = [], 0
        for x in task.reconstructions(params, shown):
            truth = task.frames[shown.label[at : at + len(x)]]
            found.append(movie_evaluation.score(x, truth)[:, 0])
            at += len(x)
        right = np.concatenate(found)
    return float(np.mean([right[shown.session == i].mean() for i in np.unique(shown.session)]))


def _variants(e: VisualExperiment) -> tuple[str, ...]:
    """Thirds need three blocks."""
    return freezing.VARIANTS if e.encoder.depth >= 3 else ("none", "all")


# Training


def _training(e: VisualExperiment, name: str) -> configs.Training:
    return getattr(e, f"{name}_training")


def _steps(material: VisualMaterial, name: str) -> int:
    own = _training(material.run.experiment, name).steps
    return material.settings.freezing_steps or min(STEPS, own)


def _variant(
    e: VisualExperiment, name: str, variant: str, steps: int, seed: int
) -> VisualExperiment:
    """The experiment with a part frozen, so many steps, and a seed of its own."""
    tuning, training = getattr(e, f"{name}_tuning"), _training(e, name)
    short = dataclasses.replace(training, steps=steps, eval_every=min(training.eval_every, steps))
    changes = {f"{name}_tuning": dataclasses.replace(tuning, freeze=variant),
               f"{name}_training": short, "seed": seed}  # fmt: skip
    return dataclasses.replace(e, **changes)


def _trained(
    task: Any,
    training: configs.Training,
    e: VisualExperiment,
    folder: Path,
    material: VisualMaterial,
) -> dict:
    """The parameters of a fine-tuning, made or found."""
    mark = configs.fingerprint(
        {"experiment": configs.to_dict(e), "run": material.run.results["fingerprint"]}
    )
    note = folder / "done.json"
    like = jax.eval_shape(lambda key: task.init(key)[0], jax.random.key(0))
    try:
        if note.is_file() and json.loads(note.read_text()).get("fingerprint") == mark:
            return load_arrays(folder / "model.npz", like)
    except (OSError, ValueError, CalmError):
        pass  # damaged: made again
    if folder.is_dir():
        with writing(folder):
            if _marked(folder) != mark:  # of other steps: nothing of it goes on
                shutil.rmtree(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "begun").write_text(mark)
    result = train(
        task, training, folder, seed=e.seed, steps=training.steps, config_fingerprint=mark,
        log=Log(folder, stage=f"freezing {folder.name}", tensorboard=False),
    )  # fmt: skip
    save_arrays(folder / "model.npz", result.params)
    with writing(note), replacing(note) as part:
        part.write_text(json.dumps({"fingerprint": mark, "steps": training.steps}) + "\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # nothing goes on from them
    return result.params


def _marked(folder: Path) -> str:
    path = folder / "begun"
    return path.read_text() if path.is_file() else ""
