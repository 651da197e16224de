"""`calm-jax analyze` of a visual run: its latents, freezing, and what its recordings offer."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from calm_jax import compilation
from calm_jax.analyses import command, theory
from calm_jax.analyses.result import FOLDER, AnalysisRow, Result
from calm_jax.analysis import groups
from calm_jax.analysis.information import Information
from calm_jax.errors import AnalysisError
from calm_jax.visual import freezing, latents, report, runs
from calm_jax.visual.material import (
    REJECTED,
    SELECTED,
    VisualMaterial,
    VisualSettings,
    material_of,
)

_CURRICULA = 3  # sessions of each group
# What needs what a visual run does not have.
_OTHERS = {
    "tuning": "d' is of two labels of trials, such as cue and choice, which a visual run does not "
    "have",
    "embeddings": "LDA is of cue and choice of trials, which a visual run does not have",
    "dynamics": "they compare forecasts with what came; the encoder of a visual run makes none",
    "coupling": "responses are changes of a forecast; the encoder of a visual run makes none",
    "timescales": "they are beside responses of a forecast, of which a visual run has none; its "
    "autocorrelations are in `information`",
    "codes": "a visual run has no codes",
}


def analyze(
    folder: Path,
    *,
    out: Path | None = None,
    only: Sequence[str] = (),
    settings: VisualSettings | None = None,
    report_too: bool = True,
    console: Console | None = None,
) -> list[AnalysisRow]:
    """Runs the analyses of a visual run, writes `RUN/analysis/`, redraws its report.

    Args:
      only: names of analyses; default all, without the fine-tuning of `freezing`.
      out: the rows are written there too. report_too: redraw the page.

    Raises:
      ConfigError: for an unknown analysis. RunError: for a run that is not finished, or damaged.
      RecordingError: for recordings that cannot be used.
    """
    settings = settings or VisualSettings()
    console = console or Console(stderr=True, highlight=False)
    say = lambda text: console.print(text, soft_wrap=True, markup=False)  # noqa: E731
    wanted, run = command.chosen(only), runs.load(folder)
    for other in settings.beside:  # told before anything is computed
        latents.beside(Path(other), run)
    home = run.folder / FOLDER
    text = shlex.join(command.words(Path(folder), settings))
    asked = freezing.wanted(settings, only)
    if "freezing" in wanted and not asked and freezing.made(home):
        wanted = [n for n in wanted if n != "freezing"]  # it may have taken long
        say("freezing: made before, and kept")
    with compilation.effort(run.experiment.compilation):
        material = material_of(run, settings, home, say)
        rows = command.make(
            wanted, lambda name, r, _: _one(material, name, r, tuple(only)), home,
            seed=settings.seed, command=text, named=bool(only), out=out, say=say,
        )  # fmt: skip
    if report_too:
        say(f"report: {report.rewrite(run)}")
    return rows


def _one(material: VisualMaterial, name: str, result: Result, only: tuple[str, ...]) -> None:
    made: dict[str, Callable[[VisualMaterial, Result], None]] = {
        "information": run_information,
        "landscape": run_landscape,
        "curriculum": run_curriculum,
        "latents": latents.run_latents,
        "freezing": freezing.run_freezing,
    }
    if name in _OTHERS:
        result.missing.append(f"{name}: {_OTHERS[name]}")
    elif name == "freezing" and freezing.possible(material) and not freezing.wanted(
        material.settings, only
    ):
        result.missing.append(freezing.hint(material))
    else:
        made[name](material, result)


def run_information(material: VisualMaterial, result: Result) -> None:
    """Information of every neuron, by cell line, and of selected against rejected lines."""
    theory.run_information(material, result)
    result.facts["thresholds"] = dict(material.cohorts.thresholds)
    made = result.get(Information, "neurons")
    if made is None:
        return
    group = _selection(material, result.arrays["group"])
    result.arrays["selection"] = group
    try:
        table = groups.compare(made, group, _conditions(material, result))
    except AnalysisError as e:
        result.missing.append(f"predictable against unpredictable lines: {e}")
        return
    result.keep("selected", table)
    for k, name in enumerate(table.names):
        for metric in ("neurons", "fisher", "bound", "raw", "effective", "efficiency",
                       "condition", "score"):  # fmt: skip
            result.put(str(name), metric, float(getattr(table, metric)[k]))
    found = groups.ratio(made.fisher, group, SELECTED, REJECTED, seed=result.seed)
    result.keep("ratio", found)
    for metric in ("value", "low", "high"):
        result.put(f"{SELECTED} / {REJECTED}", f"fisher_{metric}", getattr(found, metric))


def _selection(material: VisualMaterial, lines: np.ndarray) -> np.ndarray:
    """(N,) the group of each neuron, by its line."""
    good = list(material.cohorts.predictable)
    group = np.where(np.isin(lines, good), SELECTED, REJECTED)
    return np.where(lines == "", "", group)


def _conditions(material: VisualMaterial, result: Result) -> dict[str, float]:
    """Median condition number over the sessions of each group, on subsets of one size."""
    made = result.facts.get("conditions", {})
    own = dict(zip(material.names(), material.groups()))
    return {g: float(np.median([v for n, v in made.items() if own[n] == g]))
            for g in {own[n] for n in made}}  # fmt: skip


def run_landscape(material: VisualMaterial, result: Result) -> None:
    """The loss landscape of one session of each line, with as many neurons; by group."""
    some = _one_of_each_line(material)
    count = min((int(n) for k in some if (n := material.alive(k).sum()) > 1), default=0)
    part = material.of(some, neurons=count)
    theory.run_landscape(part, result)
    _describe(part, result, neurons=count)
    for group in (SELECTED, REJECTED):
        inside = [n for n, g in zip(part.names(), part.groups()) if g == group]
        for metric in ("roughness", "ruggedness", "minima"):
            values = [r["value"] for r in result.rows
                      if r["metric"] == metric and r["session"] in inside]  # fmt: skip
            if values:
                result.put(group, metric, float(np.mean(values)))


def run_curriculum(material: VisualMaterial, result: Result) -> None:
    """The four orders on sessions of selected and of rejected lines."""
    some = _one_of_each_line(material)
    own = material.of(some).groups()
    taken = [k for group in (SELECTED, REJECTED)
             for k in [s for s, g in zip(some, own) if g == group][:_CURRICULA]]  # fmt: skip
    part = material.of(taken)
    theory.run_curriculum(part, result, most=len(taken))
    _describe(part, result)
    for group in (SELECTED, REJECTED):
        inside = [n for n, g in zip(part.names(), part.groups()) if g == group]
        for method, metric in dict.fromkeys((r["method"], r["metric"]) for r in result.rows):
            values = [r["value"] for r in result.rows if r["session"] in inside
                      and (r["method"], r["metric"]) == (method, metric)]  # fmt: skip
            if values:
                result.put(f"{group}: {method}", metric, float(np.mean(values)))


def _one_of_each_line(material: VisualMaterial) -> list[int]:
    """The first session of each cell line, in the order of the lines' names."""
    first: dict[str, int] = {}
    for k, line in enumerate(material.lines()):
        if material.alive(k).sum() > 1:
            first.setdefault(line, k)
    return [first[line] for line in sorted(first)]


def _describe(part: VisualMaterial, result: Result, **facts: int) -> None:
    """Cell line and group of each session, for captions."""
    about = {n: [line, g] for n, line, g in zip(part.names(), part.lines(), part.groups())}
    result.facts |= {"about": about, **facts}
    for group in (SELECTED, REJECTED):
        if group not in part.groups():
            result.missing.append(f"no session is of {group} lines: nothing to compare with")
