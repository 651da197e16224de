"""The loss of movie reconstruction (POYO-SSL eq. 2, 4-7), and its parts as metrics.

Images are grey, (..., H, W) in [0, 1]. Every function gives one number per image; computed
in float32.

    L = 50 focal + 50 L1 + 50 FFT + perceptual + 0.1 (1 - SSIM)                      (eq. 2)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from calm_jax.errors import ConfigError

WINDOW, SIGMA = 11, 1.5  # pixels, of the Gaussian of SSIM (Wang et al. 2004)
Features = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class MovieLoss:
    """Weights of eq. 2 and the constants of its parts."""

    focal: float = 50.0
    l1: float = 50.0
    fft: float = 50.0
    perceptual: float = 1.0  # needs AlexNet's weights (docs/movies.md)
    ssim: float = 0.1
    alpha: float = 1.0  # eq. 4
    gamma: float = 1.0  # eq. 4
    # Of the Fourier transform: "ortho" (division by sqrt(H W)) puts the term on the scale of
    # the L1 term, which equal weights suggest; "backward" divides by nothing.
    fft_norm: Literal["ortho", "backward"] = "ortho"
    # Convolution of AlexNet, 1 to 5, after whose ReLU features are compared. The paper says
    # "the first four convolutional blocks" and "layer=3": counted from 0, that is the fourth.
    perceptual_layer: int = 4


def l1(x: Array, y: Array) -> Array:
    """Mean over pixels of |y - x|: images (..., H, W) -> (...)."""
    return jnp.mean(jnp.abs(_wide(y) - _wide(x)), axis=(-2, -1))


def focal(x: Array, y: Array, *, alpha: float = 1.0, gamma: float = 1.0) -> Array:
    """Eq. 4: mean over pixels of alpha (1 - p)^gamma |y - x| with p = exp(-|y - x|).

    The paper does not say what p is; exp(-|error|) is 1 for a perfect pixel, as in the focal
    loss of classification. Images (..., H, W) -> (...).
    """
    error = jnp.abs(_wide(y) - _wide(x))
    # The inner `where` keeps the gradient finite for gamma < 1 at an error of 0.
    doubt = -jnp.expm1(-jnp.where(error > 0, error, 1.0))
    value = jnp.where(error > 0, alpha * doubt**gamma * error, 0.0)
    return jnp.mean(value, axis=(-2, -1))


def fft(x: Array, y: Array, *, norm: str = "ortho") -> Array:
    """Eq. 5: mean over frequencies of ||F(y)| - |F(x)||, F the 2-D Fourier transform.

    All H x W frequencies count, the conjugate half (which equals the other) too; only half
    of them are computed. Images (..., H, W) -> (...).
    """
    width = x.shape[-1]
    apart = jnp.abs(_magnitude(y, norm) - _magnitude(x, norm))
    twice = np.full(apart.shape[-1], 2.0, np.float32)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    return jnp.sum(apart * twice, axis=(-2, -1)) / (x.shape[-2] * width)


def _magnitude(x: Array, norm: str) -> Array:
    z = jnp.fft.rfft2(_wide(x), norm=norm)
    square = z.real**2 + z.imag**2
    # The gradient of |z| at 0 is taken as 0; |z| itself has none there.
    safe = jnp.where(square > 0, square, 1.0)
    return jnp.where(square > 0, jnp.sqrt(safe), 0.0)


def gaussian_rows(size: int) -> np.ndarray:
    """(size - 10, size) float32: the Gaussian of SSIM at every place where it fits."""
    t = np.arange(WINDOW) - WINDOW // 2
    g = np.exp(-(t**2) / (2 * SIGMA**2))
    g /= g.sum()
    out = np.zeros((size - WINDOW + 1, size))
    for k in range(WINDOW):
        out[np.arange(len(out)), np.arange(len(out)) + k] = g[k]
    return out.astype(np.float32)


def ssim(x: Array, y: Array, *, data_range: float = 1.0) -> Array:
    """Mean structural similarity (Wang et al. 2004): images (..., H, W) -> (...).

    Gaussian window 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, only
    places where the window fits. `data_range` is fixed: taken from the data, it would change
    with the image.

    Raises:
      ConfigError: for images smaller than the window.
    """
    height, width = x.shape[-2:]
    if min(height, width) < WINDOW:
        raise ConfigError(
            "too small an image for SSIM", found=f"{height} x {width}", expected="11 x 11 or more"
        )
    rows, columns = jnp.asarray(gaussian_rows(height)), jnp.asarray(gaussian_rows(width))
    exact = jax.lax.Precision.HIGHEST  # variances are differences of near numbers

    def mean(z: Array) -> Array:
        z = jnp.einsum("...hw,vw->...hv", z, columns, precision=exact)
        return jnp.einsum("uh,...hv->...uv", rows, z, precision=exact)

    x, y = _wide(x), _wide(y)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mx * my + c1) * (2 * cov + c2)
    return jnp.mean(top / ((mx**2 + my**2 + c1) * (vx + vy + c2)), axis=(-2, -1))


def perceptual(x: Array, y: Array, features: Features) -> Array:
    """Eq. 7: mean squared difference of features; images (..., H, W) -> (...).

    Args:
      features: of `models.alexnet.features`, with weights; images -> (..., h, w, c).
    """
    a, b = features(_wide(x)), features(_wide(y))
    return jnp.mean(jnp.square(a - b), axis=(-3, -2, -1))


def movie_loss(
    x: Array, y: Array, options: MovieLoss, features: Features | None = None
) -> tuple[Array, dict[str, Array]]:
    """Eq. 2 of reconstructions x and frames y (..., H, W): (loss, parts), each (...).

    The parts are `focal`, `l1`, `fft`, `ssim` (the similarity itself) and, with `features`,
    `perceptual`, all without their weights. Without `features` there is no perceptual term.
    """
    parts = {
        "focal": focal(x, y, alpha=options.alpha, gamma=options.gamma),
        "l1": l1(x, y),
        "fft": fft(x, y, norm=options.fft_norm),
        "ssim": ssim(x, y),
    }
    total = (
        options.focal * parts["focal"]
        + options.l1 * parts["l1"]
        + options.fft * parts["fft"]
        + options.ssim * (1.0 - parts["ssim"])
    )
    if features is not None and options.perceptual:
        parts["perceptual"] = perceptual(x, y, features)
        total = total + options.perceptual * parts["perceptual"]
    return total, parts


def pixel_correlation(x: Array, y: Array) -> Array:
    """Pearson correlation over the pixels of an image, 0 where one is constant: -> (...)."""
    dx = _wide(x) - jnp.mean(_wide(x), (-2, -1), keepdims=True)
    dy = _wide(y) - jnp.mean(_wide(y), (-2, -1), keepdims=True)
    square = jnp.sum(dx * dx, (-2, -1)) * jnp.sum(dy * dy, (-2, -1))
    r = jnp.sum(dx * dy, (-2, -1)) * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    return jnp.where(square > 1e-12, r, 0.0)


def check(options: MovieLoss) -> None:
    """Raises ConfigError for weights that are negative or all 0, or a layer that is none."""
    weights = {k: getattr(options, k) for k in ("focal", "l1", "fft", "perceptual", "ssim")}
    bad = [k for k, v in weights.items() if not v >= 0]
    if bad or not any(weights.values()):
        raise ConfigError(
            "the loss needs a positive weight, and no negative one",
            where=f"loss.{bad[0]}" if bad else "loss",
            found=weights[bad[0]] if bad else "all 0",
        )
    if not 1 <= options.perceptual_layer <= 5:
        raise ConfigError(
            "AlexNet has five convolutions",
            where="loss.perceptual_layer",
            found=options.perceptual_layer,
            expected="1 to 5",
        )


def _wide(x: Array) -> Array:
    return jnp.asarray(x, jnp.float32)
