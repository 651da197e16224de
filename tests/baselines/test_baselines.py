"""Baselines against scikit-learn, against systems they must solve, and kept from test frames."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import Ridge

from calm_jax import config
from calm_jax.baselines import common_factors, copy_last, mean, population_ridge, shared_linear
from calm_jax.baselines import windows as W
from calm_jax.errors import RecordingError
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split

ALL = (copy_last, mean, shared_linear, population_ridge, common_factors)


def _prepared(seed=0, frames=300, change=None, valid=None, settings=None, walk=False, neurons=3):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(frames, neurons))
    x = np.cumsum(noise + 0.2, 0) if walk else noise
    if not walk:
        for t in range(1, frames):  # each neuron follows the next one
            x[t] = 0.9 * np.roll(x[t - 1], 1) + 0.3 * noise[t]
    start = np.arange(0, frames, 30)
    two = Session(
        rng.normal(size=(frames, 2)), rate=10, session="two", trials=Trials(start, start + 30)
    )
    sessions = [Session(x, rate=10, session="one", valid=valid), two]
    split = make_split(MemoryStore(sessions), config.Split())
    if change is not None:
        for i, s in enumerate(sessions):
            x = s.traces.copy()
            for part in change:
                for a, b in split.parts[i][part]:
                    x[a:b] = 50
            sessions[i] = s.replace(traces=x)
    store = MemoryStore(sessions)
    scalers = preprocess.fit(store, split, settings or config.Preprocess())
    return Prepared(store, split, scalers)


def _context(p, i, b=5, context=8):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(b, context, p.scalers.mean[i].size)).astype(np.float32)
    return x, np.ones(x.shape, bool)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("horizon", [2, 4, 11])
def test_shapes_and_prefixes(method, horizon):
    p = _prepared()
    f = method.fit(p, p.splits, 8, 4)
    for i in range(2):
        x, mask = _context(p, i)
        y = f(x, i, mask, horizon)
        assert y.shape == (5, horizon, x.shape[2]) and y.dtype == np.float32
        assert_allclose(f(x, i, mask, 16)[:, :horizon], y, atol=1e-5)
        assert_allclose(f(x[2:3], i, mask[2:3], horizon)[0], y[2], atol=1e-5)


@pytest.mark.parametrize("method", ALL)
def test_test_frames_move_nothing(method):
    p, q = _prepared(), _prepared(change=["test"])
    fits = [method.fit(a, a.splits, 8, 4) for a in (p, q)]
    for i in range(2):
        x, mask = _context(p, i)
        assert_array_equal(*(f(x, i, mask, 9) for f in fits))


def test_validation_frames_choose_alpha_only():
    p, q = _prepared(), _prepared(change=["valid"])
    for method in (shared_linear, population_ridge):
        a, b = (method.fit(k, k.splits, 8, 4, alphas=[0.1]) for k in (p, q))
        x, mask = _context(p, 0)
        if method is shared_linear and a.difference != b.difference:
            continue
        assert_array_equal(a(x, 0, mask, 4), b(x, 0, mask, 4))


def test_copy_and_mean():
    p = _prepared()
    x, mask = _context(p, 0)
    assert_array_equal(copy_last.fit(p, p.splits, 8, 4)(x, 0, mask, 3), np.repeat(x[:, -1:], 3, 1))
    assert (mean.fit(p, p.splits, 8, 4)(x, 0, mask, 3) == 0).all()
    raw = _prepared(settings=config.Preprocess(z_score=False))
    f = mean.fit(raw, raw.splits, 8, 4)
    train = np.concatenate([raw.store.read(1, a, b)[0] for a, b in raw.splits.parts[1]["train"]])
    assert_allclose(f(_context(raw, 1)[0], 1, None, 2)[0, 1], train.mean(0), rtol=1e-4)


@pytest.mark.parametrize("frames", [300, 75])  # more windows than features, and fewer
def test_population_ridge_is_ridge_regression(frames):
    p = _prepared(frames=frames * 2, neurons=5)
    context = 8 if frames == 300 else 9
    f = population_ridge.fit(
        p, p.splits, context, 4, alphas=[3.0], lags=[99], limit=3000 if frames == 300 else 40
    )
    x, y = W.stacked(p, 0, "train", context, 4, 10**6 if frames == 300 else 40)
    flat = lambda a: a.reshape(len(a), -1)
    assert (len(x) > 5 * context) == (frames == 300)
    oracle = Ridge(alpha=3.0, solver="svd").fit(flat(x).astype(float), flat(y))
    c, mask = _context(p, 0, context=context)
    got = f(c, 0, mask, 4)
    assert_allclose(flat(got), oracle.predict(flat(c)), atol=2e-3)


def test_population_ridge_takes_the_alpha_that_validates_best():
    p = _prepared(frames=600)
    grid = [1e-1, 1e2, 1e5]
    f = population_ridge.fit(p, p.splits, 8, 4, alphas=grid)
    c, mask = _context(p, 0)
    f(c, 0, mask, 4)
    x, y = W.stacked(p, 0, "valid", 8, 4, 1000)
    errors = []
    for a in grid:
        g = population_ridge.fit(p, p.splits, 8, 4, alphas=[a])
        errors.append(np.mean((g(x, 0, np.ones_like(x, bool), 4) - y) ** 2))
    assert f.alphas[0] == grid[int(np.argmin(errors))] and len(set(errors)) == 3


def test_population_ridge_takes_the_lags_that_validate_best():
    p = _prepared(frames=600)
    f = population_ridge.fit(p, p.splits, 8, 4, alphas=[1e1], lags=[1, 4, 8])
    c, mask = _context(p, 0)
    before = f(c, 0, mask, 4)
    x, y = W.stacked(p, 0, "valid", 8, 4, 500)
    errors = []
    for k in (1, 4, 8):
        g = population_ridge.fit(p, p.splits, 8, 4, alphas=[1e1], lags=[k])
        errors.append(np.mean((g(x, 0, np.ones_like(x, bool), 4) - y) ** 2))
    assert f.lags[0] == (1, 4, 8)[int(np.argmin(errors))] and len(set(errors)) == 3
    # Frames before the lags chosen do not matter.
    c[:, : 8 - f.lags[0]] += 1.0
    assert_allclose(f(c, 0, mask, 4), before, atol=1e-6)


def test_population_ridge_keeps_few_sessions():
    p = _prepared()
    f = population_ridge.fit(p, p.splits, 8, 4, keep=1)
    for i in (0, 1, 0):
        x, mask = _context(p, i)
        f(x, i, mask, 4)
    assert list(f._maps) == [0]


def test_population_ridge_uses_other_neurons_and_shared_linear_cannot():
    p = _prepared(frames=2010)
    x, y = W.stacked(p, 0, "test", 8, 4, 1000)
    mask = np.ones(x.shape, bool)
    error = {
        m.__name__.split(".")[-1]: np.mean((m.fit(p, p.splits, 8, 4)(x, 0, mask, 4) - y) ** 2)
        for m in (population_ridge, shared_linear, copy_last, mean)
    }
    assert error["population_ridge"] < 0.8 * error["shared_linear"]
    assert error["shared_linear"] < min(error["copy_last"], error["mean"])


def test_shared_linear_is_ridge_regression():
    rng = np.random.default_rng(0)
    valid = rng.random((300, 3)) < 0.97
    p = _prepared(valid=valid)
    f = shared_linear.fit(p, p.splits, 8, 4, alphas=[1e-3])
    rows = []
    for i in range(2):
        for z, mask in W.windows(p, i, "train", 8, 4):
            z, mask = z.transpose(0, 2, 1).reshape(-1, 12), mask.transpose(0, 2, 1).reshape(-1, 12)
            rows.append(z[mask.all(1)])
    v = np.concatenate(rows).astype(float)
    if f.difference:
        v = v - v[:, 7:8]
    alpha = 1e-3 * np.square(v[:, :8]).sum() / 8
    oracle = Ridge(alpha=alpha).fit(v[:, :8], v[:, 8:])
    assert_allclose(f.weights[:-1], oracle.coef_.T, atol=1e-4)
    assert_allclose(f.weights[-1], oracle.intercept_, atol=1e-4)


def test_shared_linear_follows_a_drift():
    p = _prepared(frames=1500, walk=True)
    f = shared_linear.fit(p, p.splits, 8, 4, sessions=[0])
    assert f.difference
    x, mask = _context(p, 0)
    assert_allclose(f(x + 30, 0, mask, 9), f(x, 0, mask, 9) + 30, atol=1e-3)


def test_shared_linear_learns_from_training_sessions_only():
    p = _prepared()
    store = p.store
    split = make_split(store, config.Split(), held_out=["two"])
    scalers = preprocess.fit(store, split, config.Preprocess())
    one = shared_linear.fit(Prepared(store, split, scalers), split, 8, 4)
    both = shared_linear.fit(p, p.splits, 8, 4)
    only = shared_linear.fit(p, p.splits, 8, 4, sessions=[0])
    assert_array_equal(one.weights, only.weights)
    assert not np.array_equal(one.weights, both.weights)


def test_too_short_ranges_are_named():
    p = _prepared()
    with pytest.raises(RecordingError, match=r"session two.*30 frames.*40 \+ 4"):
        population_ridge.fit(p, p.splits, 40, 4)(
            np.zeros((1, 40, 2)), 1, np.ones((1, 40, 2), bool), 4
        )
    with pytest.raises(RecordingError, match="no train range"):
        shared_linear.fit(p, p.splits, 400, 4)


def test_windows_respect_the_limit():
    p = _prepared()
    for limit in (1, 7, 50, 10**6):
        for i in range(2):
            x, y = W.stacked(p, i, "train", 8, 4, limit)
            ranges = len(p.splits.parts[i]["train"])
            assert len(x) == len(y) <= max(limit, ranges)
