"""Sections of the report: information, loss landscape, curriculum, latent states, freezing."""

from __future__ import annotations

import numpy as np

from calm_jax.analyses.result import Result
from calm_jax.analysis.curriculum import Curriculum
from calm_jax.analysis.groups import Groups, Ratio
from calm_jax.analysis.information import Information
from calm_jax.analysis.landscape import Landscape
from calm_jax.analysis.latents import Dimension, Neighbourhood, Tsne
from calm_jax.analysis.spectrum import Spectrum
from calm_jax.report import analysis_figures, analysis_latents, analysis_theory, html, style
from calm_jax.report.sections import Drawing, Section
from calm_jax.report.sections_interpretability import by_session, number

_SHOWN = 3  # sessions with a figure of their own
_FEW = 8
SPACES = {"calm": "CalM", "untrained": "untrained", "traces": "traces"}


def information(result: Result) -> tuple[str, Section]:
    """Fisher information, spectra and moments of neurons; groups and their score."""
    f, drawings = result.facts, []
    made = result.get(Information, "neurons")
    if made is None:
        return "", Section([], [])
    groups, kind = result.arrays["group"], f["groups"]
    table, text = result.get(Groups, "groups"), ""
    if table is not None:
        text = _groups(table, f["unit"], kind)
    chosen = result.get(Groups, "selected")
    if "selection" in result.arrays:  # a visual run: lines that were selected, and the others
        groups, kind, table = result.arrays["selection"], "selection of cell lines", chosen
        text = _selected(result) + text
    unit = f["unit"]
    names = np.unique(groups[groups != ""])
    shown = groups if len(names) <= _FEW else None
    n = f"n = {int(np.isfinite(made.fisher).sum()):,} neurons"
    for name, values, label, log in (
        ("fisher", made.fisher, f"Fisher information of a frame (({unit})⁻²)", True),
        ("regularity", made.regularity, "temporal regularity", False),
        ("entropy", made.entropy, "entropy (bits)", False),
    ):
        figure, (ax,) = style.panels(height=0.9 + 0.42 * (len(names) if shown is not None else 1))
        analysis_theory.per_group(ax, values, shown, xlabel=label, log=log, seed=result.seed)
        drawings.append(
            Drawing(f"information_{name}", f"{_capital(label.split(' (')[0])} of the neurons "
                    f"in the training part, by {kind}. {n}.", figure)
        )  # fmt: skip
    power = result.get(Spectrum, "spectrum")
    if power is not None:
        figure, (ax,) = style.panels()
        analysis_theory.spectra(ax, power, shown, unit=unit)
        drawings.append(
            Drawing("spectra", f"Power spectral density of the traces by {kind}. {n}.", figure)
        )
    figure, (ax,) = style.panels()
    analysis_theory.moments(ax, made, shown, thresholds=f.get("thresholds"))
    drawings.append(
        Drawing("moments", f"Kurtosis against skewness of the neurons, by {kind}. {n}.", figure)
    )
    if table is not None and len(table.names) <= _FEW:
        figure, (ax,) = style.panels(height=1.5 + 0.5 * len(table.names))
        analysis_theory.composite_score(ax, table)
        drawings.append(
            Drawing("composite_score", "Composite score with the published weights (.3, .25, "
                    ".2, .15, .1); every factor relative to the best group.", figure)
        )  # fmt: skip
    return text, Section(drawings, [])


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _selected(result: Result) -> str:
    """Table 2 of selected against rejected lines, and the ratio of their Fisher information."""
    table, found = result.get(Groups, "selected"), result.get(Ratio, "ratio")
    out = "" if table is None else _groups(table, result.facts["unit"], "lines")
    if found is not None:
        out += (
            f"<p>Fisher information of neurons of predictable lines over that of unpredictable "
            f"lines: {found.value:.3g} (95% interval {found.low:.3g} to {found.high:.3g}, neurons "
            f"drawn anew within each group; n = {found.n[0]:,} and {found.n[1]:,}; a cell counts "
            "once for every session it is in).</p>"
        )
    return out


