"""The report of one visual experiment: one page that needs nothing else."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import calm_jax
from calm_jax import config as configs
from calm_jax.files import replacing
from calm_jax.report import html, style
from calm_jax.visual.experiment import VisualExperiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MONITOR = {
    "distance": "distance between views",
    "variance": "variance of the latents",
    "effective_rank": "effective rank",
}


def write(
    experiment: VisualExperiment, results: dict[str, Any], folder: Path, shared: Path
) -> Path:
    """Writes `report.html` and figures of a finished experiment; returns the page.

    Args:
      results: of `stages.run`. folder: the run folder, where `gratings/` and `movie/` lie.
      shared: where pretrainings lie.
    """
    from calm_jax.report.style import panels

    parts = [("At a glance", _glance(results)), ("Who trains", _who(results))]
    with style.look():
        figure, [ax] = panels(1, height=3.0)
        draw_lines(ax, results["cohorts"])
        parts[1] = ("Who trains", parts[1][1] + _figure(figure, folder, "lines",
                    "Median skewness and kurtosis of every cell line (training frames), and the "
                    "thresholds."))  # fmt: skip
        if results["pretraining"]:
            log = shared / results["pretraining"]["folder"] / "metrics.jsonl"
            rows = _log(log)
            figure, axes = panels(len(MONITOR), height=1.6)
            for ax, name in zip(axes, MONITOR):
                draw_monitor(ax, rows, name)
            text = (
                "The collapse monitor. If all windows had the same latents, their variance and "
                "effective rank would go to 0 and 1. Weak labels (grating directions) make this "
                "pretraining weakly supervised."
                if experiment.masking.label_weight > 0
                else "The collapse monitor; no labels were used."
            )
            parts.append(("Pretraining", _figure(figure, folder, "pretraining", text)))
    for task in experiment.tasks:
        body = _rows(results, task)
        if results["said"].get(task):
            body += f"<p>{html.escape(results['said'][task])}</p>"
        sheet = folder / task / "contact_sheet.svg"
        if sheet.is_file():
            body += _image(sheet, "Shown, reconstructed, and the training frame of nearest "
                           "activity.", f"{task}/contact_sheet")  # fmt: skip
        parts.append((task.capitalize(), body))
    text = html.escape(configs.dumps(experiment))
    parts.append(("The run", f"<details><summary>Configuration (fingerprint "
                  f"{configs.fingerprint(experiment)})</summary><pre>{text}</pre></details>"))
    path = folder / "report.html"
    with replacing(path) as part:
        part.write_text(_page(experiment, folder, parts), encoding="utf-8")
    return path


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
    body = [[style.label(m), *(f"{v[k]:.3f}" if k in v else "–" for k in metrics)]
            for m, v in values.items()]  # fmt: skip
    heads = ["method", *(k.replace("_", " ") for k in metrics)]
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
            f"{task}: {metric} {own:.3f}; best of what stands beside it: "
            f"{style.label(best)} {rivals[best]:.3f}."
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


def _figure(figure: Any, folder: Path, name: str, caption: str) -> str:
    _, svg = style.save(figure, folder / "figures", name)
    return _image(svg, caption, f"figures/{name}")


def _image(svg: Path, caption: str, link: str) -> str:
    data = base64.b64encode(svg.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/svg+xml;base64,{data}"><figcaption>{text} '
        f'<span><a href="{link}.png">PNG</a> <a href="{link}.svg">SVG</a></span></figcaption>'
        "</figure>"
    )


def _page(experiment: VisualExperiment, folder: Path, parts: list[tuple[str, str]]) -> str:
    name = html.escape(experiment.name)
    key = lambda title: title.lower().replace(" ", "-")
    toc = "".join(f'<li><a href="#{key(t)}">{t}</a></li>' for t, _ in parts)
    made = f"<code>calm-jax pretrain {name}</code>"
    main = "".join(
        f'<section id="{key(t)}"><h2>{t}</h2>{body}<p class="made">made by {made}</p></section>'
        for t, body in parts
    )
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: calm_jax report</title><style>{html.STYLE}</style></head><body>"
        f"<header><h1>{name}</h1><p>{html.escape(experiment.purpose)}</p>"
        f'<p class="facts">seed {experiment.seed} · written {date} · '
        f"calm_jax {calm_jax.__version__}</p></header>"
        f'<nav aria-label="Contents"><ul>{toc}</ul></nav><main>{main}</main></body></html>\n'
    )
