"""The landscape: its pieces by brute force, measures of known surfaces."""

import numpy as np
import pytest
from scipy import ndimage

from calm_jax.analysis import landscape as land
from calm_jax.analysis.neighbours import local_variance, nearest
from calm_jax.errors import AnalysisError


@pytest.mark.parametrize("of", ["plane", "activity"])
def test_loss_by_brute_force(of):
    x = np.random.default_rng(0).normal(size=(60, 7)) * np.arange(1, 8)
    made = land.landscape(x, grid=6, penalty=2.0, of=of)
    values = made.points if of == "plane" else x
    for row in (0, 3):
        for column in (1, 5):
            g = np.array([made.x[column], made.y[row]])
            distance = np.linalg.norm(made.points - g, axis=1)
            five = np.argsort(distance)[:5]
            known = (values[five].var(0).sum() + 2.0 * np.mean(distance[five] ** 2)) / 7
            assert made.loss[row, column] == pytest.approx(known)
    np.testing.assert_allclose(made.smooth, ndimage.gaussian_filter(made.loss, 1.0, mode="nearest"))
    assert made.roughness == pytest.approx(made.loss.std()) and made.n == 60
    assert made.x[0] < made.points[:, 0].min() and made.x[-1] > made.points[:, 0].max()


def test_neighbours_against_all_pairs():
    rng = np.random.default_rng(0)
    for d in (2, 30):
        x = rng.normal(size=(50, d))
        distance, index = nearest(x, 4)
        full = np.linalg.norm(x[:, None] - x, axis=-1)
        np.fill_diagonal(full, np.inf)
        np.testing.assert_array_equal(index, np.argsort(full, 1)[:, :4])
        np.testing.assert_allclose(distance, np.sort(full, 1)[:, :4], rtol=1e-6)
    expected = [x[i].var(0).mean() for i in index]
    np.testing.assert_allclose(local_variance(x, index), expected)


def test_measures_of_known_surfaces():
    y, x = np.mgrid[-1:1:41j, -1:1:41j]
    bowl, plane = x**2 + y**2, 3 * x - y
    rugged = bowl + 0.2 * np.sin(9 * x) * np.sin(9 * y)
    noise = np.random.default_rng(0).normal(size=x.shape)
    assert land.ruggedness(plane) < 1e-10 and land.ruggedness(bowl) < 1e-10
    assert land.ruggedness(bowl) < land.ruggedness(rugged) < land.ruggedness(noise)
    # White noise: the Laplacian has variance 4 + 16 times that of the noise.
    assert land.ruggedness(noise) == pytest.approx(np.sqrt(20), rel=0.1)
    assert land.ruggedness(7 * rugged + 3) == pytest.approx(land.ruggedness(rugged))
    assert land.local_minima(bowl) == 1 and land.local_minima(plane) == 0
    assert land.local_minima(np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y)) == 8
    assert np.isnan(land.ruggedness(np.ones((9, 9))))
    assert land.roughness(plane) == pytest.approx(np.std(plane))


def test_one_cloud_has_a_basin_and_units_scale_with_the_square():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 10)) * [5, 4, *[0.1] * 8]
    made = land.landscape(x, grid=30)
    centre, corner = made.smooth[15, 15], made.smooth[0, 0]
    assert centre < corner / 3
    twice = land.landscape(2 * x, grid=30)
    assert twice.roughness == pytest.approx(4 * made.roughness)
    assert twice.ruggedness == pytest.approx(made.ruggedness)
    assert land.landscape(x, most=100).n == 100


def test_too_little_to_make_a_plane_of():
    rng = np.random.default_rng(0)
    with pytest.raises(AnalysisError, match="too few frames"):
        land.landscape(rng.normal(size=(5, 4)))
    with pytest.raises(AnalysisError, match="two neurons"):
        land.landscape(rng.normal(size=(50, 1)))
    with pytest.raises(AnalysisError, match="directions only"):
        land.landscape(np.outer(rng.normal(size=50), [1, 2, 3]))
