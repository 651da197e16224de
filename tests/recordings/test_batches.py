"""Batches are a function of (seed, step); windows stay inside their range."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from calm_jax import config
from calm_jax.errors import ConfigError, RunError, SplitError
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import (
    Prepared,
    Windows,
    bucket,
    choose_neurons,
    pad_batch,
    window_batch,
)
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split


class Counting(MemoryStore):
    reads = 0

    def read(self, i, start, stop):
        self.reads += 1
        return super().read(i, start, stop)


def _prepared(**options):
    rng = np.random.default_rng(0)
    edges = Trials(np.arange(0, 100, 10), np.arange(10, 101, 10))
    one = Session(rng.normal(size=(100, 4)), rate=10, session="one", trials=edges)
    valid = rng.random((200, 3)) < 0.8
    two = Session(rng.normal(size=(200, 3)), rate=10, session="two", valid=valid)
    store = Counting([one, two])
    split = make_split(store, config.Split())
    scalers = preprocess.fit(store, split, config.Preprocess(smoothing=0.4))
    return Prepared(store, split, scalers, **options)


ranges = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(1, 70)),
    min_size=1,
    max_size=8,
).map(lambda rows: np.array([(i, a, a + n) for i, a, n in rows]))


@settings(deadline=None, max_examples=60)
@given(ranges, st.one_of(st.none(), st.integers(1, 40)), st.integers(0, 9))
def test_an_epoch_covers_every_range_and_leaves_none(rows, window, seed):
    w = Windows(rows, window, seed)
    session, start, stop = w.at(0, w.per_epoch)
    lengths = rows[:, 2] - rows[:, 1]
    frames = lengths if window is None else np.minimum(lengths, window)
    assert w.per_epoch == sum(-(-n // f) for n, f in zip(lengths, frames, strict=True))
    got = np.sort(stop - start)
    assert_array_equal(got, np.sort(np.repeat(frames, -(-lengths // frames))))
    for i, a, b in zip(session, start, stop, strict=True):
        inside = (rows[:, 0] == i) & (rows[:, 1] <= a) & (b <= rows[:, 2])
        assert inside.any()


@settings(deadline=None, max_examples=40)
@given(ranges, st.integers(1, 40), st.integers(0, 30), st.sampled_from([1, 2, 3, 6]))
def test_windows_are_the_same_for_any_step_order_and_number_of_hosts(
    rows, window, step, parts
):
    whole = np.stack(Windows(rows, window, 1).at(step, 6))
    other = Windows(rows, window, 1)
    for s in range(step):
        other.at(s, 6)
    shares = [np.stack(other.at(step, 6, p, parts)) for p in range(parts)]
    assert_array_equal(np.concatenate(shares, 1), whole)
    # 12 windows at once are two steps of 6
    assert_array_equal(
        np.stack(other.at(step, 12)),
        np.concatenate([other.at(2 * step, 6), other.at(2 * step + 1, 6)], 1),
    )


def test_epochs_differ_in_order_and_starts():
    w = Windows(np.array([[0, 0, 100], [1, 0, 40]]), 30, 0)
    assert w.per_epoch == 4 + 2 and w.longest == 30
    starts = np.concatenate([w.at(e, 6)[1] for e in range(200)])
    assert len(np.unique(starts)) > 50
    assert not np.array_equal(w.at(0, 6), w.at(1, 6))
    assert not np.array_equal(w.at(0, 6), Windows(w._range[:1], 30, 1).at(0, 6))
    # every start is reached, ends included
    ends = np.concatenate([w.at(e, 6) for e in range(200)], 1)
    assert ends[2][ends[0] == 0].max() == 100 and starts.min() == 0


def test_windows_refuse_what_cannot_work():
    rows = np.array([[0, 0, 10]])
    with pytest.raises(SplitError, match="no ranges"):
        Windows(rows[:0], 4, 0)
    with pytest.raises(ConfigError, match="window"):
        Windows(rows, 0, 0)
    with pytest.raises(ConfigError, match="multiple of 3"):
        Windows(rows, 4, 0).at(0, 4, 0, 3)


def test_a_range_is_prepared_once_and_a_window_is_cut_from_it():
    p = _prepared()
    a, b = p.splits.parts[1]["train"][0]
    z, mask = p.range(1, a, b)
    assert_array_equal(z, p.scalers.apply(1, *p.store.read(1, a, b)))
    p.store.reads = 0
    x, m = p.window(1, a + 5, a + 17)
    assert p.store.reads == 0
    assert_array_equal(x, z[5:17])
    assert_array_equal(m, mask[5:17])
    assert not z.flags.writeable
    first, _ = p.range(0, 0, 10)
    assert first.shape == (10, 4)
    with pytest.raises(SplitError, match="within one range"):
        p.window(1, b - 3, b + 1)
    with pytest.raises(SplitError, match="within one range"):
        p.window(0, 5, 15)


def test_cache_is_bounded_and_drops_the_oldest():
    p = _prepared(cache_bytes=2 * 10 * 4 * 4)  # two trials of 10 frames x 4 neurons
    p.store.reads = 0
    for k in (0, 10, 0, 20, 0):
        p.range(0, k, k + 10)
    assert p.store.reads == 3 and p._used == 320
    p.range(0, 10, 20)
    assert p.store.reads == 4
    p.range(1, 0, 140)  # larger than the cache: not kept, nothing dropped
    assert p._used == 320
    p.range(1, 0, 5)  # with a mask of its own
    for k in range(0, 100, 10):
        p.range(0, k, k + 10)
    assert p._used == sum(
        z.nbytes + (m.nbytes if m.strides[0] else 0) for z, m in p._cache.values()
    )


def test_scalers_of_another_split_are_refused():
    p = _prepared()
    other = make_split(p.store, config.Split(seed=3))
    with pytest.raises(RunError, match="another split"):
        Prepared(p.store, other, p.scalers)


@pytest.mark.parametrize(
    ("n", "sizes", "want"),
    [(1, 8, 8), (8, 8, 8), (9, 8, 16), (30, (32, 64), 32), (65, (32, 64), 128)],
)
def test_bucket(n, sizes, want):
    assert bucket(n, sizes) == want


def test_padding_is_masked_and_zero():
    a, b = np.ones((3, 2)), 2 * np.ones((5, 1))
    hole = np.array([[True], [True], [False], [True], [True]])
    x, mask = pad_batch([a, b], [np.ones((3, 2), bool), hole], 6, 4)
    assert x.shape == mask.shape == (2, 6, 4)
    assert x[0, :3, :2].sum() == x[0].sum() == 6 and x[1].sum() == 10
    assert mask[0].sum() == 6 and mask[1].sum() == 4 and not mask[1, 2, 0]
    assert pad_batch([a, b])[0].shape == (2, 5, 2)
    with pytest.raises(ConfigError, match="does not fit"):
        pad_batch([a, b], frames=4)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 9), st.integers(0, 9))
def test_chosen_neurons_are_distinct_and_reproducible(n, k, step, row):
    take = choose_neurons(n, k, 0, step, row)
    assert len(np.unique(take)) == len(take) == min(n, k)
    assert take.min() >= 0 and take.max() < n and (np.diff(take) > 0).all()
    assert_array_equal(take, choose_neurons(n, k, 0, step, row))


def test_neurons_are_drawn_evenly():
    counts = np.zeros(10)
    for step in range(2000):
        counts[choose_neurons(10, 3, 0, step, 0)] += 1
    assert np.abs(counts - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)


def test_window_batch_keeps_rows_aligned():
    p = _prepared()
    w = Windows(p.splits.ranges("train"), 8, 0)
    session, start, stop = w.at(3, 6)
    batch = window_batch(p, session, start, stop, frames=8, neurons=4, limit=2, step=3)
    assert batch["traces"].shape == (6, 8, 4) and batch["neuron"].shape == (6, 4)
    for b in range(6):
        z, mask = p.window(session[b], start[b], stop[b])
        real = batch["real"][b]
        local = batch["neuron"][b][real] - p.store.neuron_offset(session[b])
        assert real.sum() == 2
        assert_array_equal(batch["traces"][b][: len(z), real], z[:, local])
        assert_array_equal(batch["mask"][b][: len(z), real], mask[:, local])
    # the second half of the rows, drawn on a second host
    half = window_batch(
        p,
        session[3:],
        start[3:],
        stop[3:],
        frames=8,
        neurons=4,
        limit=2,
        step=3,
        first_row=3,
    )
    assert_array_equal(half["neuron"], batch["neuron"][3:])


def test_memory_store_addresses_neurons():
    p = _prepared()
    assert p.store.n_neurons == 7
    assert [p.store.neuron_offset(i) for i in (0, 1)] == [0, 4]
    assert p.store.session(1).session == "two"
