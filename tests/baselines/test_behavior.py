"""Baselines of decoding against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from calm_jax.baselines.behavior import (
    constant,
    logistic,
    reduced_rank,
    ridge,
    shuffled,
    time_only,
)
from calm_jax.baselines.behavior.lagged import design, lagged


def problem(t=60, p=8, o=3, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(t, p)) + 1).astype(np.float32)
    y = x @ rng.normal(size=(p, o)) + 2 + noise * rng.normal(size=(t, o))
    return x, y.astype(np.float32)


@pytest.mark.parametrize("shape", [(60, 8), (12, 40)])
def test_ridge_is_that_of_scikit_learn(shape):
    x, y = problem(*shape)
    for alpha, model in zip((0.1, 10.0), ridge.path(x, y, (0.1, 10.0))):
        other = Ridge(alpha=alpha).fit(x.astype(float), y.astype(float))
        np.testing.assert_allclose(model.weights, other.coef_.T, atol=1e-4)
        np.testing.assert_allclose(model(x), other.predict(x), atol=1e-3)


def test_every_output_has_the_alpha_that_validation_likes_best():
    x, y = problem(40, 30, noise=4.0)
    xv, yv = problem(40, 30, noise=4.0, seed=0)[0][::-1], y[::-1]
    alphas = (0.1, 10.0, 1e3)
    chosen = ridge.fit(x, y, xv, yv, alphas)
    models = ridge.path(x, y, alphas)
    errors = np.array([np.square(m(xv) - yv).mean(0) for m in models])
    for o, k in enumerate(errors.argmin(0)):
        np.testing.assert_array_equal(chosen.weights[:, o], models[k].weights[:, o])


def test_reduced_rank_is_the_closed_form():
    """Without penalty: OLS times the projection on the leading directions of the fit."""
    x, y = problem(80, 6, 4)
    [model] = ridge.path(x, y, (1e-9,))
    low = reduced_rank.reduce(model, x, 0.0, 2)
    xc, yc = x - x.mean(0), y - y.mean(0)
    ols = np.linalg.lstsq(xc.astype(float), yc.astype(float), rcond=None)[0]
    v = np.linalg.svd(xc @ ols)[2][:2].T
    np.testing.assert_allclose(low.weights, ols @ v @ v.T, atol=1e-3)
    assert np.linalg.matrix_rank(low.weights, tol=1e-3) == 2
    np.testing.assert_allclose(low(x).mean(0), y.mean(0), atol=1e-3)
    # No other matrix of this rank among many near it fits better.
    rng = np.random.default_rng(0)
    best = np.square(xc @ low.weights - yc).sum()
    for _ in range(50):
        a = np.linalg.svd(low.weights + 0.1 * rng.normal(size=low.weights.shape))
        other = (a[0][:, :2] * a[1][:2]) @ a[2][:2]
        assert np.square(xc @ other - yc).sum() >= best - 1e-3


def test_reduced_rank_of_one_output_is_ridge():
    x, y = problem(o=1)
    one, other = (f(x, y, x[::2], y[::2], (1.0,)) for f in (ridge.fit, reduced_rank.fit))
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("balanced", [True, False])
def test_logistic_regression_is_that_of_scikit_learn(classes, balanced):
    x, y = problem(200, 5, classes)
    labels = y.argmax(1)
    model = logistic.fit(x, labels, x, labels, classes, balanced=balanced, strengths=(0.1,))
    other = LogisticRegression(C=0.1, class_weight="balanced" if balanced else None, tol=1e-8)
    other.fit(x, labels)
    np.testing.assert_allclose(model(x), other.predict_log_proba(x), atol=0.1)


def test_a_class_that_training_lacks_is_never_decoded():
    x, y = problem(100, 5, 2)
    labels = y.argmax(1) * 2  # 0 and 2 of three classes
    model = logistic.fit(x, labels, x, np.ones(100), 3, balanced=True, strengths=(1.0,))
    assert model(x).shape == (100, 3) and set(model(x).argmax(1)) == {0, 2}


@pytest.mark.parametrize("ahead", [0, 2])
def test_lags_are_causal_and_stay_in_their_range(ahead):
    z = np.arange(20, dtype=np.float32).reshape(10, 2)
    made = lagged(z, 3, ahead)
    assert made.shape == (10, 2 * (3 + ahead))
    np.testing.assert_array_equal(made[5, :2], z[5 + ahead])
    np.testing.assert_array_equal(made[5, -2:], z[3])
    np.testing.assert_array_equal(made[0, -2:], z[0])
    for cut in range(1, 10):
        other = z.copy()
        other[cut:] = -7
        changed = np.flatnonzero((lagged(other, 3, ahead) != made).any(1))
        assert changed[0] == max(cut - ahead, 0)
    both = design([z, -z], 3, ahead)
    np.testing.assert_array_equal(both[10:], -made)


def test_time_knows_the_clock_alone():
    made = time_only.design([(0, 5), (10, 15)], 20, trials=True)
    assert made.shape == (10, 6) and np.abs(made).max() <= 1
    assert (np.diff(made[:, 0]) > 0).all()
    np.testing.assert_allclose(made[:5, 3:], made[5:, 3:])


def test_constants():
    labels = np.array([0, 0, 0, 1])
    assert (constant.majority(labels, 3, 2).argmax(1) == 0).all()
    np.testing.assert_allclose(constant.mean(np.array([1.0, 3.0]), 2), 2)
    found = constant.chance(labels, np.array([0, 1, 1, 1]), 2)
    assert found == {"accuracy": 0.75 * 0.25 + 0.25 * 0.75, "balanced_accuracy": 0.5}


def test_shifts_leave_a_tenth_and_the_level_is_at_chance():
    found = shuffled.shifts(500, 200)
    assert found.min() >= 50 and found.max() <= 450 and len(set(found.tolist())) == 200
    rng = np.random.default_rng(0)
    x = rng.normal(size=500)
    middle, low, high = shuffled.level(lambda order: np.corrcoef(x, x[order])[0, 1], 500)
    assert abs(middle) < 0.02 and -0.15 < low < 0 < high < 0.15
    assert np.isnan(shuffled.level(lambda order: 0.0, 5)).all()
