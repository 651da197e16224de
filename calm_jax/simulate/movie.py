"""A grey-scale movie with the statistics of natural ones, made by rule.

A camera pans and zooms smoothly over a large picture in which discs occlude each other
(dead leaves: radii ~ r^-3, which gives amplitudes that fall as 1/f and sharp edges), with a
1/f texture on everything; a few textured discs move on their own. Nothing is copied.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates

MARGIN = 3.0  # the picture is as many times as large as a frame
DISCS = 2500
MOVERS = 3


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) float32 with amplitude 1/f, mean 0 and SD 1; it wraps around."""
    fy = np.fft.fftfreq(height)[:, None] * height
    fx = np.fft.rfftfreq(width)[None] * width
    f = np.hypot(fy, fx)
    f[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / f
    out = np.fft.irfft2(spectrum, s=(height, width))
    return (out / out.std()).astype(np.float32)


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) float32 in [0, 1]: discs that hide each other, textured."""
    least, most = height / 60, height / 4
    u = rng.random(DISCS)
    # p(r) ~ r^-3 between least and most, by its inverse distribution function
    radius = (least**-2 + u * (most**-2 - least**-2)) ** -0.5
    cy, cx = rng.random(DISCS) * height, rng.random(DISCS) * width
    grey = rng.beta(1.2, 1.6, DISCS)
    out = np.full((height, width), 0.4, np.float32)
    for y, x, r, g in zip(cy, cx, radius, grey):
        a, b = max(int(y - r), 0), min(int(y + r) + 2, height)
        c, d = max(int(x - r), 0), min(int(x + r) + 2, width)
        yy, xx = np.arange(a, b)[:, None] - y, np.arange(c, d)[None] - x
        patch = out[a:b, c:d]
        patch[yy * yy + xx * xx <= r * r] = g
    return np.clip(out + 0.08 * noise(rng, height, width), 0, 1)


def _path(rng: np.random.Generator, frames: int, smooth: float) -> np.ndarray:
    """(frames,) in [0, 1], a smooth walk; `smooth` frames is its time scale."""
    x = gaussian_filter1d(rng.standard_normal(frames + 8 * int(smooth)), smooth)
    x = x[4 * int(smooth) : 4 * int(smooth) + frames]
    # A short movie covers a part of the way only: its speed is that of a long one.
    return 0.5 + (x - x.mean()) / max(np.ptp(x), 1e-9) / 2 * min(1.0, frames / (20 * smooth))


def natural_movie(frames: int, height: int, width: int, *, rate: float, seed: int) -> np.ndarray:
    """(frames, height, width) uint8; a pure function of its arguments.

    Args:
      rate: frames per second; the camera moves on a time scale of 3 s.
    """
    rng = np.random.default_rng([seed, 30])
    big_h, big_w = int(MARGIN * height), int(MARGIN * width)
    scene = picture(rng, big_h, big_w)
    slow = 3.0 * rate
    zoom = 0.8 + 0.5 * _path(rng, frames, 2 * slow)  # picture pixels per pixel
    room_y, room_x = big_h - 1 - zoom * (height - 1), big_w - 1 - zoom * (width - 1)
    top, left = _path(rng, frames, slow) * room_y, _path(rng, frames, slow) * room_x
    radius = rng.uniform(0.08, 0.2, MOVERS) * height
    place = np.stack(
        [[_path(rng, frames, slow / 2), _path(rng, frames, slow / 2)] for _ in range(MOVERS)]
    )  # (movers, 2, frames)
    skins = [np.clip(rng.random() + 0.15 * noise(rng, 256, 256), 0, 1) for _ in range(MOVERS)]
    rows, columns = np.arange(height), np.arange(width)
    out = np.empty((frames, height, width), np.uint8)
    for t in range(frames):
        at = np.meshgrid(top[t] + zoom[t] * rows, left[t] + zoom[t] * columns, indexing="ij")
        image = map_coordinates(scene, at, order=1, mode="nearest")
        for r, (py, px), skin in zip(radius, place[:, :, t], skins):
            dy = rows[:, None] - py * height
            dx = columns[None] - px * width
            inside = dy * dy + dx * dx <= r * r
            iy = (dy * 2 + 128).astype(int) % 256
            ix = (dx * 2 + 128).astype(int) % 256
            image = np.where(inside, skin[iy, ix], image)
        out[t] = np.rint(image * 255)
    return out
