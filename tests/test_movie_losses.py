"""Eq. 2 and 4-7 against SciPy, NumPy's FFT, hand values, and scikit-image where it is there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d

from calm_jax import movie_losses as losses
from calm_jax.errors import ConfigError
from calm_jax.movie_losses import MovieLoss

pytestmark = pytest.mark.usefixtures("quick_compilation")


def images(seed=0, count=3, height=24, width=40):
    rng = np.random.default_rng(seed)
    y = rng.random((count, height, width)).cumsum(2)
    y = (y / y.max()).astype(np.float32)
    x = np.clip(y + 0.2 * rng.normal(size=y.shape), 0, 1).astype(np.float32)
    return x, y


def ssim_by_scipy(x, y):
    """Wang et al. 2004 with filters of SciPy, in float64, where the window fits."""
    t = np.arange(-5, 6)
    g = np.exp(-(t**2) / (2 * 1.5**2))
    g /= g.sum()

    def mean(z):
        z = correlate1d(correlate1d(z.astype(np.float64), g, axis=0), g, axis=1)
        return z[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx = mean(np.float64(x) ** 2) - mx**2
    vy = mean(np.float64(y) ** 2) - my**2
    cov = mean(np.float64(x) * y) - mx * my
    top = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
    return (top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean()


def test_ssim_is_that_of_scipy():
    x, y = images()
    expected = [ssim_by_scipy(a, b) for a, b in zip(x, y)]
    np.testing.assert_allclose(losses.ssim(x, y), expected, atol=2e-5)
    np.testing.assert_allclose(losses.ssim(y, y), 1, atol=1e-6)
    # A constant against a constant, by hand: structure 1, luminance (2ab + c) / (a2 + b2 + c).
    flat = losses.ssim(jnp.full((1, 12, 12), 0.2), jnp.full((1, 12, 12), 0.6))
    np.testing.assert_allclose(flat, (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), rtol=1e-4)
    with pytest.raises(ConfigError, match="11 x 11"):
        losses.ssim(jnp.zeros((1, 10, 30)), jnp.zeros((1, 10, 30)))


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    x, y = images(1)
    for a, b in zip(x, y):
        expected = metrics.structural_similarity(
            a.astype(np.float64), b.astype(np.float64), data_range=1.0, gaussian_weights=True,
            sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert float(losses.ssim(a, b)) == pytest.approx(expected, abs=2e-5)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), scale=st.floats(0.05, 1.0))
def test_ssim_is_symmetric_and_at_most_one(seed, scale):
    x, y = images(seed)
    x = x * np.float32(scale)
    ab, ba = losses.ssim(x, y), losses.ssim(y, x)
    np.testing.assert_allclose(ab, ba, atol=1e-5)
    assert (np.asarray(ab) <= 1 + 1e-6).all()


@pytest.mark.parametrize("norm", ["ortho", "backward"])
@pytest.mark.parametrize("width", [12, 13])
def test_fft_is_that_of_numpy(norm, width):
    x, y = images(2, height=11, width=width)
    full = lambda z: np.abs(np.fft.fft2(z.astype(np.float64), norm=norm))
    expected = np.abs(full(y) - full(x)).mean((1, 2))
    np.testing.assert_allclose(losses.fft(x, y, norm=norm), expected, rtol=2e-4)


def test_focal_by_hand():
    x, y = jnp.array([[[0.5, 0.0]]]), jnp.array([[[0.5, 1.0]]])
    # The first pixel is perfect, the second has p = 1/e.
    assert float(losses.focal(x, y)[0]) == pytest.approx((1 - np.exp(-1)) / 2)
    squared = losses.focal(x, y, alpha=3.0, gamma=2.0)
    assert float(squared[0]) == pytest.approx(3 * (1 - np.exp(-1)) ** 2 / 2)
    np.testing.assert_allclose(losses.focal(x, y, gamma=0.0), losses.l1(x, y), rtol=1e-6)


def test_perceptual_is_the_mean_square_of_features():
    x, y = images(3)
    double = lambda z: jnp.stack([z, 2 * z], axis=-1)
    expected = (((x - y) ** 2) + 4 * (x - y) ** 2).mean((1, 2)) / 2
    np.testing.assert_allclose(losses.perceptual(x, y, double), expected, rtol=1e-5)


def test_the_sum_is_eq_2():
    x, y = images(4)
    own = lambda z: z[..., None]
    total, parts = losses.movie_loss(x, y, MovieLoss(), own)
    expected = (
        50 * (parts["focal"] + parts["l1"] + parts["fft"]) + parts["perceptual"]
        + 0.1 * (1 - parts["ssim"])
    )  # fmt: skip
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    less, fewer = losses.movie_loss(x, y, MovieLoss())
    assert "perceptual" not in fewer
    np.testing.assert_allclose(total - less, parts["perceptual"], rtol=1e-3)


@pytest.mark.parametrize("kind", ["equal", "constant", "black"])
def test_gradients_stay_finite(kind):
    x, y = images(5, count=1)
    x = {"equal": y, "constant": np.full_like(x, 0.5), "black": np.zeros_like(x)}[kind]
    loss = lambda a, b: losses.movie_loss(a, b, MovieLoss(gamma=0.5))[0].sum()
    for g in jax.grad(loss, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(y)):
        assert np.isfinite(np.asarray(g)).all()


def test_correlation_is_that_of_numpy():
    x, y = images(6)
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x, y)]
    np.testing.assert_allclose(losses.pixel_correlation(x, y), expected, atol=1e-5)
    assert float(losses.pixel_correlation(jnp.ones((12, 12)), jnp.asarray(y[0, :12, :12]))) == 0


def test_weights_that_make_no_loss():
    with pytest.raises(ConfigError, match="loss.l1"):
        losses.check(MovieLoss(l1=-1.0))
    with pytest.raises(ConfigError, match="all 0"):
        losses.check(MovieLoss(0.0, 0.0, 0.0, 0.0, 0.0))
    with pytest.raises(ConfigError, match="perceptual_layer"):
        losses.check(MovieLoss(perceptual_layer=6))
