"""A table of visual experiments over seeds: run what is missing, summarise, write.

`calm-jax table TABLE --seeds 3`. The folder holds one result file per line and seed and goes on
where it was stopped; the summary is made from those files alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from scipy import stats

from calm_jax import config as configs
from calm_jax.errors import ConfigError, writing
from calm_jax.files import replacing
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.visual import stages, table_output
from calm_jax.visual.experiment import Line, Table, VisualExperiment, check_table

HEADLINE = {"movie": "ssim", "gratings": "accuracy"}  # task -> metric of the table


def make(
    table: Table,
    folder: Path,
    *,
    seeds: int,
    only: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Runs the lines of a table for each seed and writes table.{json,md,png,svg}.

    Seed s of the table adds s to the seed of every experiment. All lines of one seed come
    before the next seed, so that an interrupted table is a table of fewer seeds.

    Args:
      only: labels of the lines to run; () = all. Others appear where they are done.

    Raises:
      CalmError: for a table, recordings or a folder that cannot be used.
    """
    console = console or Console(stderr=True, highlight=False)
    shown = jax.process_index() == 0
    say = lambda text: console.print(text, soft_wrap=True, markup=False) if shown else None
    check_table(table)
    unknown = [x for x in only if x not in {line.label for line in table.lines}]
    if unknown:
        raise ConfigError(
            f"no line {unknown[0]!r}",
            where=table.name,
            expected=", ".join(line.label for line in table.lines),
        )
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stores: dict[str, Any] = {}
    for seed in range(seeds):
        for line in table.lines:
            if only and line.label not in only:
                continue
            e = dataclasses.replace(line.experiment, seed=line.experiment.seed + seed)
            key = configs.fingerprint(e.data)
            if key not in stores:
                stores[key] = open_store(build(e.data, console))
            stages.run(e, stores[key], place(folder, line, e), say)
            if shown:
                write(table, folder, seeds)
    if not shown:
        return summary(table, results(table, folder, seeds))
    found = write(table, folder, seeds)
    say(table_output.text(found))
    say(f"wrote {folder / 'table.md'}, {folder / 'table.json'} and {folder / 'table.png'}")
    return found


def place(folder: Path, line: Line, experiment: VisualExperiment) -> stages.Place:
    """Where a line keeps the results of a seed."""
    name = re.sub(r"[^a-z0-9]+", "_", line.label.lower()).strip("_")
    return stages.Place(folder / name / f"seed{experiment.seed}", folder / "pretrained")


def results(table: Table, folder: Path, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Label -> what is done of it, by seed; results of changed experiments do not count."""
    out: dict[str, list[dict[str, Any]]] = {}
    for line in table.lines:
        for seed in range(seeds):
            e = dataclasses.replace(line.experiment, seed=line.experiment.seed + seed)
            path = place(folder, line, e).folder / "results.json"
            if path.is_file():
                found = stages.read(path)
                if found.get("fingerprint") == configs.fingerprint(e):
                    out.setdefault(line.label, []).append({**found, "seed": seed})
    return out


def write(table: Table, folder: Path, seeds: int) -> dict[str, Any]:
    """Writes the summary of what is done, and returns it."""
    found = summary(table, results(table, folder, seeds))
    with writing(folder), replacing(folder / "table.json") as part:
        part.write_text(json.dumps(found, indent=1) + "\n")
    with writing(folder), replacing(folder / "table.md") as part:
        part.write_text(table_output.markdown(found))
    table_output.save_figure(found, folder / "table")
    return found


# Statistics


def summary(table: Table, done: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means, intervals and tests of what is done.

    Per line and metric: `values` by seed, `mean`, `half` (half of the 95 % confidence
    interval, Student's t with seeds - 1 degrees; None for one seed), `published`; against
    the baseline, or the line's own: `gain` (relative, of means over common seeds), `p`
    (paired t-test). `ours`: the same of the line that is compared against this one.
    """
    lines = []
    best = _values(done.get(table.ours, []))
    for line in table.lines:
        own = done.get(line.label, [])
        rival = line.against or table.baseline
        base = _values(done.get(rival, []))
        entry: dict[str, Any] = {
            "label": line.label,
            "group": line.group,
            "name": line.experiment.name,
            "purpose": line.experiment.purpose,
            "against": rival,
            "holdout": line.experiment.movie.holdout,
            "said": {k: text for k, text in (own[0]["said"] if own else {}).items() if text},
            "seconds": round(sum(r["seconds"] for r in own), 1),
            "metrics": {},
        }
        published = {"movie": line.ssim, "gratings": line.accuracy}
        for task, by_seed in _values(own).items():
            entry["metrics"][task] = {
                **interval(list(by_seed.values())),
                "metric": HEADLINE[task],
                "values": {str(s): v for s, v in by_seed.items()},
                "published": list(published[task]),
                **(compared(by_seed, base.get(task, {})) if line.label != rival else {}),
                "ours": compared(best.get(task, {}), by_seed),
            }
        entry["beside"] = _beside(own)
        entry["collapse"] = _collapse(own)
        if own:
            who = own[0]["cohorts"]
            entry["sessions"] = {k: len(who[k]) for k in ("pretrain", "finetune", "scored")}
            entry["predictable"] = list(who["predictable"])
            entry["thresholds"] = who["thresholds"]
        lines.append(entry)
    return {
        "table": table.name,
        "purpose": table.purpose,
        "ours": table.ours,
        "baseline": table.baseline,
        "lines": lines,
    }


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and half of the 95 % confidence interval of the mean, by Student's t."""
    x = np.asarray(values, np.float64)
    half = None
    if x.size > 1:
        half = float(stats.t.ppf(0.975, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return {"mean": float(x.mean()), "half": half, "seeds": int(x.size)}


def compared(own: dict[int, float], base: dict[int, float]) -> dict[str, float | None]:
    """Relative gain over the baseline and the p-value of a paired t-test, on common seeds."""
    common = sorted(set(own) & set(base))
    if not common:
        return {"gain": None, "p": None}
    a, b = (np.array([x[s] for s in common]) for x in (own, base))
    gain = float(a.mean() / b.mean() - 1) if b.mean() else None
    apart = a - b
    # Without spread of the differences there is no test.
    p = None
    if len(common) > 1 and apart.std() > 1e-12:
        p = float(stats.ttest_rel(a, b).pvalue)
    return {"gain": gain, "p": p}


def _values(own: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Task -> seed -> its headline number."""
    out: dict[str, dict[int, float]] = {}
    for result in own:
        for r in result["rows"]:
            if r["method"] == "poyo" and r["metric"] == HEADLINE[r["task"]]:
                out.setdefault(r["task"], {})[result["seed"]] = r["value"]
    return out


def _beside(own: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Task -> method -> mean over seeds of the headline metric: baselines, chance, retrieval."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in own:
        for r in result["rows"]:
            if r["method"] != "poyo" and r["metric"] == HEADLINE[r["task"]]:
                found.setdefault(r["task"], {}).setdefault(r["method"], []).append(r["value"])
    return {t: {m: float(np.mean(v)) for m, v in x.items()} for t, x in found.items()}


def _collapse(own: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The collapse monitor at the end of pretraining, mean over seeds."""
    names = ("variance", "variance_least", "participation", "effective_rank", "distance")
    reports = [r["pretraining"]["validation"] for r in own if r["pretraining"]]
    return {n: float(np.mean([x[n] for x in reports])) for n in names
            if reports and all(n in x for x in reports)}  # fmt: skip
