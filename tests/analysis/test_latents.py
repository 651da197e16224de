"""Latent spaces against scipy, closed forms, other formulas, and figures of scikit-dimension."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import procrustes as scipy_procrustes
from sklearn.manifold import trustworthiness

from calm_jax.analysis import latents
from calm_jax.errors import AnalysisError


def sphere(n=1500, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 3))
    return np.pad(x / np.linalg.norm(x, axis=1, keepdims=True), ((0, 0), (0, 5)))


def roll(n=1500, seed=0):
    rng = np.random.default_rng(seed)
    t, h = 1.5 * np.pi * (1 + 2 * rng.random(n)), 21 * rng.random(n)
    return np.stack([t * np.cos(t), h, t * np.sin(t)], 1)


@pytest.mark.parametrize(
    ("points", "dimension"),
    [
        (np.random.default_rng(0).random((800, 1)) * [1.0, 2, 3], 1),
        (sphere(), 2),
        (roll(), 2),
        (np.random.default_rng(0).random((2000, 5)), 5),
    ],
)
@pytest.mark.parametrize("average", ["arithmetic", "harmonic"])
def test_dimension_of_known_manifolds(points, dimension, average):
    found = latents.intrinsic_dimension(points, average=average).value
    assert found == pytest.approx(dimension, rel=0.12)


def test_the_arithmetic_mean_is_unbiased_on_a_circle():
    """No edge, hardly any curvature at this scale: k - 1 in place of k - 2 would give 1.08."""
    angle = 2 * np.pi * np.random.default_rng(0).random(3000)
    found = latents.intrinsic_dimension(np.stack([np.cos(angle), np.sin(angle)], 1)).value
    assert found == pytest.approx(1, abs=0.03)


def test_dimension_equals_scikit_dimension():
    """MLE of scikit-dimension 0.5.0 (BSD-3), neighborhood_based, for the same points and K."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 3)) @ rng.normal(size=(3, 12))
    for k, known in ((10, 3.00619434694295), (20, 3.036038239679808)):
        found = latents.intrinsic_dimension(x, low=k, high=k, average="harmonic").value
        assert found == pytest.approx(known, rel=1e-6)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_dimension_knows_no_rotation_and_no_unit(seed, scale):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(80, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    a = latents.intrinsic_dimension(x, low=5, high=10).value
    b = latents.intrinsic_dimension(scale * x @ turn + 9, low=5, high=10).value
    assert a == pytest.approx(b, rel=1e-6)


def test_duplicates_are_left_out_and_too_few_points_said():
    x = roll(100)
    made = latents.intrinsic_dimension(np.concatenate([x, x[:30]]))
    assert made.duplicates == 30 and made.n == 100
    assert made.value == pytest.approx(latents.intrinsic_dimension(x).value)
    with pytest.raises(AnalysisError, match="too few different points"):
        latents.intrinsic_dimension(np.ones((50, 3)))
    with pytest.raises(AnalysisError, match="average"):
        latents.intrinsic_dimension(x, average="median")


@given(st.integers(0, 10**6))
def test_procrustes_equals_scipy_and_ignores_similarities(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 20, 4))
    assert latents.procrustes(a, b) == pytest.approx(scipy_procrustes(a, b)[2], abs=1e-9)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert latents.procrustes(a, 1e4 * a @ turn - 3) == pytest.approx(0, abs=1e-9)
    assert latents.procrustes(a, b) == pytest.approx(latents.procrustes(b, a), abs=1e-9)
    assert latents.procrustes(a, np.pad(a, ((0, 0), (2, 5)))) == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 10**6), st.booleans())
def test_cka_ignores_similarities_and_equals_the_kernel_form(seed, debiased):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(15, 4)), rng.normal(size=(15, 30))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    same = latents.cka(a, 1e-3 * a @ turn + 5, debiased=debiased)
    assert same == pytest.approx(1, abs=1e-8)
    centre = np.eye(15) - 1 / 15
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    known = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert latents.cka(a, b) == pytest.approx(known) == pytest.approx(latents.cka(b, a))


def test_unrelated_wide_spaces_look_alike_unless_debiased():
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 40, 400)) for _ in range(20)]
    assert np.mean([latents.cka(a, b) for a, b in pairs]) > 0.8
    assert abs(np.mean([latents.cka(a, b, debiased=True) for a, b in pairs])) < 0.02


def test_the_debiased_estimate_is_the_mean_over_quadruples():
    """HSIC over all ordered quadruples of different rows (Song et al. 2012), by brute force."""
    import itertools

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 2))
    k, m = a @ a.T, b @ b.T
    four = list(itertools.permutations(range(6), 4))
    known = np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in four])
    assert latents._hsic(a, b) == pytest.approx(known)


def test_spaces_that_cannot_be_compared():
    x = np.random.default_rng(0).normal(size=(9, 2))
    for compare in (latents.cka, latents.procrustes):
        with pytest.raises(AnalysisError, match="correspond"):
            compare(x, x[:5])
        with pytest.raises(AnalysisError, match="single point"):
            compare(x, np.full((9, 3), 0.1))


def by_hand(points, k, frames, sequence):
    score = []
    for i in range(len(points)):
        others = [j for j in range(len(points)) if j != i]
        mates = [j for j in others if sequence[j] == sequence[i]]
        time = sorted(mates, key=lambda j: (abs(frames[j] - frames[i]), frames[j]))[:k]
        space = sorted(others, key=lambda j: np.linalg.norm(points[j] - points[i]))[:k]
        score.append(len(set(time) & set(space)) / len(set(time) | set(space)))
    return score


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_temporal_neighbourhood_by_hand(seed, k):
    rng = np.random.default_rng(seed)
    frames, sequence = rng.permutation(40), np.repeat([3, 8], [15, 25])
    points = np.stack([frames + 30 * sequence, rng.normal(size=40)], 1) * [0.1, 1]
    made = latents.temporal_neighbourhood(points, k=k, frames=frames, sequence=sequence)
    np.testing.assert_allclose(made.per_point, by_hand(points, k, frames, sequence))
    assert made.score == pytest.approx(made.per_point.mean())


def test_a_line_in_time_scores_one_and_noise_scores_chance():
    line = np.arange(200.0)[:, None] * [1.0, 2.0]
    assert latents.temporal_neighbourhood(line).score == 1
    rng = np.random.default_rng(0)
    noise = [latents.temporal_neighbourhood(rng.normal(size=(200, 2))) for _ in range(20)]
    assert np.mean([m.score for m in noise]) == pytest.approx(noise[0].chance, rel=0.1)
    with pytest.raises(AnalysisError, match="too few points in a sequence"):
        latents.temporal_neighbourhood(line[:10])


def test_tsne_keeps_neighbours_and_repeats_by_its_seed():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(60, 70)) + 6 * rng.normal(size=70) for _ in range(3)])
    made = latents.tsne(x, most=150, seed=1)
    again = latents.tsne(x, most=150, seed=1)
    np.testing.assert_array_equal(made.points, again.points)
    assert made.points.shape == (150, 2) and made.n == 180 and len(set(made.index)) == 150
    assert trustworthiness(x[made.index], made.points, n_neighbors=10) > 0.85
    from sklearn.metrics import silhouette_score

    assert silhouette_score(made.points, made.index // 60) > 0.7
    assert latents.tsne(x[:10]).perplexity == 3
    with pytest.raises(AnalysisError, match="too few rows"):
        latents.tsne(x[:3])
    with pytest.raises(AnalysisError, match="nothing varies"):
        latents.tsne(np.ones((20, 3)))