def _groups(table: Groups, unit: str, kind: str) -> str:
    rows = [
        [
            str(name), f"{table.neurons[k]:,}", f"{table.fisher[k]:.3g}", f"{table.bound[k]:.3g}",
            f"{table.raw[k]:,.0f}", f"{table.effective[k]:,.0f}", f"{table.efficiency[k]:.3g}",
            "–" if np.isnan(table.condition[k]) else f"{table.condition[k]:.3g}",
            number(float(table.score[k])),
        ]
        for k, name in enumerate(table.names)
    ]  # fmt: skip
    heads = [kind.replace("_", " "), "neurons", "Fisher information", "Cramér-Rao bound",
             "raw size", "effective size", "efficiency", "condition", "score"]  # fmt: skip
    return html.table(heads, rows, range(1, 9)) + (
        f'<p class="note">Table 2 of POYO-SSL. Fisher information in ({unit})⁻² and bound in '
        f"({unit})², per frame, mean over neurons; sizes in neuron frames of the training part; "
        "condition: of the covariance, on subsets of one size.</p>"
    )


def landscape(result: Result) -> tuple[str, Section]:
    """The loss surface of the first sessions; roughness of all."""
    names, drawings = result.facts["sessions"], []
    for i in _first(result, Landscape):
        name, found = _named(result, names[i]), result.get(Landscape, f"session{i}")
        figure, (ax,) = style.panels(height=3.2)
        analysis_theory.surface(ax, found)
        drawings.append(
            Drawing(f"landscape_{i}", f"{name}: loss from the five nearest frames over "
                    "the plane of the first two components (training part).", figure)
        )  # fmt: skip
    rough = by_session(result, "landscape", "roughness")
    if not rough:
        return "", Section([], [])
    rugged = by_session(result, "landscape", "ruggedness")
    text = (
        f"<p>Roughness (SD of the loss) {np.mean(rough):.3g} SD², ruggedness "
        f"{np.mean(rugged):.3g}, mean over n = {len(rough)} sessions. Orange: frames.</p>"
    )
    about = result.facts.get("about")
    if about:
        of = [about[r["session"]][1] for r in result.rows
              if r["metric"] == "roughness" and r["session"] is not None]  # fmt: skip
        figure, (ax,) = style.panels(height=0.9 + 0.42 * len(set(of)))
        label = "roughness: SD of the loss over the grid (SD²)"
        analysis_theory.per_group(ax, np.array(rough), np.array(of), xlabel=label, seed=result.seed)
        drawings.append(
            Drawing("roughness", f"Roughness of one session of each cell line, "
                    f"{result.facts['neurons']} neurons of each. n = {len(rough)} sessions.",
                    figure)
        )  # fmt: skip
    return text, Section(drawings, [])


def _first(result: Result, cls: type) -> list[int]:
    """Sessions that get a figure of their own: the first ones; of a visual run of each group."""
    names, about = result.facts["sessions"], result.facts.get("about")
    there = [i for i in range(len(names)) if result.get(cls, f"session{i}") is not None]
    if not about:
        return there[:_SHOWN]
    groups = dict.fromkeys(about[names[i]][1] for i in there)
    return [i for g in groups for i in [k for k in there if about[names[k]][1] == g][: _SHOWN - 1]]


def _named(result: Result, name: str) -> str:
    """A session in a caption, with its cell line where the run is of lines."""
    about = result.facts.get("about", {}).get(name)
    return f"Session {name}" + (f" ({about[0]}, {about[1]} line)" if about else "")


def curriculum(result: Result) -> tuple[str, Section]:
    """Learning curves under the four orders."""
    drawings, names = [], result.facts["sessions"]
    about = result.facts.get("about")
    there = [i for i in range(len(names)) if result.get(Curriculum, f"session{i}") is not None]
    for i in _first(result, Curriculum) if about else there:
        name, found = _named(result, names[i]), result.get(Curriculum, f"session{i}")
        figure, (ax,) = style.panels(height=3.0)
        analysis_theory.learning_curves(ax, found)
        drawings.append(
            Drawing(f"curriculum_{i}", f"{name}: samples in four orders of difficulty. "
                    "Bands: all repeats.", figure)
        )  # fmt: skip
    return _orders(result) if about else "", Section(drawings, [])


