"""The table of visual experiments as markdown, as lines for the console, and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"movie": "movie SSIM", "gratings": "gratings accuracy"}
OURS, PUBLISHED = "#D55E00", "#767676"


def number(found: dict[str, Any] | None) -> str:
    """mean ± half of the 95 % interval."""
    if not found:
        return "–"
    half = found.get("half")
    return f"{found['mean']:.3f}" + ("" if half is None else f" ± {half:.3f}")


def published(values: list[float]) -> str:
    """What the paper reports."""
    return "–" if not values else " ± ".join(f"{v:.3f}" for v in values)


def markdown(summary: dict[str, Any]) -> str:
    """The table, what stands beside it, and how to read it."""
    head = ["", "pretrained", *(f"{t} | published | vs baseline" for t in TITLES.values())]
    out = [f"# {summary['table']}", "", summary["purpose"], ""]
    out += ["| " + " | ".join(head) + " |", "|---" * (2 + 3 * len(TITLES)) + "|"]
    group = None
    for line in summary["lines"]:
        if line["group"] != group:
            group = line["group"]
            out.append(f"| **{group}** |" + " |" * (1 + 3 * len(TITLES)))
        cells = [line["label"], str(line.get("sessions", {}).get("pretrain", "–"))]
        for task in TITLES:
            found = line["metrics"].get(task)
            cells += [number(found), published((found or {}).get("published", [])), gain(found)]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n" + _notes(summary)


def gain(found: dict[str, Any] | None) -> str:
    """Relative gain over the baseline, and p."""
    if not found or found.get("gain") is None:
        return "–"
    p = found.get("p")
    return f"{100 * found['gain']:+.1f} %" + ("" if p is None else f", p = {p:.3f}")


def _notes(summary: dict[str, Any]) -> str:
    seeds = sorted({f["seeds"] for x in summary["lines"] for f in x["metrics"].values()})
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}" if seeds else "no"
    out = [
        "",
        f"Mean ± half of the 95 % confidence interval (Student's t) over {count} seed(s); "
        f"gains are of means, p of a paired t-test, both against “{summary['baseline']}”"
        f"{_rivals(summary)}. “pretrained”: sessions of pretraining. "
        "Published numbers are of other data: they say what to look for, not what to reach.",
    ]
    for task, title in TITLES.items():
        found = {
            x["label"]: gain(x["metrics"][task]["ours"])
            for x in summary["lines"]
            if x["group"].startswith("controls") and task in x["metrics"]
        }
        listed = "; ".join(f"“{k}” {v}" for k, v in found.items() if v != "–")
        if listed:
            out += ["", f"“{summary['ours']}” against the controls, {title}: {listed}."]
    for title, line in _beside(summary):
        task = title.partition(",")[0]
        beside = line["beside"][{v: k for k, v in TITLES.items()}[task]]
        listed = ", ".join(f"{style.label(m)} {v:.3f}" for m, v in sorted(beside.items()))
        out += ["", f"Beside “{line['label']}”, {title}: {listed}."]
        if line["said"].get("movie") and task == TITLES["movie"]:
            out += ["", f"“{line['label']}”, first seed: {line['said']['movie']}"]
    monitors = [x for x in summary["lines"] if x["collapse"]]
    if monitors:
        names = list(monitors[0]["collapse"])
        out += ["", "Latents at the end of pretraining (validation):", ""]
        out += ["| | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
        out += ["|---" * (1 + len(names)) + "|"]
        out += [
            f"| {x['label']} | " + " | ".join(f"{x['collapse'][n]:.3g}" for n in names) + " |"
            for x in monitors
        ]
    return "\n".join(out) + "\n"


def _rivals(summary: dict[str, Any]) -> str:
    """Which lines are compared with another one than the baseline."""
    own: dict[str, list[str]] = {}
    for x in summary["lines"]:
        if x["against"] not in (summary["baseline"], x["label"]):
            own.setdefault(x["against"], []).append(f"“{x['label']}”")
    return "".join(f"; of {', '.join(v)} against “{k}”" for k, v in own.items())


def _beside(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(title, line) of the lines whose baselines are told: for gratings and for each split of
    the movie the line that is compared, else the first."""
    out = []
    lines = sorted(summary["lines"], key=lambda x: x["label"] != summary["ours"])  # stable
    for task, title in TITLES.items():
        own = [x for x in lines if x["beside"].get(task)]
        splits = dict.fromkeys(x["holdout"] for x in own) if task == "movie" else (None,)
        for split in splits:
            line = next((x for x in own if split in (None, x["holdout"])), None)
            if line:
                out.append((title + (f", {split.replace('_', ' ')}" if split else ""), line))
    return out


