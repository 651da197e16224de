"""Forecasts along true components: known cases, scikit-learn, nulls."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from calm_jax.analysis.dynamics import dynamics
from calm_jax.errors import AnalysisError


@pytest.fixture
def truth():
    rng = np.random.default_rng(0)
    return np.cumsum(rng.normal(size=(25, 16, 4)), 1) @ rng.normal(size=(4, 30)) + (
        0.1 * rng.normal(size=(25, 16, 30))
    )


def test_equal_to_scikit_learn_and_numpy(truth):
    pred = truth + np.random.default_rng(1).normal(size=truth.shape)
    made = dynamics(truth, {"a": pred}, components=3, shuffles=2)
    known = PCA(3, svd_solver="full").fit(truth.reshape(-1, 30))
    x, y = (known.transform(v.reshape(-1, 30)) for v in (truth, pred))
    np.testing.assert_allclose(made.ratio, known.explained_variance_ratio_)
    np.testing.assert_allclose(made.share, known.explained_variance_ratio_)
    np.testing.assert_allclose(made.r["a"], [np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(3)])
    np.testing.assert_allclose(made.explained["a"], 1 - ((x - y) ** 2).sum(0) / (x**2).sum(0))
    assert made.fitted == "test" and made.trials == 25 and made.frames == 400


def test_a_perfect_forecast_a_constant_one_and_one_of_other_trials(truth):
    made = dynamics(truth, {"perfect": truth, "constant": np.ones_like(truth),
                            "other": np.roll(truth, 1, 0)}, components=4, shuffles=50)  # fmt: skip
    np.testing.assert_allclose(made.r["perfect"], 1)
    np.testing.assert_allclose(made.explained["perfect"], 1)
    np.testing.assert_allclose(made.p["perfect"], 1 / 51)
    np.testing.assert_array_equal(made.r["constant"], 0)
    assert (made.explained["constant"] < 1e-9).all()
    assert np.abs(made.r["other"]).max() < 0.5 and np.abs(made.null["perfect"].mean(0)).max() < 0.15


def test_components_of_training_traces_do_not_see_the_test(truth):
    train = np.random.default_rng(2).normal(size=(200, 30))
    made = dynamics(truth, {"a": truth}, components=2, fit_on=train, shuffles=0)
    known = PCA(2, svd_solver="full").fit(train)
    np.testing.assert_allclose(np.abs(made.truth[0]), np.abs(known.transform(truth[0])))
    assert made.fitted == "train" and np.isnan(made.p["a"]).all()
    np.testing.assert_allclose(made.ratio, known.explained_variance_ratio_)


def test_frames_that_are_masked_or_nan_do_not_count(truth):
    mask = np.ones(truth.shape[:2], bool)
    mask[:, 10:] = False
    spoiled = truth.copy()
    spoiled[:, 10:] = np.nan
    spoiled[3, 2, 5] = np.nan
    made = dynamics(spoiled, {"a": truth}, components=2, mask=mask, shuffles=3)
    assert made.frames == 249 and np.isnan(made.truth[3, 2]).all()
    np.testing.assert_allclose(made.r["a"], 1)
    assert np.isfinite(made.null["a"]).all()


def test_no_trial_keeps_its_place_in_the_null():
    truth = np.repeat(np.arange(6.0)[:, None, None], 5, 1) * [1.0, 2.0]  # trials differ, only
    made = dynamics(truth, {"a": truth}, components=1, shuffles=200)
    assert made.null["a"].max() < 0.999


def test_fewer_components_trials_or_neurons_than_asked_for(truth):
    made = dynamics(truth[:1, :, :3], {"a": truth[:1, :, :3]}, shuffles=9)
    assert made.components == 3 and made.asked == 20 and made.null["a"].shape == (0, 3)
    with pytest.raises(AnalysisError, match="1 neurons"):
        dynamics(truth[:, :, :1], {"a": truth[:, :, :1]})
    with pytest.raises(AnalysisError, match="forecast of a"):
        dynamics(truth, {"a": truth[:, :3]})
    with pytest.raises(AnalysisError, match="nothing varies"):
        dynamics(np.ones((4, 5, 6)), {})
