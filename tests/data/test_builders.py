"""The data sets: built once, in order, whole or not at all."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from calm_jax.config import Data, Simulation
from calm_jax.errors import ConfigError, RecordingError, RunError
from calm_jax.recordings import build as build_module
from calm_jax.recordings.build import build, data_sets, main
from calm_jax.recordings.formats.interchange import write_interchange
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import open_store
from calm_jax.simulate.population import simulate, to_session

SMALL = Simulation(sessions=2, trials=4, neurons=6, frames=30, burn_in=2)


def test_the_folder_lists_the_data_sets():
    assert {"simulated_population", "interchange", "celegans_dag2023"} <= set(data_sets())


def test_the_simulation_is_stored_trial_by_trial(tmp_path):
    folder = build(Data(simulation=SMALL, store=str(tmp_path)))
    store = open_store(folder)
    assert len(store.sessions) == 2 and store.n_neurons == 12
    for i in range(2):
        original = to_session(simulate(SMALL, i))
        np.testing.assert_array_equal(store.session(i).traces, original.traces)
        assert store.sessions[i].edges.tolist() == [0, 30, 60, 90, 120]
        assert store.sessions[i].trials.stop.tolist() == [30, 60, 90, 120]
    # The files are a data set of tensorflow-datasets like any other, in frame order.
    import tensorflow_datasets as tfds

    records = tfds.builder_from_directory(folder).as_data_source("recordings")
    order = [(records[k]["session"], records[k]["start"]) for k in range(len(records))]
    assert order == [(i, t) for i in range(2) for t in (0, 30, 60, 90)]
    assert records[5]["traces"].shape == (30, 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["simulated_population"]


def test_a_finished_store_is_reused_and_a_changed_one_is_another(tmp_path, monkeypatch):
    data = Data(simulation=SMALL, store=str(tmp_path))
    folder = build(data)
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert build(data) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == times
    other = build(dataclasses.replace(data, simulation=dataclasses.replace(SMALL, gain=1.0)))
    assert other != folder and len(open_store(folder).sessions) == 2


def test_many_shards_keep_the_order(tmp_path, monkeypatch):
    import data.parts as shared

    monkeypatch.setattr(shared, "SHARD_BYTES", 1500)
    folder = build(Data(simulation=SMALL, store=str(tmp_path)))
    assert len(list(folder.glob("*.array_record-*-of-00004"))) == 4
    store = open_store(folder)
    np.testing.assert_array_equal(store.session(1).traces, to_session(simulate(SMALL, 1)).traces)


def test_interchange_follows_its_files(tmp_path):
    source = tmp_path / "files"
    source.mkdir()
    for name in ("b", "a"):
        s = Session(np.arange(18.0).reshape(9, 2), rate=3.0, session=name)
        write_interchange(s, source / f"{name}.h5")
    data = Data("interchange", source=str(source), store=str(tmp_path / "built"))
    first = build(data)
    assert [s.session for s in open_store(first).sessions] == ["a", "b"]
    write_interchange(s.replace(session="c"), source / "c.npz")
    second = build(data)
    assert second != first and len(open_store(second).sessions) == 3
    (source / "d.npz").write_bytes(b"broken")
    with pytest.raises(RecordingError, match=r"d\.npz: not an interchange file"):
        build(data)
    assert not list((tmp_path / "built").rglob("incomplete*"))


def test_wrong_names_and_sources_are_told(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no data set 'interchnge'.*Did you mean 'interchange'"):
        build(Data("interchnge", store=str(tmp_path)))
    with pytest.raises(ConfigError, match="'interchange' needs a source.*SOURCE=folder"):
        build(Data("interchange", store=str(tmp_path)))
    with pytest.raises(RecordingError, match="gone: no such folder"):
        build(Data("celegans_dag2023", source=str(tmp_path / "gone"), store=str(tmp_path)))
    assert main(["interchange", "--source", str(tmp_path / "gone")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    import data.parts as shared

    class Full:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("write() failed: No space left on device; writing x")

        def close(self):
            pass

    monkeypatch.setattr(shared, "ArrayRecordWriter", Full)
    with pytest.raises(RunError, match="the disk is full. Free some space and run the same"):
        build(Data(simulation=SMALL, store=str(tmp_path)))
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]


def test_a_killed_build_is_begun_again(tmp_path):
    script = textwrap.dedent(
        f"""
        import sys, time
        import data.simulated_population.builder as b
        from calm_jax.config import Data, Simulation
        from calm_jax.recordings.build import build
        true = b.simulate
        def slow(config, i):
            if i == 1:
                print("half way", flush=True)
                time.sleep(60)
            return true(config, i)
        b.simulate = slow
        build(Data(simulation={SMALL!r}, store={str(tmp_path)!r}))
        """
    )
    root = Path(build_module.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout.readline().strip() == "half way"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.rglob("incomplete*"))) == 1
    start = time.perf_counter()
    folder = build(Data(simulation=SMALL, store=str(tmp_path)))
    assert time.perf_counter() - start < 30  # nobody holds the lock any more
    assert len(open_store(folder).sessions) == 2
    assert not list(tmp_path.rglob("incomplete*"))


def worm(path, **changes):
    rng = np.random.default_rng(0)
    fields = {
        "f_over_f20": rng.uniform(0.5, 3, (5, 80)).astype(np.float32),
        "z": np.zeros((5, 80), np.float32),
        "t": 6000 + np.cumsum(rng.uniform(0.55, 0.65, 80)),
        "velocity": rng.normal(size=80).astype(np.float32),
        "pumping": np.full(80, np.nan, np.float32),
        "reversal": (rng.random(80) > 0.7).astype(np.int8),
        "animal": path.stem,
        "strain": "SWF702",
    }
    np.savez(path, **{k: v for k, v in {**fields, **changes}.items() if v is not None})
    return fields


def test_worms_are_read_as_their_card_says(tmp_path):
    (tmp_path / "worms").mkdir()
    fields = worm(tmp_path / "worms" / "w1.npz")
    worm(tmp_path / "worms" / "w2.npz")
    data = Data("celegans_dag2023", source=str(tmp_path / "worms"), store=str(tmp_path / "built"))
    store = open_store(build(data))
    s = store.session(0)
    assert (s.session, s.animal, s.unit) == ("w1", "w1", "dF/F")
    np.testing.assert_array_equal(s.traces, fields["f_over_f20"].T - 1)
    np.testing.assert_allclose(s.times, fields["t"] - fields["t"][0])
    assert s.behavior["reversal"].kind == "categorical" and "pumping" not in s.behavior
    np.testing.assert_array_equal(s.behavior["velocity"].values, fields["velocity"])
    assert "pumping was not scored" in s.notes and len(s.trials) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f_over_f20": None}, r"w\.npz: no field 'f_over_f20'"),
        ({"t": np.arange(5.0)}, "f_over_f20: traces and time stamps do not fit"),
        ({"t": np.zeros(80)}, "timestamps: time stamps must be finite and strictly increasing"),
        ({"f_over_f20": np.full((5, 80), np.nan)}, "traces: traces are NaN"),
        ({"velocity": np.zeros(9)}, "behavior/velocity: behaviour of another length"),
    ],
)
def test_other_worms_are_refused(changes, message, tmp_path):
    worm(tmp_path / "w.npz", **changes)
    with pytest.raises(RecordingError, match=message):
        build(Data("celegans_dag2023", source=str(tmp_path), store=str(tmp_path / "built")))


def test_real_worms(tmp_path):
    root = os.environ.get("CALM_JAX_RECORDINGS")
    if not root:
        pytest.skip("CALM_JAX_RECORDINGS names no folder with recordings")
    folder = Path(root) / "celegans_dag2023"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    data = Data("celegans_dag2023", source=str(folder), store=str(tmp_path))
    store = open_store(build(data))
    assert len(store.sessions) == 7
    assert {s.n_neurons for s in store.sessions} <= set(range(130, 147))
    assert all(799 <= s.n_frames <= 1137 and 1.3 < s.rate < 1.7 for s in store.sessions)
    for i in range(7):
        s = store.session(i)
        assert "velocity" in s.behavior and not store.sessions[i].constant.any()
