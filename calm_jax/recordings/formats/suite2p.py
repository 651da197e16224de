"""Folders that Suite2p wrote, 0.x and 1.x: planes, ROIs, neuropil, settings.

    suite2p/            or a folder with it, or one plane folder
      plane0/           F.npy, Fneu.npy, spks.npy (ROIs, frames); iscell.npy, stat.npy,
                        F_chan2.npy, Fneu_chan2.npy, redcell.npy
                        0.x: ops.npy    1.x: settings.npy, db.npy, reg_outputs.npy
      plane1/ ...       `combined/` repeats the planes and is passed over

Arrays are mapped and worked through a few ROIs at a time: the traces are held once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.formats.peek import Peek
from calm_jax.recordings.formats.suite2p_plane import ORIENTATIONS, Plane, open_plane
from calm_jax.recordings.formats.suite2p_traces import Recipe, write_traces
from calm_jax.recordings.session import NeuronTable, Session

TRACES = ("dff", "F", "spks")
BASELINES = ("maximin", "percentile", "none")
OPTIONS = {
    "traces": "dff (default), F (neuropil-corrected fluorescence) or spks (deconvolved)",
    "neuropil": "share of Fneu taken off F; default that of the settings, else 0.7",
    "baseline": "of dF/F: maximin (default, Suite2p's own), percentile or none (gives F)",
    "window": "seconds of the baseline's window; default that of the settings, else 60",
    "percentile": "of baseline=percentile; default that of the settings, else 8",
    "causal": "true: the baseline looks back only; default false",
    "cells_only": "true (default): only what iscell.npy calls a cell",
    "rate": "volumes per second (Hz); needed where neither ops.npy nor settings.npy tells it",
    "channel": "1 (default) or 2: the second channel, F_chan2.npy",
    "orientation": "'neurons,time' or 'time,neurons'; needed where the shapes leave it open",
}
_PLANE = re.compile(r"plane(\d+)")
_TRIM = 2  # frames by which planes may differ: the last volume is often cut short
_FLOOR = 0.1  # of a neuron's median raw fluorescence: the least baseline that dF/F divides by


def recognises(path: str | Path) -> bool:
    """True for a folder with Suite2p's F.npy, in it or in its planes; never raises."""
    try:
        return bool(plane_folders(Path(path)))
    except OSError:
        return False


def plane_folders(path: Path) -> list[Path]:
    """The folders of the planes below `path`, in the order of their numbers."""
    if not path.is_dir():
        return []
    if (path / "F.npy").is_file():
        others = ("Fneu.npy", "iscell.npy", "stat.npy", "spks.npy", "ops.npy", "settings.npy")
        return [path] if any((path / x).is_file() for x in others) else []
    for base in (path, path / "suite2p"):
        found = [
            (int(m.group(1)), p)
            for p in (base.iterdir() if base.is_dir() else ())
            if (m := _PLANE.fullmatch(p.name)) and (p / "F.npy").is_file()
        ]
        if found:
            return [p for _, p in sorted(found)]
        if (base / "combined" / "F.npy").is_file():
            return [base / "combined"]
    return []


def read_suite2p(
    path: str | Path,
    *,
    traces: str = "dff",
    neuropil: float | None = None,
    baseline: str = "maximin",
    window: float | None = None,
    percentile: float | None = None,
    causal: bool = False,
    cells_only: bool = True,
    rate: float | None = None,
    channel: int = 1,
    orientation: str | None = None,
) -> Session:
    """Reads a Suite2p folder; the options are those of `OPTIONS`.

    Planes are put side by side on one clock, `fs` volumes per second (Suite2p's `fs` is per
    plane already). Frames that Suite2p called bad are missing. The neuron table has `plane`,
    `roi`, and where the files tell them `x`, `y` (pixels), `npix`, `is_cell`,
    `cell_probability`, `red_cell`, `red_probability`; ids are "<plane>_<roi>".

    dF/F is (F - c Fneu - F0) / F0 with F0 from F - c Fneu. Where F0 is below a tenth of the
    neuron's median raw fluorescence the sample is missing instead; a neuron with most of its
    samples so is left out. Both are noted. Memory: the traces once, and blocks of ROIs.

    Raises:
      RecordingError: naming the file, for damage, shapes that do not fit, an unknown frame
        rate, pickles that hold more than data, or an option out of range.
    """
    path = Path(path)
    with located(path):
        _check_options(traces, baseline, channel, orientation, neuropil)
        planes = [
            open_plane(p, _number_of(p, i), channel, orientation, need=_needed(traces, neuropil))
            for i, p in enumerate(plane_folders(path))
        ]
        if not planes:
            raise RecordingError("no Suite2p folder", expected="F.npy, or planes with F.npy")
        notes: list[str] = []
        hz = _rate(planes, rate, notes)
        frames = _frames(planes, notes)
        recipe = _recipe(planes[0], traces, neuropil, baseline, window, percentile, causal, hz)
        rois = [p.cells(cells_only, notes) for p in planes]
        if not sum(map(len, rois)):
            raise RecordingError(
                "no ROI is called a cell",
                where="iscell.npy",
                remedy="Give cells_only=false to read all ROIs.",
            )
        values, safe, keep = write_traces(planes, rois, frames, recipe, notes)
        return Session(
            traces=values,
            rate=hz,
            valid=_valid(planes, rois, frames, safe, keep, notes),
            neurons=_table(planes, rois, keep),
            unit=recipe.unit,
            animal=_animal(planes[0]),
            session=_session_id(path, planes),
            notes=(*recipe.told(), *notes),
        )


