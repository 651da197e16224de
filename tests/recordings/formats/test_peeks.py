"""CaImAn files and arrays: what the headers tell is what reading tells, and costs nothing."""

import time
import tracemalloc

import h5py
import numpy as np
import pytest
import scipy.io

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import peek_at, read
from tests.recordings.test_caiman import write_caiman

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
T = np.cumsum(np.random.default_rng(1).uniform(0.09, 0.11, 40))


def _mat73(path):
    with h5py.File(path, "w", userblock_size=512) as file:
        file["x"], file["t"] = X.T, T[None]
    data = bytearray(path.read_bytes())
    data[:128] = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    path.write_bytes(data)


def _zarr(path):
    group = pytest.importorskip("zarr").open_group(str(path), mode="w")
    for name, value in {"x": X, "t": T}.items():
        group.create_array(name, data=value)


WRITE = {
    "a.npz": lambda p: np.savez(p, x=X, t=T),
    "a.mat": lambda p: scipy.io.savemat(p, {"x": X, "t": T}, do_compression=True),
    "b.mat": lambda p: scipy.io.savemat(p, {"x": X, "t": T}, format="4"),
    "c.mat": _mat73,
    "z.zarr": _zarr,
}


def same(path, **options):
    p, s = peek_at(path, **options), read(path, **options)
    assert (p.session, p.animal, p.unit, p.notes) == (s.session, s.animal, s.unit, s.notes)
    assert (p.neurons, p.frames, p.rate) == (s.n_neurons, s.n_frames, s.rate)
    assert (p.trials, p.behavior, dict(p.intervals)) == (len(s.trials), (), {})


@pytest.mark.parametrize("name", WRITE)
def test_files_of_arrays(tmp_path, name):
    path = tmp_path / name
    WRITE[name](path)
    same(path, rate=7.5, orientation="time,neurons", variable="x", unit="dF/F")
    same(path, rate=7.5, orientation="neurons,time", variable="x")
    same(path, time="t", orientation="time,neurons")
    for options in (
        {}, {"rate": 3.0}, {"orientation": "time,neurons"}, {"orientation": "a"},
        {"rate": -1.0, "orientation": "time,neurons"}, {"rate": "3", "orientation": "time,neurons"},
        {"time": "t", "orientation": "neurons,time"}, {"variable": "y", "rate": 1.0},
    ):  # fmt: skip
        with pytest.raises(RecordingError) as told:
            read(path, **options)
        with pytest.raises(RecordingError) as peeked:
            peek_at(path, **options)
        assert str(peeked.value) == str(told.value)


def test_npy_and_tables(tmp_path):
    np.save(tmp_path / "a.npy", X)
    same(tmp_path / "a.npy", rate=2.0, orientation="neurons,time")
    np.savetxt(tmp_path / "a.csv", X, delimiter=",")
    assert peek_at(tmp_path / "a.csv", rate=2.0) is None


def test_caiman(tmp_path):
    write_caiman(tmp_path / "a.hdf5")
    for options in ({}, {"accepted": False}, {"traces": "S", "rate": 5.0}, {"traces": "C"}):
        same(tmp_path / "a.hdf5", **options)
    for options in ({"traces": "x"}, {"accepted": 3}, {"rate": -1}):
        with pytest.raises(RecordingError):
            peek_at(tmp_path / "a.hdf5", **options)


def test_gigabytes_are_told_from_their_headers(tmp_path):
    """4 GB, with holes in place of the values: neither memory nor time to read them."""
    shape, given = (1_000_000, 1000), {"rate": 30, "orientation": "time,neurons"}
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "<f4", shape).flush()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["params/data/fr"] = 30.0
        file.create_group("estimates")
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(shape[::-1])
        h5py.h5d.create(file["estimates"].id, b"F_dff", h5py.h5t.IEEE_F32LE, space, plist)
    assert (tmp_path / "a.hdf5").stat().st_size > 4e9
    for name, options in {"a.npy": given, "a.hdf5": {}}.items():
        tracemalloc.start()
        start = time.process_time()
        about = peek_at(tmp_path / name, **options)
        assert time.process_time() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 10e6
        tracemalloc.stop()
        assert (about.frames, about.neurons, about.rate) == (*shape, 30.0)
