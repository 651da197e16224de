"""Discriminants against scikit-learn; nulls that are nulls; angles that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from calm_jax.analysis import embeddings
from calm_jax.errors import AnalysisError


def coded(seed: int = 0, n: int = 400, d: int = 60, strength: float = 1.0):
    """Embeddings with two orthogonal codes, and the d' they code."""
    rng = np.random.default_rng(seed)
    cue, choice = rng.normal(size=(2, n))
    x = rng.normal(size=(n, d))
    x[:, 0] += strength * cue
    x[:, 1] += strength * choice
    return x, cue, choice


def test_equal_to_scikit_learn_after_pca():
    x, cue, choice = coded()
    label = embeddings.sign_classes(cue, choice)
    made = embeddings.lda(x, label, components=10, shuffles=0)
    z = PCA(10, svd_solver="full").fit_transform(x)
    known = LinearDiscriminantAnalysis(solver="svd", n_components=2).fit(z, label)
    for i in range(2):
        r = np.corrcoef(known.transform(z)[:, i], made.coordinates[:, i])[0, 1]
        assert abs(r) == pytest.approx(1, abs=1e-9)
    # Eigenvalues of within^-1 between are eta^2 / (1 - eta^2).
    within = made.shares / (1 - made.shares)
    ratio = known.explained_variance_ratio_
    np.testing.assert_allclose(within[1] / within[0], ratio[1] / ratio[0])
    np.testing.assert_allclose(made.coordinates.std(0), 1, rtol=1e-9)
    assert made.components == 10 and made.n == 400


def test_shares_are_the_squared_correlation_ratio_of_each_discriminant():
    x, cue, choice = coded()
    label = embeddings.sign_classes(cue, choice)
    made = embeddings.lda(x, label, shuffles=0)
    for share, along in zip(made.shares, made.coordinates.T):
        groups = [along[label == c] for c in range(4)]
        between = sum(len(g) * (g.mean() - along.mean()) ** 2 for g in groups)
        assert share == pytest.approx(between / np.sum((along - along.mean()) ** 2), rel=1e-9)


def test_the_null_holds_its_level_and_real_codes_beat_it():
    rng = np.random.default_rng(0)
    p = [
        embeddings.lda(rng.normal(size=(60, 5)), np.arange(60) % 4, shuffles=39, seed=i).p
        for i in range(60)
    ]
    assert 0.35 < np.mean(p) < 0.65 and np.mean(np.array(p) <= 0.1) < 0.25
    x, cue, choice = coded()
    made = embeddings.lda(x, embeddings.sign_classes(cue, choice), shuffles=99)
    assert made.p == 0.01 and made.separation > 2 * made.null.mean()


@given(st.integers(0, 10**6))
def test_rotation_scale_and_shift_of_embeddings_change_nothing(seed):
    x, cue, choice = coded(n=120, d=8)
    label = embeddings.sign_classes(cue, choice)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    a = embeddings.lda(x, label, shuffles=0)
    b = embeddings.lda(3 * x @ turn + 5, label, shuffles=0)
    np.testing.assert_allclose(a.shares, b.shares, rtol=1e-8)
    np.testing.assert_allclose(np.abs(a.coordinates), np.abs(b.coordinates), atol=1e-6)


def test_held_out_neurons_are_told_apart_only_where_the_code_is_shared():
    x, cue, choice = coded(0)
    made = embeddings.lda(x, embeddings.sign_classes(cue, choice), components=5, shuffles=0)
    other, cue2, choice2 = coded(1, n=200)
    label = embeddings.sign_classes(cue2, choice2)
    label[:10] = -1
    seen = embeddings.lda_apply(made, other, label, shuffles=99)
    assert seen.accuracy > 0.4 and seen.p == 0.01 and seen.chance == 0.25 and seen.n == 190
    rolled = embeddings.lda_apply(made, np.roll(other, 20, axis=1), label, shuffles=99)
    assert abs(rolled.accuracy - 0.25) < 0.12 and rolled.p > 0.01
    np.testing.assert_allclose(embeddings.lda_project(made, x), made.coordinates)
    with pytest.raises(AnalysisError, match="another width"):
        embeddings.lda_apply(made, other[:, :9], label)
    with pytest.raises(AnalysisError, match="no neuron has a class"):
        embeddings.lda_apply(made, other, np.full(200, -1))


def test_sign_classes():
    first, second = [1, -1, 1, -1, np.nan, 0], [1, 1, -1, -1, 1, 1]
    assert embeddings.sign_classes(first, second).tolist() == [3, 1, 2, 0, -1, -1]


@given(st.floats(0, 180), st.integers(0, 1000))
def test_the_angle_between_planted_directions(degrees, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 2))
    a = np.radians(degrees)
    found = embeddings.coding_angle(x, x @ [1, 0], x @ [np.cos(a), np.sin(a)], draws=5)
    assert found.degrees == pytest.approx(degrees, abs=1e-3)
    np.testing.assert_allclose(found.first, [1, 0], atol=1e-6)
    assert found.r[0] == pytest.approx(1)


def test_the_interval_of_the_angle_covers_it():
    covered = 0
    for seed in range(30):
        x, cue, choice = coded(seed, n=150, d=2)
        angle = embeddings.coding_angle(x, cue, choice, draws=100, seed=seed)
        covered += angle.low <= 90 <= angle.high
    assert covered >= 24  # of 30 at 95 %: less with probability 0.001
    cue[0] = np.inf
    assert embeddings.coding_angle(x, cue, choice, draws=3).n == 149


def test_what_is_not_possible_is_said():
    x, cue, choice = coded(n=30)
    with pytest.raises(AnalysisError, match="two classes"):
        embeddings.lda(x, np.zeros(30, int))
    with pytest.raises(AnalysisError, match="too few neurons of class True"):
        embeddings.lda(x, np.arange(30) == 3)
    with pytest.raises(AnalysisError, match="nothing varies"):
        embeddings.lda(np.ones((30, 5)), np.arange(30) % 2)
    one = embeddings.lda(x, np.arange(30) % 2, shuffles=0)
    assert one.coordinates.shape == (30, 1)
    with pytest.raises(AnalysisError, match="two discriminants"):
        embeddings.coding_angle(one.coordinates, cue, choice)
    with pytest.raises(AnalysisError, match="the same in all neurons"):
        embeddings.coding_angle(x[:, :2], cue, np.ones(30))
