"""NWB files that are damaged or made to harm: one line of error, no hang, nothing followed."""

import os

import h5py
import numpy as np
import pytest

import calm_jax
from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import peek_at
from tests.recordings.formats.nwb_files import Made

SERIES = "processing/ophys/Fluorescence/RoiResponseSeries"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    m = Made(session_id="a/../b\\ é")
    m.series(timestamps=np.arange(40) / 7)
    m.intervals("trials", start_time=[0.0], stop_time=[1.0], cue=["a"])
    return m.write(tmp_path_factory.mktemp("good") / "good.nwb")


@pytest.fixture
def path(good, tmp_path):
    path = tmp_path / "bad.nwb"
    path.write_bytes(good.read_bytes())
    return path


def refused(path, words):
    for read in (calm_jax.read, peek_at):
        with pytest.raises(RecordingError, match=words) as e:
            read(path)
        assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)


def test_cut_short(good, path):
    data = good.read_bytes()
    for size in np.random.default_rng(0).integers(0, len(data) - 1, 30):
        path.write_bytes(data[:size])
        with pytest.raises(RecordingError, match="bad.nwb"):
            calm_jax.read(path)


def test_flipped_bytes_give_an_error_or_a_session(good, path):
    data = good.read_bytes()
    rng = np.random.default_rng(1)
    with h5py.File(good) as f:  # most bytes are cached specifications, which are not read
        start = f[SERIES + "/data"].id.get_offset()
    places = np.concatenate([rng.integers(0, len(data), 30), rng.integers(0, 4096, 30)])
    failed = 0
    for place in [*places, start]:
        bad = bytearray(data)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(bad))
        for read in (calm_jax.read, peek_at):
            try:
                read(path)
            except RecordingError as e:
                assert "bad.nwb" in str(e)
                failed += 1
    assert failed > 5


def test_traces_in_another_file_are_not_opened(path, tmp_path):
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for ever
    with h5py.File(path, "a") as f:
        del f[SERIES + "/data"]
        f[SERIES + "/data"] = h5py.ExternalLink(str(tmp_path / "fifo"), "/data")
    refused(path, "not a matrix of traces; found no values in this file")
    with h5py.File(path, "a") as f:
        del f["processing"]
        f["processing"] = h5py.ExternalLink(str(tmp_path / "fifo"), "/processing")
    refused(path, r"no RoiResponseSeries; .*processing \(a link to another file, not followed\)")


def test_declared_sizes_fill_no_memory(path):
    with h5py.File(path, "a") as f:
        for name in ("data", "timestamps", "rois"):
            del f[f"{SERIES}/{name}"]
        f.create_dataset(SERIES + "/data", (10**9, 10**4), "f4", chunks=(1000, 1000))
        f.create_dataset(SERIES + "/timestamps", (10**9,), "f8", chunks=(1000,))
    refused(path, "timestamps: the values are not in the file")
    with h5py.File(path, "a") as f:
        del f[SERIES + "/timestamps"]
        f[SERIES + "/starting_time"] = 0.0
        f[SERIES + "/starting_time"].attrs["rate"] = 30.0
    refused(path, "it cannot be told|more values than this machine|rois")


def test_time_must_increase(path):
    for values, words in (
        ([0.0, 2.0, 1.0], r"strictly increasing .*found 1.0 s at 2, after 2.0 s; 1 in all"),
        ([0.0, np.nan, 2.0], "found nan s at 1"),
        ([0.0, np.inf, 2.0], "found inf s at 1"),
    ):
        with h5py.File(path, "a") as f:
            stamps = np.arange(40.0)
            stamps[:3] = values
            f[SERIES + "/timestamps"][...] = stamps
        refused(path, words)


def test_ids_hold_no_path(good):
    s = calm_jax.read(good)
    assert s.session == "a_.._b_ é" and any("stands for" in n for n in s.notes)


@pytest.mark.parametrize("field", ["rois", "data", "timestamps"])
def test_fields_of_another_type(path, field):
    with h5py.File(path, "a") as f:
        del f[f"{SERIES}/{field}"]
        f[f"{SERIES}/{field}"] = np.array([f.ref] * 40, h5py.ref_dtype)
    with pytest.raises(RecordingError, match="bad.nwb"):
        calm_jax.read(path)
    with h5py.File(path, "a") as f:
        del f[f"{SERIES}/{field}"]
        f.create_group(f"{SERIES}/{field}")
    with pytest.raises(RecordingError, match="bad.nwb"):
        calm_jax.read(path)
