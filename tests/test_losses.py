"""Losses against loops, scipy, optax and numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from calm_jax import losses


def _data(seed=0, shape=(3, 5, 12), keep=0.7):
    rng = np.random.default_rng(seed)
    pred, target = rng.normal(size=(2, *shape)).astype(np.float32)
    return pred, target, rng.random(shape) < keep


@pytest.mark.parametrize("axis", [None, -1, (0, 2)])
def test_errors_equal_the_loop(axis):
    pred, target, mask = _data()
    for function, power in ((losses.masked_mse, 2), (losses.masked_mae, 1)):
        error = np.ma.masked_array(np.abs(pred - target) ** power, ~mask)
        assert_allclose(function(pred, target, mask, axis), error.mean(axis), rtol=1e-5)
        assert_allclose(
            function(pred, target, None, axis), error.data.mean(axis), rtol=1e-5
        )


def test_pearson_loss_equals_the_loop():
    pred, target, mask = _data(1)
    target[0, 0] = 3.0  # constant: left out
    mask[1, 1] = False  # nothing valid: left out
    mask[2, 2] = np.arange(12) == 4  # one frame: left out
    loop = [
        1 - scipy.stats.pearsonr(pred[i, j][m], target[i, j][m])[0]
        for i in range(3)
        for j in range(5)
        if (m := mask[i, j]).sum() >= 2 and np.ptp(target[i, j][m]) > 0
    ]
    assert len(loop) == 12
    assert_allclose(losses.pearson_loss(pred, target, mask), np.mean(loop), atol=1e-4)
    swap = lambda a: np.swapaxes(a, 1, 2)
    assert_allclose(
        losses.pearson_loss(swap(pred), swap(target), swap(mask), axis=1),
        np.mean(loop),
        atol=1e-4,
    )


@settings(deadline=None, max_examples=15)
@given(st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 99))
def test_pearson_loss_ignores_gain_and_offset(gain, offset, seed):
    _, target, mask = _data(seed)
    loss = losses.pearson_loss(gain * target + offset, target, mask)
    assert_allclose(loss, 0, atol=2e-3)
    loss = losses.pearson_loss(-gain * target + offset, target, mask)
    assert_allclose(loss, 2, atol=2e-3)


@pytest.mark.parametrize("name", ["masked_mse", "masked_mae", "pearson_loss"])
def test_masked_samples_reach_neither_value_nor_gradient(name):
    pred, target, mask = _data(2)
    f = jax.value_and_grad(getattr(losses, name))
    value, grad = f(pred, target, mask)
    bad = [np.where(mask, a, np.nan) for a in (pred, target)]
    value_bad, grad_bad = f(*bad, mask)
    assert value == value_bad
    assert_allclose(grad, grad_bad, atol=0)
    assert (np.asarray(grad)[~mask] == 0).all()


def test_constant_prediction_has_a_finite_gradient():
    _, target, mask = _data()
    loss, grad = jax.value_and_grad(losses.pearson_loss)(
        jnp.zeros_like(target), target, mask
    )
    assert_allclose(loss, 1.0)
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0


def test_nothing_valid_is_zero():
    pred, target, mask = _data()
    none = np.zeros_like(mask)
    assert losses.masked_mse(pred, target, none) == 0
    assert losses.pearson_loss(pred, target, none) == 0
    assert losses.cross_entropy(pred, np.zeros((3, 5), int), none[..., 0]) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_optax_over_valid_positions(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 6, 7)).astype(np.float32)
    labels = rng.integers(0, 7, (4, 6))
    mask = rng.random((4, 6)) < 0.6
    q = optax.smooth_labels(jax.nn.one_hot(labels, 7), smoothing)
    each = np.asarray(optax.softmax_cross_entropy(logits, q))
    got = losses.cross_entropy(logits, labels, mask, smoothing)
    assert_allclose(got, each[mask].mean(), rtol=1e-5)
    got = losses.cross_entropy(logits, labels, mask, smoothing, bits=True)
    assert_allclose(got, each[mask].mean() / np.log(2), rtol=1e-5)
    outside = np.where(mask, labels, -1)
    dirty = np.where(mask[..., None], logits, np.inf)
    again = losses.cross_entropy(dirty, outside, mask, smoothing, bits=True)
    assert again == got


def test_cross_entropy_of_an_even_guess_is_log_k():
    labels = np.zeros((3,), int)
    assert_allclose(
        losses.cross_entropy(jnp.zeros((3, 8)), labels, bits=True), 3.0, rtol=1e-6
    )


def test_commitment_by_hand():
    z = jnp.array([[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]])
    z_q = jnp.array([[0.0, 2.0], [2.0, 0.0], [0.0, 0.0]])
    mask = jnp.array([True, True, False])
    # (1 + 0 + 4 + 0) / 4 elements
    assert_allclose(losses.commitment(z, z_q, mask), 1.25)
    assert_allclose(losses.commitment(z, z_q), (1 + 4 + 50) / 6, rtol=1e-6)
    dz, dq = jax.grad(losses.commitment, (0, 1))(z, z_q, mask)
    assert_allclose(dz, [[0.5, 0], [-1.0, 0], [0, 0]])  # 2 (z - z_q) / 4
    assert_allclose(dq, 0)


def test_assignment_entropy_by_hand():
    soft = jnp.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0.5, 0.5]])
    mask = jnp.array([True, True, False])
    assert_allclose(losses.assignment_entropy(soft, mask), 1.0)  # mean = (.5, .5, 0, 0)
    third = 1 / 3
    by_hand = -2 * third * np.log2(third) - 2 * third / 2 * np.log2(third / 2)
    assert_allclose(losses.assignment_entropy(soft), by_hand, rtol=1e-6)
    assert_allclose(losses.assignment_entropy(jnp.full((2, 5, 8), 1 / 8)), 3.0)
    # The mean is over the batch: certain tokens that differ count as even usage.
    assert_allclose(losses.assignment_entropy(jnp.eye(8)), 3.0)
    grad = jax.grad(losses.assignment_entropy)(soft, mask)
    assert np.isfinite(grad).all()


def test_orthogonality_by_hand():
    codebook = jnp.array([[1.0, 1.0], [0.0, 2.0]])
    # E E^T = [[2, 2], [2, 4]], minus I: 1 + 2 + 2 + 3
    assert_allclose(losses.orthogonality(codebook), 8.0)
    assert_allclose(losses.orthogonality(jnp.eye(3, 5)), 0.0)
