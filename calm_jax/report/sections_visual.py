"""Sections of the report of a visual run: latent spaces of its encoders, encoder freezing."""

from __future__ import annotations

import numpy as np

from calm_jax.analyses.result import Result
from calm_jax.analysis.freezing import Detail, Freezing
from calm_jax.analysis.latents import Dimension, Neighbourhood, Tsne
from calm_jax.report import analysis_figures, analysis_latents, html, style
from calm_jax.report.sections import Drawing, Section
from calm_jax.report.sections_interpretability import by_session, number

SPACES = {
    "poyo": "this run, fine-tuned",
    "pretrained": "before fine-tuning",
    "untrained": "untrained",
    "traces": "traces",
}
_TASK = {"gratings": "gratings", "movie": "movie"}
_VALUE = {"gratings": "direction (°)", "movie": "time in the movie (s)"}
_SCORE = {"gratings": "accuracy on test presentations", "movie": "SSIM on test frames"}
_MAPS = 4  # spaces with a map


def latents(result: Result) -> tuple[str, Section]:
    """Maps, dimension, order in time and likeness of the spaces, for each task."""
    text, drawings = "", []
    for task in result.facts.get("tasks", ()):
        text += _table(result, task)
        if result.facts["sessions"].get(task):
            drawings += _drawings(result, task)
    return text + (_note(result) if text else ""), Section(drawings, [])


def _spaces(result: Result, task: str) -> list[str]:
    """Spaces of a task that have numbers, this run's first, those of other cells last."""
    prefix = f"{task}/"
    methods = [r["method"] for r in result.rows if r["method"].startswith(prefix)]
    found = list(dict.fromkeys(m.removeprefix(prefix) for m in methods))
    order = [*SPACES]
    return sorted(found, key=lambda s: (s not in order[:3], s == "traces", found.index(s)))


def _label(space: str) -> str:
    return SPACES.get(space, space.replace("_", " "))


def _table(result: Result, task: str) -> str:
    f = result.facts
    heads = ["states of", "dimension", "order in time", "CKA: this run", "untrained", "traces",
             "Procrustes: this run", "traces"]  # fmt: skip
    rows = []
    for space in _spaces(result, task):
        values = [by_session(result, f"{task}/{space}", c)
                  for c in ("intrinsic_dimension", "neighbourhood")]  # fmt: skip
        values += [_between(result, task, space, other, "cka_with")
                   for other in ("poyo", "untrained", "traces")]  # fmt: skip
        values += [_between(result, task, space, other, "procrustes_to")
                   for other in ("poyo", "traces")]  # fmt: skip
        cells = [number(float(np.nanmean(v))) if np.isfinite(v).any() else "–" for v in values]
        rows.append([_label(space), *cells])
    if not rows:
        return ""
    n = len(f["sessions"].get(task, ()))
    told = f"Windows of the {_TASK[task]}, n = {n} session{'' if n == 1 else 's'}"
    return f"<h3>{told}</h3>{html.table(heads, rows, range(1, len(heads)))}"


def _between(result: Result, task: str, a: str, b: str, metric: str) -> list[float]:
    """A measure between two spaces by session, whichever of them the rows are of."""
    return by_session(result, f"{task}/{a}", f"{metric}_{b}") or by_session(
        result, f"{task}/{b}", f"{metric}_{a}"
    )


def _note(result: Result) -> str:
    f = result.facts
    return (
        f'<p class="note">Means over sessions of the test part, the same windows of '
        f"{f['window']:g} s in all spaces, every {f['hop']:g} s, at most {f['most']} of a "
        "session. A state: all latents of the encoder side by side, on their first "
        f"{f['kept']} components; before fine-tuning: the encoder it started from, with new rows "
        "of units; untrained: the same encoder with random weights; traces: the frames of the "
        "window. Dimension: intrinsic (Levina and Bickel). Order in time: Jaccard index of the "
        "10 neighbours in time and in the space. Linear CKA: 1 is equal but for rotation and "
        "scale; Procrustes disparity: 0 is. Windows that follow each other overlap, so even an "
        "untrained encoder keeps neighbours: read every number beside untrained and traces.</p>"
    )


