"""`calm-jax benchmark scaling`: skill against sessions and against width, one figure each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

import calm_jax
from calm_jax import config, experiments_loader, rows
from calm_jax.benchmark import command, output, recordings
from calm_jax.benchmark.scaling_worker import REFERENCES, WINDOWS, Point
from calm_jax.benchmark.subsets import Choice, choose
from calm_jax.errors import ConfigError, RunError, writing
from calm_jax.report import style
from calm_jax.rows import Row, row, select

GROUPS = {"seen": "test part of sessions trained on", "held_out": "sessions never trained on"}


@dataclasses.dataclass(frozen=True)
class Study:
    """What the outputs show.

    Attributes:
      sizes: (sessions, width) -> method. facts: how it was made, one line each.
      rows: of all points and references, groups of sessions among them.
      base: the width at which sessions are varied; widths are at the most sessions.
    """

    title: str
    facts: list[str]
    rows: list[Row]
    sizes: dict[tuple[int, int], str]
    base: int


def scaling(
    data: str | None,
    out: Path,
    *,
    sessions: Sequence[int] = (1, 4, 16, 64),
    widths: Sequence[int] = (48, 96, 192),
    held_out: int = 4,
    budget_seconds: float = 600.0,
    seeds: int = 1,
    jobs: int = 1,
    windows: int = WINDOWS,
    steps: int | None = None,
    experiment: str = "calm_base",
    source: str | None = None,
    store: str | None = None,
    read: Sequence[str] = (),
    rate: float | None = None,
    markdown: Path | None = None,
    figure: Path | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Study:
    """Trains CalM on more and more sessions, and with more and more width; see docs.

    A finished point is kept in the folder `<out>.parts` and not run again. `jobs` points are
    trained side by side; they share the machine, so a budget holds fewer steps. With `steps`
    every point makes as many optimiser steps, however long that takes, and the budget does not
    count. About `windows` windows of a session are scored.

    Raises:
      CalmError: for what cannot be read; RunError when a point failed, after the outputs
        of the others were written.
    """
    e = experiments_loader.load_experiment(experiment)
    _check(sessions, widths, e, budget_seconds, seeds)
    place = recordings.source_of(
        data, e.data, source=source, store=store, read=tuple(read), rate=rate
    )
    infos = recordings.store_of(place, e).sessions
    choice = choose(len(infos), sessions, held_out)
    if choice.sizes != tuple(sorted(set(sessions))):
        say(f"{len(infos)} sessions, {held_out} held out: sizes {list(choice.sizes)}")
    base, most = e.transformer.width, choice.sizes[-1]
    sizes = [(n, base) for n in choice.sizes] + [(most, w) for w in sorted(set(widths))]
    sizes = list(dict.fromkeys(sizes))
    folder = Path(out).with_name(Path(out).name + ".parts")
    mark = [(s.session, s.animal, int(s.n_frames), int(s.n_neurons)) for s in infos]
    points = [_point("references", e, place, choice, 0, base, 0, budget_seconds, folder)] + [
        _point(f"calm_s{n}_w{w}", e, place, choice, n, w, seed, budget_seconds, folder)
        for seed in range(seeds)
        for n, w in sizes
    ]
    points = [dataclasses.replace(p, windows=windows, steps=steps if p.size else None)
              for p in points]  # fmt: skip
    found: list[Row] = []
    failed: dict[str, str] = {}

    def trained(point: Point) -> tuple[dict[str, Any], bool]:
        return command.child(
            "calm_jax.benchmark.scaling_worker", point.dumps(), Path(point.out),
            _identity(point, mark), budget_seconds, shared=jobs > 1,
        )  # fmt: skip

    pool = futures.ThreadPoolExecutor(jobs)
    try:
        for number, (point, done) in enumerate(zip(points, pool.map(trained, points)), 1):
            result, fresh = done
            title = f"{point.name}, seed {point.seed}" if point.size else point.name
            if "error" in result:
                failed[title] = result["error"]
                say(f"[{number}/{len(points)}] {title}: {result['error']}")
                continue
            found += [Row(**{**r, "value": float("nan") if r["value"] is None else r["value"]})
                      for r in result["rows"]]  # fmt: skip
            say(f"[{number}/{len(points)}] {title}" + ("" if fresh else " (done before)"))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt starts no further point
    if "references" in failed or not any(r["method"].startswith("calm") for r in found):
        raise RunError("nothing to compare", where=out, found=next(iter(failed.values())))
    groups = {
        "seen": [(infos[i].session, infos[i].animal) for i in choice.seen],
        "held_out": [(infos[i].session, infos[i].animal) for i in choice.held_out],
    }
    found += grouped(found, groups)
    there = {r["method"] for r in found}
    names = {(n, w): f"calm_s{n}_w{w}" for n, w in sizes if f"calm_s{n}_w{w}" in there}
    facts = _facts(e, infos, choice, steps or budget_seconds, steps is not None, seeds, windows)
    study = Study(f"Scaling on {place.name}", facts, found, names, base)
    rows.write(found, Path(out))
    text = markdown_of(study)
    if markdown is not None:
        with writing(markdown):
            Path(markdown).parent.mkdir(parents=True, exist_ok=True)
            Path(markdown).write_text(text)
    if figure is not None:
        draw(study, Path(figure))
    say("")
    say(text)
    if failed:
        title, reason = next(iter(failed.items()))
        raise RunError(
            f"{len(failed)} of {len(points)} points did not finish",
            where=title,
            found=reason,
            remedy="The same command runs what is missing; the others are kept.",
        )
    return study


def _check(
    sessions: Sequence[int], widths: Sequence[int], e: config.Experiment, budget: float, seeds: int
) -> None:
    own = [e.transformer]
    if e.alternative.rule != "never":
        own.append(e.alternative.transformer)
    # t.width * w / base has to be a multiple of 2 heads for each of them.
    both = [(t.width, 2 * t.heads * e.transformer.width) for t in own]
    least = math.lcm(*(m // math.gcd(w, m) for w, m in both))
    wrong = [w for w in widths if w < 1 or w % least]
    if wrong:
        raise ConfigError(
            "a width that the heads do not divide",
            where="calm-jax benchmark scaling --widths",
            found=wrong[0],
            expected=f"a multiple of {least}",
        )
    if not sessions or min(sessions) < 1 or seeds < 1 or not budget > 0:
        raise ConfigError(
            "nothing to run",
            where="calm-jax benchmark scaling",
            found=f"sessions {list(sessions)}, {seeds} seeds, {budget:g} s",
            expected="sizes and seeds of at least 1, a budget above 0 seconds",
        )


def _point(
    name: str,
    e: config.Experiment,
    place: recordings.Source,
    choice: Choice,
    size: int,
    width: int,
    seed: int,
    budget: float,
    folder: Path,
) -> Point:
    """A point with the width of its experiment set; the alternative and ffn in proportion."""
    times = width / e.transformer.width

    def wider(t: config.DualAxis) -> config.DualAxis:
        return dataclasses.replace(
            t, width=round(t.width * times), ffn=max(1, round(t.ffn * times))
        )

    other = dataclasses.replace(e.alternative, transformer=wider(e.alternative.transformer))
    if width != e.transformer.width:
        e = dataclasses.replace(e, transformer=wider(e.transformer), alternative=other)
    e = command.with_data(e, place)
    stem = f"{name}.{seed}"
    return Point(
        name, place, e, choice, size, seed, float(budget), str((folder / stem).resolve()),
        str((folder / f"{stem}.json").resolve()),
    )  # fmt: skip


def _identity(point: Point, mark: Any) -> str:
    """What a result depends on."""
    e = point.experiment
    amount = point.budget_seconds if point.steps is None else f"{point.steps} steps"
    trained = [config.fingerprint(e), amount] if point.size else [
        config.fingerprint(e.preprocess), config.fingerprint(e.split),
        config.fingerprint(e.forecasting),
    ]  # fmt: skip
    c = point.choice
    used = [c.train[: point.size], c.seen, c.held_out]
    made = [calm_jax.__version__, mark, point.name, point.seed, used, point.windows, *trained]
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]


def grouped(found: list[Row], groups: dict[str, list[tuple[str, str]]]) -> list[Row]:
    """Means over the sessions of a group, and ratios of MSE to every reference.

    `mse_seen`, `r_held_out`, ... and `mse_over_copy_last_seen`, ...: the mean over sessions
    of the method divided by that of the reference.
    """
    out = []
    methods = dict.fromkeys(r["method"] for r in found)
    means: dict[tuple, float] = {}
    for name, members in groups.items():
        for method in methods:
            own = [r for r in found if r["method"] == method
                   and (r["session"], r["animal"]) in members]  # fmt: skip
            for seed in dict.fromkeys(r["seed"] for r in own):
                for metric in ("mse", "r"):
                    values = [r["value"] for r in select(own, seed=seed, metric=metric)]
                    if values:
                        means[name, method, seed, metric] = float(np.mean(values))
                        out.append(row("B", method, f"{metric}_{name}", np.mean(values), seed=seed))
    for (name, method, seed, metric), value in means.items():
        if metric == "mse" and method not in REFERENCES:
            for other in REFERENCES:
                base = means.get((name, other, None, "mse"))
                if base:
                    out.append(
                        row("B", method, f"mse_over_{other}_{name}", value / base, seed=seed)
                    )
    return out


def _facts(
    e: config.Experiment, infos: Sequence[Any], choice: Choice, amount: float, steps: bool,
    seeds: int, windows: int,
) -> list[str]:  # fmt: skip
    f = e.forecasting
    name = lambda i: f"{infos[i].animal} {infos[i].session}"  # noqa: E731
    other = {infos[i].animal for i in choice.held_out} - {infos[i].animal for i in choice.train}
    apart = "other animals" if other else "animals that are also trained on"
    return [
        f"protocol B: {f.context} frames given, {f.horizon} forecast, about {windows} windows of a "
        "session; MSE in training SD²",
        f"tested in every point: the test part of {', '.join(map(name, choice.seen))} (trained "
        "on in every point), and "
        + (f"of {', '.join(map(name, choice.held_out))} (never trained on, of {apart}; "
           "forecast with the mean embeddings)" if choice.held_out else "nothing else"),
        "sessions are added in one random order (seed 0), so that sets are nested",
        (f"at most {amount:g} steps of the transformer (it may stop early)" if steps
         else f"{amount:g} s of wall-clock time")
        + " for every point, whatever its size: a small set is seen more often; "
        f"{seeds} seed{'' if seeds == 1 else 's'}; the tokenizer keeps its width",
        "copy, shared linear map and population ridge are fitted on the training part of the "
        "very sessions that are tested, the held-out ones too",
        f"{output.machine()}, calm_jax {calm_jax.__version__}",
    ]


def values(study: Study, method: str, metric: str) -> np.ndarray:
    """(seeds,) of a group metric."""
    own = select(study.rows, method=method, metric=metric, session=None)
    return np.array([r["value"] for r in own])


def markdown_of(study: Study) -> str:
    """The table of all points and references."""
    heads = ["sessions", "width"]
    for g in GROUPS:
        text = g.replace("_", " ")
        heads += [f"MSE, {text}", f"r, {text}", f"/ copy, {text}", f"/ linear, {text}",
                  f"/ ridge, {text}"]  # fmt: skip
    heads += ["steps", "seconds"]
    lines = []
    for (n, w), method in sorted(study.sizes.items()):
        lines.append([str(n), str(w), *_cells(study, method)])
        lines[-1] += [f"{np.mean(values(study, method, k)):.0f}" for k in ("steps", "seconds")]
    lines += [[style.label(name), "", *_cells(study, name), "", ""] for name in REFERENCES]
    facts = "\n".join(f"- {f}" for f in study.facts)
    return f"# {study.title}\n\n{facts}\n\n{output.table(heads, lines)}\n"


def _cells(study: Study, method: str) -> list[str]:
    cells = []
    for g in GROUPS:
        for metric in (f"mse_{g}", f"r_{g}", *(f"mse_over_{k}_{g}" for k in REFERENCES)):
            v = values(study, method, metric)
            spread = f" ± {v.std(ddof=1):.3f}" if len(v) > 1 else ""
            cells.append(f"{v.mean():.3f}{spread}" if len(v) else "")
    return cells


def draw(study: Study, path: Path) -> list[Path]:
    """`<stem>_sessions` and `<stem>_width`, png and svg: MSE over that of copy, and r.

    Raises:
      RunError: when a figure cannot be written.
    """
    most = max(n for n, _ in study.sizes)
    made = []
    for kind, label, chosen in (
        ("sessions", "sessions trained on", {n: m for (n, w), m in study.sizes.items()
                                             if w == study.base}),
        ("width", "width of the transformer", {w: m for (n, w), m in study.sizes.items()
                                               if n == most}),
    ):  # fmt: skip
        if not chosen:
            continue
        with style.look():
            figure, axes = style.panels(2, height=2.5)
            for ax, metric, text in zip(axes, ("mse", "r"), ("MSE / MSE of copy last", "r")):
                _panel(ax, study, chosen, metric)
                ax.set(xlabel=label, ylabel=text)
            handles, names = axes[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize=8)
            made += style.save(figure, path.parent, f"{path.stem}_{kind}")
    return made


def _panel(ax: Any, study: Study, chosen: dict[int, str], metric: str) -> None:
    from matplotlib.ticker import NullLocator

    x = sorted(chosen)
    for group, mark in zip(GROUPS, ("o", "s")):
        own = {"seen": "-", "held_out": "--"}[group]
        name = f"mse_over_copy_last_{group}" if metric == "mse" else f"r_{group}"
        each = [values(study, chosen[k], name) for k in x]
        if not all(len(v) for v in each):
            continue
        ax.errorbar(
            x, [v.mean() for v in each],
            yerr=[v.std(ddof=1) if len(v) > 1 else 0.0 for v in each], capsize=3, marker=mark,
            color=style.colour("calm"), linestyle=own, ms=4,
            label=f"CalM, {group.replace('_', ' ')}",
        )  # fmt: skip
        for other in ("shared_linear", "population_ridge"):
            base = values(study, "copy_last", f"mse_{group}")
            v = values(study, other, f"{metric}_{group}")
            if len(v) and (metric == "r" or len(base)):
                level = v.mean() / base.mean() if metric == "mse" else v.mean()
                ax.axhline(level, color=style.colour(other), linestyle=own, lw=1.0,
                           label=f"{style.label(other)}, {group.replace('_', ' ')}")  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_xticks(x, [str(k) for k in x])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.08, y=0.12)