def peek_suite2p(path: str | Path, **options: Any) -> Peek:
    """What `read_suite2p` gives with the same options, from the settings and tables alone.

    ROIs that dF/F leaves out for their baseline are counted still.

    Raises:
      RecordingError: as `read_suite2p`, but for what lies in the traces themselves.
    """
    path = Path(path)
    asked = {"traces": "dff", "baseline": "maximin", "channel": 1, "cells_only": True} | options
    with located(path):
        traces, neuropil = asked["traces"], asked.get("neuropil")
        channel, orientation = asked["channel"], asked.get("orientation")
        _check_options(traces, asked["baseline"], channel, orientation, neuropil)
        planes = [
            open_plane(p, _number_of(p, i), channel, orientation, need=_needed(traces, neuropil))
            for i, p in enumerate(plane_folders(path))
        ]
        if not planes:
            raise RecordingError("no Suite2p folder", expected="F.npy, or planes with F.npy")
        notes: list[str] = []
        hz, frames = _rate(planes, asked.get("rate"), notes), _frames(planes, notes)
        recipe = _recipe(
            planes[0], traces, neuropil, asked["baseline"], asked.get("window"),
            asked.get("percentile"), asked.get("causal", False), hz,
        )  # fmt: skip
        return Peek(
            session=_session_id(path, planes),
            animal=_animal(planes[0]),
            unit=recipe.unit,
            neurons=sum(len(p.cells(asked["cells_only"], notes)) for p in planes),
            frames=frames,
            rate=hz,
            notes=(*recipe.told(), *notes),
        )


def _check_options(
    traces: Any, baseline: Any, channel: Any, orientation: Any, neuropil: Any
) -> None:
    for name, value, known in (
        ("traces", traces, TRACES),
        ("baseline", baseline, BASELINES),
        ("channel", channel, (1, 2)),
        ("orientation", orientation, (None, *ORIENTATIONS)),
    ):
        if value not in known:
            raise RecordingError(
                f"no such {name}",
                where=f"option {name}",
                found=repr(value),
                expected=" or ".join(str(x) for x in known if x is not None),
            )
    if neuropil is not None and not (_is_number(neuropil) and 0 <= neuropil <= 2):
        raise RecordingError(
            "out of range", where="option neuropil", found=neuropil, expected="a number, 0 to 2"
        )
    if channel == 2 and traces == "spks":
        raise RecordingError("the second channel is not deconvolved", where="option traces")


def _needed(traces: str, neuropil: float | None) -> tuple[str, ...]:
    if traces == "spks":
        return ("spks",)
    return ("F",) if neuropil == 0 else ("F", "Fneu")


def _number_of(folder: Path, place: int) -> int:
    found = _PLANE.fullmatch(folder.name)
    return int(found.group(1)) if found else place


def _rate(planes: Sequence[Plane], given: Any, notes: list[str]) -> float:
    told = {p.setting("fs") for p in planes} - {None}
    if given is not None:
        if not _is_number(given) or not 0 < given < 1e6:
            raise RecordingError(
                "out of range", where="option rate", found=given, expected="Hz, positive"
            )
        if told and not all(math.isclose(given, x, rel_tol=1e-3) for x in told):
            other = ", ".join(f"{x:g}" for x in sorted(told))
            notes.append(f"rate={given:g} Hz was given; Suite2p's settings say {other} Hz")
        return float(given)
    if not told:
        near = sorted(p.name for p in planes[0].folder.glob("*ops*.npy"))
        raise RecordingError(
            "the frame rate is not known",
            where=planes[0].folder,
            found="neither ops.npy nor settings.npy with fs"
            + (f", but {near[0]}: is it the ops.npy?" if near else ""),
            remedy="Give rate=HZ, volumes per second (on the command line --read rate=HZ).",
        )
    if len(told) > 1 and max(told) > 1.000001 * min(told):
        raise RecordingError(
            "planes of different frame rates",
            where="fs",
            found=", ".join(f"{x:g} Hz" for x in sorted(told)),
            remedy="Read one plane at a time, or give rate=HZ.",
        )
    hz = next(iter(told))
    if not 0 < hz < 1e6:
        raise RecordingError("fs is no frame rate", where="fs", found=hz, remedy="Give rate=HZ.")
    return hz


