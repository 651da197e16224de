"""Files on which the HDF5 library hangs or crashes are refused, in little time."""

import os
import time

import h5py
import numpy as np
import pytest

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import hdf5_guard, read
from calm_jax.recordings.formats.hdf5 import opened


def whole(path):
    with h5py.File(path, "w") as file:
        file.attrs["made"] = "by hand"  # text lies in a global heap
        file["traces"], file["rate"] = np.ones((30, 2), np.float32), 10.0
    return path


def endless(path):
    """The first object of the global heap becomes free space of no size: no next object."""
    data = bytearray(whole(path).read_bytes())
    first = data.index(b"GCOL") + 16
    data[first : first + 16] = bytes(16)
    path.write_bytes(data)
    return path


def test_an_endless_heap_is_refused_and_the_next_file_is_read(tmp_path):
    bad, good = whole(tmp_path / "bad.h5"), whole(tmp_path / "good.h5")
    assert read(bad).n_frames == 30
    endless(bad)  # the same name, another content
    start = time.process_time()
    with pytest.raises(RecordingError, match=r"bad\.h5.*no end") as e:
        read(bad)
    assert "\n" not in str(e.value)
    for _ in range(3):  # the verdict is kept: no second wait
        with pytest.raises(RecordingError, match="no end"), opened(bad):
            pass
    assert time.process_time() - start < 4  # the other process was at work, not this one
    assert read(good).n_frames == 30


def test_one_process_serves_all_files(tmp_path, monkeypatch):
    guard, started = hdf5_guard.Guard(), []
    start = guard._start
    monkeypatch.setattr(guard, "_start", lambda: (started.append(1), start()))
    try:
        for i in range(20):
            guard.check(whole(tmp_path / f"{i}.h5"))
            guard.check(tmp_path / f"{i}.h5")
        assert len(started) == 1
        os.kill(guard._process.pid, 9)  # it dies between two files: the file is not to blame
        guard._process.wait()
        guard.check(whole(tmp_path / "new.h5"))
        assert len(started) == 2
    finally:
        guard.stop()


@pytest.mark.parametrize(
    ("end", "said"), [("os.kill(os.getpid(), 11)", "crashes.*SIGSEGV"), ("sys.exit(3)", "status 3")]
)
def test_a_process_that_dies(tmp_path, monkeypatch, end, said):
    child = tmp_path / "hdf5_child.py"
    child.write_text(f"import os, sys\nsys.stdin.readline()\n{end}\n")
    monkeypatch.setattr(hdf5_guard, "__file__", str(tmp_path / "hdf5_guard.py"))
    with pytest.raises(RecordingError, match=said):
        hdf5_guard.Guard().check(whole(tmp_path / "a.h5"))


def test_text_links_and_circles_are_no_fault(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["traces"], file["rate"] = np.ones((30, 2), np.float32), 10.0
        file["neuron/id"] = ["a", "b"]
        file["circle"], file["soft"] = file["/"], h5py.SoftLink("/nowhere")
        file["neuron/other"] = h5py.ExternalLink("/etc/passwd", "/x")
        file.create_dataset("huge", (10**6, 10**6), "f4", chunks=(64, 64), compression="gzip")
        file.create_dataset("text", (10**9,), h5py.string_dtype(), chunks=(1 << 20,))
        file.attrs["points"] = file["neuron"].ref
    hdf5_guard.check(path)
