"""Siamese masking: what is hidden, eq. 1 by hand, gradients, the collapse monitor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calm_jax.errors import ConfigError
from calm_jax.models import population_encoder as encoders
from calm_jax.models import siamese

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = encoders.EncoderConfig(
    latent_step=0.25, latents_per_step=3, width=8, depth=1, head_width=8, self_heads=2
)
M = siamese.Masking


def test_the_end_of_the_window_is_hidden():
    blind = siamese.hidden(M(), CONFIG, 2, jax.random.key(0))
    assert_array_equal(blind, np.repeat([[False, False, True, True]] * 2, 3, axis=1))
    assert siamese.hidden(M(ratio=0.75), CONFIG, 1, jax.random.key(0)).sum() == 9


def test_normalised_distances_know_no_scale():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3, 4, 16))
    blind = jnp.asarray(rng.random((3, 4)) < 0.5)
    standard = lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    own = np.abs(standard(a) - standard(b)).mean(-1)
    masking = M(normalised=True)
    got = siamese.distance(masking, jnp.asarray(a), jnp.asarray(b), blind)
    assert_allclose(got, own[np.asarray(blind)].mean(), rtol=1e-4)
    large = siamese.distance(masking, jnp.asarray(70 * a + 5), jnp.asarray(9 * b - 2), blind)
    assert_allclose(large, got, rtol=1e-4)
    assert M().normalised is False  # the paper


def test_random_steps_are_hidden_whole():
    blind = np.asarray(siamese.hidden(M(kind="random"), CONFIG, 200, jax.random.key(1)))
    steps = blind.reshape(200, 4, 3)
    assert (steps == steps[..., :1]).all() and (steps[..., 0].sum(1) == 2).all()
    assert_allclose(steps[..., 0].mean(0), 0.5, atol=0.15)


@pytest.mark.parametrize("over", ["masked", "all"])
def test_distances_by_hand(over):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    blind = rng.random((3, 4)) < 0.5
    chosen = blind if over == "masked" else np.ones_like(blind)
    x, y = a[chosen].astype(float), b[chosen].astype(float)
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    for kind, expected in {
        "l1": np.abs(x - y).mean(), "mse": ((x - y) ** 2).mean(), "cosine": (1 - cosine).mean()
    }.items():  # fmt: skip
        got = siamese.distance(M(distance=kind, over=over), a, b, jnp.asarray(blind))
        assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stop", [True, False])
def test_the_target_has_a_gradient_only_when_asked(stop):
    z = jnp.ones((1, 2, 3))
    blind = jnp.ones((1, 2), bool)
    of_target = jax.grad(lambda t: siamese.distance(M(stop_gradient=stop), z, t, blind))
    assert bool((of_target(z * 2) == 0).all()) == stop


def batch(seed=0, tokens=16):
    rng = np.random.default_rng(seed)
    angle = rng.normal(size=(2, tokens, 2))
    return {
        "values": rng.normal(size=(2, tokens)).astype(np.float32),
        "units": rng.integers(1, 5, (2, tokens)).astype(np.int32),
        "mask": np.ones((2, tokens), bool),
        "code": np.stack([np.cos(angle), np.sin(angle)], -2).astype(np.float32),
    }


def test_the_masked_view_does_not_see_hidden_latents():
    """Only the mask vector and the visible latents reach the masked view."""
    model = jax.jit(
        lambda key: siamese.init(CONFIG, key, units=4, sessions=1, heads={"a": (1, 2)})
    )(jax.random.key(0))
    everything = jnp.ones((2, 12), bool)
    run = jax.jit(siamese.views)
    z, masked = run(model, batch(0), everything)
    z2, masked2 = run(model, batch(1), everything)
    assert_array_equal(masked, masked2)
    assert np.abs(z - z2).max() > 1e-6
    z, masked = run(model, batch(0), ~everything)
    assert_allclose(z, masked, atol=1e-6)


def test_collapse_is_seen():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 2, 6)).astype(np.float32) * 2
    healthy = siamese.spread(z)
    assert healthy["variance"] == pytest.approx(4, rel=0.1)
    assert healthy["participation"] == pytest.approx(6, rel=0.05)
    assert siamese.effective_rank(z) == pytest.approx(6, rel=0.02)
    line = rng.normal(size=(400, 2, 1)) * np.ones(6)
    flat = siamese.spread(line.astype(np.float32))
    assert flat["participation"] == pytest.approx(1, abs=1e-3)
    assert siamese.effective_rank(line.astype(np.float32)) == pytest.approx(1, abs=0.05)
    # Positions that differ while nothing depends on the window are a collapse.
    still = np.broadcast_to(rng.normal(size=(1, 2, 6)), (400, 2, 6)).astype(np.float32)
    dead = siamese.spread(still)
    assert dead["variance"] == pytest.approx(0, abs=1e-9)
    assert siamese.effective_rank(still) == 0
    # Two of six dimensions, by the definition of Roy and Vetterli in NumPy.
    part = z.copy()
    part[..., 2:] = 0
    part[..., 1] *= 0.5
    d = (part - part.mean(0)).reshape(-1, 6).astype(float)
    s = np.linalg.svd(d, compute_uv=False)
    p = s[s > 1e-9] / s.sum()
    assert siamese.effective_rank(part) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-2)
    assert siamese.spread(part)["variance_least"] == 0


def test_options_that_make_no_sense():
    for bad in (M(ratio=0.0), M(ratio=1.0), M(ratio=0.05), M(label_weight=-1.0),
                M(masking_weight=0.0, label_weight=0.0)):  # fmt: skip
        with pytest.raises(ConfigError):
            siamese.check(bad, CONFIG)
    siamese.check(dataclasses.replace(M(), label_weight=0.0), CONFIG)
