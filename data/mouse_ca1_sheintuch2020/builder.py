"""Builder of `mouse_ca1_sheintuch2020`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import lfilter

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import options_from
from calm_jax.recordings.formats.interchange import DAMAGE
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.session import Channel, NeuronTable, Session, Trials
from data.session_builder import SessionBuilder, SessionsConfig, named_source

TAU = 0.5  # s, decay of the event kernel; of the order of GCaMP6f, no figure of the paper
NEEDED = ("event_frame", "event_cell", "event_amp", "shape", "fs")
BLOCK = 64  # cells filtered at a time


class MouseCa1Sheintuch2020(SessionBuilder):
    """One session per animal, track and day; see README.md."""

    TITLE = "Detected calcium events of mouse CA1 on linear tracks (Sheintuch et al., 2020)."
    CITATION = "Sheintuch et al., Current Biology 2020, doi:10.1016/j.cub.2020.02.018"

    @classmethod
    def sources(cls, config: SessionsConfig) -> list[Path]:
        return files(named_source(cls.name, config.source))

    @classmethod
    def session(cls, source: Path, config: SessionsConfig) -> Session:
        options = options_from(config.read)
        for name in options:
            if name != "tau":
                raise RecordingError(
                    f"{cls.name} has no option {name!r}",
                    where="--read",
                    expected="tau, the decay of the event kernel in seconds",
                )
        return read_ca1(source, **options)


def files(source: str) -> list[Path]:
    """The `.npz` files of the folder, sorted by name.

    Raises:
      RecordingError: when the folder is missing or holds none.
    """
    folder = Path(source)
    if folder.is_file():
        return [folder]
    found = sorted(p for p in folder.glob("*.npz") if not p.name.startswith("."))
    if not found:
        raise RecordingError(
            "no recordings of CA1" if folder.is_dir() else "no such folder",
            where=folder,
            expected="a folder of .npz files with event_frame, event_cell and event_amp",
            remedy="The layout is described in data/mouse_ca1_sheintuch2020/README.md.",
        )
    return found


def reconstruct(
    frame: np.ndarray, cell: np.ndarray, amp: np.ndarray, shape: tuple[int, int], decay: float
) -> np.ndarray:
    """(T, N) float32 traces from events: y[t] = d y[t - 1] + amplitudes of the events at t.

    Each event is a step to its amplitude that decays as exp(-k / (tau rate)) after k frames.

    Args:
      frame, cell, amp: (E,) of each event; cells from 0. Events of one cell in one frame add.
      shape: (frames, cells).
      decay: d = exp(-1 / (tau rate)).
    """
    out = np.zeros(shape, np.float32)
    order = np.argsort(cell, kind="stable")
    frame, cell, amp = frame[order], cell[order], amp[order]
    for a in range(0, shape[1], BLOCK):
        b = min(a + BLOCK, shape[1])
        own = slice(*np.searchsorted(cell, (a, b)))
        events = np.zeros((shape[0], b - a))
        np.add.at(events, (frame[own], cell[own] - a), amp[own])
        out[:, a:b] = lfilter([1.0], [1.0, -decay], events, axis=0)
    return out


def read_ca1(path: str | Path, tau: float = TAU) -> Session:
    """One session: traces reconstructed from detected events, position and velocity.

    A run on the track (a stretch of one value of `trial`; -1 = no tracking) is a trial with
    the column `run`. The neuron column `registered` names the cell across days: the same
    text in two sessions of one animal and track is the same cell; "" where not registered.

    Args:
      tau: s, decay of the event kernel.

    Raises:
      RecordingError: naming the file and the field.
    """
    path = Path(path)
    with located(path):
        if isinstance(tau, bool) or not isinstance(tau, int | float) or not 0.01 <= tau <= 60:
            raise RecordingError(
                "no decay time", where="tau", found=repr(tau), expected="0.01 to 60 seconds"
            )
        field = _fields(path)
        shape, rate = _sizes(field)
        frame, cell, amp = (_events(field, k) for k in NEEDED[:3])
        if not frame.size == cell.size == amp.size:
            raise RecordingError(
                "events of three lengths",
                where=", ".join(NEEDED[:3]),
                found=f"{frame.size}, {cell.size} and {amp.size}",
            )
        places = (("event_frame", frame, shape[0]), ("event_cell", cell, shape[1]))
        for name, values, size in places:
            if values.size and (values.min() < 0 or values.max() >= size):
                raise RecordingError(
                    "an event outside the recording",
                    where=name,
                    found=f"{values.min()} to {values.max()}",
                    expected=f"0 to {size - 1}",
                )
        if not np.isfinite(amp).all():
            raise RecordingError("amplitudes must be finite", where="event_amp")
        animal, env = (str(field[k]) if k in field else "" for k in ("animal", "env"))
        kernel = f"event kernel exp(-t / {tau:g} s)"
        notes = [
            f"the file holds detected events, no traces: dF/F was reconstructed ({kernel})",
            *([f"environment {env}"] if env else []),
        ]
        return Session(
            traces=reconstruct(frame, cell, amp, shape, float(np.exp(-1.0 / (tau * rate)))),
            rate=rate,
            trials=_runs(field, shape[0]),
            behavior=_behavior(field, notes),
            neurons=_neurons(field, path, shape[1], animal or path.stem, env, notes),
            unit=f"reconstructed dF/F ({kernel})",
            animal=animal or path.stem,
            session=path.stem,
            notes=tuple(notes),
        )


def _fields(path: Path) -> dict[str, np.ndarray]:
    optional = ("position", "velocity", "trial", "cell_to_index_map", "animal", "env")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [k for k in NEEDED if k not in archive]
            if missing:
                raise RecordingError(
                    f"no field {missing[0]!r}",
                    found=", ".join(archive.files[:12]),
                    expected="the fields described in data/mouse_ca1_sheintuch2020/README.md",
                )
            return {k: archive[k] for k in (*NEEDED, *optional) if k in archive}
    except DAMAGE as e:
        raise RecordingError("the file cannot be read", found=str(e)) from e


def _sizes(field: dict[str, np.ndarray]) -> tuple[tuple[int, int], float]:
    """(frames, cells) and Hz."""
    shape, fs = field["shape"], field["fs"]
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 1).any():
        raise RecordingError("no sizes", where="shape", found=shape, expected="(frames, cells)")
    frames, cells = (int(x) for x in shape)
    if frames * cells > 1 << 32:
        raise RecordingError(
            "more samples than can be meant", where="shape", found=f"{frames} x {cells}"
        )
    for name in ("position", "velocity", "trial"):
        if name in field and field[name].shape != (frames,):
            raise RecordingError(
                "behaviour of another length than the recording",
                where=name,
                found=f"shape {field[name].shape}",
                expected=f"({frames},)",
            )
    if fs.size != 1 or fs.dtype.kind not in "fiu" or not 0 < float(fs.reshape(-1)[0]) < 1e4:
        raise RecordingError("no frame rate", where="fs", found=fs, expected="Hz")
    return (frames, cells), float(fs.reshape(-1)[0])


def _events(field: dict[str, np.ndarray], name: str) -> np.ndarray:
    values = field[name]
    kinds = "fiu" if name == "event_amp" else "iu"
    if values.ndim != 1 or values.dtype.kind not in kinds:
        raise RecordingError(
            "not a list of numbers", where=name, found=f"{values.dtype} of shape {values.shape}"
        )
    return values


def _runs(field: dict[str, np.ndarray], frames: int) -> Trials:
    none = np.zeros(0, np.int64)
    if "trial" not in field:
        return Trials(none, none)
    run = field["trial"]
    if run.dtype.kind not in "iu":
        raise RecordingError("run numbers must be whole", where="trial", found=run.dtype)
    edges = np.flatnonzero(np.diff(run)) + 1
    start, stop = np.append(0, edges), np.append(edges, frames)
    tracked = run[start] >= 0
    start, stop = start[tracked], stop[tracked]
    return Trials(start, stop, {"run": run[start].astype(np.int64)})


def _behavior(field: dict[str, np.ndarray], notes: list[str]) -> dict[str, Any]:
    """Position and velocity on the frames, NaN where the animal was not tracked."""
    out = {}
    for name in ("position", "velocity"):
        if name not in field or not np.isfinite(field[name]).any():
            notes.append(f"no {name}")
            continue
        unit = "cm/s"
        if name == "position":
            # Track A goes from 0 to 1, track B from about -35 to 35; velocity is in cm/s in
            # both (d position / dt, times 96 cm on track A).
            unit = "fraction of the track" if np.nanmax(np.abs(field[name])) < 2 else "cm"
        out[name] = Channel(field[name], unit=unit)
    return out


def _neurons(
    field: dict[str, np.ndarray],
    path: Path,
    cells: int,
    animal: str,
    env: str,
    notes: list[str],
) -> NeuronTable:
    table, day = field.get("cell_to_index_map"), re.search(r"_s(\d+)$", path.stem)
    columns: dict[str, np.ndarray] = {}
    if env:
        columns["environment"] = np.full(cells, env)
    if table is None or day is None:
        what = "cell_to_index_map" if table is None else "the day (_s1, ...) in the file's name"
        notes.append(f"no {what}: cells are not matched across days")
        return NeuronTable(np.arange(cells).astype(str), columns)
    k = int(day[1]) - 1
    if table.ndim != 2 or table.dtype.kind not in "iu" or not 0 <= k < table.shape[1]:
        raise RecordingError(
            "the table of registered cells has no such day",
            where="cell_to_index_map",
            found=f"{table.dtype} of shape {table.shape}, day {k + 1}",
            expected="(registered cells, days)",
        )
    index = table[:, k].astype(np.int64)  # 1-based, 0 = absent on this day
    rows = np.flatnonzero(index)
    if (index < 0).any() or (index > cells).any() or np.unique(index[rows]).size != rows.size:
        raise RecordingError(
            "the table of registered cells does not fit",
            where="cell_to_index_map",
            expected=f"numbers 1 to {cells}, each at most once; 0 where the cell is absent",
        )
    registered = np.full(cells, "", f"<U{len(animal) + len(env) + 24}")
    registered[index[rows] - 1] = [f"{animal}_{env}_{r}" for r in rows]
    columns["registered"] = registered
    return NeuronTable(np.arange(cells).astype(str), columns)
