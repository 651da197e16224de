"""The report of one visual experiment: one page that needs nothing else."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import calm_jax
from calm_jax import config as configs
from calm_jax.files import replacing
from calm_jax.report import analyses, command, html, page, style
from calm_jax.report.sections import Drawing, Section
from calm_jax.visual.experiment import VisualExperiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calm_jax.visual.runs import VisualRun

_METRICS = {"ssim": "SSIM", "mse": "MSE", "n_presentations": "presentations",
            "n_windows": "windows"}  # fmt: skip
MONITOR = {
    "distance": "distance between views",
    "variance": "variance of the latents",
    "effective_rank": "effective rank",
}


def write(
    experiment: VisualExperiment,
    results: dict[str, Any],
    folder: Path,
    shared: Path,
    made: str | None = None,
) -> Path:
    """Writes `report.html` and figures of a finished experiment; returns the page.

    Args:
      results: of `stages.run`. folder: the run folder, where `gratings/` and `movie/` lie.
      shared: where pretrainings lie. made: the command that made the run; None: of
        `pretrain`.
    """
    here = command.shown(folder)
    made = made or command.pretrain(experiment, here)
    drawn = command.report(here)
    with style.look():
        parts = [
            ("At a glance", _glance(results), Section([], []), [made]),
            ("Who trains", _who(results), _lines(results), [made, drawn]),
        ]
        if results["pretraining"]:
            section = _monitor(experiment, results, shared)
            parts.append(("Pretraining", "", section, [made, drawn]))
        for task in experiment.tasks:
            body = _task(results, task, folder)
            parts.append((task.capitalize(), body, Section([], []), [made]))
        parts += analyses.visual_parts(folder, [drawn])
        bodies = [
            (title, text + page.figures(folder, section), commands)
            for title, text, section, commands in parts
        ]
    bodies.append(("The run", _run(experiment, results, folder, made), [made]))
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = [
        f"run <code>{html.escape(here)}</code>", f"seed {experiment.seed}", f"written {date}",
        f"calm_jax {calm_jax.__version__}",
    ]  # fmt: skip
    path = folder / page.PAGE
    with replacing(path) as part:
        text = page.layout(experiment.name, experiment.purpose, facts, bodies)
        part.write_text(text, encoding="utf-8")
    return path


def rewrite(run: VisualRun) -> Path:
    """The page of a finished run again, with the analyses it has by now."""
    return write(run.experiment, run.results, run.folder, run.shared, run.command)


def _lines(results: dict[str, Any]) -> Section:
    figure, [ax] = style.panels(1, height=3.0)
    draw_lines(ax, results["cohorts"])
    text = "Median skewness and kurtosis of every cell line (training frames), and the thresholds."
    return Section([Drawing("lines", text, figure)], [])


def _monitor(experiment: VisualExperiment, results: dict[str, Any], shared: Path) -> Section:
    rows = _log(shared / results["pretraining"]["folder"] / "metrics.jsonl")
    figure, axes = style.panels(len(MONITOR), height=1.9)
    for ax, name in zip(axes, MONITOR):
        draw_monitor(ax, rows, name)
    text = (
        "The collapse monitor. If all windows had the same latents, their variance and "
        "effective rank would go to 0 and 1. Weak labels (grating directions) make this "
        "pretraining weakly supervised."
        if experiment.masking.label_weight > 0
        else "The collapse monitor; no labels were used."
    )
    return Section([Drawing("pretraining", text, figure)], [])


def _task(results: dict[str, Any], task: str, folder: Path) -> str:
    """Numbers of a fine-tuning, what they say, and the contact sheet of a movie."""
    body = _rows(results, task)
    if results["said"].get(task):
        body += f"<p>{html.escape(results['said'][task])}</p>"
    sheet = folder / task / "contact_sheet.svg"
    if sheet.is_file():
        made = page.image(sheet, "Shown, reconstructed, and the training frame of nearest "
                          "activity.", f"{task}/contact_sheet", "contact_sheet")  # fmt: skip
        body += f'<div class="wide sheet">{made}</div>'
    return body


def _run(experiment: VisualExperiment, results: dict[str, Any], folder: Path, made: str) -> str:
    """Commands and the configuration."""
    here, out = command.shown(folder), ""
    for what, text in (
        (f"everything: training, scores, this page (took {results['seconds']:,.0f} s)", made),
        ("latent spaces, information of cell lines, landscape, curriculum", command.analyze(here)),
        ("fine-tuning with parts of the encoder frozen",
         f"{command.analyze(here)} --only freezing"),
        ("this page and its figures alone", command.report(here)),
    ):  # fmt: skip
        out += f"<p>{what.capitalize()}:</p><pre>{html.escape(text)}</pre>"
    text = html.escape(configs.dumps(experiment))
    return out + (
        f"<details><summary>Configuration (fingerprint {configs.fingerprint(experiment)})"
        f"</summary><pre>{text}</pre></details>"
    )


def draw_lines(ax: Axes, cohorts: dict[str, Any]) -> Axes:
    """Skewness against kurtosis of the cell lines, both thresholds, who is predictable."""
    for name, value in cohorts["medians"].items():
        good = name in cohorts["predictable"]
        ax.plot(value["skewness"], value["kurtosis"], "o" if good else "s", ms=4,
                color="#0072B2" if good else "#D55E00")  # fmt: skip
        ax.annotate(name, (value["skewness"], value["kurtosis"]), fontsize=6.5,
                    xytext=(3, 2), textcoords="offset points")  # fmt: skip
    limits = cohorts["thresholds"]
    ax.axvline(limits["skewness"], color=style.QUIET, lw=0.8, ls="--")
    ax.axhline(limits["kurtosis"], color=style.QUIET, lw=0.8, ls="--")
    ax.set_yscale("log")
    ax.set_xlabel("median skewness of dF/F")
    ax.set_ylabel("median kurtosis of dF/F")
    ax.set_title(f"n = {len(cohorts['medians'])} cell lines; circles: predictable")
    return ax


def draw_monitor(ax: Axes, rows: list[dict[str, Any]], name: str) -> Axes:
    """One quantity of the log against the step, training and validation."""
    for kind, mark in (("train", "-"), ("valid", "o-")):
        found = [(r["step"], r[name]) for r in rows if r.get("split") == kind and name in r]
        if found:
            x, y = np.array(found, float).T
            ax.plot(x, y, mark, ms=3, lw=1, label={"valid": "validation"}.get(kind, "training"),
                    color="#0072B2" if kind == "train" else "#D55E00")  # fmt: skip
    ax.set_xlabel("step")
    ax.set_ylabel(MONITOR[name])
    if ax.lines:
        ax.legend()
    return ax


def _log(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, each with its step and "split" (train or valid)."""
    out = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found = json.loads(line)
        except ValueError:
            continue  # the last line of a killed process
        if isinstance(found, dict) and "step" in found:
            out.append(found)
    return out


