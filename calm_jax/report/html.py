"""Pieces of the page: tables, the tiles on top, and its style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from calm_jax.report import sections, style, tables
from calm_jax.report.console import number
from calm_jax.report.contents import Contents

_HEADS = {"pearson": "r", "mse": "MSE", "r2": "R²"}
STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:1rem;background:#fff;color:#1a1a1a;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
h1{font-size:1.7rem;margin:.2rem 0}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-bottom:.2rem;border-bottom:1px solid #ccc}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0;max-width:75ch}
a{color:#0b5394}
.facts,.made,figcaption,.note{color:#4a4a4a;font-size:.86rem}
.facts{max-width:none}
.made{max-width:none}
.made code{overflow-wrap:anywhere}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:.8rem 0;padding:0}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));
gap:1.2rem 1.6rem;align-items:start;margin:.6rem 0}
figure{margin:0;max-width:620px}
figure img{width:100%;height:auto;display:block}
figcaption{margin-top:.2rem}
figcaption span{white-space:nowrap}
.wide{overflow-x:auto;margin:.5rem 0;background:
linear-gradient(to left,#fff 50%,#fff0) right/30px 100% no-repeat local,
linear-gradient(to left,#0003,#0000) right/10px 100% no-repeat scroll}
.wide th:first-child,.wide td:first-child{position:sticky;left:0;background:#fff}
.sheet figure{max-width:none;min-width:720px}
#the-run td:last-child{white-space:normal;min-width:13rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.22rem .7rem;text-align:left;border-bottom:1px solid #e3e3e3;white-space:nowrap}
th{font-weight:600;border-bottom:1px solid #888}
.n{text-align:right}
td small{color:#5a5a5a}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));
gap:.8rem;margin:.6rem 0}
.tile{border:1px solid #d5d5d5;border-radius:6px;padding:.55rem .8rem}
.tile b{display:block;font-size:1.5rem;line-height:1.25}
.tile span{display:block;font-size:.85rem;color:#4a4a4a}
.missing{border-left:3px solid #b36b00;padding:.15rem .7rem;color:#5c3a00;background:#fff8ec}
pre{background:#f6f6f6;padding:.6rem .8rem;white-space:pre-wrap;overflow-wrap:anywhere;
font-size:.82rem;line-height:1.4;border-radius:4px}
code{font-size:.92em}
summary{cursor:pointer;margin:.6rem 0}
@media (max-width:600px){body{padding:.8rem;font-size:15px}th,td{padding:.2rem .4rem}
table{font-size:.86rem}.tiles{grid-template-columns:1fr 1fr}
td small{display:none}td:first-child{white-space:normal;min-width:5.5rem}}
@media print{nav,.made{display:none}figure,.tile{break-inside:avoid}}
"""


