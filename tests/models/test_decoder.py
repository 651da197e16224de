"""Decoding heads: values against numpy, causality, masks, permutations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calm_jax import config
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.decoder import (
    Head,
    decode_frames,
    decode_steps,
    delays,
    population_features,
    smooth_frames,
    unfold_steps,
)
from calm_jax.models.dual_axis import DualAxisTransformer

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = {"width": 6, "outputs": 2, "neurons": 7, "rank": 3, "dropout": 0.5}


def head(gated=True, unfold=4, future=0, **change):
    return Head(**(SIZES | change), unfold=unfold, future=future, gated=gated, rngs=nnx.Rngs(3))


def inputs(b=2, s=5, n=4):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(b, s, n, 6)).astype(np.float32)
    neuron = np.array([[3, 1, 6, 0], [5, 2, 4, 0]], np.int32)
    real = np.array([[True] * 4, [True, True, True, False]])
    return h, neuron, real


@pytest.mark.parametrize("gated", [True, False])
def test_steps_are_the_stated_sum(gated):
    """The equation written out in numpy, with scipy's normal distribution in the GELU."""
    net = head(gated)
    h, neuron, real = inputs()
    y = decode_steps(net, h, neuron, real)
    a = np.asarray(net.u.kernel[...]).reshape(6, 4, 2, 3)
    rows, bias = np.asarray(net.rows[...]), np.asarray(net.bias[...])
    z = np.einsum("bsnd,dfor->bsnfor", h, a)
    if gated:
        v = np.einsum("bsnd,dfor->bsnfor", h, np.asarray(net.v.kernel[...]).reshape(6, 4, 2, 3))
        tanh = np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))
        z = z * 0.5 * v * (1 + tanh)
    wanted = np.zeros((2, 5, 4, 2)) + bias
    for b in range(2):
        own = np.flatnonzero(real[b])
        for n in own:
            part = np.einsum("sfor,or->sfo", z[b, :, n], rows[neuron[b, n]])
            wanted[b] += part / np.sqrt(len(own) * 3)
    np.testing.assert_allclose(y, wanted, rtol=2e-4, atol=2e-5)


def test_padding_and_the_order_of_neurons_do_not_matter():
    net = head()
    h, neuron, real = inputs()
    y = decode_steps(net, h, neuron, real)
    other = h.copy()
    other[1, :, 3] = 1e3
    np.testing.assert_array_equal(decode_steps(net, other, neuron, real), y)
    order = np.array([2, 0, 3, 1])
    moved = decode_steps(net, h[:, :, order], neuron[:, order], real[:, order])
    np.testing.assert_allclose(moved, y, atol=1e-5)
    wide = np.pad(h, ((0, 0), (0, 0), (0, 3), (0, 0)))
    pad = lambda x: np.pad(x, ((0, 0), (0, 3)))  # noqa: E731
    np.testing.assert_allclose(decode_steps(net, wide, pad(neuron), pad(real)), y, atol=1e-5)


def test_dropout_is_random_and_off_without_a_key():
    net = head()
    given = inputs()
    a, b = (decode_steps(net, *given, jax.random.key(k)) for k in (0, 1))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(decode_steps(net, *given), decode_steps(net, *given))


@pytest.mark.parametrize(
    ("ahead", "unfold", "wanted"),
    [
        (0, 4, (0, 0)), (3, 4, (3, 0)), (5, 4, (3, 2)), (7, 4, (3, 4)), (12, 4, (8, 4)),
        (2, 1, (0, 2)),
    ],
)
def test_the_parts_of_a_look_ahead(ahead, unfold, wanted):
    assert delays(ahead, unfold, 9) == wanted


def test_unfolding_by_hand():
    """Steps of 4 frames whose value is 10 k + j: which of them a frame takes."""
    y = jnp.array([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23.0]])[None, ..., None]
    length, before = jnp.array([12]), jnp.array([-1.0])
    published = unfold_steps(y, length, 3, before)[0, :, 0]
    np.testing.assert_array_equal(published, [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23])
    causal = unfold_steps(y, length, 0, before)[0, :, 0]
    np.testing.assert_array_equal(causal, [-1, -1, -1, 0, 1, 2, 3, 10, 11, 12, 13, 20])
    # Of 10 frames the third step is not whole: it is not read.
    short = unfold_steps(y, jnp.array([10]), 3, before)[0, :10, 0]
    np.testing.assert_array_equal(short, [0, 1, 2, 3, 10, 11, 12, 13, 13, 13])


