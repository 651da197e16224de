"""Interchange files: nothing is lost, nothing is unpickled, every fault has its line."""

import os
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from calm_jax.errors import RecordingError, RunError
from calm_jax.recordings.formats import interchange, read, sessions_in
from calm_jax.recordings.formats.interchange import (
    read_group,
    read_interchange,
    write_group,
    write_interchange,
)
from calm_jax.recordings.session import Channel, Session
from tests.recordings.session_strategies import assert_same, sessions

FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
BASE = {"traces": np.arange(12, dtype=np.float32).reshape(6, 2), "rate": 5.0}


def save(path, **fields):
    if path.suffix == ".npz":
        np.savez(path, **fields)
    else:
        with h5py.File(path, "w") as f:
            for name, value in fields.items():
                f[name] = value
    return path


@settings(deadline=None, max_examples=30, suppress_health_check=FIXTURE)
@given(session=sessions())
def test_round_trip_keeps_everything(session, tmp_path):
    for name in ("a.npz", "a.h5"):
        write_interchange(session, tmp_path / name)
        assert_same(session, read(tmp_path / name))
    with h5py.File(tmp_path / "g.h5", "w") as f:
        write_group(f.create_group("x"), session, traces=False)
        assert "traces" not in f["x"]
        back = read_group(f["x"], traces=session.traces, valid=session.valid)
    assert_same(session, back)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_hand_made_files_need_only_traces_and_a_clock(suffix, tmp_path):
    s = read(save(tmp_path / f"mouse{suffix}", **BASE, **{"behavior/v": np.zeros(6, np.int16)}))
    assert (s.session, s.animal, s.unit, s.rate) == ("mouse", "unknown", "a.u.", 5.0)
    assert s.behavior["v"].kind == "continuous" and "whole numbers" in s.notes[0]
    stamps = {"traces": BASE["traces"], "timestamps": np.arange(6) / 4}
    assert read(save(tmp_path / f"t{suffix}", **stamps)).rate == 4


def test_the_content_decides_and_not_the_name(tmp_path):
    write_interchange(Session(**BASE), tmp_path / "a.npz")
    write_interchange(Session(**BASE), tmp_path / "b.h5")
    os.rename(tmp_path / "a.npz", tmp_path / "x.h5")
    os.rename(tmp_path / "b.h5", tmp_path / "y")
    assert read(tmp_path / "x.h5").n_frames == read(tmp_path / "y").n_frames == 6