def escape(text: str) -> str:
    """Text as HTML."""
    return html.escape(text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
      heads, rows: text; cells that begin with '<' are HTML already.
      numbers: columns set to the right.
    """

    def cell(tag: str, i: int, text: str) -> str:
        kind = ' class="n"' if i in numbers else ""
        return f"<{tag}{kind}>{text if text.startswith('<') else escape(text)}</{tag}>"

    head = "".join(cell("th", i, h) for i, h in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(cell("td", i, c) for i, c in enumerate(row)) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def glance(run: Contents, lines: list[tables.Line]) -> str:
    """The few numbers one looks for first, and one honest sentence per protocol."""
    tiles, words = [], []
    for protocol in sorted({line.protocol for line in lines}):
        group = [x for x in lines if x.protocol == protocol]
        ours = next((x for x in group if style.own(x.method)), None)
        best = next((x for x in group if not style.own(x.method)), None)
        if ours is None:
            continue
        for metric in ("mse", "r"):
            name = f"{tables.METRICS[metric][0]}, protocol {protocol}"
            note = f"{style.label(best.method)}: {best.cells[metric].text}" if best else ""
            tiles.append((ours.cells[metric].text, f"{style.label(ours.method)}: {name}", note))
        if best is not None:
            words.append(_verdict(protocol, ours, best))
    reconstruction = tables.reconstruction_table(run.rows).get(("test", None), {})
    if "pearson" in reconstruction:
        tiles.append((f"{reconstruction['pearson']:.3f}", "reconstruction r", "test part"))
    if run.has("usage_test"):
        usage = run.examples["usage_test"]
        tiles.append((f"{int((usage > 0).sum())} / {len(usage)}", "codes used", "test part"))
    boxes = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span>'
        f"<span>{escape(note)}</span></div>"
        for value, name, note in tiles
    )
    out = f'<div class="tiles">{boxes}</div>' if boxes else ""
    out += "".join(f"<p>{escape(w)}</p>" for w in words)
    return out or '<p class="missing">The evaluation of this run is not there yet.</p>'


def _verdict(protocol: str, ours: tables.Line, best: tables.Line) -> str:
    a, b = ours.cells["mse"].value, best.cells["mse"].value
    name, other = style.label(ours.method), style.label(best.method)
    if math.isnan(a) or not b > 0:
        return f"Protocol {protocol}: the errors cannot be compared."
    share = 100 * abs(1 - a / b)
    if round(share, 1) == 0:
        return f"Protocol {protocol}: {name} has the error of the best baseline, {other}."
    way = "less" if a < b else "more"
    return (
        f"Protocol {protocol}: {name} has {share:.1f}% {way} squared error than the best "
        f"baseline, {other}."
    )


def summary(run: Contents, lines: list[tables.Line]) -> str:
    """One table per protocol: method x metric, then the same for each session, folded."""
    out = ""
    for protocol in dict.fromkeys(line.protocol for line in lines):
        group = [line for line in lines if line.protocol == protocol]
        heads = ["method"]
        heads += [f"{n} {'↑' if s > 0 else '↓'}" for n, s in tables.METRICS.values()]
        heads.append("constant traces")
        rows = []
        for x in group:
            cells = [_shown(x.cells[m]) for m in tables.METRICS]
            rows.append([_name(x.method), *cells, x.constant_text])
        first = group[0]
        n = f"n = {first.sessions} session{'' if first.sessions == 1 else 's'}"
        if not math.isnan(first.neurons):
            n += f", {first.neurons:,.0f} neurons scored"
        if first.constant > 0:
            n += f", {first.constant:,.0f} constant or all but silent traces left out of every mean"
        text = sections.protocol_text(protocol, run)
        out += f"<h3>{escape(text)}</h3>{table(heads, rows, range(1, len(heads)))}"
        out += f'<p class="note">{n}.</p>'
    if out:
        out += (
            '<p class="note">Mean over the sessions of an animal, then over animals; ± (on wide '
            "screens): standard deviation over sessions. Bold: best. r: correlation of a neuron "
            "over all its scored frames, mean over neurons. Skill: 1 − MSE / MSE of copy last."
            "</p>"
        )
        out += _sessions(run)
    return out


def _sessions(run: Contents) -> str:
    """MSE and r of every session and method."""
    rows = [r for r in run.rows if r["session"] is not None and r["step"] is None]
    values: dict[tuple, dict[str, list[float]]] = {}
    for r in rows:
        if r["protocol"] != tables.TOKENIZER and r["metric"] in tables.METRICS:
            key = (r["protocol"], str(r["animal"]), r["session"], r["method"])
            values.setdefault(key, {}).setdefault(r["metric"], []).append(r["value"])
    lines = []
    for (protocol, animal, session, method), cells in sorted(values.items()):
        numbers = [tables.Cell(float(np.mean(cells.get(m, [np.nan])))) for m in tables.METRICS]
        lines.append([protocol, animal, session, _name(method), *(c.text for c in numbers)])
    heads = ["protocol", "animal", "session", "method", *(n for n, _ in tables.METRICS.values())]
    body = table(heads, lines, range(4, len(heads)))
    return f"<details><summary>Every session</summary>{body}</details>"


def reconstruction(run: Contents) -> str:
    """The tokenizer's numbers: mean over sessions, and each session folded."""
    found = tables.reconstruction_table(run.rows)
    if not found:
        why = run.problems.get("evaluation/rows.json", "no rows of the tokenizer")
        return f'<p class="missing">{escape(f"Reconstruction in numbers: {why}")}.</p>'
    metrics = list(dict.fromkeys(m for cells in found.values() for m in cells))
    heads = ["part", "session", *(_HEADS.get(m, m.replace("_", " ")) for m in metrics)]

    def lines(mean: bool) -> list[list[str]]:
        return [
            [part, session or "mean", *(number(m, cells.get(m, math.nan)) for m in metrics)]
            for (part, session), cells in found.items()
            if (session is None) == mean
        ]

    out = table(heads, lines(True), range(2, len(heads)))
    body = table(heads, lines(False), range(2, len(heads)))
    return out + f"<details><summary>Every session</summary>{body}</details>"


def split_table(split: dict) -> str:
    """How many ranges and frames of each session are in each part, folded."""
    rows = []
    for each in split.get("sessions", []):
        cells = []
        for part in ("train", "valid", "test"):
            ranges = np.asarray(each["parts"].get(part, []), int).reshape(-1, 2)
            frames = int((ranges[:, 1] - ranges[:, 0]).sum())
            cells.append(f"{len(ranges):,} / {frames:,}")
        held = "held out" if each["session"] in split.get("held_out", []) else ""
        rows.append([str(each["session"]), *cells, held])
    heads = ["session", "training", "validation", "test", ""]
    body = table(heads, rows, (1, 2, 3))
    title = f"Split (ranges / frames), hash {escape(str(split.get('hash', '–')))}"
    return f"<details><summary>{title}</summary>{body}</details>"


def _name(method: str) -> str:
    dot = f'<span class="dot" style="background:{style.colour(method)}"></span>'
    name = escape(style.label(method))
    return dot + (f"<b>{name}</b>" if style.own(method) else name)


def _shown(cell: tables.Cell) -> str:
    text = f"<b>{cell.text}</b>" if cell.best else f"<span>{cell.text}</span>"
    return text if math.isnan(cell.sd) else f"{text} <small>± {cell.sd:.3f}</small>"