def test_smoothing_is_the_identity_at_the_start_and_a_convolution_later():
    net = head(future=2)
    y = jax.random.normal(jax.random.key(0), (2, 20, 2))
    length = jnp.array([20, 13])
    same = smooth_frames(y, length, net.smooth[...], 2)
    np.testing.assert_array_equal(same[0], y[0])
    np.testing.assert_array_equal(same[1, :13], y[1, :13])
    taps = np.random.default_rng(1).normal(size=(9, 2)).astype(np.float32)
    out = smooth_frames(y, length, taps, 2)
    for o in range(2):
        padded = np.pad(np.asarray(y[0, :, o]), (6, 2), mode="edge")
        wanted = np.convolve(padded, taps[::-1, o], mode="valid")
        np.testing.assert_allclose(out[0, :, o], wanted, atol=1e-5)


def models():
    tokenizer = tokenizers.init(
        config.Tokenizer(width=8, layers=1, heads=2, codes=8, autoregressive_layers=1),
        jax.random.key(0),
    )
    shape = config.DualAxis(width=8, layers=1, heads=2, ffn=8, values="level", window_scale=False)
    net = DualAxisTransformer(shape, codes=8, patch=4, neurons=3, sessions=1, rngs=nnx.Rngs(0))
    return tokenizer, net


@pytest.mark.parametrize("every_frame", [False, True])
@pytest.mark.parametrize("ahead", [0, 7, 11])
def test_nothing_after_the_look_ahead_changes_a_frame(every_frame, ahead):
    """The whole way from traces to outputs, with the future replaced at every frame."""
    tokenizer, net = models()
    unfold = 1 if every_frame else 4
    delay, future = delays(ahead, unfold, 9)
    own = head(unfold=unfold, future=future, width=8 + 4, neurons=3)
    own.smooth[...] = jax.random.normal(jax.random.key(2), (9, 2))
    t = 32
    traces = jax.random.normal(jax.random.key(1), (1, t, 3))
    rows = (jnp.array([[0, 1, -1]]), jnp.array([0]), jnp.ones((1, 3), bool))

    @jax.jit
    def decode(traces):
        h = population_features(
            tokenizer, net, traces, *rows, every_frame=every_frame, with_traces=True
        )
        y = decode_steps(own, h, jnp.array([[0, 1, 2]]), rows[2])
        return decode_frames(own, y, jnp.array([t]), delay)

    whole = decode(traces)
    used = 0
    for cut in range(1, t):
        other = decode(traces.at[:, cut:].set(50.0))
        changed = np.flatnonzero(np.abs(np.asarray(other - whole)).max((0, 2)) > 1e-6)
        assert changed.size == 0 or changed[0] >= cut - ahead, (cut, changed[0])
        used = max(used, cut - changed[0] if changed.size else 0)
    assert used == ahead  # the look-ahead is used, too


def test_features_of_every_frame_hold_those_of_the_tokens():
    tokenizer, net = models()
    traces = jax.random.normal(jax.random.key(1), (2, 16, 3))
    rows = (jnp.zeros((2, 3), jnp.int32), jnp.zeros(2, jnp.int32), jnp.ones((2, 3), bool))
    one = jax.jit(lambda x: population_features(tokenizer, net, x, *rows))
    tokens = one(traces)
    frames = jax.jit(
        lambda x: population_features(tokenizer, net, x, *rows, every_frame=True)
    )(traces)
    assert tokens.shape == (2, 4, 3, 8) and frames.shape == (2, 16, 3, 8)
    np.testing.assert_allclose(frames[:, 3::4], tokens, atol=1e-5)
    # The frame before: the window without its first three frames, held at the start.
    shifted = jnp.concatenate([jnp.repeat(traces[:, :1], 1, 1), traces[:, :-1]], axis=1)
    late = one(shifted)
    np.testing.assert_allclose(frames[:, 2::4], late, atol=1e-5)
