"""The report of a run: figures in files, and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path

import calm_jax
from calm_jax import config
from calm_jax.files import replacing
from calm_jax.report import analyses, command, html, reliability, sections, style, tables
from calm_jax.report.contents import Contents, machine, read
from calm_jax.report.sections import Drawing, Section

FIGURES = "figures"
PAGE = "report.html"


def write_report(run: Path) -> Path:
    """Writes `figures/*.png`, `figures/*.svg` and `report.html` of a run folder.

    What the run has not come to yet is named in one line and left out.

    Returns:
      The path of the page: self-contained, readable without a network.

    Raises:
      RunError: when `run` is no run folder, or cannot be written to.
    """
    contents = read(Path(run))
    lines = tables.summarise(contents.rows)
    trained = [command.pretrain(contents.experiment, contents.shown_folder)]
    scored = [command.evaluate(contents.shown_folder)]
    drawn = [command.report(contents.shown_folder)]
    with style.look():
        parts = [
            ("At a glance", html.glance(contents, lines), Section([], []), scored),
            (
                "Forecasts in numbers",
                html.summary(contents, lines),
                sections.summary(contents, lines),
                scored + drawn,
            ),
            ("Skill per step ahead", "", sections.skill(contents), scored + drawn),
            ("Example forecasts", "", sections.forecasts(contents), trained + drawn),
            ("Calibration", "", reliability.calibration(contents), scored + drawn),
            ("Correlation per neuron", "", sections.neurons(contents), trained + drawn),
            (
                "Reconstruction",
                html.reconstruction(contents),
                sections.reconstructions(contents),
                trained + drawn,
            ),
            ("Code usage", "", sections.codes(contents), trained + drawn),
            ("Losses", "", sections.losses(contents), trained + drawn),
            *analyses.parts(contents, drawn),
        ]
        bodies = [
            (title, text + figures(contents.folder, section), made)
            for title, text, section, made in parts
        ]
    bodies.append(("The run", _run(contents), trained))
    path = contents.folder / PAGE
    with replacing(path) as part:
        part.write_text(_page(contents, bodies), encoding="utf-8")
    return path


def figures(folder: Path, section: Section) -> str:
    """The drawings of a section, saved below `folder` and set into its page, and what is
    missing."""
    shown = [_figure(folder, d) for d in section.drawings]
    out = f'<div class="grid">{"".join(shown)}</div>' if shown else ""
    return out + "".join(f'<p class="missing">{html.escape(m)}.</p>' for m in section.missing)


def _figure(folder: Path, drawing: Drawing) -> str:
    _, svg = style.save(drawing.figure, folder / FIGURES, drawing.name)
    return image(svg, drawing.caption, f"{FIGURES}/{drawing.name}", drawing.name)


def image(svg: Path, caption: str, link: str, name: str) -> str:
    """A drawing in the page, with links to its files `link`.png and `link`.svg."""
    # As an image, so that names inside one drawing cannot meet those of another.
    data = base64.b64encode(svg.read_bytes()).decode()
    caption = html.escape(caption)
    links = f'<a href="{link}.png">PNG</a> <a href="{link}.svg">SVG</a>'
    return (
        f'<figure id="fig-{name}"><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{caption} <span>{links}</span></figcaption></figure>"
    )


def _run(run: Contents) -> str:
    """Stages, split, machine, commands and the configuration."""
    rows = []
    for stage, facts in run.stages.items():
        best = facts.get("validation")
        rest = {k: v for k, v in facts.items() if k not in ("seconds", "finished", "machine")}
        if isinstance(best, dict) and "loss" in best:
            rest["validation_loss"] = f"{best['loss']:.4g}"
        choice = rest.get("choice")
        if isinstance(choice, dict) and run.experiment.alternative.rule != "never":
            rest["transformer"] = f"{choice.get('variant')} ({choice.get('reason')})"
        plain = {k: v for k, v in rest.items() if isinstance(v, (str, int, float))}
        notes = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in plain.items())
        seconds = facts.get("seconds")
        time = "–" if seconds is None else _duration(seconds)
        finished = str(facts.get("finished", "–")).replace("T", " ").replace("+00:00", " UTC")
        rows.append([stage, time, finished, notes])
    out = html.table(["stage", "took", "finished", ""], rows, numbers=[]) if rows else ""
    if run.split is not None:
        out += html.split_table(run.split)
    for name, why in run.problems.items():
        out += f'<p class="missing">{html.escape(f"{name}: {why}")}.</p>'
    folder = run.shown_folder
    commands = [
        ("everything: training, evaluation, this page",
         command.pretrain(run.experiment, folder)),
        ("the numbers alone", command.evaluate(folder)),
        ("what the model learned: embeddings, dynamics, couplings, codes, theory",
         command.analyze(folder)),
        ("this page and its figures alone", command.report(folder)),
    ]  # fmt: skip
    for what, text in commands:
        out += f"<p>{html.escape(what.capitalize())}:</p><pre>{html.escape(text)}</pre>"
    text = html.escape(config.dumps(run.experiment))
    mark = config.fingerprint(run.experiment)
    return out + (
        f"<details><summary>Configuration (fingerprint {mark})</summary>"
        f"<pre>{text}</pre></details>"
    )


def _page(run: Contents, bodies: list[tuple[str, str, list[str]]]) -> str:
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    trained = {str(f["machine"]) for f in run.stages.values() if f.get("machine")}
    where = f"run on {', '.join(sorted(trained))}" if trained else f"page written on {machine()}"
    facts = [
        f"run <code>{html.escape(run.shown_folder)}</code>",
        f"written {date}",
        f"calm_jax {calm_jax.__version__}",
        html.escape(where),
    ]
    return layout(run.experiment.name, run.experiment.purpose, facts, bodies)


def layout(
    name: str, purpose: str, facts: list[str], bodies: list[tuple[str, str, list[str]]]
) -> str:
    """The page: its head, a table of contents, and sections with the commands that made them.

    Args:
      facts: HTML. bodies: (title, HTML, commands) of each section.
    """
    name, purpose = html.escape(name), html.escape(purpose)
    toc, main = [], []
    for title, body, made in bodies:
        key = title.lower().replace(" ", "-")
        toc.append(f'<li><a href="#{key}">{title}</a></li>')
        made_by = ", drawn by ".join(f"<code>{html.escape(m)}</code>" for m in made)
        note = f'<p class="made">made by {made_by}</p>'
        main.append(f'<section id="{key}"><h2>{title}</h2>{body}{note}</section>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: calm_jax report</title><style>{html.STYLE}</style></head><body>"
        f"<header><h1>{name}</h1>"
        + (f"<p>{purpose}</p>" if purpose else "")
        + f'<p class="facts">{" · ".join(facts)}</p></header>'
        f'<nav aria-label="Contents"><ul>{"".join(toc)}</ul></nav>'
        f"<main>{''.join(main)}</main></body></html>\n"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
