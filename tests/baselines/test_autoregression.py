"""Autoregression against least squares written out, and kept from test frames."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calm_jax import baselines
from calm_jax.baselines import autoregression as A
from calm_jax.baselines import windows as W
from calm_jax.errors import RecordingError
from tests.baselines.small import context, prepared


def _oracle(x, y, order, direct, difference):
    """Forecasts (W, H) of one neuron's contexts by least squares on the same windows."""
    last = x[:, -1:] if difference else np.zeros((len(x), 1))
    design = np.hstack([(x - last)[:, -order : -1 if difference else None], np.ones((len(x), 1))])
    if direct:
        return design @ np.linalg.lstsq(design, y - last, rcond=None)[0] + last
    a = np.linalg.lstsq(design, (y - last)[:, :1], rcond=None)[0]
    past = x.copy()
    for _ in range(y.shape[1]):
        last = past[:, -1:] if difference else np.zeros((len(x), 1))
        recent = (past - last)[:, -order : -1 if difference else None]
        new = np.hstack([recent, np.ones((len(x), 1))]) @ a + last
        past = np.hstack([past, new])
    return past[:, x.shape[1] :]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("difference", [True, False])
@pytest.mark.parametrize("order", [2, 5])
def test_maps_are_least_squares_of_each_neuron(direct, difference, order):
    p = prepared()
    for i in range(2):
        n = p.scalers.mean[i].size
        moments = A._moments(p, i, "train", 8, 4, 10**6, range(n))
        maps = A._maps(moments, 8, 4, order, 0.0, direct, difference)
        z = np.concatenate([z for z, _ in W.windows(p, i, "train", 8, 4)]).astype(float)
        for k in range(n):
            x, y = z[:, :8, k], z[:, 8:, k]
            got = x @ maps[k, :-1] + maps[k, -1]
            assert_allclose(got, _oracle(x, y, order, direct, difference), atol=2e-3)
        errors = [np.mean((z[:, 8:, k] - z[:, :8, k] @ maps[k, :-1] - maps[k, -1]) ** 2)
                  for k in range(n)]  # fmt: skip
        assert_allclose(A._errors(maps, moments), errors, rtol=1e-3)


def test_validation_chooses_and_the_choice_is_the_least_error():
    p = prepared()
    f = A.fit(p, p.splits, 8, 4, orders=[1, 3, 8], alphas=[1e-3, 1.0])
    x, mask = context(p, 0)
    assert f(x, 0, mask, 4).shape == (3, 4, 5)
    z, y = W.stacked(p, 0, "valid", 8, 4, 10**6)
    own = np.mean((f(z, 0, np.ones_like(z, bool), 4) - y) ** 2)
    assert_allclose(f.choices[0].error, own, rtol=1e-3)
    for order in (1, 3, 8):
        for alpha in (1e-3, 1.0):
            g = A.fit(p, p.splits, 8, 4, orders=[order], alphas=[alpha])
            g(x, 0, mask, 4)
            assert g.choices[0].error >= f.choices[0].error - 1e-9


def test_a_walk_is_followed_and_neurons_do_not_mix():
    p = prepared(frames=900)
    f = A.fit(p, p.splits, 8, 4)
    x, mask = context(p, 0)
    before = f(x, 0, mask, 9)
    x[:, :, 1:] += 3
    assert_array_equal(f(x, 0, mask, 9)[:, :, 0], before[:, :, 0])
    x, mask = context(p, 1)
    assert_allclose(f(x, 1, mask, 1)[:, 0], x[:, -1], atol=0.5)  # a random walk stays


def test_neurons_in_parts_are_neurons_at_once(monkeypatch):
    p = prepared()
    x, mask = context(p, 0)
    whole = A.fit(p, p.splits, 8, 4)(x, 0, mask, 4)
    monkeypatch.setattr(A, "_NEURONS", 2)
    assert_allclose(A.fit(p, p.splits, 8, 4)(x, 0, mask, 4), whole, atol=1e-5)


def test_test_frames_move_nothing_and_short_parts_are_named():
    fits = [A.fit(p, p.splits, 8, 4) for p in (prepared(), prepared(["test"]))]
    p = prepared()
    for i in range(2):
        x, mask = context(p, i)
        assert_array_equal(*(f(x, i, mask, 9) for f in fits))
    with pytest.raises(RecordingError, match=r"session two.*30 frames"):
        A.fit(p, p.splits, 40, 4)(np.zeros((1, 40, 3), np.float32), 1, None, 4)


def test_closed_form_methods_only_stand_beside_a_run():
    p = prepared()
    made = baselines.fit_all(p, p.splits, 4)
    assert tuple(made) == baselines.CLOSED_FORM
    assert not any(getattr(baselines.METHODS[m], "TRAINED", False) for m in made)
