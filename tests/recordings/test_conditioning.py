"""Resampling, baselines, gaps and behaviour on the frames: closed forms and scipy."""

import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calm_jax.errors import RecordingError
from calm_jax.recordings.conditioning import (
    align_behavior,
    apply_policy,
    condition,
    dff,
    mark_missing,
    resample,
    running_baseline,
)
from calm_jax.recordings.session import Channel, Intervals, Session, Trials
from tests.recordings.session_strategies import sessions

RATE = 30.0


def _sines(frequency, seconds=60, rate=RATE, **more):
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * frequency * t
    return Session(np.stack([np.sin(phase), np.cos(phase)], 1), rate=rate, **more)


# --- resampling ----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [6, 10, 7.3, 29.97, 45, 60])
def test_a_sine_below_nyquist_stays_and_one_above_goes(rate):
    low = min(rate, RATE)
    inside = lambda s: (s.times > 16 / low) & (s.times < 60 - 17 / low)  # noqa: E731
    for share in (0.02, 0.2, 0.387):
        out = resample(_sines(share * low), rate)
        want = np.sin(2 * np.pi * share * low * out.times)
        m = inside(out)
        np.testing.assert_allclose(out.traces[m, 0], want[m], atol=2e-3)
        assert out.rate == rate and out.valid is None
    for share in (0.5, 0.7, 1.3):
        if share * low < RATE / 2:
            out = resample(_sines(share * low), rate)
            assert np.abs(out.traces[inside(out)]).max() < 2e-3


def test_a_constant_is_kept_to_the_ends():
    out = resample(Session(np.full((300, 2), 7.0), rate=RATE), 11)
    np.testing.assert_allclose(out.traces, 7, rtol=1e-6)
    assert resample(out, 11) is out


def test_time_stamps_with_jitter_come_on_a_regular_grid():
    rng = np.random.default_rng(0)
    times = 5 + np.arange(1800) / RATE + rng.uniform(-0.006, 0.006, 1800)
    session = Session(np.sin(2 * np.pi * 1.5 * times)[:, None], timestamps=times)
    out = resample(session, 10)
    np.testing.assert_allclose(np.diff(out.times), 0.1, atol=1e-9)
    m = (out.times > 7) & (out.times < 63)
    np.testing.assert_allclose(out.traces[m, 0], np.sin(3 * np.pi * out.times[m]), atol=0.03)
    assert out.times[0] == times[0]


def test_missing_samples_weigh_nothing():
    session = _sines(0.5)
    valid = np.ones((1800, 2), bool)
    valid[600:640, 0] = False
    valid[900, 1] = False
    hostile = np.where(valid, session.traces, 1e6)
    out = resample(session.replace(traces=hostile, valid=valid), 10)
    plain = resample(session, 10)
    assert np.abs(out.traces).max() < 1.1
    # Beyond the filter, 16 new frames, nothing changes.
    far = np.abs(out.times - 620 / RATE) > 1.6 + 20 / RATE
    np.testing.assert_allclose(out.traces[far, 0], plain.traces[far, 0], atol=1e-6)
    assert out.mask[far].all() and not out.mask[203:210, 0].any()
    assert out.mask[:, 1].all()  # one frame of thirty carries little weight
    np.testing.assert_allclose(out.traces[:, 1], plain.traces[:, 1], atol=0.05)
    per_frame = resample(session.replace(valid=valid[:, 0]), 10)
    assert per_frame.valid.ndim == 1
    np.testing.assert_array_equal(per_frame.valid, out.mask[:, 0])


def test_gaps_of_the_clock_are_missing_and_bounded():
    times = np.concatenate([np.arange(300) / RATE, 30 + np.arange(300) / RATE])
    out = resample(Session(np.ones((600, 1)), timestamps=times), 10)
    gap = (out.times > 10.1) & (out.times < 29.95)
    assert not out.mask[gap].any() and out.mask[~gap].mean() > 0.98
    np.testing.assert_allclose(out.traces[out.mask], 1, rtol=1e-6)
    far = np.concatenate([np.arange(300) / RATE, 1e9 + np.arange(300) / RATE])
    with pytest.raises(RecordingError, match="gaps much longer"):
        resample(Session(np.ones((600, 1)), timestamps=far), 10)