FAULTS = {
    "no traces": ({"rate": 5.0, "Traces": np.ones((3, 2))}, "no field 'traces'; found Traces, ra"),
    "no clock": ({"traces": np.ones((3, 2))}, "rate: no frame rate"),
    "negative rate": ({**BASE, "rate": -1.0}, r"rate: .*found -1\.0 Hz"),
    "two rates": ({**BASE, "rate": np.ones(2)}, "rate: not one number"),
    "NaN": ({**BASE, "traces": np.full((6, 2), np.nan)}, "traces: traces are NaN; found frame 0"),
    "zero neurons": ({**BASE, "traces": np.ones((6, 0))}, "traces: zero neurons"),
    "1-d": ({**BASE, "traces": np.ones(6)}, r"traces: .*expected \(frames, neurons\)"),
    "transposed": ({**BASE, "behavior/v": np.zeros(2)}, "traces seem to be transposed"),
    "behaviour length": ({**BASE, "behavior/v": np.zeros(4)}, "behavior/v: .*found 4 samples"),
    "lone unit": ({**BASE, "behavior_unit/v": "m"}, "behavior_unit/v: there is no behavior/v"),
    "bad kind": ({**BASE, "behavior/v": np.zeros(6), "behavior_kind/v": "odd"}, "found 'odd'"),
    "one edge": ({**BASE, "trial_start": [0]}, "trials need both edges; found trial_start"),
    "empty trial": ({**BASE, "trial_start": [1], "trial_stop": [1]}, "trial 0 is empty"),
    "overlap": ({**BASE, "trial_start": [0, 2], "trial_stop": [3, 6]}, "trials 0 and 1 overlap"),
    "outside": ({**BASE, "trial_start": [0], "trial_stop": [7]}, "outside the recording"),
    "half a trial": ({**BASE, "trial_start": [0.5], "trial_stop": [3.0]}, "whole frame numbers"),
    "interval": ({**BASE, "intervals/s/start": [0.0]}, "intervals/s: intervals need start and"),
    "neuron rows": ({**BASE, "neuron/plane": np.zeros(3)}, "neuron/plane: column of the wrong"),
    "ids": ({**BASE, "neuron/id": np.array([b"a", b"a"])}, "neuron/id: .*unique"),
    "animal": ({**BASE, "animal": np.zeros((2, 2))}, "animal: not one piece of text"),
    "valid": ({**BASE, "valid": np.ones(5, bool)}, "valid: the validity mask does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_each_fault_is_one_line_with_file_and_field(fault, suffix, tmp_path):
    fields, message = FAULTS[fault]
    path = save(tmp_path / f"bad{suffix}", **fields)
    with pytest.raises(RecordingError, match=message) as e:
        read(path)
    assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    np.savez(tmp_path / "a.npz", **BASE, **{"trial/x": np.array([Bomb()], object)},
             trial_start=[0], trial_stop=[3])  # fmt: skip
    with pytest.raises(RecordingError, match="trial/x: an array of Python objects"):
        read(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_damaged_files_give_an_error_whatever_byte_is_lost(suffix, tmp_path):
    good = tmp_path / f"good{suffix}"
    write_interchange(Session(**BASE, behavior={"v": Channel(np.zeros(6))}), good)
    data = good.read_bytes()
    rng = np.random.default_rng(0)
    bad = tmp_path / f"bad{suffix}"
    failed = 0
    for size in [0, 4, 9, 60, *rng.integers(0, len(data) - 1, 40)]:
        bad.write_bytes(data[:size])
        with pytest.raises(RecordingError, match="bad"):
            read(bad)
    for place in rng.integers(0, len(data), 150):  # flipped bytes: an error or a Session
        bad.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            read(bad)
        except RecordingError:
            failed += 1
    assert failed > 10


def test_other_files_are_told_what_is_expected(tmp_path):
    with pytest.raises(RecordingError, match="no such file or folder. Check the path"):
        read(tmp_path / "gone.npz")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RecordingError, match="a file of 5 bytes; expected .*interchange"):
        read(tmp_path / "notes.txt")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as z:
        z.writestr("traces.txt", "hello")
    with pytest.raises(RecordingError, match="no field 'traces'; found traces.txt"):
        read(tmp_path / "z.npz")
    with pytest.raises(RecordingError, match="unknown kind of interchange file"):
        write_interchange(Session(**BASE), tmp_path / "a.csv")


def test_unknown_fields_are_named_in_the_notes(tmp_path):
    s = read(save(tmp_path / "a.npz", **BASE, trial_strat=[0]))
    assert s.notes == ("unknown field 'trial_strat' was left out (did you mean 'trial_start'?)",)


def test_names_that_no_file_can_hold_are_refused(tmp_path):
    s = Session(**BASE, behavior={"a/b": Channel(np.zeros(6))})
    with pytest.raises(RecordingError, match="a name that the file cannot hold; found 'a/b'"):
        write_interchange(s, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_a_failed_write_leaves_the_old_file_and_no_other(name, tmp_path, monkeypatch):
    path = tmp_path / name
    write_interchange(Session(**BASE), path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    monkeypatch.setattr(interchange, "_put", full)
    with pytest.raises(RunError, match=f"{name}: the disk is full"):
        write_interchange(Session(**BASE), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_sessions_in_a_folder(tmp_path):
    with pytest.raises(RecordingError, match="no recording in this folder"):
        sessions_in(tmp_path)
    for name in ("b.npz", "a.h5"):
        write_interchange(Session(**BASE), tmp_path / name)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.npz").write_bytes(b"")
    (tmp_path / "c.npz").write_bytes(b"")  # damaged, but meant to be one
    assert [p.name for p in sessions_in(tmp_path)] == ["a.h5", "b.npz", "c.npz"]
    assert sessions_in(tmp_path / "b.npz") == [tmp_path / "b.npz"]
    assert read_interchange(tmp_path / "b.npz").session == "unknown"
