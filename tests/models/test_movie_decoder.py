"""Decoders of frames: Algorithm S2's shapes, what the skips do, matched sizes; the MLP encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calm_jax.errors import ConfigError
from calm_jax.models import mlp_encoder
from calm_jax.models import movie_decoder as decoders
from calm_jax.models.mlp_encoder import MlpConfig
from calm_jax.models.movie_decoder import DecoderConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = DecoderConfig(channels=(8, 6, 4, 4), last_channels=3)


@pytest.mark.parametrize("kind", ["unet", "no_skip", "mlp"])
@pytest.mark.parametrize("size", [(64, 128), (128, 256)])
def test_frames_have_the_size_and_lie_between_0_and_1(kind, size):
    config = dataclasses.replace(SMALL, kind=kind, height=size[0], width=size[1], hidden=(7,))
    shape = jax.eval_shape(
        lambda k: decoders.frames(decoders.init(config, k, latent=10), jnp.zeros((3, 10))),
        jax.random.key(0),
    )
    assert shape.shape == (3, *size) and shape.dtype == jnp.float32


def test_a_frame_follows_its_own_latent_alone():
    made = decoders.init(SMALL, jax.random.key(1), latent=10)
    run = jax.jit(decoders.frames)
    z = jax.random.normal(jax.random.key(2), (2, 10))
    one = run(made, z)
    other = run(made, z.at[1].set(-z[1]))
    np.testing.assert_array_equal(one[0], other[0])
    assert float(jnp.abs(one[1] - other[1]).max()) > 1e-4
    assert float(one.min()) > 0 and float(one.max()) < 1


def test_stages_are_those_of_algorithm_s2():
    made = jax.eval_shape(
        lambda k: decoders.init(DecoderConfig(), k, latent=32), jax.random.key(0)
    )
    sizes = [(s.size, s.project.kernel.shape[1] // s.size**2) for s in made.stages]
    assert sizes == [(2, 128), (4, 64), (8, 32), (16, 16)]
    assert [s.fuse.kernel.shape[:2] for s in made.stages] == [(1, 1)] * 4
    assert [s.fuse.kernel.shape[2] for s in made.stages] == [256, 128, 64, 32]
    assert decoders.steps(DecoderConfig()) == [(2, 2), (2, 4)]
    assert decoders.steps(DecoderConfig(height=128, width=256)) == [(2, 2), (2, 4), (2, 2)]


def test_without_projections_the_latent_enters_once():
    made = decoders.init(dataclasses.replace(SMALL, kind="no_skip"), jax.random.key(0), latent=10)
    assert all(s.project is None for s in made.stages)


def test_a_pixel_bias_starts_the_frames_where_it_is_told():
    for kind in ("unet", "mlp"):
        config = dataclasses.replace(SMALL, kind=kind, hidden=(5,), pixel_bias=True)
        made = decoders.init(config, jax.random.key(0), latent=6)
        frame = np.random.default_rng(0).uniform(0.1, 0.9, (64, 128)).astype(np.float32)
        decoders.start_at(made, frame)
        last = made.layers[-1] if kind == "mlp" else made.out
        last.kernel[...] *= 0.0
        last.bias[...] *= 0.0
        shown = decoders.frames(made, jax.random.normal(jax.random.key(1), (2, 6)))
        np.testing.assert_allclose(shown, np.stack([frame] * 2), atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "no_skip"])
@pytest.mark.parametrize("latent, bias", [(64, False), (64, True), (256, False)])
def test_matched_decoders_have_as_many_parameters(kind, latent, bias):
    like = DecoderConfig(pixel_bias=bias)
    wanted = decoders.count(like, latent)
    found = decoders.count(decoders.matched(kind, like, latent), latent)
    assert abs(found / wanted - 1) < 0.03, (found, wanted)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["unet", "no_skip", "mlp"])
def test_parameters_are_counted(kind, bias):
    config = dataclasses.replace(SMALL, kind=kind, hidden=(5, 3), pixel_bias=bias)
    made = jax.eval_shape(lambda k: decoders.init(config, k, latent=6), jax.random.key(0))
    assert decoders.count(config, 6) == sum(x.size for x in jax.tree.leaves(nnx.state(made)))


def test_sizes_that_cannot_be():
    for wrong in ({"height": 65}, {"height": 32, "width": 32}, {"width": 192}):
        with pytest.raises(ConfigError, match="no such frame"):
            decoders.check(dataclasses.replace(DecoderConfig(), **wrong))
    with pytest.raises(ConfigError, match="four stages"):
        decoders.check(DecoderConfig(channels=(8, 8)))


def test_the_mlp_encoder_is_a_map_of_binned_activity():
    config = MlpConfig(bins=2, first=3, hidden=(), width=4)
    made = mlp_encoder.init(config, jax.random.key(0), units=3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 2, 3)).astype(np.float32)  # bins x units
    bins, units = np.meshgrid(np.arange(2), np.arange(1, 4), indexing="ij")
    batch = {
        "values": x.reshape(1, -1), "units": units.reshape(1, -1).astype(np.int32),
        "bins": bins.reshape(1, -1).astype(np.int32), "mask": np.ones((1, 6), bool),
    }  # fmt: skip
    table = np.asarray(made.table[...])
    h = np.einsum("bu,ubd->d", x[0], table[1:])
    gelu = np.asarray(jax.nn.gelu(jnp.asarray(h, jnp.float32)))
    layer = made.layers[0]
    expected = gelu @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    np.testing.assert_allclose(mlp_encoder.encode(made, batch)[0], expected, rtol=1e-4, atol=1e-6)
    padded = {k: np.concatenate([v, v], 1) for k, v in batch.items()}
    padded["mask"] = np.arange(12)[None] < 6
    padded["values"][:, 6:] = np.nan
    np.testing.assert_allclose(mlp_encoder.encode(made, padded), mlp_encoder.encode(made, batch))
