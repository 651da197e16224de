"""`calm-jax analyze`: every analysis that a run allows, saved, and set into its report."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from calm_jax import runs
from calm_jax.analyses import dynamics, geometry, interpretability, representation, theory
from calm_jax.analyses.material import Material, Settings
from calm_jax.analyses.names import NAMES
from calm_jax.analyses.result import FOLDER, AnalysisRow, Result, load, merged, save, write_rows
from calm_jax.decoding_data import recordings
from calm_jax.errors import CalmError, ConfigError

# Name -> what it does with the material, its own empty result, and those made before it.
_RUN: dict[str, Callable[[Material, Result, dict[str, Result]], None]] = {
    "tuning": lambda m, r, _: representation.run_tuning(m, r),
    "embeddings": lambda m, r, done: representation.run_embeddings(m, r, done.get("tuning")),
    "dynamics": lambda m, r, _: dynamics.run(m, r),
    "information": lambda m, r, _: theory.run_information(m, r),
    "landscape": lambda m, r, _: theory.run_landscape(m, r),
    "curriculum": lambda m, r, _: theory.run_curriculum(m, r),
    "latents": lambda m, r, _: geometry.run_latents(m, r),
    "freezing": lambda m, r, _: geometry.run_freezing(m, r),
    "coupling": lambda m, r, _: interpretability.run_coupling(m, r),
    "timescales": lambda m, r, done: interpretability.run_timescales(m, r, done.get("coupling")),
    "codes": lambda m, r, _: interpretability.run_codes(m, r),
}
_READS = {"embeddings": "tuning", "timescales": "coupling"}  # earlier results that are read


def analyze(
    folder: Path,
    *,
    data: Path | None = None,
    options: Sequence[str] = (),
    out: Path | None = None,
    only: Sequence[str] = (),
    settings: Settings | None = None,
    report: bool = True,
    console: Console | None = None,
) -> list[AnalysisRow]:
    """Runs the analyses, writes `RUN/analysis/`, redraws the report; returns all rows.

    An analysis that is not possible, or a part of it, leaves one line in its result and on the
    console. Recordings of others are analysed with `data`; their results are written to
    `RUN/analysis-of/<name of data>/` and stay out of the run's own report.

    Args:
      only: names of analyses; default all. out: the rows are written there too.
      report: redraw the page of the run.

    Raises:
      ConfigError: for an unknown analysis or more than two labels.
      RunError, RecordingError: for a run or recordings that cannot be used.
    """
    settings = settings or Settings()
    wanted = _checked(only, settings)
    console = console or Console(stderr=True, highlight=False)
    say = lambda text: console.print(text, soft_wrap=True, markup=False)  # noqa: E731
    trained = runs.load(folder)
    given = recordings(trained, data, options)
    home = trained.run.path(FOLDER) if data is None else of_data(trained.run.folder, data)
    material = Material(trained, given, settings, home, data is None, say)
    for note in given.notes:
        say(note)
    command = shlex.join(words(Path(folder), settings, data=data, options=options))
    rows = make(
        wanted, lambda name, r, done: _RUN[name](material, r, done), home,
        seed=settings.seed, command=command, named=bool(only), out=out, say=say,
    )  # fmt: skip
    if data is None and report:
        from calm_jax.report.page import write_report

        say(f"report: {write_report(trained.run.folder)}")
    else:
        say(f"results: {home}")
    return rows


def make(
    wanted: Sequence[str],
    run: Callable[[str, Result, dict[str, Result]], None],
    home: Path,
    *,
    seed: int,
    command: str,
    named: bool,
    out: Path | None,
    say: Callable[[str], None],
) -> list[AnalysisRow]:
    """Runs analyses one after the other, saves each in `home`, says what was not possible.

    Args:
      run: fills the result of an analysis; it is given those made before.
      command: that makes them all. named: whether some were asked for by name.
      out: the rows are written there too.
    """
    done: dict[str, Result] = {}
    for name in wanted:
        before = _READS.get(name)
        if before and before not in done:
            earlier = load(home, before)
            if earlier is not None:
                done[before] = earlier
        result = Result(name, seed)
        start = time.monotonic()
        try:
            run(name, result, done)
        except CalmError as e:
            result.missing.append(f"{name}: {e}")
        result.missing = merged(result.missing)
        result.seconds = round(time.monotonic() - start, 1)
        result.command = command + (f" --only {name}" if named else "")
        save(result, home)
        done[name] = result
        say(f"{name}: {len(result.rows)} numbers in {result.seconds:.0f} s")
        for line in result.missing:
            say(f"  not possible: {line}")
    rows = [r for name in wanted for r in done[name].rows]
    if out is not None:
        write_rows(rows, Path(out))
        say(f"wrote {len(rows)} rows to {out}")
    return rows


def of_data(folder: Path, data: Path) -> Path:
    """Where the analyses of recordings that are not those of the run are kept."""
    return folder / f"{FOLDER}-of" / (Path(data).resolve().stem or "data")


def _checked(only: Sequence[str], settings: Settings) -> list[str]:
    if len(settings.labels) > 2:
        raise ConfigError("at most two labels", where="--labels", found=len(settings.labels))
    return chosen(only)


def chosen(only: Sequence[str]) -> list[str]:
    """The analyses that are named, or all, in their order. Raises: ConfigError."""
    for name in only:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            raise ConfigError(
                f"no analysis {name!r}",
                where="--only",
                expected=", ".join(NAMES),
                remedy=f"Did you mean {near[0]!r}?" if near else None,
            )
    return [n for n in NAMES if not only or n in only]


def words(
    folder: Path, settings: Any, *, data: Path | None = None, options: Sequence[str] = ()
) -> list[str]:
    """The command that makes these results again.

    Args:
      settings: a dataclass; a field that is not at its default is a flag of its name.
    """
    words = ["calm-jax", "analyze", str(folder)]
    if data is not None:
        words += ["--data", str(data)]
    words += [w for o in options for w in ("--read", o)]
    usual = type(settings)()
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if value != getattr(usual, f.name):
            values = value if isinstance(value, tuple) else [value]
            texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
            words += [f"--{f.name.replace('_', '-')}", *texts]
    return words
