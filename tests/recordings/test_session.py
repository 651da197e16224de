"""Session: slices keep everything aligned, and what does not fit is refused by name."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.errors import RecordingError
from calm_jax.recordings.session import Channel, Intervals, NeuronTable, Session, Trials
from tests.recordings.session_strategies import assert_same, sessions

X = np.arange(20, dtype=np.float32).reshape(10, 2)
NONE = np.zeros(0, int)


@settings(deadline=None, max_examples=40)
@given(sessions(), st.data())
def test_a_slice_in_time_keeps_everything_aligned(s, data):
    start = data.draw(st.integers(0, s.n_frames - 1))
    stop = data.draw(st.integers(start + 1, s.n_frames))
    cut = s.frames(start, stop)
    np.testing.assert_array_equal(cut.traces, s.traces[start:stop])
    np.testing.assert_array_equal(cut.mask, s.mask[start:stop])
    np.testing.assert_array_equal(cut.times, s.times[start:stop])
    assert cut.rate == s.rate and cut.n_neurons == s.n_neurons
    # Each kept trial holds the frames that it held before; each whole trial is kept.
    whole = [
        i for i in range(len(s.trials)) if start <= s.trials.start[i] and s.trials.stop[i] <= stop
    ]
    assert len(cut.trials) == len(whole)
    for k, i in enumerate(whole):
        np.testing.assert_array_equal(
            cut.traces[cut.trials.start[k] : cut.trials.stop[k]],
            s.traces[s.trials.start[i] : s.trials.stop[i]],
        )
        for name in s.trials.columns:
            np.testing.assert_array_equal(cut.trials.columns[name][k], s.trials.columns[name][i])
    end = s.times[stop - 1] + 1 / s.rate
    for name, channel in s.behavior.items():
        if channel.times is None:
            np.testing.assert_array_equal(cut.behavior[name].values, channel.values[start:stop])
        else:
            kept = cut.behavior[name].times
            inside = [t for t in channel.times if s.times[start] <= t < end]
            np.testing.assert_array_equal(kept, inside)


@settings(deadline=None, max_examples=25)
@given(sessions(), st.data())
def test_neurons_are_taken_with_their_rows(s, data):
    index = np.array(data.draw(st.permutations(range(s.n_neurons))))[: max(1, s.n_neurons - 1)]
    cut = s.take_neurons(index)
    np.testing.assert_array_equal(cut.traces, s.traces[:, index])
    np.testing.assert_array_equal(cut.mask, s.mask[:, index])
    np.testing.assert_array_equal(cut.neurons.id, s.neurons.id[index])
    for name, column in s.neurons.columns.items():
        np.testing.assert_array_equal(cut.neurons.columns[name], column[index])
    assert_same(s, s.take_neurons(slice(None)))


@settings(deadline=None, max_examples=20)
@given(sessions())
def test_the_whole_is_a_slice_of_itself(s):
    whole = s.frames(0, s.n_frames)
    np.testing.assert_array_equal(whole.times, s.times)
    assert whole.traces.shape == s.traces.shape and len(whole.trials) == len(s.trials)


def test_a_session_cannot_be_changed():
    given_array = X.copy()
    s = Session(given_array, rate=5.0, valid=np.arange(10) > 2)
    for array in (s.traces, s.valid, s.neurons.id, s.trials.start):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.rate = 3
    with pytest.raises(TypeError):
        s.behavior["x"] = Channel(np.zeros(10))
    assert given_array.flags.writeable


def test_missing_samples_may_be_nan_and_hold_zero():
    x = X.copy()
    x[3, 1] = np.nan
    valid = np.ones_like(x, bool)
    valid[3, 1] = False
    s = Session(x, rate=5.0, valid=valid)
    assert s.traces[3, 1] == 0 and not s.mask[3, 1] and s.mask.sum() == 19


def test_clocks():
    s = Session(X, rate=5.0)
    assert s.seconds == pytest.approx(2.0) and s.times[1] == 0.2
    stamps = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 5, 5.1, 5.2, 5.3])
    t = Session(X, timestamps=stamps)
    assert t.rate == pytest.approx(10) and t.seconds == pytest.approx(5.4)


BAD = {
    "infinite": (dict(traces=np.where(X == 5, np.inf, X)), "infinite; found frame 2, neuron 1"),
    "text": (dict(traces=X.astype(str)), "matrix of numbers"),
    "no frames": (dict(traces=X[:0]), "zero frames"),
    "no rate": (dict(rate=None), "no frame rate"),
    "zero rate": (dict(rate=0.0), "must be positive; found 0.0 Hz"),
    "backwards": (dict(timestamps=np.arange(10)[::-1]), "strictly increasing"),
    "stamps": (dict(timestamps=np.arange(9)), r"found shape \(9,\)"),
    "table": (dict(neurons=NeuronTable(["a"])), "found 1 rows; expected 2"),
    "animal": (dict(animal=" "), "animal: empty id"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    fields, message = BAD[case]
    with pytest.raises(RecordingError, match=message):
        Session(**{"traces": X, "rate": 5.0, **fields})


def test_parts_are_checked_too():
    with pytest.raises(RecordingError, match="trial 1 is empty"):
        Trials([0, 5], [5, 5])
    with pytest.raises(RecordingError, match="trials 0 and 1 overlap"):
        Trials([0, 4], [5, 9])
    with pytest.raises(RecordingError, match="trial/cue: column of the wrong length"):
        Trials([0], [5], {"cue": np.zeros(2)})
    with pytest.raises(RecordingError, match="column of Python objects"):
        Trials([0], [5], {"cue": np.array([{}])})
    with pytest.raises(RecordingError, match="interval 0 is not a stretch"):
        Intervals([2.0], [1.0])
    with pytest.raises(RecordingError, match="unknown kind"):
        Channel(np.zeros(3), "discrete")
    with pytest.raises(RecordingError, match='Give text labels kind "categorical"'):
        Channel(np.array(["a"]))
    with pytest.raises(RecordingError, match="must be unique within a session; found 'a' 2 times"):
        NeuronTable(["a", "b", "a"])
    with pytest.raises(RecordingError, match=r"found \[3, 3\)"):
        Session(X, rate=1.0).frames(3, 3)
