"""Sections of the report: tuning, embeddings, low-dimensional dynamics (CalM, section 6)."""

from __future__ import annotations

import numpy as np

from calm_jax.analyses.result import Result
from calm_jax.analysis.classification import Classification
from calm_jax.analysis.dynamics import Dynamics
from calm_jax.analysis.embeddings import Angle, Lda
from calm_jax.analysis.tuning import Share
from calm_jax.report import analysis_figures as draw
from calm_jax.report import html, style
from calm_jax.report.sections import Drawing, Section
from calm_jax.report.sections_interpretability import by_session, number

_FEW = 8  # classes told apart by colour
_SHOWN = 3  # sessions with a figure of their own
_TABLES = {"neuron": "neuron embeddings", "coupling": "mixing embeddings"}


def tuning(result: Result) -> tuple[str, Section]:
    """d' of the labels, and the share of selective neurons against shuffled labels."""
    labels, drawings = result.facts.get("labels", []), []
    if not labels:
        return "", Section([], [])
    ds = {f["name"]: result.arrays[f"label{k}.d"] for k, f in enumerate(labels)}
    figure, (ax,) = style.panels()
    signs = f"+: {labels[0]['classes'][1]}" if len(labels) == 1 else ""
    draw.tuning_histogram(ax, ds, signs=signs)
    said = "; ".join(
        f"{f['name']}: {f['classes'][1]} (d' > 0) against {f['classes'][0]}, {f['kind']}"
        for f in labels
    )
    drawings.append(
        Drawing("tuning", f"d' of the neurons in the training part. {said}. Dotted: |d'| = 0.5.",
                figure)
    )  # fmt: skip
    for k, f in enumerate(labels):
        share = result.get(Share, f"label{k}.share")
        figure, (ax,) = style.panels()
        draw.null_histogram(ax, share.share, share.null, share.p,
                            xlabel=f"share of neurons with |d'| > 0.5, {f['name']}",
                            n=f"n = {share.n:,} neurons")  # fmt: skip
        caution = ""
        if f["kind"] != "trials":
            caution = (
                " Segments that follow each other are alike, so shuffling them makes the null "
                "too narrow."
            )
        drawings.append(
            Drawing(f"tuning_null_{k}", f"Share of neurons selective for {f['name']}, and with "
                    f"labels shuffled.{caution}", figure)
        )  # fmt: skip
    return "", Section(drawings, [])


def embeddings(result: Result) -> tuple[str, Section]:
    """Principal components, linear discriminants and confusion matrices."""
    drawings: list[Drawing] = []
    for which, title in _TABLES.items():
        if f"{which}.scores" in result.arrays:
            drawings += _components(result, which, title)
        model = result.get(Lda, f"{which}.lda")
        if model is not None:
            drawings += _discriminants(result, which, title, model)
    for which, what, title in result.facts.get("classified", []):
        found = result.get(Classification, f"{which}.{what}")
        figure, (ax,) = style.panels(height=3.5)
        unit = "sessions" if which == "session" else "neurons"
        draw.confusion(ax, found, what=what.replace("_", " "), unit=unit)
        out = ""
        if found.left_out:
            out = f" Left out, for they have too few rows: {', '.join(found.left_out)}."
        drawings.append(
            Drawing(f"confusion_{which}_{what}", f"Linear classification of the "
                    f"{what.replace('_', ' ')} from {title}, cross-validated; accuracy: mean over "
                    f"classes.{out}", figure)
        )  # fmt: skip
    return "", Section(drawings, [])


def _components(result: Result, which: str, title: str) -> list[Drawing]:
    scores, ratio = result.arrays[f"{which}.scores"], result.arrays[f"{which}.ratio"]
    if scores.shape[1] < 2:
        return []
    session = result.arrays[f"{which}.session"]
    index = np.where(result.arrays[f"{which}.alive"], session, -1)
    names = result.facts["sessions"]
    axes = tuple(f"component {k + 1} ({100 * ratio[k]:.1f}% of variance)" for k in range(2))
    figure, (ax,) = style.panels(height=3.2)
    if len(names) <= _FEW:
        draw.classes(ax, scores[:, :2], index, names, axes=axes)
        coloured = "by session"
    else:
        draw.classes(ax, scores[:, :2], np.minimum(index, 0), ["neurons"], axes=axes)
        coloured = f"of {len(names)} sessions"
    text = f"Principal components of the {title}, neurons coloured {coloured}."
    if len(names) > _FEW:
        text = f"Principal components of the {title}, {coloured}."
    return [Drawing(f"embedding_{which}", text, figure)]


