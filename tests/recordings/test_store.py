"""The store: what was built is what is read; opening is quick; broken folders are told."""

import json
import pickle
import shutil
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax import config
from calm_jax.errors import RecordingError
from calm_jax.recordings.build import build
from calm_jax.recordings.formats.interchange import write_interchange
from calm_jax.recordings.session import Channel, Intervals, NeuronTable, Session, Trials
from calm_jax.recordings.store import CHUNK, SIDE_FILE, open_store
from calm_jax.recordings.store_writer import (
    StoreWriter,
    constant_traces,
    record_edges,
    write_side,
)
from tests.recordings.session_strategies import assert_same, sessions


def recordings():
    """Long without trials, trials with gaps between them, missing samples, one neuron."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2500, 3)).astype(np.float32)
    x[:, 1] = 7
    long = Session(x, rate=20.0, animal="a", session="long", unit="dF/F")
    trials = Trials([5, 40, 60], [40, 50, 100], {"cue": np.array(["l", "r", "l"])})
    trial = Session(
        rng.normal(size=(110, 4)).astype(np.float32),
        timestamps=np.cumsum(rng.uniform(0.1, 0.2, 110)),
        valid=rng.random((110, 4)) > 0.3,
        trials=trials,
        behavior={"v": Channel(rng.normal(size=7), times=np.arange(7))},
        intervals={"s": Intervals([0.0], [3.0], {"way": np.array(["up"])})},
        neurons=NeuronTable(list("wxyz"), {"plane": np.arange(4)}),
        animal="a",
        session="day1",
        notes=("kept",),
    )
    single = Session(
        rng.normal(size=(30, 1)).astype(np.float32),
        rate=5.0,
        valid=rng.random(30) > 0.5,
        animal="b",
        session="day1",
    )
    return [long, trial, single]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    (root / "files").mkdir()
    for i, s in enumerate(recordings()):
        write_interchange(s, root / "files" / f"{i}.{'h5' if i % 2 else 'npz'}")
    data = config.Data("interchange", source=str(root / "files"), store=str(root / "built"))
    return build(data)


@pytest.fixture
def store(built):
    return open_store(built)


def test_whole_sessions_come_back_as_they_were(store):
    for i, original in enumerate(recordings()):
        wanted = store.sessions[i].session  # "day1" of two animals is told apart
        assert_same(original.replace(session=wanted), store.session(i))
    assert [s.session for s in store.sessions] == ["long", "a/day1", "b/day1"]


def test_infos_tell_sizes_without_traces(store):
    assert [s.n_frames for s in store.sessions] == [2500, 110, 30]
    assert [store.neuron_offset(i) for i in range(3)] == [0, 3, 7] and store.n_neurons == 8
    assert [s.masked for s in store.sessions] == [False, True, True]
    assert store.sessions[0].constant.tolist() == [False, True, False]
    assert store.sessions[1].trials.columns["cue"].tolist() == ["l", "r", "l"]
    assert store.sessions[1].trials.start.tolist() == [5, 40, 60]
    assert len(store.sessions[0].trials) == 0 and store.sessions[-1].animal == "b"
    assert store.index_of("a/day1") == 1
    with pytest.raises(RecordingError, match="no session 'lung'. Did you mean 'long'"):
        store.index_of("lung")


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_range_is_the_slice_of_the_session(built, data):
    store = open_store(built, cache_bytes=data.draw(st.sampled_from([0, 1 << 14, 1 << 28])))
    for _ in range(3):
        i = data.draw(st.integers(0, 2))
        original = recordings()[i]
        start = data.draw(st.integers(0, original.n_frames - 1))
        stop = data.draw(st.integers(start + 1, original.n_frames))
        traces, mask = store.read(i, start, stop)
        assert traces.dtype == np.float32 and mask.dtype == bool
        np.testing.assert_array_equal(traces, original.traces[start:stop])
        np.testing.assert_array_equal(mask, original.mask[start:stop])
        traces[:] = 0  # the caller's own; the cache keeps its values
        np.testing.assert_array_equal(store.read(i, start, stop)[0], original.traces[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (-1, 5), (5, 31), (7, 3)])
def test_ranges_outside_are_refused(store, start, stop):
    with pytest.raises(RecordingError, match=r"session b/day1: no such range of frames"):
        store.read(2, start, stop)


def test_the_cache_is_bounded(built):
    store = open_store(built, cache_bytes=20_000)  # a chunk of 1024 x 3 has 12,288 bytes
    for start in range(0, 2500, 500):
        store.read(0, start, start + 100)
        assert store._held <= 20_000


def test_threads_and_pickles_read_the_same(store):
    expected = store.read(0, 900, 1100)[0]
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read(0, 900, 1100)[0], expected)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: store.read(0, i * 50, i * 50 + 50)[0], range(50)))
    np.testing.assert_array_equal(np.concatenate(parts), recordings()[0].traces)


@settings(deadline=None, max_examples=40)
@given(sessions())
def test_records_cover_the_session_and_respect_trials(s):
    edges = record_edges(s)
    assert edges[0] == 0 and edges[-1] == s.n_frames
    assert (np.diff(edges) > 0).all() and (np.diff(edges) <= CHUNK).all()
    assert set(s.trials.start) | set(s.trials.stop) <= set(edges)
    m = np.where(s.mask, s.traces, np.nan)
    spread = [np.unique(c[~np.isnan(c)]).size <= 1 for c in m.T]
    assert constant_traces(s).tolist() == spread


def test_long_trials_are_cut():
    s = Session(np.ones((5000, 1)), rate=1.0, trials=Trials([100], [4000]))
    assert record_edges(s).tolist() == [0, 100, 1124, 2148, 3172, 4000, 5000]


def _add(writer, session):
    with h5py.File("side", "w", driver="core", backing_store=False) as file:
        write_side(file, session)
        writer.add(file)


def _side_file(folder, count, frames):
    """The index of `count` sessions, as a builder writes it, without the traces."""
    folder.mkdir()
    shard = folder / "x.array_record"
    shard.write_bytes(b"")
    for name in ("dataset_info.json", "features.json"):
        (folder / name).write_text(json.dumps({}))
    writer = StoreWriter(folder)
    base = np.zeros((frames, 1), np.float32)
    for i in range(count):
        _add(writer, Session(base, rate=10.0, session=f"s{i}", animal=f"a{i // 9}"))
    writer.close([shard])
    return folder


def test_a_thousand_sessions_open_in_a_second_and_in_constant_memory(tmp_path):
    folder = _side_file(tmp_path / "x", 1000, 5000)  # traces would take 20 MB
    open_store(folder)  # imports are not what is measured
    start = time.perf_counter()
    open_store(folder)
    assert time.perf_counter() - start < 1.0
    tracemalloc.start()
    store = open_store(folder)
    assert sum(s.n_frames for s in store.sessions) == 1000 * 5000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_two_recordings_of_one_animal_need_two_ids(tmp_path):
    writer = StoreWriter(tmp_path)
    s = Session(np.ones((3, 1)), rate=1.0, animal="m", session="d")
    _add(writer, s)
    with pytest.raises(RecordingError, match="two recordings of animal 'm' have .* id 'd'"):
        _add(writer, s)
    writer.abandon()


def test_broken_folders_are_told(built, tmp_path):
    with pytest.raises(RecordingError, match="no such store. Build it: make data"):
        open_store(tmp_path / "gone")
    with pytest.raises(RecordingError, match="not a store; expected a folder with sessions.h5"):
        open_store(tmp_path)
    with pytest.raises(RecordingError, match=f"not a store; .*Did you mean {built}"):
        open_store(built.parent)
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    [shard] = copy.glob("*.array_record-*")
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    with pytest.raises(RecordingError, match=r"array_record-.*store is incomplete; found \d+ b"):
        open_store(copy)
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(RecordingError, match=r"record 0 of the store cannot be read.*it again"):
        open_store(copy).read(0, 0, 10)
    with h5py.File(copy / SIDE_FILE, "a") as f:
        f.attrs["calm_jax_store"] = 99
    with pytest.raises(RecordingError, match="another version; found 99; expected 1"):
        open_store(copy)
    (copy / SIDE_FILE).write_bytes(b"nothing")
    with pytest.raises(RecordingError, match="sessions.h5: the index of the store cannot be read"):
        open_store(copy)