def _orders(result: Result) -> str:
    """Performance and stability of each order, of selected and of rejected lines."""
    rows = []
    for group in dict.fromkeys(g for _, g in result.facts["about"].values()):
        n = sum(g == group for _, g in result.facts["about"].values())
        for order in ("easy_to_hard", "hard_to_easy", "random", "mixed"):
            values = [result.value(f"{group}: {order}", m) for m in ("performance", "stability")]
            rows.append([group, order.replace("_", " "), *map(number, values), str(n)])
    heads = ["lines", "order", "performance (R²)", "stability", "sessions"]
    return html.table(heads, rows, (2, 3, 4))


def latents(result: Result) -> tuple[str, Section]:
    """Map, dimension, likeness and order in time of the states of the first session."""
    f, drawings = result.facts, []
    there = [i for i in range(len(f["sessions"])) if f"session{i}.place" in result.arrays]
    first = there[0] if there else None
    rows = []
    columns = {
        "intrinsic_dimension": "intrinsic dimension", "neighbourhood": "neighbours kept in time",
        "cka_with_traces": "CKA with traces", "procrustes_to_traces": "Procrustes to traces",
    }  # fmt: skip
    for space, name in SPACES.items():
        means = [by_session(result, space, c) for c in columns]
        cells = [number(float(np.nanmean(v))) if v else "–" for v in means]
        if any(means):
            rows.append([name, *cells])
    if not rows:
        return "", Section([], [])
    n = max(len(by_session(result, s, "intrinsic_dimension")) for s in SPACES)
    text = html.table(["states of", *columns.values()], rows, range(1, 5)) + (
        f'<p class="note">Mean over n = {n} sessions. A state: the features of all neurons side '
        f"by side after each code of {f['patch']} frames, at most {f['most']} of the test part, "
        f"on their first {f['kept']} components; untrained: the same transformer with random "
        "weights; traces: the frames of the same code alone.</p>"
    )
    if first is None:
        return text, Section([], [])
    name = f["sessions"][first]
    made = result.get(Tsne, f"session{first}.tsne")
    figure, (ax,) = style.panels(height=3.1)
    seconds = result.arrays[f"session{first}.place"][made.index] / f["rate"]
    analysis_figures.cloud(ax, made.points, seconds, label="time in the window (s)",
                           axes=("t-SNE 1", "t-SNE 2"), unit="states")  # fmt: skip
    drawings.append(
        Drawing("tsne", f"Session {name}: states of the population, t-SNE (perplexity "
                f"{made.perplexity:g}, seed {made.seed}). {len(made.points):,} of {made.n:,} "
                "states.", figure)
    )  # fmt: skip
    found = {label: result.get(Dimension, f"session{first}.{s}.dimension")
             for s, label in SPACES.items()}  # fmt: skip
    found = {k: v for k, v in found.items() if v is not None}
    if found:
        figure, (ax,) = style.panels(height=0.9 + 0.5 * len(found))
        analysis_latents.dimensions(ax, found)
        drawings.append(
            Drawing("intrinsic_dimension", f"Session {name}: intrinsic dimension (Levina and "
                    "Bickel) of the states.", figure)
        )  # fmt: skip
    near = {label: result.get(Neighbourhood, f"session{first}.{s}.neighbourhood")
            for s, label in SPACES.items()}  # fmt: skip
    near = {k: v for k, v in near.items() if v is not None}
    if near:
        figure, (ax,) = style.panels(height=1.0 + 0.5 * len(near))
        analysis_latents.neighbourhoods(ax, near)
        drawings.append(
            Drawing("neighbourhoods", f"Session {name}: how far states that follow each other "
                    "are neighbours.", figure)
        )  # fmt: skip
    key = f"session{first}.cka"
    if key in result.arrays:
        spaces = result.arrays[f"session{first}.spaces"].tolist()
        figure, (ax,) = style.panels(height=3.0)
        analysis_latents.likeness(ax, result.arrays[key], [SPACES[s] for s in spaces],
                                  label="linear CKA", n=f"n = {made.n:,} states")  # fmt: skip
        drawings.append(
            Drawing("cka", f"Session {name}: likeness of the spaces (linear CKA; 1: equal but "
                    "for rotation and scale).", figure)
        )  # fmt: skip
    return text, Section(drawings, [])


def freezing(result: Result) -> tuple[str, Section]:
    """Lines alone: what a CalM run does not hold."""
    return "", Section([], [])
