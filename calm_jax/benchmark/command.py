"""`calm-jax benchmark forecast`: every method and seed in turn, then table and figure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import calm_jax
from calm_jax import config, experiments_loader, rows
from calm_jax.benchmark import methods, output, recordings, statistics
from calm_jax.benchmark.methods import Method
from calm_jax.benchmark.worker import Job
from calm_jax.errors import ConfigError, RunError, writing
from calm_jax.recordings.batches import Prepared
from calm_jax.report import style

_PATIENCE = 6 * 3600  # seconds beyond the budget after which a process is given up


def forecast(
    data: str | None,
    out: Path,
    *,
    protocol: str = "B",
    names: str = "all",
    budget_seconds: float = 600.0,
    seeds: int = 3,
    experiment: str = "calm_base",
    runs: Sequence[Path] = (),
    source: str | None = None,
    store: str | None = None,
    read: Sequence[str] = (),
    rate: float | None = None,
    markdown: Path | None = None,
    figure: Path | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> output.Page:
    """Compares forecasters on the same windows and writes rows, table and figure.

    A finished (method, seed) is kept in the folder `<out>.parts` and not run again.

    Args:
      data: recordings or a data set; None = the data of the experiment.
      out: JSON of rows. names: of methods, see `methods.chosen`.
      budget_seconds: of every trained method and seed. seeds: 0, 1, ...
      experiment: its preprocessing, split and forecasting settings hold for all
        methods; its models are trained as `calm`.
      runs: finished runs to score as well.

    Raises:
      CalmError: for what cannot be read or named; RunError when a method failed, after
        the outputs of the others were written.
    """
    if seeds < 1 or not budget_seconds > 0:
        raise ConfigError(
            "nothing to run",
            where="calm-jax benchmark",
            found=f"{seeds} seeds, {budget_seconds:g} s",
            expected="at least 1 seed and a budget above 0 seconds",
        )
    wanted = methods.chosen(names, runs, say)
    e = experiments_loader.load_experiment(experiment)
    place = recordings.source_of(
        data, e.data, source=source, store=store, read=tuple(read), rate=rate
    )
    prepared = recordings.prepare(place, e)
    if protocol == "A" and not any(len(s.trials) for s in prepared.store.sessions):
        raise ConfigError(
            "protocol A forecasts trials, and these recordings have none",
            where="calm-jax benchmark --protocol",
            remedy="Use --protocol B.",
        )
    out = Path(out)
    parts = out.with_name(out.name + ".parts")
    mark = recordings.fingerprint(prepared)
    found: dict[str, list[dict]] = {}
    failed: dict[str, str] = {}
    jobs = [(m, s) for m in wanted for s in (range(seeds) if m.trained else range(1))]
    for number, (method, seed) in enumerate(jobs, 1):
        title = f"{method.name}, seed {seed}" if method.trained else method.name
        job = Job(
            source=place,
            experiment=with_data(e, place),
            method=method,
            seed=seed,
            protocol=protocol,
            budget_seconds=float(budget_seconds),
            folder=str((parts / f"{method.name}.{seed}").resolve()),
            out=str((parts / f"{method.name}.{seed}.json").resolve()),
        )
        result, fresh = _result(job, mark)
        if "error" in result:
            failed[title] = result["error"]
            say(f"[{number}/{len(jobs)}] {title}: {result['error']}")
            continue
        found.setdefault(method.name, []).append(result)
        value = statistics.overall(result["rows"], method.name, "mse")[0]
        took = statistics.overall(result["rows"], method.name, "seconds")[0]
        text = f"MSE {value:.4f}, {took:.1f} s" + ("" if fresh else " (done before)")
        say(f"[{number}/{len(jobs)}] {title}: {text}")
    if not found:
        raise RunError("every method failed", where=out, found=next(iter(failed.values())))
    page = _page(place, e, prepared, protocol, found, failed, wanted, budget_seconds, seeds)
    rows.write(page.rows, out)
    text = output.markdown(page)
    if markdown is not None:
        with writing(markdown):
            Path(markdown).parent.mkdir(parents=True, exist_ok=True)
            Path(markdown).write_text(text)
    if figure is not None:
        output.draw(page, Path(figure))
    say("")
    say(text)
    if failed:
        title, reason = next(iter(failed.items()))
        raise RunError(
            f"{len(failed)} of {len(jobs)} did not finish",
            where=title,
            found=reason,
            remedy="The same command runs what is missing; the others are kept.",
        )
    return page


def with_data(e: config.Experiment, place: recordings.Source) -> config.Experiment:
    """The experiment as a run of its own on these recordings would have it."""
    data = place.data
    if place.path is not None:
        data = dataclasses.replace(data, name="interchange", source=place.path)
    return dataclasses.replace(e, data=data)


def _result(job: Job, mark: str) -> tuple[dict[str, Any], bool]:
    """The result of a job, from an earlier call where there is one; whether it is fresh."""
    return child(
        "calm_jax.benchmark.worker", job.dumps(), Path(job.out), _identity(job, mark),
        job.budget_seconds,
    )  # fmt: skip


def child(
    module: str, text: str, out: Path, identity: str, budget_seconds: float, shared: bool = False
) -> tuple[dict[str, Any], bool]:
    """What a process of its own writes to `out`, or what an earlier one left there.

    Args:
      module: run as `python -m module JOB`, with the `text` in the file JOB.
      identity: of the result; a file with another one is made anew.
      shared: others run beside it, so that it may not take a GPU's memory for itself.

    Returns:
      the result (with `error` when it failed), and whether it is fresh.
    """
    try:
        kept = json.loads(out.read_text())
        if kept.get("identity") == identity and "error" not in kept:
            return kept, False
    except (OSError, ValueError):
        pass  # none yet, or half of one
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        path = out.with_suffix(".job")
        path.write_text(text)
    words = [sys.executable, "-m", module, str(path)]
    # Modules are found where this process found them.
    modules = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if Path(p).is_dir())
    environment = {**os.environ, "PYTHONPATH": modules}
    if shared:
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        done = subprocess.run(
            words, env=environment, stdout=2, timeout=budget_seconds + _PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {"error": f"gave no result within {_PATIENCE} s of its budget"}, True
    finally:
        path.unlink(missing_ok=True)
    if done.returncode or not out.is_file():
        return {"error": f"the process ended with status {done.returncode}"}, True
    result = json.loads(out.read_text())
    if "error" not in result:
        out.write_text(json.dumps({"identity": identity, **result}))
    return result, True


def _identity(job: Job, mark: str) -> str:
    """What a result depends on: recordings, method, settings, budget, seed."""
    method, code = job.method, ""
    if method.kind != "calm":
        path = {
            "file": lambda: Path(method.path),
            "run": lambda: Path(method.path, "stages.json"),
            "baseline": lambda: Path(methods.module_of(method).__file__),
        }[method.kind]()
        code = hashlib.sha256(path.read_bytes()).hexdigest()
    f = job.experiment.forecasting
    settings: list[Any] = [f.context, f.horizon, f.context_a, f.score_from_a, f.horizon_a]
    if method.kind == "calm":
        settings.append(config.fingerprint(job.experiment))
    budget = [job.budget_seconds, job.seed] if method.trained else []
    made = [calm_jax.__version__, mark, method.name, code, job.protocol, *settings, *budget]
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]


def _page(
    place: recordings.Source,
    e: config.Experiment,
    prepared: Prepared,
    protocol: str,
    found: dict[str, list[dict]],
    failed: dict[str, str],
    wanted: list[Method],
    budget: float,
    seeds: int,
) -> output.Page:
    """Rows of everything, the order of the methods and the paired differences."""
    known = [rows.Row(**{**r, "value": _value(r["value"])}) for results in found.values()
             for result in results for r in result["rows"]]  # fmt: skip
    trained = {m.name for m in wanted if m.trained}
    means = {m: float(statistics.overall(known, m, "mse").mean()) for m in found}
    order = sorted(found, key=lambda m: means[m])
    windows = {m: statistics.mean_errors(results) for m, results in found.items()}
    f = e.forecasting
    strides = [
        recordings.settings_of(prepared, i, f).origin_stride
        for i in range(len(prepared.splits.sessions))
        if (prepared.splits.sessions[i], prepared.store.sessions[i].animal)
        in {(w["session"], w["animal"]) for w in next(iter(windows.values()))}
    ]
    others = [m for m in order if not style.own(m)]
    own = [m for m in order if style.own(m)]
    references = {"best": others[0]} if others else {}
    if own:
        references["calm"] = own[0]
    against, extra = {}, statistics.spread_rows(known, order, protocol)
    unit = ""
    for name, reference in references.items():
        column = {
            m: statistics.difference(windows[m], windows[reference], strides)
            for m in order
            if m != reference
        }
        against[f"minus {style.label(reference)} [95 %]"] = column
        for m, d in column.items():
            unit = f"{d.n} {d.unit}s"
            extra += statistics.difference_rows(protocol, m, name, d)
    facts = _facts(place, prepared, f, protocol, budget, seeds, e)
    if unit:
        few = "" if "session" in unit else " (fewer than 5 sessions: not the spread over animals)"
        facts.append(
            f"differences: paired bootstrap, {statistics.RESAMPLES:,} resamples of {unit}{few}, "
            f"seed {statistics.SEED}; the best baseline is the one with the least test MSE here"
        )
    tuning = {m: r[0]["tuning"] for m, r in found.items() if r[0]["tuning"]}
    return output.Page(
        f"Forecasts of {place.name}", facts, known + extra, protocol, order, trained,
        against, tuning, failed,
    )  # fmt: skip


def _facts(
    place: recordings.Source,
    prepared: Prepared,
    f: config.Forecasting,
    protocol: str,
    budget: float,
    seeds: int,
    e: config.Experiment,
) -> list[str]:
    infos = prepared.store.sessions
    trials = sum(bool(len(s.trials)) for s in infos)
    parts = e.split
    split = f"{100 * parts.train:.0f}/{100 * parts.valid:.0f}/{100 * parts.test:.0f} %"
    if protocol == "A":
        windows = (
            f"protocol A: the first {f.context_a} frames of a trial given, the rest (at most "
            f"{f.horizon_a} frames) rolled out, scored from frame {f.score_from_a}"
        )
    else:
        windows = (
            f"protocol B: {f.context} frames given, {f.horizon} forecast, origins every "
            f"{recordings.TRIALS} frames ({recordings.BLOCKS} without trials)"
        )
    return [
        f"{len(infos)} sessions ({trials} with trials), "
        f"{sum(s.n_neurons for s in infos)} neurons, "
        f"{sum(int(c.sum()) for c in prepared.scalers.constant)} constant ones left out",
        f"split {split} by trial, or in blocks {parts.gap} frames apart; scaled on training frames",
        windows,
        f"trained methods: {budget:g} s each and seed for tuning and training, {seeds} seed"
        f"{'' if seeds == 1 else 's'} (± SD); the others run once",
        f"seconds: fitting, tuning and compiling; peak: of the whole process; {output.machine()}, "
        f"calm_jax {calm_jax.__version__}",
    ]


def _value(value: float | None) -> float:
    return math.nan if value is None else float(value)
