"""A Session as named arrays, and back: what every interchange file holds.

    traces                       (T, N) numbers
    rate | timestamps            Hz | (T,) seconds; one of the two, or both
    valid                        (T,) or (T, N) bool
    trial_start, trial_stop      (R,) frames, stop exclusive
    trial/<column>               (R,)
    behavior/<name>              (S,) or (S, D); on the frames unless it has its own times
    behavior_times/<name>        (S,) seconds
    behavior_kind/<name>         "continuous" or "categorical"
    behavior_unit/<name>         text
    intervals/<name>/start, stop (R,) seconds;  intervals/<name>/<column>  (R,)
    neuron/<column>              (N,); `neuron/id` is the id
    animal, session, unit        text;  notes  (n,) text

Everything but `traces` and the clock may be left out. Without a kind, text and booleans
are categorical and numbers continuous.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.session import (
    Channel,
    Intervals,
    NeuronTable,
    Session,
    Trials,
)

SINGLE = (
    "traces", "rate", "timestamps", "valid", "trial_start", "trial_stop",
    "animal", "session", "unit", "notes",
)  # fmt: skip
TABLES = (
    "trial", "behavior", "behavior_times", "behavior_kind", "behavior_unit",
    "intervals", "neuron",
)  # fmt: skip

Get = Callable[[str], np.ndarray]


def to_fields(session: Session, traces: bool = True) -> dict[str, np.ndarray]:
    """The Session as field name -> array, as in the head of this file."""
    out: dict[str, np.ndarray] = {}
    if traces:
        out["traces"] = session.traces
        if session.valid is not None:
            out["valid"] = session.valid
    out["rate"] = np.float64(session.rate)
    if session.timestamps is not None:
        out["timestamps"] = session.timestamps
    if len(session.trials):
        out["trial_start"], out["trial_stop"] = session.trials.start, session.trials.stop
        out |= _table("trial", session.trials.columns)
    for name, channel in session.behavior.items():
        out |= _table("behavior", {name: channel.values})
        out[f"behavior_kind/{name}"] = np.array(channel.kind)
        if channel.times is not None:
            out[f"behavior_times/{name}"] = channel.times
        if channel.unit:
            out[f"behavior_unit/{name}"] = np.array(channel.unit)
    for name, intervals in session.intervals.items():
        columns = {"start": intervals.start, "stop": intervals.stop}
        _free(intervals.columns, columns, f"intervals/{name}")
        out |= _table("intervals", {name: intervals.start}, check_only=True)
        out |= _table(f"intervals/{name}", columns | dict(intervals.columns))
    _free(session.neurons.columns, {"id": None}, "neuron")
    out["neuron/id"] = session.neurons.id
    out |= _table("neuron", session.neurons.columns)
    for name in ("animal", "session", "unit"):
        out[name] = np.array(getattr(session, name))
    if session.notes:
        out["notes"] = np.array(session.notes)
    return out


def from_fields(
    names: list[str],
    get: Get,
    traces: np.ndarray | None = None,
    valid: np.ndarray | None = None,
    session: str = "unknown",
) -> Session:
    """The Session that `to_fields` wrote; `get` reads one field."""
    have = set(names)
    tables: dict[str, list[str]] = {t: [] for t in TABLES}
    notes: list[str] = []
    for name in sorted(have):
        table, _, rest = name.partition("/")
        if rest and table in TABLES:
            tables[table].append(rest)
        elif name not in SINGLE:
            notes.append(f"unknown field {name!r} was left out{_near(name)}")
    if traces is None:
        if "traces" not in have:
            near = [_near(n) for n in sorted(have - set(SINGLE)) if "'traces'" in _near(n)]
            raise RecordingError(
                "no field 'traces'",
                found=", ".join(sorted(have)[:12]) or "no field at all",
                expected="traces (frames, neurons)",
                remedy="Rename the field that holds the traces." if near else None,
            )
        traces = get("traces")
        valid = get("valid") if "valid" in have else None
    timestamps = get("timestamps") if "timestamps" in have else None
    channels = {n: _channel(n, get, have, notes) for n in tables["behavior"]}
    for t in ("behavior_times", "behavior_kind", "behavior_unit"):
        for n in tables[t]:
            if n not in channels:
                raise RecordingError(f"there is no behavior/{n}", where=f"{t}/{n}")
    _refuse_transposed(traces, timestamps, channels)
    if "notes" in have:
        given = np.atleast_1d(get("notes"))
        if given.dtype.kind not in "US" or given.ndim != 1:
            raise RecordingError(
                "notes must be lines of text",
                where="notes",
                found=f"{given.dtype} of shape {given.shape}",
            )
        notes = given.astype(str).tolist() + notes
    ids = get("neuron/id") if "neuron/id" in have else None
    columns = {n: get(f"neuron/{n}") for n in tables["neuron"] if n != "id"}
    if ids is None and traces.ndim == 2:
        ids = np.arange(traces.shape[1]).astype(str)
    return Session(
        traces=traces,
        rate=_number("rate", get) if "rate" in have else None,
        timestamps=timestamps,
        valid=valid,
        trials=_trials(get, have, tables["trial"]),
        intervals=_intervals(get, tables["intervals"]),
        behavior=channels,
        neurons=None if ids is None else NeuronTable(ids, columns),
        unit=_text("unit", get) if "unit" in have else "a.u.",
        animal=_text("animal", get) if "animal" in have else "unknown",
        session=_text("session", get) if "session" in have else session,
        notes=tuple(notes),
    )


# --- writing -------------------------------------------------------------------


def _table(
    table: str, columns: Mapping[str, np.ndarray], check_only: bool = False
) -> dict[str, np.ndarray]:
    for name in columns:
        if not name or "/" in name or "\0" in name or name.strip(".") == "":
            raise RecordingError(
                "a name that the file cannot hold",
                where=table,
                found=repr(name),
                expected="a name without '/', other than '' and '.'",
            )
    return {} if check_only else {f"{table}/{k}": v for k, v in columns.items()}


def _free(columns: Mapping[str, Any], taken: Mapping[str, Any], where: str) -> None:
    for name in set(columns) & set(taken):
        raise RecordingError(f"the name {name!r} is taken", where=f"{where}/{name}")


# --- reading -------------------------------------------------------------------


def _near(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), (*SINGLE, *TABLES), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _text(name: str, get: Get) -> str:
    value = get(name)
    if value.size != 1 or value.dtype.kind not in "USiu":
        raise RecordingError(
            "not one piece of text", where=name, found=f"{value.dtype} of shape {value.shape}"
        )
    item = value.reshape(-1)[0]
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


def _number(name: str, get: Get) -> float:
    value = get(name)
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise RecordingError(
            "not one number",
            where=name,
            found=f"{value.dtype} of shape {value.shape}",
            expected="frames per second (Hz)",
        )
    return float(value.reshape(-1)[0])


def _trials(get: Get, have: set[str], columns: list[str]) -> Trials:
    edges = {"trial_start", "trial_stop"} & have
    if not edges and not columns:
        return Trials(np.zeros(0, int), np.zeros(0, int))
    if len(edges) < 2:
        raise RecordingError(
            "trials need both edges",
            where="trial_start, trial_stop",
            found=" and ".join(edges) or "neither",
            expected="one start and one stop (exclusive) per trial, in frames",
        )
    return Trials(
        get("trial_start"), get("trial_stop"), {c: get(f"trial/{c}") for c in columns}
    )


def _intervals(get: Get, names: list[str]) -> dict[str, Intervals]:
    groups: dict[str, list[str]] = {}
    for name in names:
        group, _, column = name.partition("/")
        groups.setdefault(group, []).append(column)
    out = {}
    for group, columns in groups.items():
        where = f"intervals/{group}"
        if not {"start", "stop"} <= set(columns):
            raise RecordingError(
                "intervals need start and stop",
                where=where,
                found=", ".join(c or "an array" for c in columns),
                expected=f"{where}/start and {where}/stop in seconds",
            )
        values = {c: get(f"{where}/{c}") for c in columns}
        for edge in ("start", "stop"):
            if values[edge].dtype.kind not in "fiu":
                raise RecordingError(
                    "interval edges must be numbers (seconds)", where=f"{where}/{edge}"
                )
        with located(where):
            out[group] = Intervals(values.pop("start"), values.pop("stop"), values)
    return out


def _channel(name: str, get: Get, have: set[str], notes: list[str]) -> Channel:
    where = f"behavior/{name}"
    values = get(where)
    kind_field, times, unit = (f"behavior_{x}/{name}" for x in ("kind", "times", "unit"))
    if kind_field in have:
        kind = _text(kind_field, get)
    else:
        kind = "categorical" if values.dtype.kind in "bUS" else "continuous"
        if values.dtype.kind in "iu":
            notes.append(
                f"{where} holds whole numbers and is read as continuous; "
                f"{kind_field} = 'categorical' makes them labels"
            )
    with located(where):
        return Channel(
            values,
            kind,
            times=get(times) if times in have else None,
            unit=_text(unit, get) if unit in have else "",
        )


def _refuse_transposed(
    traces: np.ndarray, timestamps: np.ndarray | None, channels: Mapping[str, Channel]
) -> None:
    """An error where the frames evidently lie on the second axis."""
    if traces.ndim != 2:
        return
    lengths = {c.values.shape[0] for c in channels.values() if c.times is None}
    if timestamps is not None:
        lengths.add(timestamps.size)
    if lengths == {traces.shape[1]} and traces.shape[0] != traces.shape[1]:
        raise RecordingError(
            "traces seem to be transposed",
            where="traces",
            found=f"shape {traces.shape} beside {traces.shape[1]} frames of time or behaviour",
            expected="(frames, neurons)",
            remedy="Save traces.T.",
        )
