"""Scores against loops; forecasts that cannot see the future; constant neurons counted."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal

from calm_jax import config, evaluation
from calm_jax.baselines import copy_last, mean, population_ridge, shared_linear
from calm_jax.errors import CalmError, RecordingError
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split
from calm_jax.rows import select
from calm_jax.scored_windows import fitting_plan, plan

SETTINGS = config.Forecasting(
    context=8, horizon=4, origin_stride=3, context_a=6, score_from_a=8, protocols=("A", "B")
)


def _prepared(sessions=None):
    if sessions is None:
        rng = np.random.default_rng(0)
        x = np.cumsum(rng.normal(size=(270, 4)), 0)
        x[:, 2] = 1.0  # constant
        start = np.arange(0, 270, 27)
        stop = start + 20 + np.arange(10) % 6  # trials of different lengths
        valid = rng.random((270, 4)) < 0.9
        one = Session(
            x, rate=10, valid=valid, session="one", animal="a", trials=Trials(start, stop)
        )
        two = Session(rng.normal(size=(200, 3)), rate=10, session="two", animal="b")
        sessions = [one, two]
    store = MemoryStore(sessions)
    split = make_split(store, config.Split())
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


class Wiggle:
    """A forecast that varies, and keeps what it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, context, session, mask, horizon):
        self.seen.append((context.copy(), mask.copy(), session))
        h = np.arange(horizon, dtype=np.float32)[:, None]
        return context[:, -1:] * np.cos(h) + 0.1 * np.sin(3 * h)


def _loop(p, i, protocol, method):
    """(forecast, truth, valid) per trial and neuron, by the definition."""
    s = SETTINGS
    out = []
    for a, b in p.splits.parts[i]["test"]:
        z, mask = p.range(i, a, b)
        if protocol == "A":
            spans = [(s.context_a, b - a, s.score_from_a)]
        else:
            spans = [
                (o, o + s.horizon, o)
                for o in range(s.context, b - a - s.horizon + 1, s.origin_stride)
            ]
        rows = []
        for o, end, first in spans:
            context = s.context_a if protocol == "A" else s.context
            y = method(z[None, o - context : o], i, mask[None, o - context : o], end - o)[0]
            rows.append((y[first - o :], z[first:end], mask[first:end]))
        out.append([np.concatenate(x) for x in zip(*rows, strict=True)])
    return out


def _value(rows, **fields):
    (found,) = select(rows, **fields)
    return found["value"]


@pytest.mark.parametrize("protocol", ["A", "B"])
def test_rows_equal_the_loop(protocol):
    p = _prepared()
    rows = evaluation.evaluate_forecasts(p, p.splits, {"calm": Wiggle()}, SETTINGS, batch=5)
    for i, name in enumerate(["one", "two"]):
        where = {"protocol": protocol, "session": name, "step": None}
        if protocol == "A" and name == "two":
            assert not select(rows, **where)
            continue
        for method, f in (("calm", Wiggle()), ("copy_last", copy_last.CopyLast())):
            trials = _loop(p, i, protocol, f)
            keep = np.flatnonzero(~p.scalers.constant[i])
            errors = [
                np.mean([np.mean(np.square(x - y)[m[:, n], n]) for n in keep]) for x, y, m in trials
            ]
            assert_allclose(
                _value(rows, **where, method=method, metric="mse"), np.mean(errors), rtol=1e-5
            )
            errors = [
                np.mean([np.mean(np.abs(x - y)[m[:, n], n]) for n in keep]) for x, y, m in trials
            ]
            assert_allclose(
                _value(rows, **where, method=method, metric="mae"), np.mean(errors), rtol=1e-5
            )
            x, y, m = (np.concatenate(v) for v in zip(*trials, strict=True))
            r = [scipy.stats.pearsonr(x[m[:, n], n], y[m[:, n], n])[0] for n in keep]
            assert_allclose(_value(rows, **where, method=method, metric="r"), np.mean(r), rtol=1e-4)
            if method == "calm":
                r = [
                    np.mean([scipy.stats.pearsonr(x[m[:, n], n], y[m[:, n], n])[0] for n in keep])
                    for x, y, m in trials
                ]
                got = _value(rows, **where, method=method, metric="r_trial")
                assert_allclose(got, np.mean(r), rtol=1e-4)
        calm, copy = (_value(rows, **where, method=k, metric="mse") for k in ("calm", "copy_last"))
        assert_allclose(_value(rows, **where, method="calm", metric="skill"), 1 - calm / copy)


