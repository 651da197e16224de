"""Splits are deterministic, do not leak, and say what is wrong when they would."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax import config
from calm_jax.errors import SplitError
from calm_jax.recordings import splits as S
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials


def _session(name="s", frames=100, trials=None, neurons=2):
    rng = np.random.default_rng(0)
    edges = {}
    if trials:
        start = np.arange(trials) * (frames // trials)
        edges["trials"] = Trials(start, start + frames // trials)
    return Session(rng.normal(size=(frames, neurons)), rate=10, session=name, animal="a", **edges)


def _store():
    return MemoryStore([_session("blocks", 200), _session("trials", 100, 20)])


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 60), st.integers(30, 400), st.integers(0, 9), st.integers(0, 5))
def test_split_is_a_partition_without_leaks(trials, frames, gap, seed):
    store = MemoryStore([_session("t", trials * 3, trials), _session("b", frames)])
    split = S.make_split(store, config.Split(gap=min(gap, frames // 20), seed=seed))
    assert split.check(store) is split
    taken = np.concatenate([split.parts[0][p] for p in S.PARTS])
    assert sorted(map(tuple, taken)) == [(3 * k, 3 * k + 3) for k in range(trials)]
    sizes = [len(split.parts[0][p]) for p in S.PARTS]
    assert all(abs(n - f * trials) <= 1.5 for n, f in zip(sizes, (0.7, 0.15, 0.15), strict=True))
    (train,), (valid,), (test,) = (split.parts[1][p] for p in S.PARTS)
    assert train[0] == 0 and test[1] == frames
    assert valid[0] - train[1] == test[0] - valid[1] == split.gap
    assert abs(train[1] - 0.7 * frames) < 1 and abs(valid[1] - 0.85 * frames) < 1


def test_benchmark_counts_and_fixed_seed():
    store = MemoryStore([_session("t", 400, 400)])
    split = S.make_split(store, config.Split())
    assert [len(split.parts[0][p]) for p in S.PARTS] == [280, 60, 60]
    assert split.hash == S.make_split(store, config.Split()).hash
    assert split.hash != S.make_split(store, config.Split(seed=1)).hash


def test_a_session_is_split_alike_whatever_stands_beside_it():
    alone = S.make_split(MemoryStore([_session("trials", 100, 20)]), config.Split())
    both = S.make_split(_store(), config.Split())
    for part in S.PARTS:
        np.testing.assert_array_equal(alone.parts[0][part], both.parts[1][part])
    other = S.make_split(MemoryStore([_session("other", 100, 20)]), config.Split())
    assert not np.array_equal(alone.parts[0]["train"], other.parts[0]["train"])


def test_held_out_sessions_do_not_train():
    store = _store()
    split = S.make_split(store, config.Split(), held_out=["trials"])
    assert split.training_index == (0,) and split.held_out_index == (1,)
    assert set(split.ranges("train")[:, 0]) == {0}
    assert set(split.ranges("test", [1])[:, 0]) == {1}
    assert split.ranges("train", []).shape == (0, 3)


def test_saved_split_comes_back(tmp_path):
    store = _store()
    split = S.make_split(store, config.Split(), held_out=["blocks"])
    split.save(tmp_path / "split.json")
    again = S.load(tmp_path / "split.json", store)
    assert again.hash == split.hash and again.held_out == ("blocks",)
    assert again.training == ("trials",)
    np.testing.assert_array_equal(again.ranges("test"), split.ranges("test"))


def test_changed_file_is_refused(tmp_path):
    store = _store()
    path = tmp_path / "split.json"
    S.make_split(store, config.Split()).save(path)
    data = json.loads(path.read_text())
    data["gap"] = 0
    path.write_text(json.dumps(data))
    with pytest.raises(SplitError, match="hash"):
        S.load(path, store)
    del data["hash"]
    path.write_text(json.dumps(data))
    assert S.load(path, store).gap == 0
    path.write_text(path.read_text()[:50])
    with pytest.raises(SplitError, match="JSON"):
        S.load(path, store)
    with pytest.raises(SplitError, match="no such file"):
        S.load(tmp_path / "none.json", store)


def _leak(change):
    data = S.make_split(_store(), config.Split()).to_dict()
    blocks, trials = (row["parts"] for row in data["sessions"])
    change(data, blocks, trials)
    return data


def _share(data, blocks, trials):
    blocks["valid"] = [[130, 160]]


def _close(data, blocks, trials):
    blocks["valid"] = [[141, 160]]


def _two_parts(data, blocks, trials):
    (a, b) = trials["train"].pop(0)
    trials["train"].append([a, a + 2])
    trials["test"].append([a + 3, b])


def _same_trial(data, blocks, trials):
    trials["test"].append(trials["train"][0])


def _outside(data, blocks, trials):
    blocks["test"] = [[170, 201]]


def _edge(data, blocks, trials):
    a, b = trials["train"][0]
    trials["train"][0] = [a + 1, b + 1]
    for part in S.PARTS:
        trials[part] = [r for r in trials[part] if r[0] != b]


def _empty(data, blocks, trials):
    blocks["valid"] = []


def _backwards(data, blocks, trials):
    blocks["test"] = [[190, 180]]


def _unknown(data, blocks, trials):
    data["held_out"] = ["nowhere"]


def _trained(data, blocks, trials):
    data["held_out"] = ["trials"]


def _frames(data, blocks, trials):
    data["sessions"][0]["n_frames"] = 199


def _other(data, blocks, trials):
    data["sessions"][0]["session"] = "else"


def _fraction(data, blocks, trials):
    blocks["test"] = [[180.5, 200]]


def _nobody(data, blocks, trials):
    data["held_out"], data["training"] = ["blocks", "trials"], []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_share, r"session blocks: two ranges share .*train \[0, 140\).*valid \[130"),
        (_close, r"closer than the gap.*valid \[141, 160\).*8 frames"),
        (_two_parts, r"session trials: trial \d+ is in two parts"),
        (_same_trial, r"two ranges share frames"),
        (_outside, r"outside the recording.*test \[170, 201\)"),
        (_edge, r"crosses the edge of a trial"),
        (_empty, r"session blocks: the valid part is empty"),
        (_backwards, r"range is empty or outside"),
        (_unknown, r"unknown session 'nowhere'"),
        (_trained, r"session trials: a held-out session is used for training"),
        (_frames, r"another version of the recording"),
        (_other, r"other recordings"),
        (_fraction, r"not a split.*whole numbers"),
        (_nobody, r"no session is left"),
    ],
)
def test_leaks_are_refused(change, message):
    with pytest.raises(SplitError, match=message):
        S.from_dict(_leak(change), _store())


def test_too_short_recordings_and_wrong_fractions():
    with pytest.raises(SplitError, match="too few trials"):
        S.make_split(MemoryStore([_session("t", 10, 2)]), config.Split())
    with pytest.raises(SplitError, match="valid part is empty"):
        S.make_split(MemoryStore([_session("b", 50)]), config.Split())
    with pytest.raises(SplitError, match="sum to at most 1"):
        S.make_split(_store(), config.Split(train=0.9))
    with pytest.raises(SplitError, match="unknown session"):
        S.make_split(_store(), config.Split(), held_out=["x"])
    with pytest.raises(SplitError, match="not a split"):
        S.from_dict({"sessions": [3]}, _store())


def test_ambiguous_session_id_cannot_be_held_out():
    store = MemoryStore([_session("s", 200), _session("s", 200), _session("r", 200)])
    S.make_split(store, config.Split())
    with pytest.raises(SplitError, match="more than one recording"):
        S.make_split(store, config.Split(), held_out=["s"])


def test_fractions_below_one_leave_frames_unused():
    store = _store()
    split = S.make_split(store, config.Split(train=0.5, valid=0.1, test=0.2))
    assert [len(split.parts[1][p]) for p in S.PARTS] == [10, 2, 4]
    assert split.parts[0]["valid"].tolist() == [[108, 120]]
    assert split.parts[0]["test"].tolist() == [[160, 200]]