def _discriminants(result: Result, which: str, title: str, model: Lda) -> list[Drawing]:
    figure, (ax,) = style.panels()
    draw.null_histogram(ax, model.separation, model.null, model.p,
                        xlabel="separation (sum of η²)", n=f"n = {model.n:,} neurons")  # fmt: skip
    drawings = [
        Drawing(f"lda_null_{which}", f"How far linear discriminants of the {title} separate the "
                "signs of d', and with shuffled labels.", figure)
    ]  # fmt: skip
    if model.coordinates.shape[1] > 1:
        figure, (ax,) = style.panels(height=3.2)
        names = [f"class {c}" for c in model.classes]
        if len(model.classes) <= 4 and model.classes.dtype.kind in "iu":
            signs = ("− −", "− +", "+ −", "+ +")
            names = [f"d' {signs[int(c)]}" for c in model.classes]
        draw.classes(ax, model.coordinates, model.index, names,
                     axes=("discriminant 1", "discriminant 2"))  # fmt: skip
        angle = result.get(Angle, f"{which}.angle")
        if angle is not None:
            draw.coding_directions(ax, angle, ("first", "second"))
        drawings.append(
            Drawing(f"lda_{which}", f"Linear discriminants of the {title}; classes: signs of the "
                    "d' of both labels. Arrows: where each label is coded best.", figure)
        )  # fmt: skip
    return drawings


def dynamics(result: Result) -> tuple[str, Section]:
    """Correlation along true components, variance and a path, beside other methods."""
    f = result.facts
    kept = [
        (i, result.get(Dynamics, f"session{i}")) for i in range(len(f.get("sessions", [])))
    ]
    kept = [(i, d) for i, d in kept if d is not None]
    if not kept:
        return "", Section([], [])
    methods = list(kept[0][1].r)
    rows = []
    for m in methods:
        cells = []
        for metric in ("r_first", "r_mean", "explained_weighted", "r_null"):
            values = by_session(result, m, metric)
            cells.append(number(float(np.nanmean(values))) if values else "–")
        rows.append([style.label(m), *cells])
    heads = ["method", "r, component 1", "r, mean", "variance explained", "r, trials shuffled"]
    seconds = f["horizon"] / f["rate"]
    trained = ""
    if "poco" in methods:
        trained = f"; POCO was trained for {f['poco_seconds']:g} s in all"
    text = html.table(heads, rows, range(1, 5)) + (
        f'<p class="note">Mean over n = {len(kept)} sessions. {f["context"]} frames given, '
        f"{f['horizon']} ({seconds:.1f} s) forecast, from {kept[0][1].trials} test {f['windows']} "
        "of each session; components of the training traces. Population ridge reads the last "
        f"frame{trained}.</p>"
    )
    drawings = []
    for i, found in kept[:_SHOWN]:
        figure, (ax,) = style.panels(height=3.0)
        draw.component_correlation(ax, found)
        drawings.append(
            Drawing(f"dynamics_{i}", f"Session {f['sessions'][i]}: forecasts along the principal "
                    "components of true traces.", figure)
        )  # fmt: skip
    i, found = kept[0]
    figure, (ax,) = style.panels(height=3.0)
    draw.component_variance(ax, found)
    drawings.append(
        Drawing("dynamics_variance", f"Session {f['sessions'][i]}: variance along each component, "
                "and what the forecasts explain of it.", figure)
    )  # fmt: skip
    if found.components > 1:
        figure, (ax,) = style.panels(height=3.2)
        shown = [m for m in ("calm", "poco", "population_ridge") if m in methods]
        draw.trajectories(ax, found, shown, trial=0)
        drawings.append(
            Drawing("dynamics_path", f"Session {f['sessions'][i]}: one test window in the plane "
                    "of the first two components (the first one drawn, not chosen).", figure)
        )  # fmt: skip
    more = len(kept) - _SHOWN
    if more > 0:
        text += f'<p class="note">Figures: the first {_SHOWN} sessions.</p>'
    return text, Section(drawings, [])
