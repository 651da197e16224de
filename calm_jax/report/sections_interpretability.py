"""Sections of the report: couplings between neurons, time constants, meaning of the codes."""

from __future__ import annotations

import math

import numpy as np

from calm_jax.analyses.result import Result
from calm_jax.analysis.code_gallery import Usage, Waveforms
from calm_jax.analysis.coupling import off_diagonal
from calm_jax.report import code_figures, coupling_figures, html, style
from calm_jax.report.sections import Drawing, Section

_COLUMNS = {
    "r": "r", "spearman": "rank r", "auc_sign": "AUC, sign", "auc_strong": "AUC, strong pairs",
}  # fmt: skip


def by_session(result: Result, method: str, metric: str) -> list[float]:
    """The values of a metric, one per session that has it."""
    return [
        r["value"] for r in result.rows
        if (r["method"], r["metric"]) == (method, metric) and r["session"] is not None
    ]  # fmt: skip


def number(value: float) -> str:
    """Three decimals, or a dash."""
    return "–" if not math.isfinite(value) else f"{value:.3f}".replace("-", "−")


def coupling(result: Result) -> tuple[str, Section]:
    """Against the true connectivity where there is one, else against each other."""
    f, drawings = result.facts, []
    methods = [m for m in coupling_figures.METHODS if by_session(result, m, "r")]
    text = (
        f"<p>Response: the last code ({f['patch']} frames, {f['patch'] / f['rate']:.2g} s) of one "
        "neuron is raised or lowered by 1 SD; the change of every neuron's forecast, averaged over "
        f"{f['windows']} test windows. Mixing tables: the signed coupling that the neural axis "
        "reads from its embeddings, heads and layers weighted by their straight path to the "
        "read-out. The others know the training traces alone.</p>"
    )
    if methods:
        text += _table(result, methods)
        drawings += _against_truth(result, methods)
    else:
        found = [m for m in coupling_figures.METHODS if by_session(result, m, "r_with_response")]
        if found:
            values = {m: by_session(result, m, "r_with_response") for m in found}
            figure, (ax,) = style.panels(height=0.5 + 0.32 * len(found))
            coupling_figures.agreement(ax, values, xlabel="r with the model's response", chance=0.0)
            n = len(next(iter(values.values())))
            drawings.append(
                Drawing("coupling_methods", "How far the couplings that other methods find agree "
                        "with the model's response, over pairs of neurons. Dots: sessions "
                        f"(n = {n}); bars: their mean. There is no true connectivity to compare "
                        "with.", figure)
            )  # fmt: skip
    shown = [k for k in result.arrays if k.endswith(".response")]
    if shown:
        i = int(shown[0].removeprefix("session").split(".")[0])
        c = result.arrays[shown[0]]
        figure, (ax,) = style.panels(height=3.3)
        coupling_figures.matrix(ax, c, label="response (SD per SD)")
        drawings.append(
            Drawing("coupling_matrix", f"The model's response, session {f['sessions'][i]}, n = "
                    f"{len(c)} neurons in the order of the leading component; own responses left "
                    "out.", figure)
        )  # fmt: skip
    return text, Section(drawings, [])


def _table(result: Result, methods: list[str]) -> str:
    best = {c: max(np.nanmean(by_session(result, m, c)) for m in methods) for c in _COLUMNS}
    rows = []
    for m in methods:
        cells = []
        for c in _COLUMNS:
            value = float(np.nanmean(by_session(result, m, c)))
            shown = number(value)
            cells.append(f"<b>{shown}</b>" if shown == number(best[c]) else shown)
        ps = by_session(result, m, "p")
        cells.append(f"≤ {max(ps):.3f}" if ps else "–")
        rows.append([coupling_figures.METHODS[m], *cells])
    n = len(by_session(result, methods[0], "r"))
    pairs = int(sum(by_session(result, "true", "n_pairs")))
    body = html.table(["coupling", *_COLUMNS.values(), "p of r"], rows, range(1, 6))
    return body + (
        f'<p class="note">Agreement with the true J, mean over n = {n} sessions, {pairs:,} pairs '
        "of different neurons. AUC, sign: positive against negative J among the strongest "
        f"{100 * result.facts['top']:.0f}% of |J|; AUC, strong pairs: these against the rest, by "
        "the size of the estimate; 0.5 is chance. p: against relabelled neurons, the largest of "
        "the sessions. Bold: best.</p>"
    )


