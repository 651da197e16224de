"""The latent space of fine-tuned encoders on held-out windows (POYO-SSL, section 3.4, H, I).

The state of a window is all latents of the encoder side by side, after its blocks. Windows lie
in the test part of the fine-tuning, every quarter of a window; all spaces are of the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from calm_jax.analyses.geometry import compare, means, measure
from calm_jax.analyses.result import Result
from calm_jax.analysis import components, latents
from calm_jax.config import differences
from calm_jax.errors import AnalysisError, CalmError, ConfigError
from calm_jax.models import mlp_encoder
from calm_jax.models import population_encoder as encoders
from calm_jax.recordings.stimuli import Shown
from calm_jax.visual import runs, scores
from calm_jax.visual.material import VisualMaterial
from calm_jax.visual.runs import VisualRun

OWN, BEFORE, UNTRAINED, TRACES = "poyo", "pretrained", "untrained", "traces"
SESSIONS = 8  # at most
WINDOWS = 500  # of a session, at most
HOP = 4  # windows begin every 1 / HOP of a window
LEAST = 20  # windows: neighbours that the dimension is estimated from
KEPT = 50  # components that distances are taken in


def run_latents(material: VisualMaterial, result: Result) -> None:
    """Maps, dimension, order in time and likeness of latent spaces, for each task of the run."""
    run, e = material.run, material.run.experiment
    others = [beside(Path(f), run) for f in material.settings.beside]
    names = _names([o.label for o in others])
    result.facts |= {
        "tasks": list(e.tasks), "window": window(e), "hop": window(e) / HOP, "kept": KEPT,
        "most": WINDOWS, "own": run.label, "beside": names, "sessions": {},
    }  # fmt: skip
    for name in e.tasks:
        try:
            _of_task(material, result, name, dict(zip(names, others)))
        except CalmError as why:
            result.missing.append(f"latents of {name}: {why}")
    means(result)


def _of_task(
    material: VisualMaterial, result: Result, name: str, others: dict[str, VisualRun]
) -> None:
    run, store = material.run, material.run.store
    task = run.task(name)
    shown = windows(task, run)
    key = jax.random.key(material.settings.seed)
    spaces = {OWN: Space(task, run.fine_tuned(name, task))}
    if task.pretrained is not None:
        spaces[BEFORE] = Space(task, task.init(key)[0])
    spaces[UNTRAINED] = Space(task, task.untrained(key))
    for label, other in others.items():
        if name not in other.experiment.tasks:
            result.missing.append(f"latents of {name} in {label}: it was not fine-tuned on that")
            continue
        theirs = other.task(name)
        space = Space(theirs, other.fine_tuned(name, theirs))
        if set(run.cohorts.scored) & set(other.cohorts.finetune):
            spaces[label] = space
        else:
            _apart(result, f"{name}/{label}", space, windows(theirs, other), store)
    own = sorted(set(shown.session.tolist()))
    taken = [own[k] for k in np.linspace(0, len(own) - 1, min(SESSIONS, len(own))).astype(int)]
    if len(own) > len(taken):
        result.missing.append(
            f"latents of {name} in {len(own) - len(taken)} more sessions: left out, to bound "
            "the time"
        )
    result.facts["sessions"][name] = [store.sessions[i].session for i in taken]
    result.facts["spaces"] = list(
        dict.fromkeys([*result.facts.get("spaces", []), *spaces, TRACES])
    )
    for k, i in enumerate(taken):
        rows = shown.take(np.flatnonzero(shown.session == i))
        _of_session(material, result, f"{name}{k}", name, task, spaces, rows, first=k == 0)


def _of_session(
    material: VisualMaterial,
    result: Result,
    key: str,
    name: str,
    task: Any,
    spaces: dict[str, Space],
    rows: Shown,
    *,
    first: bool,
) -> None:
    """The windows of one session in all spaces. Maps are of the first session."""
    about = material.run.store.sessions[int(rows.session[0])]
    where = {"session": about.session, "animal": about.animal}
    found = {}
    for label, space in spaces.items():
        if int(rows.session[0]) not in space.task._frames:
            result.missing.append(
                f"latents of {name} in {label} in session {about.session}: it was not "
                "fine-tuned on that session"
            )
            continue
        found[label] = space.states(rows)
    found[TRACES] = traces(task, rows)
    reduced = {}
    for label, x in found.items():
        what = f"latents of {name} in {label}"
        try:
            fitted = components.fit(x, KEPT, fewer=True, what=what)
            reduced[label] = components.project(fitted, x)
        except AnalysisError as e:
            result.missing.append(f"{what} in session {about.session}: {e}")
    still = np.zeros(len(rows), int)
    few = len(rows) <= LEAST
    if few:
        result.missing.append(
            f"dimension and order in time of latents of {name} in session {about.session}: "
            f"too few test windows, more than {LEAST} are needed"
        )
    for label, x in reduced.items() if not few else ():
        measure(result, f"{key}.{label}", f"{name}/{label}", x, rows.start, still, where)
    compare(result, key, reduced, where, task=f"{name}/")
    if not first:
        return
    result.arrays |= {f"{name}.value": _values(material, task, rows)}
    for label, x in reduced.items():
        if label == TRACES:
            continue
        try:
            result.keep(f"{name}.{label}.tsne", latents.tsne(x, seed=result.seed))
        except AnalysisError as e:
            result.missing.append(f"t-SNE of {name} in session {about.session}: {e}")


def _apart(result: Result, method: str, space: Space, rows: Shown, store: Any) -> None:
    """Dimension and order of a space of other cells: nothing else can be compared."""
    result.missing.append(
        f"likeness of {method}: it was fine-tuned on other cells, so no window is common; its "
        "dimension and order in time are of its own test windows"
    )
    own = sorted(set(rows.session.tolist()))
    for i in own[:SESSIONS]:
        chosen = rows.take(np.flatnonzero(rows.session == i))
        x = space.states(chosen)
        about = store.sessions[i]
        where = {"session": about.session, "animal": about.animal}
        try:
            x = components.project(components.fit(x, KEPT, fewer=True, what=method), x)
        except AnalysisError as e:
            result.missing.append(f"latents of {method} in session {about.session}: {e}")
            continue
        measure(result, f"{method}{i}", f"{method} (other cells)", x, chosen.start,
                np.zeros(len(x), int), where)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """An encoder: the task that feeds it, and the parameters of the task."""

    task: Any
    params: dict

    def states(self, rows: Shown) -> np.ndarray:
        """(R, D) all latents of each window, side by side."""
        read = _reader(self.task)
        keep = ("values", "units", "mask", "bins") if self.task.plain else (
            "values", "units", "mask", "code")  # fmt: skip
        out = []
        for batch, real in self.task.batches(rows):
            z = read(self.params, {k: batch[k] for k in keep})
            out.append(np.asarray(z, np.float32)[:real])
        return np.concatenate(out)


def _reader(task: Any) -> Any:
    """The compiled function of a task from parameters and a batch to states; made once."""
    if not hasattr(task, "_read_latents"):

        def read(params: dict, batch: dict) -> jax.Array:
            model = task.model(params).encoder
            if task.plain:
                return mlp_encoder.encode(model, batch)
            z = encoders.process(model, encoders.encode(model, batch))
            return z.reshape(z.shape[0], -1)

        task._read_latents = jax.jit(read)
    return task._read_latents


def window(e: Any) -> float:
    """Seconds of a window."""
    return (e.mlp if e.encoder_kind == "mlp" else e.encoder).window


def windows(task: Any, run: VisualRun) -> Shown:
    """Windows of the test part of the sessions that are scored, every quarter of a window.

    In the order of time; `label` is the movie frame or the class. At most WINDOWS of a session.
    """
    shown = scores.scored(task.shown["test"], run.store, run.cohorts)
    out = []
    for i in np.unique(shown.session):
        own = shown.take(np.flatnonzero(shown.session == i))
        step = max(1, round(task._frames[int(i)] / HOP))
        if task.name == "gratings":
            own = _spread(task, own, step)
        else:
            own = own.take(np.unique(own.start, return_index=True)[1])
            own = own.take(np.flatnonzero((own.start - own.start[0]) % step == 0))
        out.append(task.spaced(own, WINDOWS))
    if not out:
        raise AnalysisError("no window of the test part", where=task.name)
    return Shown(*(np.concatenate([getattr(x, f.name) for x in out])
                   for f in dataclasses.fields(Shown)))  # fmt: skip


def _spread(task: Any, shown: Shown, step: int) -> Shown:
    """Windows anywhere in the presentations of a session, not in their middle alone."""
    rows, starts = [], []
    for k in range(len(shown)):
        i = int(shown.session[k])
        a, b = task.prepared.range_of(i, int(shown.start[k]))
        starts.append(np.arange(a, b - task._frames[i] + 1, step))
        rows.append(np.full(starts[-1].size, k))
    return dataclasses.replace(shown.take(np.concatenate(rows)), start=np.concatenate(starts))


def traces(task: Any, rows: Shown) -> np.ndarray:
    """(R, frames x neurons) scaled traces of the same windows."""
    out = []
    for i, start in zip(rows.session.tolist(), rows.start.tolist()):
        out.append(task.prepared.window(i, start, start + task._frames[i])[0].reshape(-1))
    return np.array(out, np.float32)


def _values(material: VisualMaterial, task: Any, rows: Shown) -> np.ndarray:
    """(R,) what maps are coloured by: direction (the column's unit), or s in the movie."""
    if task.name == "gratings":
        return np.asarray(task.classes, np.float64)[rows.label]
    session = material.run.store.session(int(rows.session[0]))
    table = session.intervals[task.movie.name]
    return rows.label * float(np.median(table.stop - table.start))


def beside(folder: Path, run: VisualRun) -> VisualRun:
    """The run in `folder`, which may stand beside another.

    Raises:
      ConfigError: when their recordings, parts or windows differ. RunError: as of `runs.load`.
    """
    if not runs.is_visual(folder):
        raise ConfigError("no run of a visual experiment", where=f"--beside {folder}")
    other = runs.load(folder)
    for field in ("data", "split", "preprocess", "gratings", "movie"):
        a, b = (getattr(r.experiment, field) for r in (run, other))
        if a != b:
            raise ConfigError(
                "the runs cannot be compared: their windows differ",
                where=f"--beside {folder}",
                found="; ".join(differences(a, b, field)),
            )
    if window(other.experiment) != window(run.experiment):
        raise ConfigError(
            "the runs cannot be compared: their windows differ",
            where=f"--beside {folder}",
            found=f"{window(other.experiment):g} s",
            expected=f"{window(run.experiment):g} s",
        )
    return other


def _names(labels: Sequence[str]) -> list[str]:
    """Labels that differ from each other and from the spaces of every run."""
    taken, out = {OWN, BEFORE, UNTRAINED, TRACES}, []
    for label in labels:
        name, k = label, 2
        while name in taken:
            name, k = f"{label} {k}", k + 1
        taken.add(name)
        out.append(name)
    return out
