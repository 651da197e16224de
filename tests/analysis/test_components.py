"""Principal components against scikit-learn, on every way they are computed."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from calm_jax.analysis import components
from calm_jax.errors import AnalysisError


@pytest.mark.parametrize("shape", [(60, 50), (400, 20), (20, 400)])
def test_equal_to_scikit_learn(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 3, shape[1]) + 7
    made = components.fit(x, 5)
    known = PCA(5, svd_solver="full").fit(x)
    np.testing.assert_allclose(made.variance, known.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(made.ratio, known.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(made.axes * known.components_, 1)), 1, rtol=1e-9)
    scores = components.project(made, x)
    np.testing.assert_allclose(np.abs(scores), np.abs(known.transform(x)), atol=1e-8)
    np.testing.assert_allclose(scores.var(0, ddof=1), made.variance, rtol=1e-9)
    assert (made.axes[np.arange(5), np.abs(made.axes).argmax(1)] > 0).all()


def test_the_randomised_way_finds_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 200)) + 0.1 * rng.normal(size=(300, 200))
    exact = components.fit(x, 3)
    monkeypatch.setattr(components, "_EXACT", 100)
    quick = components.fit(x, 3)
    np.testing.assert_allclose(quick.ratio, exact.ratio, rtol=1e-6)
    np.testing.assert_allclose(quick.axes, exact.axes, atol=1e-5)


def test_fewer_components_than_asked_for():
    x = np.outer(np.arange(10.0), [1, 2, 3])  # one direction
    assert components.fit(x, 3, fewer=True).axes.shape == (1, 3)
    with pytest.raises(AnalysisError, match="1 directions only"):
        components.fit(x, 2)
    with pytest.raises(AnalysisError, match="4 components cannot be fitted"):
        components.fit(x, 4, rows="frames", columns="neurons")
    with pytest.raises(AnalysisError, match="nothing varies"):
        components.fit(np.full((5, 3), 0.1), 1)
    x[3, 1] = np.nan
    with pytest.raises(AnalysisError, match="NaN, infinite or huge values in 1 of 10 rows"):
        components.fit(x, 1)
