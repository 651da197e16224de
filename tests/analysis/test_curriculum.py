"""Difficulty of planted samples; orders; training that can be checked."""

import numpy as np
import pytest

from calm_jax.analysis import curriculum as cur
from calm_jax.errors import AnalysisError


@pytest.fixture(scope="module")
def traces():
    """A rotation in 4 of 12 dimensions with noise: what follows can be predicted, in part."""
    rng = np.random.default_rng(0)
    turn = 0.97 * np.linalg.qr(rng.normal(size=(4, 4)))[0]
    state, out = np.zeros(4), []
    for _ in range(1500):
        state = turn @ state + rng.normal(size=4)
        out.append(state)
    return np.array(out) @ rng.normal(size=(4, 12)) + 0.1 * rng.normal(size=(1500, 12))


def test_outliers_are_hard_and_the_core_is_easy():
    rng = np.random.default_rng(0)
    core, far = rng.normal(size=(190, 3)) * 0.1, rng.normal(size=(10, 3)) * 5 + 3
    made = cur.difficulty(np.concatenate([core, far]))
    assert made.total[190:].min() > made.total[:190].max() - 0.05
    assert made.total.min() >= 0 and made.total.max() <= 1
    assert made.sparsity[:190].mean() < made.sparsity[190:].mean()
    np.testing.assert_allclose(cur.difficulty(7 * np.concatenate([core, far])).total, made.total)
    with pytest.raises(AnalysisError, match="too few samples"):
        cur.difficulty(core[:10])


def test_orders_are_permutations_with_their_promise():
    rng = np.random.default_rng(0)
    hard = rng.random(103)
    made = {kind: cur.order(kind, hard, 16, rng) for kind in cur.ORDERS}
    for kind, order in made.items():
        assert sorted(order) == list(range(103)), kind
    assert (np.diff(hard[made["easy_to_hard"]]) >= 0).all()
    np.testing.assert_array_equal(made["hard_to_easy"], made["easy_to_hard"][::-1])
    for start in range(0, 96, 16):  # every batch of "mixed" is half easy
        assert (hard[made["mixed"][start : start + 16]] < np.median(hard)).sum() == 8
    with pytest.raises(AnalysisError, match="unknown order"):
        cur.order("zigzag", hard, 16, rng)


def test_all_orders_learn_towards_least_squares(traces):
    made = cur.curriculum(traces, components=6, repeats=3)
    assert 0.5 < made.ceiling < 1 and set(made.skill) == set(cur.ORDERS)
    for kind in cur.ORDERS:
        assert made.skill[kind].shape == (3, len(made.samples))
        assert made.skill[kind][:, 0].max() < made.performance[kind].min() <= made.ceiling + 0.02
        assert (made.stability[kind] > 0).all() and (made.stability[kind] <= 1).all()
    assert made.samples[-1] <= made.train and made.components <= 6


def test_the_held_out_error_is_that_of_the_weights():
    """The quadratic form against predictions made one by one."""
    rng = np.random.default_rng(0)
    x, y, x2, y2 = rng.normal(size=(4, 32, 3))
    start = rng.normal(size=(1, 4, 3))
    plans = np.arange(32).reshape(1, 4, 8)
    found = cur._learn(start, x, y, x2, y2, plans, 0.1)
    w = start[0].copy()
    for step, chosen in enumerate(plans[0]):
        a = np.column_stack([x[chosen], np.ones(8)])
        w -= 0.1 * a.T @ (a @ w - y[chosen]) / 8
        rest = np.column_stack([x2, np.ones(32)]) @ w - y2
        r2 = 1 - np.sum(rest**2) / np.sum((y2 - y2.mean(0)) ** 2)
        assert found[0, step] == pytest.approx(r2)


def test_same_seed_same_curves_and_heavy_tails_do_not_diverge(traces):
    a, b = (cur.curriculum(traces, components=3, repeats=2, seed=4) for _ in range(2))
    np.testing.assert_array_equal(a.skill["random"], b.skill["random"])
    heavy = np.sign(traces) * np.abs(traces) ** 4
    made = cur.curriculum(heavy, components=3, repeats=2)
    assert all(np.isfinite(v).all() for v in made.skill.values())
    assert min(v[:, -1].min() for v in made.skill.values()) > -5


def test_pairs_stay_within_trials_and_too_few_are_said(traces):
    ranges = [(i, i + 50) for i in range(0, 1500, 50)]
    made = cur.curriculum(traces, components=3, ranges=ranges, repeats=1)
    assert made.train + made.test == 30 * 49 - 1
    with pytest.raises(AnalysisError, match="too few pairs"):
        cur.curriculum(traces[:60])
    with pytest.raises(AnalysisError, match="nothing varies"):
        cur.curriculum(np.ones((500, 3)))
