"""3 x 3 convolutions of images with few channels, upsampling included.

Convolutions of large images with few channels are slow on CPUs: the last layers of a small
U-Net took most of a training step at a hundredth of the matmul peak. Here an image is cut
into blocks of pixels; pixels and channels of a block are the channels of a smaller image,
and the convolution becomes one with more channels and fewer places. After nearest-neighbour
upsampling only the blocks that come out are larger: the large image is never convolved.
Both are exact: same parameters, same function as `flax.nnx.Conv(kernel_size=(3, 3))`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

_WIDE = 32  # channels, of the blocks that go in or come out, worth a convolution


def pointwise(layer: nnx.Conv, x: Array) -> Array:
    """A 1 x 1 convolution: (B, h, w, c) -> (B, h, w, d)."""
    kernel = layer.kernel[...][0, 0].astype(layer.dtype)
    return x.astype(layer.dtype) @ kernel + layer.bias[...].astype(layer.dtype)


def upsampled(layer: nnx.Conv, x: Array, rows: int = 1, columns: int = 1) -> Array:
    """Every pixel repeated, then a 3 x 3 convolution with zeros around the image.

    Shapes: (B, h, w, c) -> (B, h rows, w columns, d).
    """
    kernel, bias = (v[...].astype(layer.dtype) for v in (layer.kernel, layer.bias))
    b, h, w, c = x.shape
    d = kernel.shape[-1]
    p, q = _block(h, w, max(c, rows * columns * d))  # pixels of a block
    p2, q2 = p * rows, q * columns  # and of what becomes of it
    # Of each pixel of the 3 x 3 blocks around what it gives each pixel that comes out.
    spread = jnp.einsum(
        "PtaA,QubB,tucd->abABcPQd",
        *(jnp.asarray(_taps(*axis), layer.dtype) for axis in ((p, rows), (q, columns))),
        kernel,
    ).reshape(3, 3, p * q * c, p2 * q2 * d)
    x = x.astype(layer.dtype).reshape(b, h // p, p, w // q, q, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // p, w // q, p * q * c)
    y = lax.conv_general_dilated(
        x, spread, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = y.reshape(b, h // p, w // q, p2, q2, d).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(b, h * rows, w * columns, d) + bias


def _block(h: int, w: int, c: int) -> tuple[int, int]:
    """The smallest block (rows, columns) of `_WIDE` pixels times channels, as square as may be."""
    p = q = 1
    while p * q * c < _WIDE:
        if w % (2 * q) == 0 and q <= p:
            q *= 2
        elif h % (2 * p) == 0:
            p *= 2
        else:
            break
    return p, q


def _taps(pixels: int, factor: int) -> np.ndarray:
    """(pixels factor, 3, 3, pixels) of 0 and 1, along one axis.

    Indices: pixel that comes out, tap of the kernel, block (before, same, after), pixel in it.
    """
    out = np.zeros((pixels * factor, 3, 3, pixels), np.float32)
    for made in range(pixels * factor):
        for tap in range(3):
            source = (made + tap - 1) // factor
            out[made, tap, source // pixels + 1, source % pixels] = 1.0
    return out
