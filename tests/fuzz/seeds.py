"""One whole, small recording per format, to be damaged; and which damage suits it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pynwb
import scipy.io

from calm_jax.recordings.formats.interchange import write_interchange
from calm_jax.recordings.session import Channel, Intervals, NeuronTable, Session, Trials
from tests.fuzz import mutations as m
from tests.recordings.allen_files import write_allen
from tests.recordings.brainsets_files import write_brainsets
from tests.recordings.formats.nwb_files import TRACES, Made
from tests.recordings.suite2p_folders import fluorescence, write_plane
from tests.recordings.test_caiman import write_caiman

FOLDER = (*map(m.in_folder, m.BYTES), m.file_lost)
NPY = (m.array_replaced, m.array_replaced, m.array_values)


@dataclasses.dataclass(frozen=True)
class Seed:
    """A format to damage.

    Attributes:
      name: shown in the table; the format, and the kind of file where there are several.
      file: name of the file or folder.
      write: path -> writes it.
      mutations: (path, rng) -> damages it in place.
      options: of `read`.
    """

    name: str
    file: str
    write: Callable[[Path], Any]
    mutations: tuple[Callable, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def session() -> Session:
    rng = np.random.default_rng(0)
    return Session(
        rng.normal(size=(120, 6)).astype(np.float32),
        timestamps=np.arange(120) / 10,
        valid=rng.random((120, 6)) > 0.1,
        trials=Trials([0, 50], [40, 110], {"cue": np.array(["l", "r"])}),
        intervals={"grating": Intervals([1.0, 3.0], [2.0, 4.0], {"angle": np.array([0, 90])})},
        behavior={
            "speed": Channel(rng.normal(size=60), times=np.arange(60) / 5, unit="m/s"),
            "state": Channel(rng.integers(0, 2, 120), "categorical"),
        },
        neurons=NeuronTable([f"n{i}" for i in range(6)], {"plane": np.arange(6)}),
        unit="dF/F",
        animal="m1",
        session="day1",
        notes=("made for the fuzz test",),
    )


def _nwb(path: Path) -> None:
    made = Made(session_id="day1")
    made.series(TRACES, timestamps=np.arange(40) / 10)
    made.intervals("trials", start_time=[0.1, 2.0], stop_time=[1.0, 3.0], cue=["l", "r"])
    made.intervals("stimuli", start_time=[0.5], stop_time=[0.9], angle=[45.0])
    made.behavior(pynwb.TimeSeries(name="speed", data=np.ones(20), unit="m/s", rate=5.0))
    made.write(path)


def _suite2p(layout: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        for plane in (0, 1):
            f, fneu = fluorescence(5, 90, plane)
            write_plane(path / f"plane{plane}", f, fneu, layout=layout)

    return write


def _matrix(path: Path) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)


def _zarr(path: Path) -> None:
    """A zarr 2 array, written by hand: one chunk, not compressed."""
    path.mkdir()
    about = {
        "zarr_format": 2, "shape": [50, 4], "chunks": [50, 4], "dtype": "<f4",
        "compressor": None, "fill_value": 0.0, "order": "C", "filters": None,
    }  # fmt: skip
    (path / ".zarray").write_text(json.dumps(about))
    (path / "0.0").write_bytes(_matrix(path).tobytes())


GIVEN = {"rate": 10.0, "orientation": "time,neurons"}
SEEDS = [
    Seed("interchange npz", "a.npz", lambda p: write_interchange(session(), p),
         (*m.BYTES, m.member_replaced, m.member_replaced, m.member_replaced)),
    Seed("interchange HDF5", "a.h5", lambda p: write_interchange(session(), p),
         (*m.BYTES, *m.HDF5)),
    Seed("NWB 2", "a.nwb", _nwb, (*m.BYTES, *m.HDF5, *m.HDF5)),
    Seed("Allen (NWB 1.0)", "a.nwb", write_allen, (*m.BYTES, *m.HDF5, *m.HDF5)),
    Seed("brainsets", "a.h5", write_brainsets, (*m.BYTES, *m.HDF5)),
    Seed("CaImAn", "a.hdf5", write_caiman, (*m.BYTES, *m.HDF5)),
    Seed("Suite2p (ops)", "s", _suite2p("ops"), (*FOLDER, *map(m.in_folder, NPY))),
    Seed("Suite2p (settings)", "s", _suite2p("settings"), (*FOLDER, *map(m.in_folder, NPY))),
    Seed("npy", "a.npy", lambda p: np.save(p, _matrix(p)), (*m.BYTES, *NPY), GIVEN),
    Seed("npz", "a.npz", lambda p: np.savez(p, x=_matrix(p)), (*m.BYTES, m.member_replaced), GIVEN),
    Seed("MATLAB", "a.mat", lambda p: scipy.io.savemat(p, {"x": _matrix(p)}), m.BYTES, GIVEN),
    Seed("csv", "a.csv",
         lambda p: np.savetxt(p, _matrix(p), delimiter=",", header="a,b,c,d", comments=""),
         (*m.BYTES, m.table_text, m.table_text), {"rate": 10.0}),
    Seed("zarr", "z.zarr", _zarr, FOLDER, GIVEN),
]  # fmt: skip
