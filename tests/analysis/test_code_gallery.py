"""Waveforms, usage and transitions of codes: against NumPy loops and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calm_jax.analysis import code_gallery as g
from calm_jax.errors import AnalysisError


def test_waveforms_are_means_of_the_patches():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, 300)  # code 5 is never used
    patches = rng.normal(size=(300, 4)).astype(np.float32) + codes[:, None]
    sums = g.WaveformSums(6, 4)
    for part in (slice(0, 100), slice(100, 300)):
        sums.add(codes[part], patches[part])
    found = sums.result()
    for c in range(5):
        np.testing.assert_allclose(found.mean[c], patches[codes == c].mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.sd[c], patches[codes == c].std(0), rtol=1e-4)
    assert np.isnan(found.mean[5]).all()
    np.testing.assert_array_equal(found.count, np.bincount(codes, minlength=6))
    rest = patches - found.mean[codes]
    total = patches - patches.mean(0)
    assert found.explained == pytest.approx(1 - (rest**2).sum() / (total**2).sum(), rel=1e-5)
    assert g.by_level(found)[:5].tolist() == [0, 1, 2, 3, 4]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9999), st.integers(2, 6), st.integers(1, 4), st.integers(1, 9))
def test_transitions_are_counted_one_by_one(seed, k, n, s):
    rng = np.random.default_rng(seed)
    sequences = [(rng.integers(0, k, (n, s)), rng.random((n, s)) < 0.8) for _ in range(2)]
    wanted = np.zeros((k, k), int)
    for codes, valid in sequences:
        for row, good in zip(codes, valid):
            for t in range(s - 1):
                if good[t] and good[t + 1]:
                    wanted[row[t], row[t + 1]] += 1
    found = g.transitions(sequences, k)
    np.testing.assert_array_equal(found, wanted)
    sums = g.transition_matrix(found).sum(1)
    np.testing.assert_allclose(sums, (wanted.sum(1) > 0).astype(float))


def test_small_types_of_codes_do_not_overflow():
    codes = np.full((2, 5), 127, np.uint8)
    assert g.transitions([(codes, np.ones(codes.shape, bool))], 128)[127, 127] == 8


def test_entropies_of_known_chains():
    even = g.usage(np.full(8, 10), np.full((8, 8), 3))
    assert even.entropy == pytest.approx(3)
    assert even.perplexity == pytest.approx(8)
    assert even.information == pytest.approx(0, abs=1e-12)
    assert even.next_entropy == pytest.approx(3)
    cycle = g.usage(np.full(4, 10), 5 * np.roll(np.eye(4, dtype=int), 1, 1))
    assert cycle.next_entropy == pytest.approx(0, abs=1e-12)
    assert cycle.information == pytest.approx(2)
    assert cycle.persistence == 0
    joint = np.array([[5, 1], [2, 8]])
    found = g.usage(joint.sum(1), joint)
    p = joint / joint.sum()
    wanted = stats.entropy(p.ravel(), np.outer(p.sum(1), p.sum(0)).ravel(), base=2)
    assert found.information == pytest.approx(wanted)
    assert found.persistence == pytest.approx(13 / 16)


def test_a_single_token_has_no_transitions():
    found = g.usage(np.array([1, 0]), np.zeros((2, 2), int))
    assert found.used == 1
    assert found.transitions == 0
    assert np.isnan(found.information)


def test_the_strongest_transitions_leave_staying_out():
    pairs = np.array([[99, 4, 0], [7, 50, 1], [0, 0, 3]])
    assert g.strongest(pairs, 2).tolist() == [[1, 0], [0, 1]]
    assert len(g.strongest(pairs, 10)) == 3


def test_hostile_input_is_refused():
    with pytest.raises(AnalysisError, match="no valid code"):
        g.usage(np.zeros(4, int), np.zeros((4, 4), int))
    with pytest.raises(AnalysisError, match="belong together"):
        g.waveforms(np.zeros(3, int), np.zeros((4, 2)), 2)
