"""d' against its definition, its invariances, and its null."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_jax.analysis import tuning
from calm_jax.errors import AnalysisError


def by_hand(a: np.ndarray, b: np.ndarray) -> float:
    return (b.mean() - a.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)


@pytest.fixture
def activity():
    rng = np.random.default_rng(0)
    cue = np.repeat(["left", "right"], [30, 50])
    x = rng.normal(size=(80, 12))
    x[cue == "right", :3] += 2.0
    return x, cue


def test_equals_the_definition_and_recovers_the_true_value():
    rng = np.random.default_rng(1)
    label = np.arange(40_000) % 2
    x = rng.normal(size=(40_000, 2)) + label[:, None] * [0.7, -1.5]
    d = tuning.d_prime(x, label).d
    np.testing.assert_allclose(d, [0.7, -1.5], atol=0.03)
    np.testing.assert_allclose(d[0], by_hand(x[::2, 0], x[1::2, 0]), rtol=1e-12)


def test_unknown_trials_are_left_out_neuron_by_neuron(activity):
    x, cue = activity
    x[5, 0] = np.nan
    x[:29, 1] = np.inf  # one left trial remains
    made = tuning.d_prime(x, cue)
    kept = np.delete(np.arange(30), 5)
    np.testing.assert_allclose(made.d[0], by_hand(x[kept, 0], x[30:, 0]))
    assert np.isnan(made.d[1]) and made.classes == ("left", "right")
    assert made.trials[:, 0].tolist() == [29, 50] and made.trials[:, 1].tolist() == [1, 50]


@given(st.integers(0, 10**6), st.floats(0.1, 50), st.floats(-100, 100))
def test_sign_flips_with_the_classes_and_units_do_not_matter(seed, scale, offset):
    rng = np.random.default_rng(seed)
    x, label = rng.normal(size=(20, 3)), np.repeat([0, 1], 10)
    d = tuning.d_prime(x, label).d
    np.testing.assert_allclose(tuning.d_prime(x, label, (1, 0)).d, -d, rtol=1e-12)
    np.testing.assert_allclose(tuning.d_prime(x, 1 - label).d, -d, rtol=1e-12)
    np.testing.assert_allclose(tuning.d_prime(scale * x + offset, label).d, d, rtol=1e-6)


def test_constant_neurons_have_no_d_and_perfect_ones_an_infinite_one():
    label = np.repeat([0, 1], 5)
    x = np.stack([np.full(10, 0.1), label * 3.0, -label * 3.0], 1)
    d = tuning.d_prime(x, label).d
    assert np.isnan(d[0]) and d[1] == np.inf and d[2] == -np.inf
    assert tuning.selective(d).tolist() == [False, True, True]


def test_share_of_selective_neurons_against_chance():
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1], 12)
    noise = rng.normal(size=(24, 300))
    none = tuning.shuffled_share(noise, label, shuffles=100)
    assert none.p > 0.05 and none.share == pytest.approx(none.null.mean(), abs=0.06)
    assert none.share > 0.1  # chance alone passes |d'| > 0.5 with 12 trials a class
    noise[label == 1, :150] += 1.5
    found = tuning.shuffled_share(noise, label, shuffles=100)
    assert found.p == pytest.approx(1 / 101) and found.n == 300 and found.share > 0.5


def test_epoch_means_skip_what_is_not_known():
    x = np.arange(12.0).reshape(6, 2)
    x[1, 0] = np.nan
    mask = np.ones((6, 2), bool)
    mask[3:, 1] = False
    means = tuning.epoch_means(x, [(0, 3), (3, 6)], mask)
    np.testing.assert_array_equal(means, [[2, 3], [8, np.nan]])
    with pytest.raises(AnalysisError, match="range"):
        tuning.epoch_means(x, [(0, 7)])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (["a"] * 6, "two classes"),
        (["", "", "a", "a", "a", "a"], "two classes"),
        (["a", "b", "b", "b", "b", "b"], "too few trials of a"),
        (["a", "a", "b", "b", "c", "c"], "Name the two"),
        (["a", "b"], "number of labels"),
    ],
)
def test_what_cannot_be_compared_is_said(label, message):
    with pytest.raises(AnalysisError, match=message):
        tuning.d_prime(np.random.default_rng(0).normal(size=(6, 2)), np.array(label))


def test_two_of_three_classes_can_be_named():
    x, label = np.random.default_rng(0).normal(size=(9, 2)), np.repeat([0, 1, 2], 3)
    d = tuning.d_prime(x, label, (0, 2)).d
    np.testing.assert_allclose(d[0], by_hand(x[:3, 0], x[6:, 0]))
    with pytest.raises(AnalysisError, match="two of"):
        tuning.d_prime(x, label, (0, 7))
