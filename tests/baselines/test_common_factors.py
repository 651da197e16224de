"""Common factors: explicit least squares beside the moments, a population that has factors, and
what it may look at."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calm_jax import config
from calm_jax.baselines import common_factors, shared_linear
from calm_jax.baselines import windows as W
from calm_jax.errors import RecordingError
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split

CONTEXT, HORIZON = 8, 4


def population(seed=0, frames=1500, neurons=40, factors=3, trials=False, spoilt=(), noise=1.0):
    """Traces that share slow factors and have fast noise of their own, prepared."""
    rng = np.random.default_rng(seed)
    f = np.zeros((frames, factors))
    for t in range(1, frames):
        f[t] = 0.9 * f[t - 1] + rng.normal(size=factors)
    x = f @ rng.normal(size=(factors, neurons)) + 3 * noise * rng.normal(size=(frames, neurons))
    start = np.arange(0, frames, 30)
    more = {"trials": Trials(start, start + 30)} if trials else {}
    made = Session(x, rate=10, session="s", **more)
    split = make_split(MemoryStore([made]), config.Split())
    for part in spoilt:
        for a, b in split.parts[0][part]:
            x[a:b] = 50
    store = MemoryStore([made.replace(traces=x)])
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


def error(p, f, part="test"):
    x, y = W.stacked(p, 0, part, CONTEXT, HORIZON, 10**6)
    return float(np.mean(np.square(f(x, 0, np.ones(x.shape, bool), HORIZON) - y)))


@pytest.mark.parametrize("trials", [False, True])
def test_factors_are_counted_and_forecast_better_than_single_traces(trials):
    p = population(trials=trials)
    f = common_factors.fit(p, p.splits, CONTEXT, HORIZON)
    alone = common_factors.fit(p, p.splits, CONTEXT, HORIZON, components=(0,))
    single = shared_linear.fit(p, p.splits, CONTEXT, HORIZON)
    assert error(p, f) < 0.93 * error(p, single)
    assert f.chosen == {0: 3}
    assert error(p, alone) == pytest.approx(error(p, single), rel=0.01)
    assert alone.chosen == {0: 0}


def test_without_factors_none_are_taken():
    p = population(factors=1, noise=100.0)
    f = common_factors.fit(p, p.splits, CONTEXT, HORIZON)
    error(p, f)
    assert f.chosen[0] <= 1


def test_maps_are_those_of_windows_laid_out():
    """Both maps against lstsq on all windows; the choice against errors computed from forecasts."""
    p = population(neurons=12)
    f = common_factors.fit(p, p.splits, CONTEXT, HORIZON, components=(2,), alphas=(1e-3,))
    error(p, f)
    own = f._models[0]
    size = CONTEXT + HORIZON
    z = np.concatenate([p.range(0, a, b)[0] for a, b in p.splits.parts[0]["train"]])
    assert_allclose(own.mean, z.mean(0), atol=1e-5)
    assert_allclose(own.parts.T @ own.parts, np.eye(2), atol=1e-5)
    _, _, v = np.linalg.svd(z - z.mean(0), full_matrices=False)
    assert_allclose(np.abs(own.parts.T @ v[:2].T), np.eye(2), atol=1e-2)
    g = (z - own.mean) @ own.parts
    rest = z - own.mean - g @ own.parts.T
    for given, made in ((g / np.sqrt((g**2).mean(0)), own.shared), (rest, own.own)):
        cut = np.lib.stride_tricks.sliding_window_view(given, size, 0).reshape(-1, size)
        cut = cut.astype(np.float64)
        if made.changes:
            cut = cut - cut[:, CONTEXT - 1 : CONTEXT]
        x, y = cut[:, :CONTEXT], cut[:, CONTEXT:]
        ridge = 1e-3 * np.trace(x.T @ x) / CONTEXT * np.eye(CONTEXT)
        w = np.linalg.solve(x.T @ x + ridge, x.T @ y) if not made.changes else made.weights
        assert_allclose(made.weights, w, atol=2e-4)


def test_squared_errors_of_factors_and_rest_add_up():
    p = population(neurons=12)
    f = common_factors.fit(p, p.splits, CONTEXT, HORIZON, components=(3,), alphas=(1e-2,))
    error(p, f)
    own = f._models[0]
    x, y = W.stacked(p, 0, "valid", CONTEXT, HORIZON, 10**6)
    apart = own(x) - y
    part = apart @ own.parts
    rest = apart - part @ own.parts.T
    assert_allclose(np.sum(part**2) + np.sum(rest**2), np.sum(apart**2), rtol=1e-4)


def test_only_training_frames_are_read():
    """Frames of the other parts may be anything: the model stays the same to the bit."""
    models = []
    for spoilt in ((), ("valid", "test")):
        p = population(spoilt=spoilt)
        f = common_factors.fit(p, p.splits, CONTEXT, HORIZON)
        f(np.zeros((1, CONTEXT, 40), np.float32), 0, np.ones((1, CONTEXT, 40), bool), HORIZON)
        models.append(f._models[0])
    for name in ("mean", "parts"):
        assert_array_equal(getattr(models[0], name), getattr(models[1], name))
    assert_array_equal(models[0].own.weights, models[1].own.weights)


def test_more_neurons_than_frames_and_few_frames():
    p = population(frames=160, neurons=90)
    f = common_factors.fit(p, p.splits, CONTEXT, HORIZON)
    assert np.isfinite(error(p, f, "train"))
    p = population(frames=100, neurons=4)
    tight = common_factors.fit(p, p.splits, 40, 10)  # no room for a choice
    x = np.zeros((2, 40, 4), np.float32)
    assert tight(x, 0, np.ones(x.shape, bool), 25).shape == (2, 25, 4)
    assert tight.chosen == {0: 0}
    with pytest.raises(RecordingError, match="no train range"):
        common_factors.fit(p, p.splits, 80, 30)(x, 0, np.ones(x.shape, bool), 4)