def _against_truth(result: Result, methods: list[str]) -> list[Drawing]:
    n = len(by_session(result, methods[0], "r"))
    low = by_session(result, methods[0], "r_null_low")
    high = by_session(result, methods[0], "r_null_high")
    null = (float(np.mean(low)), float(np.mean(high))) if low else None
    height = 0.75 + 0.28 * len(methods)
    figure, (ax,) = style.panels(height=height)
    values = {m: by_session(result, m, "r") for m in methods}
    coupling_figures.agreement(ax, values, xlabel="r with the true coupling J", chance=0.0,
                               null=null)  # fmt: skip
    drawings = [
        Drawing("coupling_r", f"Agreement of couplings with the true J. Dots: sessions (n = {n}); "
                "bars: their mean. Orange: from the model; blue: from the training traces. Grey: "
                "middle 95% when neurons are relabelled.", figure)
    ]  # fmt: skip
    figure, (ax,) = style.panels(height=height)
    values = {m: by_session(result, m, "auc_sign") for m in methods}
    coupling_figures.agreement(ax, values, xlabel="AUC, sign of strong couplings", chance=0.5)
    drawings.append(
        Drawing("coupling_auc", "Whether the estimate tells excitation from inhibition among the "
                f"strongest {100 * result.facts['top']:.0f}% of |J|. Dots: sessions (n = {n}).",
                figure)
    )  # fmt: skip
    pairs = {}
    for m in ("response", "ridge", "correlation"):
        found = [k for k in result.arrays if k.endswith(f".{m}")]
        if found and m in methods:
            x = [off_diagonal(_ranks(result.arrays[k])) for k in found]
            y = [off_diagonal(result.arrays[k.rsplit(".", 1)[0] + ".true"]) for k in found]
            pairs[m] = (np.concatenate(x), np.concatenate(y))
    if pairs:
        figure, (ax,) = style.panels()
        coupling_figures.by_estimate(ax, pairs)
        count = len(next(iter(pairs.values()))[0])
        drawings.append(
            Drawing("coupling_bins", "Mean true coupling of pairs in twenty bins of their "
                    f"estimated coupling (ranked within each session; n = {count:,} pairs). Bars: "
                    "two standard errors.", figure)
        )  # fmt: skip
    return drawings


def _ranks(c: np.ndarray) -> np.ndarray:
    """Ranks of the entries off the diagonal, so that sessions can be pooled."""
    out = np.zeros(c.shape)
    free = ~np.eye(len(c), dtype=bool)
    out[free] = np.argsort(np.argsort(c[free], kind="stable"), kind="stable") / free.sum()
    return out


def timescales(result: Result) -> tuple[str, Section]:
    """Decays of autocorrelations and of forecasts."""
    f, a, drawings = result.facts, result.arrays, []
    indices = [i for i in range(len(f.get("sessions", []))) if f"session{i}.trace" in a]
    if not indices:
        return "", Section([], [])
    names = [f["sessions"][i] for i in indices]
    figure, (ax,) = style.panels()
    coupling_figures.autocorrelations(
        ax, [a[f"session{i}.times"] for i in indices],
        [a[f"session{i}.autocorrelation"] for i in indices], names,
    )  # fmt: skip
    neurons = sum(len(a[f"session{i}.trace"]) for i in indices)
    band = "; bands: the middle half" if len(indices) <= 3 else ""
    drawings.append(
        Drawing("autocorrelation", "Autocorrelation of the training traces: median of the neurons "
                f"of each session{band}. n = {neurons} neurons, {len(indices)} sessions.", figure)
    )  # fmt: skip
    gather = lambda key: np.concatenate(  # noqa: E731
        [a[f"session{i}.{key}"] for i in indices if f"session{i}.{key}" in a] or [np.zeros(0)]
    )
    kinds = {
        "autocorrelation of traces": gather("trace"),
        "autocorrelation of true rates": gather("rate"),
        "forecast after an impulse": gather("impulse"),
    }
    kinds = {k: v for k, v in kinds.items() if len(v)}
    true = {}
    if "tau" in f:
        true = {"network": f["tau"], "calcium": f["tau_decay"]}
    figure, (ax,) = style.panels(height=1.1 + 0.45 * len(kinds))
    coupling_figures.time_constants(ax, kinds, true)
    extra = " Lines: the constants of the simulation." if true else ""
    drawings.append(
        Drawing("time_constants", "Time constants of exponential decays fitted to each neuron. "
                "Circle: median; bar: middle half; line: middle 95%; n: neurons whose decay is "
                f"determined.{extra}", figure)
    )  # fmt: skip
    own = [i for i in indices if f"session{i}.own" in a]
    if own:
        figure, (ax,) = style.panels()
        coupling_figures.impulse(ax, [a[f"session{i}.ahead"] for i in own],
                                 [a[f"session{i}.own"] for i in own])  # fmt: skip
        drawings.append(
            Drawing("impulse", "A neuron's own forecast after its last code was raised by 1 SD: "
                    f"how long the model keeps a change. n = {len(own)} sessions.", figure)
        )  # fmt: skip
    if "autocorrelation of true rates" in kinds:
        figure, (ax,) = style.panels(height=3.0)
        coupling_figures.scatter(
            ax, kinds["autocorrelation of true rates"], kinds["autocorrelation of traces"],
            xlabel="time constant of the true rate (s)", ylabel="of the trace (s)",
        )  # fmt: skip
        drawings.append(
            Drawing("time_constants_true", "Time constants of the fluorescence against those of "
                    "the firing rates it was made from, neuron by neuron.", figure)
        )  # fmt: skip
    text = (
        "<p>A exp(−t/τ) + B, fitted to the autocorrelation without lag 0; for the forecast B = 0. "
        "A fit that explains less than half of the curve, or whose τ lies at the edge of what was "
        "tried, counts as not determined.</p>"
    )
    return text, Section(drawings, [])