def test_long_validation_trials_give_more_windows_to_fit_on():
    """One behind the other, as many as the trial holds; short trials give their first one."""
    rng = np.random.default_rng(0)
    start, stop = np.array([0, 200, 400, 500, 700]), np.array([190, 390, 490, 690, 890])
    one = Session(
        rng.normal(size=(900, 3)), rate=10, session="one", animal="a", trials=Trials(start, stop)
    )
    p = _prepared([one])
    ranges = p.splits.parts[0]["valid"]
    s = dataclasses.replace(SETTINGS, horizon_a=50)
    made = fitting_plan(p, p.splits, 0, "A", s)
    for k, (a, b) in enumerate(ranges):
        own = made.origin[made.trial == k]
        assert own[0] == a + s.context_a
        assert (np.diff(own) == 50).all()
        assert own[-1] + 50 <= b or len(own) == 1
        assert own[-1] + 100 > b
    assert len(made.origin) > len(ranges)
    same = dataclasses.replace(SETTINGS, horizon_a=1000)  # to the ends of the trials
    for protocol, settings in (("A", same), ("B", s)):
        every = plan(p, p.splits, 0, "valid", protocol, settings)
        mine = fitting_plan(p, p.splits, 0, protocol, settings)
        np.testing.assert_array_equal(mine.origin, every.origin)
        np.testing.assert_array_equal(mine.trial, every.trial)


def test_steps_ahead():
    p = _prepared()
    rows = evaluation.evaluate_forecasts(p, p.splits, {}, SETTINGS)
    z, _ = p.range(1, *p.splits.parts[1]["test"][0])
    origins = np.arange(8, len(z) - 4 + 1, 3)
    for h in range(4):
        want = np.mean((z[origins - 1] - z[origins + h]) ** 2)
        where = {"protocol": "B", "session": "two", "method": "copy_last", "step": h + 1}
        assert_allclose(_value(rows, **where, metric="mse"), want, rtol=1e-5)
        r = [scipy.stats.pearsonr(z[origins - 1, n], z[origins + h, n])[0] for n in range(3)]
        assert_allclose(_value(rows, **where, metric="r"), np.mean(r), rtol=1e-4)
    steps = {r["step"] for r in select(rows, protocol="A", session="one", metric="mse")}
    longest = max(b - a for a, b in p.splits.parts[0]["test"])
    assert steps == {None, *range(3, longest - 6 + 1)}


def test_copy_and_mean_always_stand_beside():
    p = _prepared()
    rows = evaluation.evaluate_forecasts(p, p.splits, {"calm": Wiggle()}, SETTINGS, seed=3)
    top = select(rows, session=None, animal=None, metric="mse", step=None)
    assert {(r["protocol"], r["method"]) for r in top} == {
        (a, m) for a in "AB" for m in ("copy_last", "mean", "calm")
    }
    assert {r["seed"] for r in rows} == {3}
    copy = select(rows, method="copy_last", metric="skill")
    assert all(r["value"] == 0 for r in copy)
    assert _value(rows, protocol="B", session="two", method="mean", metric="r", step=None) == 0


def test_constant_neurons_are_counted_and_left_out():
    p = _prepared()
    rows = evaluation.evaluate_forecasts(p, p.splits, {}, SETTINGS)
    where = {"protocol": "B", "session": "one", "method": "mean", "step": None}
    assert _value(rows, **where, metric="n_constant") == 1
    assert _value(rows, **where, metric="n_neurons") == 3

    def bad_on_constant(context, session, mask, horizon):
        y = np.repeat(context[:, -1:], horizon, 1)
        if session == 0:
            y[:, :, 2] = 1e6
        return y

    rows = evaluation.evaluate_forecasts(p, p.splits, {"calm": bad_on_constant}, SETTINGS)
    assert _value(rows, **{**where, "method": "calm"}, metric="skill") == 0
    scores = evaluation.score_forecasts(p, p.splits, {"calm": Wiggle()}, SETTINGS)
    r = scores[0].per_neuron()["r"]
    assert np.isnan(r[2]) and np.isfinite(np.delete(r, 2)).all()


