"""One plane folder of Suite2p: its arrays, its settings and its table of ROIs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.formats.npy import load_objects, open_npy

ORIENTATIONS = ("neurons,time", "time,neurons")
# Where 1.x keeps what 0.x had at the top of ops.
_NESTED = {
    "neucoeff": ("extraction", "neuropil_coefficient"),
    "win_baseline": ("dcnv_preprocess", "win_baseline"),
    "sig_baseline": ("dcnv_preprocess", "sig_baseline"),
    "prctile_baseline": ("dcnv_preprocess", "prctile_baseline"),
}
_SETTINGS = ("ops.npy", "settings.npy", "db.npy", "reg_outputs.npy")
_RANGES = {
    "fs": (0.0, 1e6), "neucoeff": (0.0, 2.0), "win_baseline": (0.0, 1e6),
    "sig_baseline": (0.0, 1e3), "prctile_baseline": (0.0, 100.0),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """What a plane folder holds.

    Attributes:
      folder, number: where it lies, and its number.
      arrays: "F", "Fneu" or "spks" -> (R, T) view of the mapped file.
      settings: of ops.npy, settings.npy and what lies beside them.
      stat: one dictionary per ROI, or None.
      iscell, redcell: (R, 2) flag and probability, or None.
    """

    folder: Path
    number: int
    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    stat: list[dict[str, Any]] | None
    iscell: np.ndarray | None
    redcell: np.ndarray | None

    @property
    def frames(self) -> int:
        return int(next(iter(self.arrays.values())).shape[1])

    @property
    def rois(self) -> int:
        return int(next(iter(self.arrays.values())).shape[0])

    def setting(self, name: str) -> float | None:
        """The number of a setting, in the place where 0.x or 1.x keeps it; None where absent.

        Raises:
          RecordingError: for what is no number, or out of its range.
        """
        value = self.settings.get(name)
        group, nested = _NESTED.get(name, ("", ""))
        if value is None and isinstance(self.settings.get(group), Mapping):
            value = self.settings[group].get(nested)
        if value is None:
            return None
        low, high = _RANGES[name]
        plain = isinstance(value, int | float | np.generic | np.ndarray)
        array = np.asarray(value if plain else "")
        if array.size != 1 or array.dtype.kind not in "iuf":
            raise RecordingError("no number", where=f"{self.folder}: {name}", found=type(value))
        number = float(array.reshape(-1)[0])
        if not math.isfinite(number) or not low <= number <= high:
            raise RecordingError(
                "out of range",
                where=f"{self.folder}: {name}",
                found=number,
                expected=f"{low:g} to {high:g}",
            )
        return number

    def bad_frames(self) -> np.ndarray | None:
        """(T,) bool, True for frames that Suite2p called bad; None where there are none."""
        bad = self.settings.get("badframes")
        if not isinstance(bad, np.ndarray) or bad.dtype.kind not in "biu" or not bad.any():
            return None
        if bad.shape != (self.frames,):
            raise RecordingError(
                "bad frames that do not fit the traces",
                where=f"{self.folder}: badframes",
                found=f"shape {bad.shape}",
                expected=f"({self.frames},)",
            )
        return bad.astype(bool)

    def cells(self, cells_only: Any, notes: list[str]) -> np.ndarray:
        """The ROIs to read: all, or those that iscell.npy calls cells."""
        if not isinstance(cells_only, bool):
            raise RecordingError(
                "neither true nor false", where="option cells_only", found=repr(cells_only)
            )
        if not cells_only:
            return np.arange(self.rois)
        if self.iscell is None:
            notes.append(f"{self.folder.name}: no iscell.npy, all {self.rois} ROIs are read")
            return np.arange(self.rois)
        cells = np.flatnonzero(self.iscell[:, 0] > 0.5)
        if cells.size < self.rois:
            notes.append(
                f"{self.folder.name}: {self.rois - cells.size} of {self.rois} ROIs are no cells "
                "(iscell.npy) and left out; cells_only=false keeps them"
            )
        return cells

    def columns(self, rois: np.ndarray) -> dict[str, np.ndarray]:
        """The neuron table of some ROIs."""
        out = {"plane": np.full(rois.size, self.number, np.int32), "roi": rois.astype(np.int32)}
        if self.stat is not None:
            rows = [self.stat[i] for i in rois]
            if "iplane" in (rows[0] if rows else {}):  # the folder `combined`
                out["plane"] = _numbers(rows, "iplane", 0, self.folder).astype(np.int32)
            out["x"] = _numbers(rows, "med", 1, self.folder)
            out["y"] = _numbers(rows, "med", 0, self.folder)
            out["npix"] = _numbers(rows, "npix", 0, self.folder)
        for table, flag, share in (
            (self.iscell, "is_cell", "cell_probability"),
            (self.redcell, "red_cell", "red_probability"),
        ):
            if table is not None:
                out[flag] = table[rois, 0] > 0.5
                if table.shape[1] > 1:
                    out[share] = table[rois, 1].astype(np.float32)
        return out


def _numbers(rows: list[dict], name: str, place: int, folder: Path) -> np.ndarray:
    """(R,) float32, entry `place` of a field of every ROI; NaN where it is absent."""
    out = np.full(len(rows), np.nan, np.float32)
    for i, row in enumerate(rows):
        try:
            value = row.get(name)
            if value is not None:
                out[i] = value[place] if isinstance(value, list | tuple) else np.ravel(value)[place]
        except (TypeError, ValueError, IndexError) as e:
            raise RecordingError(
                f"{name} of an ROI is damaged", where=folder / "stat.npy", found=f"ROI {i}: {e}"
            ) from e
    return out


def open_plane(
    folder: Path, number: int, channel: int, orientation: str | None, need: tuple[str, ...]
) -> Plane:
    """Opens a plane folder; the arrays in `need` are mapped, not read.

    The axis of the ROIs is told by iscell.npy or stat.npy (one of them has an entry per ROI).

    Raises:
      RecordingError: a file is missing, damaged or does not fit the others.
    """
    settings: dict[str, Any] = {}
    for name in _SETTINGS:
        if (folder / name).is_file():
            value = load_objects(folder / name)
            if not isinstance(value, dict):
                raise RecordingError(
                    "no dictionary of settings", where=folder / name, found=type(value).__name__
                )
            settings = value | settings
    above = folder.parent
    for name in _SETTINGS[1:3]:  # 1.x keeps them for all planes together
        if (above / name).is_file() and isinstance(value := load_objects(above / name), dict):
            settings = value | settings
    stat = _stat(folder / "stat.npy")
    iscell = _flags(folder / "iscell.npy")
    counts = {"stat.npy": None if stat is None else len(stat)}
    counts["iscell.npy"] = None if iscell is None else len(iscell)
    known = {k: v for k, v in counts.items() if v is not None}
    if len(set(known.values())) > 1:
        raise RecordingError(
            "files of different numbers of ROIs",
            where=folder,
            found=", ".join(f"{k} {v}" for k, v in known.items()),
            remedy="They come from different runs: run Suite2p again.",
        )
    rois = next(iter(known.values()), None)
    suffix = "_chan2" if channel == 2 else ""
    arrays = {n: _array(folder / f"{n}{suffix}.npy", rois, orientation) for n in need}
    shapes = {a.shape for a in arrays.values()}
    if len(shapes) > 1:
        raise RecordingError(
            "arrays of different shapes",
            where=folder,
            found=", ".join(f"{k} {v.shape}" for k, v in arrays.items()),
            expected="one shape (ROIs, frames)",
        )
    redcell = _flags(folder / "redcell.npy")
    size = next(iter(shapes))[0]
    if redcell is not None and len(redcell) != size:
        raise RecordingError(
            "red cells that do not fit the traces",
            where=folder / "redcell.npy",
            found=len(redcell),
            expected=size,
        )
    return Plane(folder, number, arrays, settings, stat, iscell, redcell)


def _stat(path: Path) -> list[dict[str, Any]] | None:
    if not path.is_file():
        return None
    stat = load_objects(path)
    if not isinstance(stat, list) or not all(isinstance(x, dict) for x in stat):
        raise RecordingError(
            "no list of ROIs", where=path, found=type(stat).__name__, expected="a dictionary each"
        )
    return stat


def _flags(path: Path) -> np.ndarray | None:
    """(R, 1 or 2) numbers: a flag per ROI, and its probability."""
    if not path.is_file():
        return None
    flags = np.array(open_npy(path, "a flag and a probability per ROI"))
    if flags.ndim == 1:
        flags = flags[:, None]
    if flags.ndim != 2 or flags.shape[1] > 2 or flags.shape[1] < 1:
        raise RecordingError(
            "no flag and probability per ROI",
            where=path,
            found=f"shape {flags.shape}",
            expected="(ROIs, 2)",
        )
    return flags


def _array(path: Path, rois: int | None, orientation: str | None) -> np.ndarray:
    """(R, T) view of a mapped array, whichever way it lies in the file."""
    if not path.is_file():
        remedy = {
            "Fneu.npy": "Give neuropil=0 to read F as it is.",
            "spks.npy": "Give traces=dff or traces=F.",
        }
        raise RecordingError(
            "no such file", where=path, remedy=remedy.get(path.name, "Is it a Suite2p folder?")
        )
    with located(path):
        array = open_npy(path, "a matrix of numbers (ROIs, frames)")
        if array.ndim != 2 or 0 in array.shape:
            raise RecordingError(
                "no matrix", found=f"shape {array.shape}", expected="(ROIs, frames)"
            )
        if orientation is not None:
            array = array if orientation == ORIENTATIONS[0] else array.T
            if rois is not None and array.shape[0] != rois:
                raise RecordingError(
                    "traces that do not fit the ROIs",
                    found=f"{array.shape[0]} ROIs with orientation={orientation}",
                    expected=f"{rois}, as in iscell.npy or stat.npy",
                )
            return array
        if rois is None or array.shape == (rois, rois):
            raise RecordingError(
                "which axis is time cannot be told",
                found=f"shape {array.shape}"
                + ("" if rois else " and neither iscell.npy nor stat.npy"),
                remedy="Give orientation='neurons,time' (as Suite2p writes) or 'time,neurons'.",
            )
        if rois not in array.shape:
            raise RecordingError(
                "traces that do not fit the ROIs",
                found=f"shape {array.shape}",
                expected=f"{rois} ROIs, as in iscell.npy or stat.npy",
                remedy="The files come from different runs: run Suite2p again.",
            )
        return array if array.shape[0] == rois else array.T