def _values(results: dict[str, Any], task: str) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for r in results["rows"]:
        if r["task"] == task:
            out.setdefault(r["method"], {})[r["metric"]] = r["value"]
    return out


def _rows(results: dict[str, Any], task: str) -> str:
    values = _values(results, task)
    metrics = list(dict.fromkeys(k for v in values.values() for k in v))
    text = lambda k, x: f"{x:,.0f}" if k.startswith("n_") else f"{x:.3f}"
    body = [[style.label(m), *(text(k, v[k]) if k in v else "–" for k in metrics)]
            for m, v in values.items()]  # fmt: skip
    heads = ["method", *(_METRICS.get(k, k) for k in metrics)]
    return html.table(heads, body, list(range(1, len(heads)))) + (
        f"<p>Means over the {len(results['cohorts']['scored'])} sessions that are compared, "
        "test part.</p>"
    )


def _glance(results: dict[str, Any]) -> str:
    said = []
    for task, metric in (("gratings", "accuracy"), ("movie", "ssim")):
        values = _values(results, task)
        if not values:
            continue
        own = values["poyo"][metric]
        others = {m: v[metric] for m, v in values.items() if m != "poyo" and metric in v}
        # What knows the answer is no rival.
        rivals = {m: v for m, v in others.items()
                  if m not in ("best_training_frame", "shuffled_95")}  # fmt: skip
        best = max(rivals, key=rivals.get)
        said.append(
            f"{task.capitalize()}: {_METRICS.get(metric, metric)} {own:.3f}; best of what stands "
            f"beside it: {style.label(best)} {rivals[best]:.3f}."
        )
    return "".join(f"<p>{html.escape(x)}</p>" for x in said)


def _who(results: dict[str, Any]) -> str:
    who = results["cohorts"]
    text = (
        f"{len(who['pretrain'])} sessions pretrain, {len(who['finetune'])} are fine-tuned on, "
        f"{len(who['scored'])} of them are scored. Predictable lines: "
        f"{', '.join(who['predictable'])}; no animal is in both parts."
    )
    return f"<p>{html.escape(text)}</p>"