@pytest.mark.parametrize("method", [copy_last, mean, shared_linear, population_ridge])
def test_frames_at_and_after_the_origin_change_no_forecast(method):
    p = _prepared()
    f = method.fit(p, p.splits, 8, 4)
    (a, b) = p.splits.parts[1]["test"][0]
    settings = config.Forecasting(context=8, horizon=4, origin_stride=1000, protocols=("B",))
    origin = a + 8
    x = p.store.sessions[1].traces.copy()
    x[origin:] = -7
    changed = MemoryStore([p.store.sessions[0], p.store.sessions[1].replace(traces=x)])
    scalers = preprocess.fit(changed, p.splits, config.Preprocess(smoothing=0.4))
    smoothed = Prepared(p.store, p.splits, preprocess.fit(p.store, p.splits, scalers.config))
    seen = []

    def keep(*args):
        seen.append((args[0].copy(), f(*args)))
        return seen[-1][1]

    for q in (smoothed, Prepared(changed, p.splits, scalers)):
        evaluation.evaluate_forecasts(q, q.splits, {"calm": keep}, settings, sessions=[1])
    (c0, y0), (c1, y1) = seen
    assert_array_equal(c0, c1)
    assert_array_equal(y0, y1)


def test_forecasters_meet_one_shape_per_session_and_protocol():
    p = _prepared()
    f = Wiggle()
    evaluation.evaluate_forecasts(p, p.splits, {"calm": f}, SETTINGS, batch=4, protocols=["B"])
    shapes = {(i, x.shape) for x, _, i in f.seen}
    assert len(shapes) == 2 and len(f.seen) > 2


def test_bad_forecasters_and_short_ranges_are_named():
    p = _prepared()
    short = lambda c, i, m, h: c[:, :1]
    with pytest.raises(CalmError, match=r"method calm, session one.*another shape"):
        evaluation.evaluate_forecasts(p, p.splits, {"calm": short}, SETTINGS)
    nan = lambda c, i, m, h: np.full((len(c), h, c.shape[2]), np.nan)
    with pytest.raises(CalmError, match="NaN"):
        evaluation.evaluate_forecasts(p, p.splits, {"calm": nan}, SETTINGS)
    long = config.Forecasting(context=300, protocols=("B",))
    with pytest.raises(RecordingError, match=r"session one.*300 \+ 16"):
        evaluation.evaluate_forecasts(p, p.splits, {}, long)


def test_averages_go_session_animal_all():
    p = _prepared()
    rows = evaluation.evaluate_forecasts(p, p.splits, {}, SETTINGS, protocols=["B"])
    where = {"protocol": "B", "method": "mean", "metric": "mse", "step": None}
    each = [_value(rows, **where, session=s) for s in ("one", "two")]
    assert math.isclose(_value(rows, **where, session=None, animal=None), np.mean(each))


def test_the_table_of_neurons_holds_every_neuron_and_agrees_with_the_rows(tmp_path):
    p = _prepared()
    methods = {"copy_last": copy_last.fit(p, p.splits, 8, 4)}
    scores = evaluation.score_forecasts(p, p.splits, methods, SETTINGS)
    evaluation.write_neurons(scores, p, tmp_path / "neurons.csv")
    with open(tmp_path / "neurons.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 + 4 + 3  # session one under A and B, session two under B
    mine = [x for x in lines if x["protocol"] == "B" and x["session"] == "one"]
    assert [x["neuron"] for x in mine] == ["0", "1", "2", "3"]
    assert [x["constant"] for x in mine] == ["0", "0", "1", "0"] and mine[2]["r"] == ""
    mean_r = np.mean([float(x["r"]) for x in mine if x["r"]])
    rows = evaluation.rows_of(scores)
    want = _value(rows, protocol="B", session="one", metric="r", step=None)
    assert_allclose(mean_r, want, atol=1e-5)  # six digits are written
