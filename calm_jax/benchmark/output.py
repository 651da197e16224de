"""A benchmark as a Markdown page and as a figure."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax.benchmark.statistics import Difference, overall
from calm_jax.report import style
from calm_jax.rows import Row, select


@dataclasses.dataclass(frozen=True)
class Page:
    """All that the outputs show.

    Attributes:
      title, facts: what was compared, and how, one line each.
      rows: of all methods and seeds. protocol: A or B.
      methods: by MSE, the best first. trained: those with a budget and seeds.
      against: heading -> method -> difference, paired.
      tuning: method -> record of the tuning of its first seed.
      failed: method and seed -> what went wrong.
    """

    title: str
    facts: list[str]
    rows: list[Row]
    protocol: str
    methods: list[str]
    trained: set[str]
    against: Mapping[str, Mapping[str, Difference]]
    tuning: Mapping[str, list[dict]]
    failed: Mapping[str, str]


def machine() -> str:
    """The machine in a few words, without its name."""
    import jax

    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        memory = f", {size:.0f} GiB"
    device = jax.devices()[0]
    return (
        f"{os.cpu_count()} CPU cores ({platform.machine()}){memory}, JAX on "
        f"{jax.device_count()} {device.device_kind}, Python {platform.python_version()}"
    )


def markdown(page: Page) -> str:
    """The page: facts, the table of methods, per session, per step, tuning."""
    quantiles = any(r["metric"] == "crps" for r in page.rows)
    heads = ["method", "MSE", "r", "skill", *page.against]
    if quantiles:
        heads += ["CRPS", "coverage 50/80/95 %"]
    heads += ["seconds", "peak MiB"]
    lines = [[_name(m), *_cells(page, m, quantiles)] for m in page.methods]
    text = [f"# {page.title}", "", *(f"- {f}" for f in page.facts), "", table(heads, lines)]
    text += ["", "## MSE per session", "", _sessions(page)]
    text += ["", "## MSE per step ahead", "", _steps(page)]
    if page.tuning:
        text += ["", "## Tuning, first seed", "", _tuning(page)]
    if page.failed:
        text += ["", "## Failed", "", *(f"- {k}: {v}" for k, v in page.failed.items())]
    return "\n".join(text) + "\n"


def _name(method: str) -> str:
    return f"**{style.label(method)}**" if style.own(method) else style.label(method)


def _cells(page: Page, method: str, quantiles: bool) -> list[str]:
    get = lambda metric: overall(page.rows, method, metric)  # noqa: E731
    cells = [_spread(get(m)) for m in ("mse", "r", "skill")]
    for each in page.against.values():
        d = each.get(method)
        cells.append("" if d is None else f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]")
    if quantiles:
        cover = [_number(_mean(get(f"coverage_{k}")), 2) for k in (50, 80, 95)]
        known = len(get("crps")) > 0
        cells += [_spread(get("crps")), " / ".join(cover)] if known else ["", ""]
    return [*cells, _number(_mean(get("seconds")), 0), _number(_mean(get("peak_mib")), 0)]


def _sessions(page: Page) -> str:
    chosen = [
        r
        for r in page.rows
        if r["metric"] == "mse" and r["session"] is not None and r["step"] is None
    ]
    names = list(dict.fromkeys((r["animal"], r["session"]) for r in chosen))
    lines = []
    for animal, session in names:
        line = [session if session == animal else f"{animal} {session}"]
        for m in page.methods:
            own = select(chosen, method=m, session=session, animal=animal)
            line.append(_number(_mean([r["value"] for r in own])))
        lines.append(line)
    return table(["session", *map(_name, page.methods)], lines)


def _steps(page: Page) -> str:
    steps = sorted({r["step"] for r in page.rows if r["step"] is not None})
    if len(steps) > 16:  # a long roll-out: every so many steps
        steps = [steps[k] for k in np.linspace(0, len(steps) - 1, 16).round().astype(int)]
    lines = [
        [str(h), *(_number(_mean(overall(page.rows, m, "mse", h))) for m in page.methods)]
        for h in steps
    ]
    return table(["step", *map(_name, page.methods)], lines)


def _tuning(page: Page) -> str:
    lines = []
    for method, record in page.tuning.items():
        for entry in record:
            facts = ("steps", "used_step", "validation", "seconds", "chosen", "left_out", "error")
            point = ", ".join(f"{k} {v}" for k, v in entry.items() if k not in facts)
            note = "chosen" if entry.get("chosen") else entry.get("left_out", "")
            value = entry.get("validation")
            lines.append([
                _name(method), point, str(entry.get("steps", "")),
                "" if value is None else f"{value:.4f}", str(entry.get("seconds", "")),
                "diverged" if "error" in entry else note,
            ])  # fmt: skip
    heads = ["method", "point", "steps", "validation MSE or loss", "seconds", ""]
    return table(heads, lines)


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(x) + " |" for x in [heads, marks, *lines])


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return ""
    text = _number(values.mean())
    return text if len(values) == 1 else f"{text} ± {values.std(ddof=1):.3f}"


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _number(value: float, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def draw(page: Page, path: Path) -> list[Path]:
    """MSE per step ahead above, bars with the SD over seeds below; png and svg.

    Raises:
      RunError: when the figure cannot be written.
    """
    with style.look():
        figure, (top, bottom) = style.panels(2, height=3.0, width=1.3 * style.WIDTH)
        steps = sorted({r["step"] for r in page.rows if r["step"] is not None})
        for m in page.methods:
            each = [overall(page.rows, m, "mse", h) for h in steps]
            top.plot(steps, [_mean(v) for v in each], label=style.label(m), **style.line(m))
        limit = max((_mean(overall(page.rows, m, "mse", steps[-1])) for m in page.methods
                     if m != "mean"), default=1.0)  # fmt: skip
        top.set(xlabel="frames ahead", ylabel="MSE (training SD²)", ylim=(0, 1.1 * limit))
        top.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
        place = np.arange(len(page.methods))
        values = [overall(page.rows, m, "mse") for m in page.methods]
        errors = [v.std(ddof=1) if len(v) > 1 else np.nan for v in values]
        bottom.barh(
            place, [_mean(v) for v in values], xerr=errors, height=0.65,
            color=[style.colour(m) for m in page.methods], ecolor="#111111", capsize=2.5,
        )  # fmt: skip
        for y, v, e in zip(place, values, errors):
            end = _mean(v) + np.nan_to_num(e)
            bottom.text(end, y, f" {_number(_mean(v))}", va="center", ha="left")
        bottom.set_yticks(place, [style.label(m) for m in page.methods])
        bottom.invert_yaxis()
        bottom.set(xlabel="MSE, mean over animals; bars: SD over seeds")
        bottom.margins(x=0.12)
        bottom.set_xlim(left=0)
        return style.save(figure, path.parent, path.stem)