def test_a_trial_is_made_of_its_own_frames():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 2)).astype(np.float32)
    trials = Trials(np.array([0, 300, 620]), np.array([300, 600, 621]), {"cue": np.arange(3)})
    session = Session(x, rate=RATE, trials=trials)
    out = resample(session, 7)
    assert out.trials.columns["cue"].tolist() == [0, 1, 2][: len(out.trials)]
    for i in range(2):
        a, b = trials.start[i] / RATE, trials.stop[i] / RATE
        t = out.times[out.trials.start[i] : out.trials.stop[i]]
        assert a <= t[0] and t[-1] < b and t[0] - a < 1 / 7 and b - t[-1] <= 1 / 7 + 1e-9
    other = x.copy()
    other[300:600] = 50
    again = resample(session.replace(traces=other), 7)
    start, stop = out.trials.start[1], out.trials.stop[1]
    np.testing.assert_array_equal(again.traces[:start], out.traces[:start])
    np.testing.assert_array_equal(again.traces[stop:], out.traces[stop:])
    np.testing.assert_allclose(again.traces[start:stop], 50, rtol=1e-5)


def test_causal_resampling_looks_back_only():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 1)).astype(np.float32)
    y = x.copy()
    y[301:] = 9
    for rate in (7, 10, 45):
        a, b = (resample(Session(v, rate=RATE), rate, causal=True) for v in (x, y))
        past = a.times <= 300 / RATE
        np.testing.assert_array_equal(a.traces[past], b.traces[past])
        assert a.mask[5:].all()
    out = resample(Session(x, rate=RATE), 10, causal=True)
    np.testing.assert_allclose(out.traces[5, 0], x[13:16, 0].mean(), rtol=1e-5)


@settings(max_examples=40)
@given(sessions(), st.floats(0.3, 20))
def test_every_session_can_be_conditioned(session, rate):
    rate = min(rate, 90 * session.rate)
    try:
        out = condition(session, rate)
    except RecordingError as e:
        assert "gaps much longer" in str(e)
        return
    if out is session:
        return
    assert out.rate == rate and out.n_neurons == session.n_neurons
    assert out.times[0] == session.times[0] and out.times[-1] <= session.times[-1] + 1e-6
    assert np.abs(out.traces).max() <= 5 * np.abs(session.traces).max() + 1e-6
    assert out.intervals.keys() == session.intervals.keys()
    for name, channel in out.behavior.items():
        assert (channel.times is None) == (session.behavior[name].times is None)


def test_condition_keeps_everything_in_step():
    t = np.arange(600) / RATE
    session = Session(
        np.sin(t)[:, None], rate=RATE,
        intervals={"stimulus": Intervals(np.array([1.0]), np.array([2.0]))},
        behavior={
            "speed": Channel(t), "state": Channel(np.where(t < 10, "rest", "run"), "categorical"),
            "lick": Channel(np.ones(4), times=np.arange(4.0)),
        },
    )  # fmt: skip
    assert condition(session) is session
    out = condition(session, 10)
    np.testing.assert_allclose(out.behavior["speed"].values, out.times + 1 / RATE, atol=1e-5)
    assert (out.behavior["state"].values == np.where(out.times < 10, "rest", "run")).all()
    assert out.behavior["lick"].times is not None
    assert any("categorical" in n for n in out.notes)
    assert out.intervals["stimulus"].start[0] == 1.0
    past = condition(session, 10, causal=True).behavior["speed"].values
    np.testing.assert_allclose(past, out.times, atol=1e-5)
    masked = session.replace(valid=t != 5)
    with pytest.raises(RecordingError, match="samples are missing"):
        condition(masked, nan="refuse")
    assert condition(session, nan="refuse") is session
    with pytest.raises(RecordingError, match="no such policy"):
        condition(session, nan="drop")
    for rate in (0, -1, 1e9, "x", np.nan):
        with pytest.raises(RecordingError, match="out of range"):
            condition(session, rate)