def _drawings(result: Result, task: str) -> list[Drawing]:
    """Figures of the first session."""
    name, out = result.facts["sessions"][task][0], []
    spaces = [s for s in _spaces(result, task) if not s.endswith(" (other cells)")]
    maps = [(s, made) for s in spaces
            if (made := result.get(Tsne, f"{task}.{s}.tsne")) is not None][:_MAPS]  # fmt: skip
    value = result.arrays.get(f"{task}.value")
    for space, made in maps:
        figure, (ax,) = style.panels(height=3.1)
        _map(ax, made, value[made.index], task)
        out.append(Drawing(
            f"tsne_{task}_{_file(space)}", f"{_capital(_label(space))}: latents of windows of the "
            f"{_TASK[task]} in session {name}, t-SNE (perplexity {made.perplexity:.3g}, seed "
            f"{made.seed}). {len(made.points):,} of {made.n:,} windows.", figure,
        ))  # fmt: skip
    for kind, cls, draw, caption in (
        ("dimension", Dimension, analysis_latents.dimensions,
         "intrinsic dimension (Levina and Bickel) of the latents"),
        ("neighbourhood", Neighbourhood, analysis_latents.neighbourhoods,
         "how far windows that follow each other are neighbours"),
    ):  # fmt: skip
        found = {_label(s): result.get(cls, f"{task}0.{s}.{kind}") for s in spaces}
        found = {k: v for k, v in found.items() if v is not None}
        if found:
            figure, (ax,) = style.panels(height=1.0 + 0.5 * len(found))
            draw(ax, found)
            out.append(Drawing(f"{kind}_{task}", f"Session {name}, windows of the {_TASK[task]}: "
                               f"{caption}.", figure))  # fmt: skip
    if f"{task}0.cka" in result.arrays:
        names = [_label(s) for s in result.arrays[f"{task}0.spaces"].tolist()]
        figure, (ax,) = style.panels(height=3.4)
        n = f"n = {len(value):,} windows" if value is not None else ""
        analysis_latents.likeness(ax, result.arrays[f"{task}0.cka"], names, label="linear CKA", n=n)
        out.append(Drawing(f"cka_{task}", f"Session {name}, windows of the {_TASK[task]}: likeness "
                           "of the spaces (linear CKA; 1: equal but for rotation and scale).",
                           figure))  # fmt: skip
    return out


def _map(ax, made: Tsne, value: np.ndarray, task: str) -> None:
    """A map: directions as classes, the movie's time as a colour."""
    axes = ("t-SNE 1", "t-SNE 2")
    kinds = np.unique(value)
    if task == "gratings" and len(kinds) <= 8:
        index = np.searchsorted(kinds, value)
        analysis_figures.classes(ax, made.points, index, [f"{k:g}°" for k in kinds], axes=axes,
                                 unit="windows")  # fmt: skip
        return
    analysis_figures.cloud(ax, made.points, value, label=_VALUE[task], axes=axes, unit="windows")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _file(space: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in space)


def freezing(result: Result) -> tuple[str, Section]:
    """Scores, change of the latents, and spatial detail with parts of the encoder frozen."""
    f, text, drawings = result.facts, "", []
    for task in f.get("tasks", ()):
        made = result.get(Freezing, f"{task}.scores")
        if made is None:
            continue
        text += _variants(result, task, made)
        figure, (ax,) = style.panels(height=0.9 + 0.5 * len(made.variants))
        analysis_latents.freezing_scores(ax, made, xlabel=_SCORE[task])
        drawings.append(Drawing(
            f"freezing_{task}", f"Fine-tuning on the {_TASK[task]} with parts of the encoder "
            f"frozen: {_SCORE[task]}, mean over n = {f['sessions']} sessions; dotted: nothing "
            f"frozen. {f['steps'][task]} steps each.", figure,
        ))  # fmt: skip
    details = {v: result.get(Detail, f"movie.detail.{v}") for v in
               ("none", "all", "first", "middle", "last")}  # fmt: skip
    details = {k: v for k, v in details.items() if v is not None}
    if details:
        cut = next(iter(details.values())).cutoff
        figure, (ax,) = style.panels(height=1.2 + 0.55 * len(details))
        analysis_latents.spatial_detail(ax, details)
        drawings.append(Drawing(
            "freezing_detail", "Energy of the reconstructed movie frames at low and high spatial "
            f"frequencies, the true frames 1; low: up to {cut:g} of the Nyquist frequency. Below "
            "1 is blur.", figure,
        ))  # fmt: skip
    return text, Section(drawings, [])


def _variants(result: Result, task: str, made: Freezing) -> str:
    """Scores beside baselines, and how far the latents moved."""
    f = result.facts
    metric = f["metrics"][task]
    columns = {metric: {"ssim": "SSIM"}.get(metric, metric), "cka_with_start": "CKA with start",
               "procrustes_to_start": "Procrustes to start",
               "dimension_after": "intrinsic dimension"}  # fmt: skip
    rows = []
    for v in made.variants:
        cells = [number(result.value(f"{task}/{v}", c)) for c in columns]
        rows.append([analysis_latents.FROZEN[v], *cells])
    methods = dict.fromkeys(r["method"] for r in result.rows if r["method"].startswith(f"{task}/"))
    for m in methods:
        name = m.removeprefix(f"{task}/")
        if name not in made.variants:
            label = f"the run itself ({f['own_steps'][task]} steps)" if name == "poyo" else (
                style.label(name))  # fmt: skip
            rows.append([label, number(result.value(m, metric)), "–", "–", "–"])
    seeds = f["seeds"]
    start = result.value(f"{task}/none", "dimension_before")
    return f"<h3>Fine-tuning on the {_TASK[task]}</h3>" + html.table(
        ["frozen", *columns.values()], rows, range(1, len(columns) + 1)
    ) + (
        f'<p class="note">Test part, mean over n = {f["sessions"]} sessions and {seeds} '
        f"seed{'' if seeds == 1 else 's'}; {f['steps'][task]} steps of fine-tuning each, the run "
        f"itself took {f['own_steps'][task]}. Latents of the same test windows before (pretrained "
        f"encoder, new rows of units; dimension {number(start)}) and after, first seed, mean over "
        "at most 8 sessions. Rows of units and sessions learn in all of them.</p>"
    )  # fmt: skip
