"""Which figures a run can show: each function draws those of one section.

A section gives drawings (name, caption, figure) and one line for each that is not possible.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from calm_jax.report import figures, style, tables
from calm_jax.report.contents import Contents

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PER_FIGURE = 3  # examples above each other
EXAMPLES = 6  # examples shown
PROTOCOLS = {
    "A": "Protocol A: the first {a} frames of a test trial are given, the rest of the trial (at "
    "most {m} frames) is forecast, frames from {f} on are scored.",
    "B": "Protocol B: {c} frames are given, the next {h} are forecast, from origins every {s} "
    "frames of the test part.",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """One figure: file name without ending, what it shows in words, and the figure itself."""

    name: str
    caption: str
    figure: Figure


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """Drawings, and a line for each thing that is missing."""

    drawings: list[Drawing]
    missing: list[str]


def protocol_text(protocol: str, run: Contents) -> str:
    """What a protocol is, in words, with the frames of this run."""
    f = run.experiment.forecasting
    text = PROTOCOLS.get(protocol, f"Protocol {protocol}.")
    return text.format(
        a=f.context_a, f=f.score_from_a, c=f.context, h=f.horizon, s=f.origin_stride,
        m=f.horizon_a,
    )  # fmt: skip


def losses(run: Contents) -> Section:
    """Both stages: the loss, and the most telling number beside it."""
    drawings, missing = [], []
    notes = {
        "tokenizer": "Tokenizer. Training loss: all terms of eq. 9 (the entropy term can make it "
        "negative); validation loss: MSE + 0.5 (1 − r) of the reconstruction.",
        "transformer": "Dual-axis transformer. Validation without input noise, scheduled sampling "
        "or dropout, which make the training loss the harder one.",
    }
    for stage, note in notes.items():
        train, valid = (run.curves.get((stage, s), {}) for s in ("train", "valid"))
        if "loss" not in train and "loss" not in valid:
            missing.append(f"losses of the {stage}: {_why(run, 'metrics.jsonl')}")
            continue
        event = _warmup(run) if stage == "tokenizer" else None
        drawings.append(_curve(f"loss_{stage}", note, train, valid, "loss", "loss", event=event))
        for metric, ylabel, text in (
            ("mse", "MSE (z-scored traces)", "mean squared error, defined alike in both parts"),
            ("accuracy", "share of codes right", "how often the most probable next code is right"),
        ):
            if metric in train and metric in valid:
                reference = None
                if "mse_copy" in valid and metric == "mse":
                    reference = ("copy last", float(np.nanmean(valid["mse_copy"])))
                caption = f"{stage.capitalize()}: {text}."
                name = f"{metric}_{stage}"
                drawings.append(
                    _curve(name, caption, train, valid, metric, ylabel, reference=reference)
                )
                break
    return Section(drawings, missing)


def _curve(
    name: str,
    caption: str,
    train: dict,
    valid: dict,
    metric: str,
    ylabel: str,
    *,
    reference: tuple[str, float] | None = None,
    event: tuple[str, float] | None = None,
) -> Drawing:
    figure, (ax,) = style.panels()
    curves = [(c["step"], c[metric]) if metric in c else None for c in (train, valid)]
    figures.loss_curve(
        ax, *curves, ylabel=ylabel, reference=reference, event=event,
        more_is_better=metric == "accuracy",
    )  # fmt: skip
    return Drawing(name, caption, figure)


def _warmup(run: Contents) -> tuple[str, float] | None:
    steps = run.experiment.tokenizer_training.steps
    start = run.experiment.tokenizer.warmup_fraction * (steps or 0)
    return ("k-means start", start) if start >= 1 else None


def codes(run: Contents) -> Section:
    """How evenly the codes are used."""
    usage = {p: run.examples[f"usage_{p}"] for p in ("train", "test") if run.has(f"usage_{p}")}
    if not usage:
        return Section([], [f"code usage: {_why(run, 'evaluation/examples.npz')}"])
    figure, (ax,) = style.panels()
    figures.code_usage(ax, usage)
    n = ", ".join(f"{int(v.sum()):,} in {p}" for p, v in usage.items())
    caption = f"Codes sorted by use, in each part by itself. Tokens: {n}. Dotted: even use."
    return Section([Drawing("code_usage", caption, figure)], [])


def reconstructions(run: Contents) -> Section:
    """Traces and what their codes decode to."""
    if not run.has("recon_true", "recon_pred"):
        return Section([], [f"example reconstructions: {_why(run, 'evaluation/examples.npz')}"])
    e = run.examples
    count = len(e["recon_true"])
    labels = _labels(e, "recon_label", count)

    def draw(ax, i: int) -> None:
        figures.reconstruction(
            ax, e["recon_true"][i], e["recon_pred"][i],
            rate=run.rate or 1.0, unit=run.unit, title=labels[i],
        )  # fmt: skip
        if run.rate is None:
            ax.set_xlabel("time (frames)")

    patch = run.experiment.tokenizer.patch
    caption = f"Recorded traces and what the tokenizer gives back, one code per {patch} frames"
    return Section(_stacks("reconstructions", caption, count, draw), [])


def forecasts(run: Contents) -> Section:
    """Example forecasts with their spread."""
    if not run.has("fc_context", "fc_true", "fc_mean"):
        return Section([], [f"example forecasts: {_why(run, 'evaluation/examples.npz')}"])
    e = run.examples
    count = len(e["fc_true"])
    labels = _labels(e, "fc_label", count)
    bands = run.has("fc_quantiles", "fc_levels")
    names = [str(n) for n in e["fc_baseline_names"]] if run.has("fc_baselines") else []

    def draw(ax, i: int) -> None:
        figures.forecast_example(
            ax, e["fc_context"][i], e["fc_true"][i], e["fc_mean"][i],
            rate=run.rate or 1.0, unit=run.unit, title=labels[i],
            quantiles=e["fc_quantiles"][i] if bands else None,
            levels=e["fc_levels"] if bands else (),
            baselines={n: e["fc_baselines"][i, m] for m, n in enumerate(names)},
        )  # fmt: skip
        if run.rate is None:
            ax.set_xlabel("frames from the last frame given")

    caption = "Test windows: the end of what was given, what came, and the forecast"
    if bands:
        shares = [f"{100 * s:.0f}" for _, _, s in figures.pairs(e["fc_levels"])]
        caption += f" in mode {run.experiment.forecasting.mode} (bands: central "
        caption += f"{' and '.join(shares)}% intervals, "
        # Runs of earlier versions hold trajectories.
        own = "the errors on the validation part" if run.has("fc_spread") else "sampled codes"
        caption += f"from {own})"
    missing = [] if bands else [
        "spread of the forecasts: the run holds no fitted quantiles"
    ]
    return Section(_stacks("forecasts", caption, count, draw, columns=3), missing)


def _stacks(
    name: str, caption: str, count: int, draw: Callable, columns: int = 2
) -> list[Drawing]:
    """Examples, three above each other in a figure, with one legend on top."""
    out = []
    shown = min(count, EXAMPLES)
    for start in range(0, shown, PER_FIGURE):
        chosen = range(start, min(start + PER_FIGURE, shown))
        figure, axes = style.panels(len(chosen), 1.55)
        for ax, i in zip(axes, chosen):
            draw(ax, i)
            if i != chosen[-1]:
                ax.set_xlabel("")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=columns, fontsize=8)
        number = start // PER_FIGURE + 1
        text = f"{caption}. Examples {start + 1} to {chosen[-1] + 1} of {count}."
        out.append(Drawing(f"{name}_{number}", text, figure))
    return out


def skill(run: Contents) -> Section:
    """MSE and r against time ahead, for every protocol and method."""
    drawings = []
    protocols = sorted({r["protocol"] for r in run.rows} - {tables.TOKENIZER})
    for protocol in protocols:
        for metric, ylabel in (("mse", "MSE (z-scored traces)"), ("r", "correlation r")):
            curves = tables.by_step(run.rows, protocol, metric)
            if not curves:
                continue
            figure, (ax,) = style.panels(height=2.9)
            figures.per_step(ax, curves, rate=run.rate, ylabel=ylabel)
            sessions = max(len(c[2]) for c in curves.values())
            better = "Lower" if metric == "mse" else "Higher"
            caption = f"{protocol_text(protocol, run)} {better} is better; "
            caption += f"{figures.spread_text(sessions)}."
            drawings.append(Drawing(f"per_step_{protocol}_{metric}", caption, figure))
    if drawings:
        return Section(drawings, [])
    why = _why(run, "evaluation/rows.json") if not protocols else "no rows per step ahead"
    return Section([], [f"skill per step ahead: {why}"])


def neurons(run: Contents) -> Section:
    """The correlation of each neuron: ours beside the best baseline."""
    if not run.has("neuron_r", "neuron_r_names"):
        return Section([], [f"correlation per neuron: {_why(run, 'evaluation/examples.npz')}"])
    r = {str(n): v for n, v in zip(run.examples["neuron_r_names"], run.examples["neuron_r"])}
    mean = {m: np.nanmean(v) if np.isfinite(v).any() else -np.inf for m, v in r.items()}
    ours = next((m for m in r if style.own(m)), None)
    others = [m for m in r if not style.own(m)]
    best = max(others, key=mean.__getitem__, default=None)
    chosen = [m for m in (best, ours) if m is not None]
    undefined = int(np.isnan(np.stack([r[m] for m in chosen])).any(0).sum())
    figure, (ax,) = style.panels(height=2.9)
    figures.neuron_histogram(ax, {m: r[m] for m in chosen})
    # As evaluation makes them: of protocol B where it was scored.
    protocol = "A" if {r["protocol"] for r in run.rows} - {tables.TOKENIZER} == {"A"} else "B"
    caption = f"Protocol {protocol}, test part: correlation of each neuron over all its forecasts"
    caption += ", beside the baseline with the highest mean" if best and ours else ""
    caption += "."
    if undefined:
        caption += f" {undefined:,} neurons without a defined correlation are left out."
    drawings = [Drawing("neuron_r", caption, figure)]
    if best and ours:
        figure, (ax,) = style.panels(height=3.3)
        figures.neuron_scatter(ax, r[best], r[ours], (best, ours))
        caption = "The same neurons one by one; above the dashed line CalM is the better one."
        drawings.append(Drawing("neuron_r_pairs", caption, figure))
    return Section(drawings, [])


def summary(run: Contents, lines: list[tables.Line]) -> Section:
    """The summary table as a picture."""
    if not lines:
        return Section([], [f"forecasts in numbers: {_why(run, 'evaluation/rows.json')}"])
    figure, (ax,) = style.panels(height=0.24 * (len(lines) + 1.4), width=5.0)
    figures.summary_table(ax, lines)
    caption = "The summary table, for slides." + _weights(run)
    return Section([Drawing("summary", caption, figure)], [])


def _weights(run: Contents) -> str:
    """What the forecast of protocol B is made of, in words; empty for the network alone."""
    found = run.stages.get("evaluation", {}).get("weights", {})
    context = str(run.experiment.forecasting.context)
    told = [_each(found[k]) for k in (context, f"{context}, rough") if found.get(k)]
    if not told:
        return ""
    which, more = "", ""
    if len(told) > 1:
        which, more = ", of smooth traces", f" Of traces rough within the context: {told[1]}."
    return (
        " CalM is a weighted sum, weights fitted on the validation part. In protocol B, at the "
        f"first, middle and last step ahead{which}: {told[0]}.{more}"
    )


def _each(weights: dict[str, list[float]]) -> str:
    """Members that count, with their weights."""
    return "; ".join(
        f"{style.label(name) if name != 'network' else name} {', '.join(f'{w:.2f}' for w in ws)}"
        for name, ws in weights.items()
        if any(ws)
    )


def _labels(examples: dict[str, np.ndarray], name: str, count: int) -> list[str]:
    if name in examples and len(examples[name]) == count:
        return [textwrap.shorten(str(x), 44, placeholder="…") for x in examples[name]]
    return [f"example {i + 1}" for i in range(count)]


def _why(run: Contents, file: str) -> str:
    return f"{file} {run.problems[file]}" if file in run.problems else f"not in {file}"
