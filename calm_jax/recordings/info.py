"""What a recording holds, for `calm-jax info`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calm_jax.errors import CalmError
from calm_jax.recordings.formats import options_from, peek_at, read, sessions_in
from calm_jax.recordings.formats.peek import LARGE, Peek
from calm_jax.recordings.formats.remote import is_url, url_of
from calm_jax.recordings.session import Channel, Session
from calm_jax.recordings.store import SIDE_FILE, open_store
from calm_jax.recordings.store_writer import constant_traces

SHORT = 64  # frames: context 48 and horizon 16 of the usual forecast


def describe(session: Session) -> dict[str, Any]:
    """The session in numbers and words, ready for JSON.

    Keys: `session`, `animal`, `unit`, `neurons`, `frames`, `seconds`, `rate` (Hz), `trials`
    (count and shortest, longest in frames), `behavior`, `intervals` (name -> count), `missing`
    (share of the samples), `constant` (ids of traces that never change), `warnings`, `notes`.
    """
    lengths = session.trials.stop - session.trials.start
    trials: dict[str, int] = {"count": len(session.trials)}
    if len(session.trials):
        trials |= {"shortest": int(lengths.min()), "longest": int(lengths.max())}
    missing = 0.0
    if session.valid is not None:
        missing = float(1 - session.valid.mean())
    constant = session.neurons.id[constant_traces(session)].tolist()
    return {
        "session": session.session,
        "animal": session.animal,
        "unit": session.unit,
        "neurons": session.n_neurons,
        "frames": session.n_frames,
        "seconds": round(session.seconds, 3),
        "rate": round(session.rate, 6),
        "trials": trials,
        "behavior": [_channel(n, c) for n, c in session.behavior.items()],
        "intervals": {name: len(x) for name, x in session.intervals.items()},
        "missing": missing,
        "constant": constant,
        "warnings": _warnings(session, missing, constant, lengths),
        "notes": list(session.notes),
    }


def describe_peek(about: Peek) -> dict[str, Any]:
    """What `describe` gives, from headers: `missing`, `constant` are None, not computed."""
    few = [f"only {about.frames} frames: a usual forecast needs {SHORT}"]
    wide = [
        f"more neurons than frames ({about.neurons} > {about.frames}): "
        "are the traces (frames, neurons)?"
    ]
    return {
        "session": about.session,
        "animal": about.animal,
        "unit": about.unit,
        "neurons": about.neurons,
        "frames": about.frames,
        "seconds": round(about.frames / about.rate, 3),
        "rate": round(about.rate, 6),
        "trials": {"count": about.trials},
        "behavior": [{"name": name} for name in about.behavior],
        "intervals": dict(about.intervals),
        "missing": None,
        "constant": None,
        "warnings": (few if about.frames < SHORT else [])
        + (wide if about.neurons > about.frames else []),
        "notes": list(about.notes),
    }


def print_info(
    paths: Sequence[str | Path],
    as_json: bool = False,
    console: Console | None = None,
    *,
    options: Sequence[str] = (),
    full: bool = False,
) -> int:
    """Prints what is in files, folders of files or stores.

    A recording that cannot be read gets one line on standard error (in JSON, an entry with
    `path` and `error`), and the others are still printed. Of files over 256 MB only the
    headers are read, where their format allows it.

    Args:
      options: of the reader, `name=value`.
      full: read large files whole.

    Returns:
      0, or 2 when something could not be read: the exit status.
    """
    console = console or Console()
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    found: list[dict[str, Any]] = []
    failed = False
    for path, result in _results(paths, options, full):
        if isinstance(result, CalmError):
            failed = True
            found.append({"path": _shown(path), "error": str(result)})
            if not as_json:
                errors.print(f"error: {result}")
        else:
            made = describe_peek(result) if isinstance(result, Peek) else describe(result)
            about = {"path": _shown(path), **made}
            found.append(about)
            if not as_json:
                _print_one(about, console)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    elif sum("error" not in x for x in found) > 1:
        _print_sum([x for x in found if "error" not in x], console)
    return 2 if failed else 0


def _results(
    paths: Sequence[str | Path], options: Sequence[str], full: bool
) -> Iterator[tuple[Path, Session | Peek | CalmError]]:
    """Each recording, or the error that it gives; one in memory at a time."""
    given = options_from(options)
    for path in map(Path, paths):
        try:
            if (path / SIDE_FILE).is_file():
                store = open_store(path)
                for i in range(len(store.sessions)):
                    yield path, store.session(i)
                continue
            files = sessions_in(path)
        except CalmError as e:
            yield path, e
            continue
        for file in files:
            try:
                result: Session | Peek | CalmError | None = None
                if not full and (is_url(file) or _bytes(file) > LARGE):
                    result = peek_at(file, **given)
                if result is None:
                    result = read(file, **given)
            except CalmError as e:
                result = e
            yield file, result


def _shown(path: Path) -> str:
    return url_of(path) if is_url(path) else str(path)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(p.stat().st_size for p in files if p.is_file())


def _channel(name: str, channel: Channel) -> dict[str, Any]:
    values = channel.values
    if channel.kind == "continuous":
        absent = ~np.isfinite(values)
    else:
        absent = values == "" if values.dtype.kind in "US" else values < 0
    about = {
        "name": name,
        "kind": channel.kind,
        "unit": channel.unit,
        "samples": int(values.shape[0]),
        "dimensions": int(values.shape[1]) if values.ndim == 2 else 1,
        "own_times": channel.times is not None,
        "missing": float(np.mean(absent)) if values.size else 0.0,
    }
    if channel.kind == "categorical":
        present = np.unique(values[~absent])
        about["classes"] = [x.decode() if isinstance(x, bytes) else x for x in present.tolist()]
    return about


def _warnings(
    session: Session, missing: float, constant: list[str], lengths: np.ndarray
) -> list[str]:
    out = []
    if constant:
        some = ", ".join(constant[:5]) + (", ..." if len(constant) > 5 else "")
        out.append(
            f"{len(constant)} of {session.n_neurons} traces never change (neurons {some}): "
            "they are left out of scores"
        )
    if missing:
        out.append(f"{missing:.1%} of the samples are missing")
    if session.timestamps is not None and session.n_frames > 1:
        steps = np.diff(session.timestamps)
        gaps = int((steps > 1.5 * np.median(steps)).sum())
        if gaps:
            out.append(f"{gaps} gaps in the time stamps; the longest is {steps.max():.3g} s")
    if session.n_frames < SHORT:
        out.append(f"only {session.n_frames} frames: a usual forecast needs {SHORT}")
    short = int((lengths < SHORT).sum())
    if short:
        out.append(f"{short} of {lengths.size} trials are shorter than {SHORT} frames")
    for name, channel in session.behavior.items():
        if _channel(name, channel)["missing"] > 0.5:
            out.append(f"more than half of behavior/{name} is missing")
    if session.n_neurons > session.n_frames:
        out.append(
            f"more neurons than frames ({session.n_neurons} > {session.n_frames}): "
            "are the traces (frames, neurons)?"
        )
    return out


def _print_one(about: dict[str, Any], console: Console) -> None:
    table = Table(title=escape(about["path"]), title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    row = lambda name, value: table.add_row(name, escape(str(value)))
    row("session", f"{about['session']} (animal {about['animal']})")
    row("neurons", about["neurons"])
    row("frames", about["frames"])
    row("seconds", about["seconds"])
    row("rate", f"{about['rate']:g} Hz")
    row("unit", about["unit"])
    trials = about["trials"]
    if trials["count"] and "shortest" not in trials:
        row("trials", trials["count"])
    elif trials["count"]:
        row("trials", f"{trials['count']} of {trials['shortest']} to {trials['longest']} frames")
    else:
        row("trials", "none")
    for c in about["behavior"]:
        if "kind" not in c:
            row("behavior", c["name"])
            continue
        text = f"{c['name']}: {c['kind']}" + (f", {c['unit']}" if c["unit"] else "")
        text += f", {c['dimensions']} dimensions" if c["dimensions"] > 1 else ""
        text += f", {len(c['classes'])} classes" if "classes" in c else ""
        text += f", {c['samples']} samples on its own clock" if c["own_times"] else ""
        text += f", {c['missing']:.1%} missing" if c["missing"] else ""
        row("behavior", text)
    for name, count in about["intervals"].items():
        row("intervals", f"{name}: {count}")
    unknown = "not computed (only the headers were read; --full reads it all)"
    missing, constant = about["missing"], about["constant"]
    share = f"{missing:.2%}" if missing else "none"
    row("missing data", unknown if missing is None else share)
    row("constant traces", unknown if constant is None else len(constant) or "none")
    for text in about["warnings"]:
        table.add_row("[yellow]warning[/yellow]", escape(text))
    for text in about["notes"]:
        row("note", text)
    console.print(table)
    console.print()


def _print_sum(found: list[dict[str, Any]], console: Console) -> None:
    neurons, seconds = (sum(x[k] for x in found) for k in ("neurons", "seconds"))
    animals = len({x["animal"] for x in found})
    console.print(
        f"{len(found)} sessions of {animals} animals, {neurons} neurons, "
        f"{seconds / 60:.1f} minutes",
        highlight=False,
    )