def test_short_gaps_are_bridged_for_the_filter_and_stay_missing():
    session = _sines(0.3)
    valid = np.ones(1800, bool)
    valid[900:910] = False
    masked = session.replace(valid=valid)
    plain, bridged, mask = (
        resample(session, 10), condition(masked, 10, "interpolate"), condition(masked, 10)
    )  # fmt: skip
    assert not bridged.mask.all()
    np.testing.assert_array_equal(bridged.mask, mask.mask)
    error = lambda s: np.abs(s.traces - plain.traces)[s.mask].max()  # noqa: E731
    assert error(bridged) < error(mask) / 2


# --- baselines -----------------------------------------------------------------------


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 3)),
               elements=st.floats(-100, 100, width=32)),
    st.integers(1, 80),
    st.integers(0, 100),
)  # fmt: skip
def test_running_percentile_is_scipys(x, window, percentile):
    width = min(window, 2 * len(x) + 1)
    want = ndi.percentile_filter(x, percentile, size=(width, 1))
    got = running_baseline(x, 1.0, "percentile", window, percentile)
    np.testing.assert_array_equal(got, want)
    causal = running_baseline(x, 1.0, "percentile", window, percentile, causal=True)
    for t in (0, len(x) // 2, len(x) - 1):
        seen = np.sort(x[max(0, t - width + 1) : t + 1], 0)
        rank = min(len(seen) - 1, int(len(seen) * percentile / 100))
        np.testing.assert_array_equal(causal[t], seen[rank])


def test_maximin_by_hand():
    x = np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
    got = running_baseline(x, 1.0, "maximin", 7, smooth_frames=0)
    low = np.stack([x[max(0, t - 3) : t + 4].min(0) for t in range(80)])
    want = np.stack([low[max(0, t - 3) : t + 4].max(0) for t in range(80)])
    np.testing.assert_array_equal(got, want)
    causal = running_baseline(x, 1.0, "maximin", 7, smooth_frames=0, causal=True)
    low = np.stack([x[max(0, t - 6) : t + 1].min(0) for t in range(80)])
    want = np.stack([low[max(0, t - 6) : t + 1].max(0) for t in range(80)])
    np.testing.assert_array_equal(causal, want)


@pytest.mark.parametrize("method", ["maximin", "percentile"])
@pytest.mark.parametrize("causal", [False, True])
def test_baselines_do_not_see_missing_samples_nor_a_causal_one_the_future(method, causal):
    rng = np.random.default_rng(2)
    x = (5 + rng.normal(size=(200, 2))).astype(np.float32)
    mask = rng.random((200, 2)) > 0.2
    go = lambda v, m=mask: running_baseline(v, 1.0, method, 20, 30, mask=m, causal=causal)  # noqa: E731
    np.testing.assert_array_equal(go(np.where(mask, x, 1e9)), go(np.where(mask, x, -1e9)))
    later = x.copy()
    later[100:] += 50
    assert np.array_equal(go(x)[:100], go(later)[:100]) == causal
    assert (go(x, np.zeros(200, bool)) == 0).all()


def test_dff_and_its_floor():
    out, safe = dff(np.array([[2.0, 3, 9]]), np.array([[1.0, 2, 0.01]]), 0.5)
    np.testing.assert_allclose(out, [[1, 0.5, 0]])
    assert safe.tolist() == [[True, True, False]]
    for floor in (0, -1, np.nan, np.array([1.0, 0, 1])):
        with pytest.raises(RecordingError, match="floor"):
            dff(np.ones((1, 3)), np.ones((1, 3)), floor)
    for bad in ({"method": "mean"}, {"window_s": 0}, {"percentile": 101}, {"rate": np.inf}):
        with pytest.raises(RecordingError):
            running_baseline(np.ones((3, 1)), **({"rate": 1.0} | bad))


# --- missing samples -----------------------------------------------------------------


def test_policies_for_nan():
    x = np.array([np.nan, 1, np.nan, 3, np.nan, np.nan, np.nan, 7, np.nan])[:, None]
    out, valid = apply_policy(x, "mask")
    assert out[:, 0].tolist() == [0, 1, 0, 3, 0, 0, 0, 7, 0]
    out, again = apply_policy(x, "interpolate", longest=2)
    assert out[:, 0].tolist() == [0, 1, 2, 3, 0, 0, 0, 7, 0]
    assert (valid == again).all() and valid.sum() == 3
    out, _ = apply_policy(x, "interpolate", longest=3)
    assert out[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    with pytest.raises(RecordingError, match="frame 0, neuron 0"):
        apply_policy(x, "refuse")
    y = np.array([[1, np.nan], [np.nan, np.nan], [3, 4]], np.float32)
    assert mark_missing(y).tolist() == [[True, False], [False, False], [True, True]]
    assert y.tolist() == [[1, 0], [0, 0], [3, 4]] and mark_missing(y) is None
    y[1] = np.nan
    assert mark_missing(y).tolist() == [True, False, True]


# --- behaviour -----------------------------------------------------------------------


def _with(times, values, kind="continuous", frames=11, rate=1.0):
    channel = Channel(np.array(values), kind, times=np.array(times, float), unit="m/s")
    return Session(np.ones((frames, 1)), rate=rate, behavior={"b": channel})


def _values(session, kind, **options):
    return align_behavior(session, kind, **options).behavior["b"].values


def test_behaviour_on_the_frames():
    s = _with([1, 3, 4, 8], [10, 30, np.nan, 80])
    nan = np.nan
    want = {
        "linear": [nan, 10, 20, 30, nan, nan, nan, nan, 80, nan, nan],
        "nearest": [nan, 10, 10, 30, nan, nan, nan, 80, 80, nan, nan],
        "previous": [nan, 10, 10, 30, nan, nan, nan, nan, 80, 80, 80],
        "mean": [nan, 10, nan, 30, nan, nan, nan, nan, 80, nan, nan],
    }
    for kind, values in want.items():
        np.testing.assert_array_equal(_values(s, kind), np.float32(values), err_msg=kind)
    out = align_behavior(s, "mean")
    assert out.behavior["b"].unit == "m/s" and "brought to the frames, mean" in out.notes[-1]
    s = _with([0, 10], [0, 10])
    np.testing.assert_allclose(_values(s, "linear"), np.arange(11))
    assert np.isnan(_values(s, "linear", longest_s=5)[1:10]).all()
    s = _with(np.arange(0, 10, 0.25), np.arange(0, 10, 0.25))
    np.testing.assert_allclose(_values(s, "mean")[:10], np.arange(10) + 0.375)
    two = _with([0, 10], [[0, 1], [10, 11]])
    assert _values(two, "linear")[5].tolist() == [5, 6]


def test_labels_are_never_between_labels():
    for labels, missing in ((["a", "b", "c"], ""), ([0, 5, 9], -1)):
        s = _with([1, 4, 6], labels, "categorical")
        for kind in ("linear", "mean", "previous"):
            got = _values(s, kind).tolist()
            a, b, c = labels
            assert got == [missing, a, a, a, b, b, c, c, c, missing, missing]
        assert "in place of linear: it is categorical" in align_behavior(s).notes[-1]
    assert (_values(_with([], np.zeros(0)), "nearest") != 0).all()
    with pytest.raises(RecordingError, match="no such interpolation"):
        align_behavior(s, "cubic")
    with pytest.raises(RecordingError, match="behavior/x"):
        align_behavior(s, names=["x"])