def text(summary: dict[str, Any]) -> str:
    """The headline numbers, one line each."""
    out = []
    for line in summary["lines"]:
        own = [f"{TITLES[t]} {number(f)} ({gain(f)})" for t, f in line["metrics"].items()]
        if own:
            out.append(f"{line['label']}: " + "; ".join(own))
    return "\n".join(out)


def draw(ax: Axes, summary: dict[str, Any], task: str) -> Axes:
    """Lines of the table as dots with intervals, the published ones beside them.

    Args:
      summary: of `table.summary`. task: "movie" or "gratings".
    """
    lines = [x for x in summary["lines"] if task in x["metrics"]]
    for k, line in enumerate(lines):
        found = line["metrics"][task]
        ax.errorbar(
            found["mean"], k - 0.12, xerr=found["half"] or 0, fmt="o", ms=4, color=OURS,
            capsize=2, label="calm_jax" if k == 0 else None,
        )  # fmt: skip
        ax.plot(list(found["values"].values()), [k - 0.12] * len(found["values"]), "|",
                color=OURS, ms=6, alpha=0.6)  # fmt: skip
        told = found["published"]
        if told:
            ax.errorbar(
                told[0], k + 0.18, xerr=told[1] if len(told) > 1 else 0, fmt="s", ms=3,
                color=PUBLISHED, capsize=2,
                label="published (Allen data)" if not any(
                    x["metrics"][task]["published"] for x in lines[:k]) else None,
            )  # fmt: skip
    base = next((x for x in lines if x["label"] == summary["baseline"]), None)
    if base:
        ax.axvline(base["metrics"][task]["mean"], color=style.QUIET, lw=0.8, ls=":")
    ax.set_yticks(range(len(lines)), [x["label"] for x in lines])
    ax.invert_yaxis()
    ax.set_xlabel({"movie": "SSIM", "gratings": "accuracy"}[task])
    count = max((x["metrics"][task]["seeds"] for x in lines), default=0)
    ax.set_title(f"{TITLES[task]}, n = {count} seed(s), 95 % intervals")
    # Two seeds can have an interval wider than what an accuracy or SSIM can be.
    left, right = ax.get_xlim()
    ax.set_xlim(max(left, -0.05), min(right, 1.05))
    if lines:  # under the axis: lines of text and dots fill what is above
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18 - 0.6 / len(lines)), ncols=2)
    return ax


def save_figure(summary: dict[str, Any], path: Path) -> None:
    """Writes the figure of all tasks as .png and .svg."""
    import matplotlib.pyplot as plt

    tasks = [t for t in TITLES if any(t in x["metrics"] for x in summary["lines"])]
    if not tasks:
        return
    with style.look():
        rows = max(sum(t in x["metrics"] for x in summary["lines"]) for t in tasks)
        size = (style.WIDTH * 1.4, len(tasks) * max(2.0, 0.9 + 0.26 * rows))
        figure, axes = plt.subplots(
            len(tasks), 1, figsize=size, squeeze=False, layout="constrained"
        )
        for ax, task in zip(axes[:, 0], tasks):
            draw(ax, summary, task)
        style.save(figure, path.parent, path.name)
        plt.close(figure)