def _frames(planes: Sequence[Plane], notes: list[str]) -> int:
    lengths = [p.frames for p in planes]
    if max(lengths) - min(lengths) > _TRIM:
        raise RecordingError(
            "planes of different lengths",
            found=", ".join(f"{p.folder.name} {p.frames} frames" for p in planes),
            expected=f"at most {_TRIM} frames between them",
            remedy="Read one plane at a time.",
        )
    if max(lengths) > min(lengths):
        notes.append(f"planes have {min(lengths)} to {max(lengths)} frames: trimmed to the least")
    return min(lengths)


def _recipe(
    plane: Plane, traces: str, neuropil: Any, baseline: str, window: Any, percentile: Any,
    causal: Any, hz: float,
) -> Recipe:  # fmt: skip
    """The options, with what they leave open taken from the settings, else Suite2p's defaults."""

    def pick(given: Any, name: str, default: float) -> float:
        told = plane.setting(name) if given is None else given
        return float(default if told is None else told)

    if not isinstance(causal, bool):
        raise RecordingError("neither true nor false", where="option causal", found=repr(causal))
    for name, value in (("window", window), ("percentile", percentile)):
        if value is not None and not _is_number(value):
            raise RecordingError("no number", where=f"option {name}", found=repr(value))
    return Recipe(
        traces="F" if traces == "dff" and baseline == "none" else traces,
        neuropil=pick(neuropil, "neucoeff", 0.7),
        baseline=baseline,
        window=pick(window, "win_baseline", 60.0),
        percentile=pick(percentile, "prctile_baseline", 8.0),
        smooth=pick(None, "sig_baseline", 10.0),
        causal=causal,
        rate=hz,
        floor=_FLOOR,
    )


def _valid(
    planes: Sequence[Plane], rois: Sequence[np.ndarray], frames: int, safe: np.ndarray | None,
    keep: np.ndarray, notes: list[str],
) -> np.ndarray | None:  # fmt: skip
    """(T,) or (T, N) mask from bad frames and unsafe baselines, or None."""
    bad = [p.bad_frames() for p in planes]
    if all(b is None for b in bad):
        return safe
    bad = [np.zeros(frames, bool) if b is None else b[:frames] for b in bad]
    for plane, b in zip(planes, bad, strict=True):
        if b.any():
            notes.append(f"{plane.folder.name}: {int(b.sum())} bad frames are missing")
    if safe is None and all((b == bad[0]).all() for b in bad):
        return ~bad[0]
    if safe is None:
        safe = np.ones((frames, int(keep.sum())), bool)
    column = np.repeat(np.arange(len(planes)), [len(r) for r in rois])[keep]
    for i, b in enumerate(bad):
        safe[np.ix_(b, column == i)] = False
    return safe


def _table(
    planes: Sequence[Plane], rois: Sequence[np.ndarray], keep: np.ndarray
) -> NeuronTable:
    tables = [p.columns(r) for p, r in zip(planes, rois, strict=True)]
    shared = [n for n in tables[0] if all(n in t for t in tables)]
    columns = {n: np.concatenate([t[n] for t in tables])[keep] for n in shared}
    ids = [f"{p.number}_{r}" for p, some in zip(planes, rois, strict=True) for r in some]
    return NeuronTable(np.array(ids, str)[keep], columns)


def _animal(plane: Plane) -> str:
    for name in ("mouse_name", "subject", "animal"):
        value = plane.settings.get(name)
        if isinstance(value, str) and value.strip():
            return value
    return "unknown"


def _session_id(path: Path, planes: Sequence[Plane]) -> str:
    """The folder above Suite2p's own, with the plane where one was asked for by itself."""
    path = path.resolve()
    parts = [path.name]
    if _PLANE.fullmatch(path.name) or path.name == "combined":
        above = path.parent.parent if path.parent.name == "suite2p" else path.parent
        parts = [above.name, *([path.name] if len(plane_folders(path.parent)) > 1 else [])]
    elif path.name == "suite2p":
        parts = [path.parent.name]
    return "_".join(x for x in parts if x) or planes[0].folder.name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
