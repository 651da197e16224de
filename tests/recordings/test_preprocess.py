"""Smoothing against a loop, statistics against numpy, and nothing seen but training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from calm_jax import config
from calm_jax.errors import RecordingError
from calm_jax.recordings import preprocess
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split


def _loop(x, mask, a):
    y = np.full(x.shape, np.nan)
    for n in range(x.shape[1]):
        state = np.nan
        for t in range(x.shape[0]):
            if mask[t, n]:
                new = x[t, n]
                state = new if np.isnan(state) else a * new + (1 - a) * state
            y[t, n] = state
    return y


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30),
    st.integers(1, 4),
    st.floats(0.05, 1),
    st.floats(0, 1),
    st.integers(0, 99),
    st.integers(1, 30),
)
def test_smoothing_equals_the_loop_whole_or_in_pieces(t, n, a, keep, seed, piece):
    rng = np.random.default_rng(seed)
    x, mask = rng.normal(size=(t, n)).astype(np.float32), rng.random((t, n)) < keep
    want = _loop(x, mask, a)
    assert_allclose(preprocess.smooth(x, mask, a)[0], want, atol=1e-5)
    state, out = None, []
    for k in range(0, t, piece):
        y, state = preprocess.smooth(x[k : k + piece], mask[k : k + piece], a, state)
        out.append(y)
    assert_allclose(np.concatenate(out), want, atol=1e-5)


def test_smoothing_by_hand():
    x = np.array([[4.0], [0.0], [0.0], [8.0]])
    y, state = preprocess.smooth(x, None, 0.5)
    assert_allclose(y[:, 0], [4, 2, 1, 4.5])
    hole = np.array([[True], [False], [True], [True]])
    assert_allclose(preprocess.smooth(x, hole, 0.5)[0][:, 0], [4, 4, 2, 5])
    assert_allclose(preprocess.smooth(x, hole, None)[0][:, 0], [4, 4, 0, 8])
    assert state[0] == 4.5


def test_smoothing_is_causal_bit_for_bit():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(50, 3)).astype(np.float32), rng.random((50, 3)) < 0.8
    for m in (mask, None):
        y = preprocess.smooth(x, m, 0.15)[0]
        later = x.copy()
        later[30:] += 7
        assert_array_equal(preprocess.smooth(later, m, 0.15)[0][:30], y[:30])
        cut = None if m is None else m[:30]
        assert_array_equal(preprocess.smooth(x[:30], cut, 0.15)[0], y[:30])


def _store(seed=0, trials=True):
    rng = np.random.default_rng(seed)
    x = rng.normal(3.0, [0.5, 20, 1], (120, 3)).astype(np.float32)
    valid = rng.random((120, 3)) < 0.9
    edges = {}
    if trials:
        edges["trials"] = Trials(np.arange(0, 120, 12), np.arange(12, 121, 12))
    one = Session(x, rate=10, valid=valid, session="one", **edges)
    two = Session(x[:, :2] * 5, rate=10, session="two")
    return MemoryStore([one, two])


@pytest.mark.parametrize("alpha", [None, 0.15])
@pytest.mark.parametrize("piece", [1 << 23, 20])
def test_statistics_of_the_valid_training_samples(alpha, piece, monkeypatch):
    monkeypatch.setattr(preprocess, "_SAMPLES", piece)
    store = _store()
    split = make_split(store, config.Split())
    settings_ = config.Preprocess(smoothing=alpha)
    scalers = preprocess.fit(store, split, settings_)
    for i, s in enumerate(store.sessions):
        rows, masks = [], []
        for a, b in split.parts[i]["train"]:
            m = s.mask[a:b]
            rows.append(_loop(s.traces[a:b].astype(float), m, alpha or 1.0))
            masks.append(m)
        y = np.ma.masked_array(np.concatenate(rows), ~np.concatenate(masks))
        assert_allclose(scalers.mean[i], y.mean(0), rtol=1e-5)
        assert_allclose(scalers.sd[i], y.std(0), rtol=1e-4)
        assert not scalers.constant[i].any()
    z = np.concatenate(
        [
            scalers.apply(0, *store.read(0, a, b))[store.read(0, a, b)[1][:, 1], 1]
            for a, b in split.parts[0]["train"]
        ]
    )
    assert_allclose([z.mean(), z.std()], [0, 1], atol=1e-4)


def test_nothing_outside_the_training_part_moves_the_scalers():
    store = _store()
    split = make_split(store, config.Split())
    before = preprocess.fit(store, split, config.Preprocess(smoothing=0.3))
    changed = []
    for i, s in enumerate(store.sessions):
        x = s.traces.copy()
        for part in ("valid", "test"):
            for a, b in split.parts[i][part]:
                x[a:b] = 1e6
        changed.append(s.replace(traces=x))
    after = preprocess.fit(
        MemoryStore(changed), split, config.Preprocess(smoothing=0.3)
    )
    for i in range(2):
        assert_array_equal(before.mean[i], after.mean[i])
        assert_array_equal(before.sd[i], after.sd[i])


def test_silent_neurons_are_named_and_cannot_explode():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    x[:, 1] = 0
    x[:, 2] = 1234.5
    x[:140, 3] = 1e-2 * x[:140, 3]  # all but silent, wakes up after training
    valid = np.ones((200, 6), bool)
    valid[:, 4] = False
    store = MemoryStore([Session(x, rate=10, valid=valid)])
    split = make_split(store, config.Split())
    scalers = preprocess.fit(store, split, config.Preprocess())
    assert_array_equal(scalers.constant[0], [False, True, True, True, True, False])
    z = scalers.apply(0, *store.read(0, 170, 200))
    assert np.isfinite(z).all() and np.abs(z).max() < 6


def test_a_silent_majority_is_still_found():
    x = np.zeros((100, 5), np.float32)
    x[:, 0] = np.random.default_rng(0).normal(size=100)
    scalers = preprocess.fit_frames(x, None, config.Preprocess())
    assert_array_equal(scalers.constant[0], [False, True, True, True, True])
    nothing = preprocess.fit_frames(x[:, 1:], None, config.Preprocess())
    assert nothing.constant[0].all() and (nothing.apply(0, x[:, 1:]) == 0).all()


def test_large_offsets_do_not_cost_precision():
    rng = np.random.default_rng(0)
    x = (1e5 + rng.normal(size=(5000, 2))).astype(np.float32)
    scalers = preprocess.fit_frames(x, None, config.Preprocess())
    assert_allclose(scalers.sd[0], x.astype(float).std(0), rtol=1e-4)


def test_apply_invert_save_load(tmp_path):
    store = _store(trials=False)
    split = make_split(store, config.Split())
    scalers = preprocess.fit(store, split, config.Preprocess())
    x, mask = store.read(0, 0, 40)
    z = scalers.apply(0, x, mask)
    assert z.dtype == np.float32
    assert_allclose(scalers.invert(0, z)[mask], x[mask], rtol=1e-4)
    path = tmp_path / "scalers.npz"
    scalers.save(path)
    again = preprocess.load(path)
    assert again.config == scalers.config and again.split_hash == split.hash
    for i in range(2):
        assert_array_equal(
            again.apply(i, *store.read(i, 3, 9)), scalers.apply(i, *store.read(i, 3, 9))
        )
    assert [p.name for p in tmp_path.iterdir()] == ["scalers.npz"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordingError, match="damaged"):
        preprocess.load(path)
    with pytest.raises(RecordingError, match="no such file"):
        preprocess.load(tmp_path / "none")
    with pytest.raises(RecordingError, match="do not fit"):
        scalers.apply(1, x)


def test_without_z_score_the_unit_stays():
    x = np.random.default_rng(0).normal(5, 2, (50, 3)).astype(np.float32)
    scalers = preprocess.fit_frames(x, None, config.Preprocess(z_score=False))
    assert_array_equal(scalers.apply(0, x), x)


def test_invalid_samples_hold_the_last_valid_one():
    x = np.array([[0.0], [2.0], [0.0], [4.0]], np.float32)
    mask = np.array([[False], [True], [False], [True]])
    scalers = preprocess.fit_frames(x, mask, config.Preprocess())
    assert_allclose(scalers.mean[0], 3), assert_allclose(scalers.sd[0], 1, rtol=1e-5)
    assert_allclose(scalers.apply(0, x, mask)[:, 0], [0, -1, -1, 1], rtol=1e-5)


def test_wrong_smoothing_is_refused():
    with pytest.raises(RecordingError, match="smoothing"):
        preprocess.fit_frames(np.zeros((3, 2)), None, config.Preprocess(smoothing=1.5))