def codes(result: Result) -> tuple[str, Section]:
    """Gallery, transitions and their graph."""
    scaled, real = result.get(Waveforms, "scaled"), result.get(Waveforms, "real")
    usage, f, a = result.get(Usage, "usage"), result.facts, result.arrays
    if scaled is None:
        return "", Section([], [])
    unit = "SD" if f["z_score"] else f["unit"]
    rows = [
        ["codes used", f"{usage.used} of {usage.size}"],
        ["entropy", f"{usage.entropy:.2f} bits (perplexity {usage.perplexity:.0f})"],
        ["entropy of the next code, given this one", f"{usage.next_entropy:.2f} bits"],
        ["what a code tells about the next", f"{usage.information:.2f} bits"],
        ["the next code is the same", f"{100 * usage.persistence:.1f}%"],
        ["variance of the frames that codes explain", f"{100 * scaled.explained:.1f}%"],
    ]
    text = html.table(["training part", ""], rows, [])
    text += (
        f'<p class="note">n = {f["tokens"]:,} tokens, {usage.transitions:,} transitions within '
        "trials or blocks.</p>"
    )
    text += _examples(scaled, real, a["pairs"], f, unit)
    figure, (ax,) = style.panels(height=3.6, width=5.4)
    code_figures.gallery(ax, scaled.mean, scaled.sd, scaled.count, a["order"],
                         rate=f["rate"], unit=unit)  # fmt: skip
    drawings = [
        Drawing("code_gallery", "Mean frames of every code about its own level, in order of the "
                "level, left to right and top to bottom; band: 1 SD. One scale for all.", figure)
    ]  # fmt: skip
    figure, (ax,) = style.panels(height=3.3)
    code_figures.transition_matrix(ax, a["pairs"], a["order"])
    drawings.append(
        Drawing("code_transitions", "Which code follows which, codes in order of their level. "
                f"n = {usage.transitions:,} transitions. White: never seen.", figure)
    )  # fmt: skip
    figure, (ax,) = style.panels(height=3.2)
    code_figures.transition_graph(ax, scaled.mean, scaled.count, a["pairs"], a["edges"], unit)
    drawings.append(
        Drawing("code_graph", "Codes by their mean level and their change from first to last "
                f"frame; area: share of the tokens. Arrows: the {len(a['edges'])} commonest "
                "transitions between different codes.", figure)
    )  # fmt: skip
    return text, Section(drawings, [])


def _examples(scaled: Waveforms, real: Waveforms, pairs: np.ndarray, f: dict, unit: str) -> str:
    """The most used codes in numbers, folded."""
    rows = []
    total = scaled.count.sum()
    for c in np.argsort(-scaled.count, kind="stable")[:12]:
        if not scaled.count[c]:
            break
        wave = " ".join(number(v) for v in scaled.mean[c])
        true = " ".join(f"{v:.3g}" for v in real.mean[c])
        ahead = pairs[c] / max(pairs[c].sum(), 1)
        best = np.argsort(-ahead, kind="stable")[:3]
        after = ", ".join(f"{b} ({100 * ahead[b]:.0f}%)" for b in best)
        rows.append([str(c), f"{100 * scaled.count[c] / total:.2f}%", wave, true, after])
    heads = ["code", "use", f"mean frames ({unit})", f"in {f['unit']}", "followed by"]
    body = html.table(heads, rows, [1])
    return f"<details><summary>The twelve commonest codes</summary>{body}</details>"
