"""Information against closed forms: Gaussians, AR(1), uniform signals, known covariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from calm_jax.analysis import groups, information
from calm_jax.errors import AnalysisError
from tests.analysis.test_spectrum import ar1


def test_fisher_information_of_a_gaussian_by_its_definition():
    """E[(d/dm log p)^2] by quadrature against 1 / s^2."""
    for sd in (0.2, 1.0, 3.0):
        x = np.linspace(-12 * sd, 12 * sd, 20_001)
        score = x / sd**2  # derivative of the log density by its mean
        expected = np.trapezoid(score**2 * stats.norm.pdf(x, 0, sd), x)
        assert information.fisher(sd**2) == pytest.approx(expected, rel=1e-8)
    assert np.isnan(information.fisher(np.zeros(1))).all()


def test_no_estimate_beats_the_cramer_rao_bound_and_the_mean_reaches_it():
    x = np.random.default_rng(0).normal(2, 0.5, size=(20_000, 25))
    bound = information.cramer_rao(information.fisher(0.25), 25)
    assert x.mean(1).var() == pytest.approx(bound, rel=0.05)
    assert np.median(x, 1).var() > 1.2 * bound


def test_per_neuron_quantities():
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(5, 2, 20_000), rng.exponential(1, 20_000), np.full(20_000, 3.0)], 1)
    made = information.neuron_information(x, rate=10.0)
    np.testing.assert_allclose(made.fisher[:2], [0.25, 1], rtol=0.05)
    np.testing.assert_allclose(made.bound, made.variance / np.where([1, 1, 0], 1, np.nan))
    np.testing.assert_allclose(made.skewness[:2], stats.skew(x[:, :2]), rtol=1e-9)
    np.testing.assert_allclose(made.kurtosis[:2], stats.kurtosis(x[:, :2], fisher=False), rtol=1e-9)
    np.testing.assert_allclose(made.independent[:2], 20_000, rtol=0.05)
    for name in ("fisher", "bound", "entropy", "regularity", "skewness", "independent"):
        assert np.isnan(getattr(made, name)[2]), name
    assert made.variance[2] == 0 and made.frames.tolist() == [20_000] * 3
    assert made.autocorrelation.shape == (51, 3)


def test_independent_frames_of_an_ar1_process():
    """T (1 - phi) / (1 + phi), which is also how much the variance of the mean grows."""
    phi, t = 0.8, 50_000
    made = information.neuron_information(ar1(phi, t, 3), rate=10.0)
    np.testing.assert_allclose(made.independent, t * (1 - phi) / (1 + phi), rtol=0.12)
    np.testing.assert_allclose(made.fisher, 1 - phi**2, rtol=0.06)
    means = ar1(phi, 200 * 400, 5).reshape(400, 200, 5).mean(1)
    one = information.neuron_information(ar1(phi, 200, 5, seed=3), rate=10.0)
    assert 1 / (1 - phi**2) / means.var() == pytest.approx(np.mean(one.independent), rel=0.5)


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-1000, 1000))
def test_units_and_offsets(seed, scale, offset):
    x = np.random.default_rng(seed).gamma(1.0, size=(120, 2))
    a = information.neuron_information(x, rate=5.0)
    b = information.neuron_information(scale * x + offset, rate=5.0)
    np.testing.assert_allclose(b.fisher, a.fisher / scale**2, rtol=1e-5)
    for name in ("regularity", "skewness", "kurtosis", "independent"):
        np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-4)
    np.testing.assert_allclose(b.entropy, a.entropy, atol=0.1)  # a value may cross an edge


def test_entropy_of_known_distributions():
    rng = np.random.default_rng(0)
    t = 200_000
    x = np.stack([rng.uniform(size=t), rng.integers(0, 2, t), rng.random(t) < 0.02], 1)
    found = information.entropy(x.astype(float), bins=64)
    rare = -(0.02 * np.log2(0.02) + 0.98 * np.log2(0.98))
    np.testing.assert_allclose(found, [6, 1, rare], atol=0.01)
    counts = np.histogram(x[:500, 0], 16)[0]
    assert information.entropy(x[:500, :1], bins=16)[0] == pytest.approx(
        stats.entropy(counts, base=2)
    )


def test_regularity_orders_smooth_steady_and_rare():
    rng = np.random.default_rng(0)
    smooth = ar1(0.98, 5000)[:, 0]
    rare = (rng.random(5000) < 0.005) * 1.0
    white = rng.normal(size=5000)
    r = information.neuron_information(np.stack([smooth, white, rare], 1), rate=10.0).regularity
    assert r[0] > r[1] > r[2] and (r >= 0).all() and (r <= 1).all()


def test_condition_number_of_a_known_covariance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 3)) * [1, 2, 5]
    made = information.condition_number(x)
    assert made.value == pytest.approx(25, rel=0.05) and made.neurons == 3
    whole = rng.normal(size=(300, 40)) @ rng.normal(size=(40, 40))
    assert information.condition_number(whole, neurons=40).value == pytest.approx(
        np.linalg.cond(np.cov(whole.T)), rel=1e-6
    )
    some = information.condition_number(whole, neurons=5)
    assert some.draws.shape == (20,) and some.value < np.linalg.cond(np.cov(whole.T))
    with pytest.raises(AnalysisError, match="cannot be inverted"):
        information.condition_number(rng.normal(size=(10, 40)), neurons=20)
    with pytest.raises(AnalysisError, match="0 varying neurons"):
        information.condition_number(np.ones((50, 3)))


def test_masked_frames_and_ranges_do_not_count():
    x = ar1(0.5, 400, 2)
    spoiled = np.concatenate([x[:200], np.full((7, 2), 1e6), x[200:]])
    a = information.neuron_information(spoiled, rate=10.0, ranges=[(0, 200), (207, 407)])
    mask = np.ones(spoiled.shape, bool)
    mask[200:207] = False
    b = information.neuron_information(spoiled, rate=10.0, mask=mask)
    np.testing.assert_allclose(a.variance, x.var(0))
    np.testing.assert_allclose(b.variance, x.var(0))
    assert a.frames.tolist() == b.frames.tolist() == [400, 400]
    with pytest.raises(AnalysisError, match="ranges too short"):
        information.neuron_information(x, rate=10.0, ranges=[(0, 5), (9, 14)])
    with pytest.raises(AnalysisError, match="no valid frame"):
        information.neuron_information(np.full((20, 2), np.nan), rate=10.0)


def test_groups_and_the_composite_score():
    rng = np.random.default_rng(0)
    quiet = ar1(0.9, 4000, 6) * 0.1
    bursts = (rng.random((4000, 6)) < 0.01) * 10.0
    x = np.concatenate([quiet, bursts, np.zeros((4000, 1))], 1)
    names = np.array(["vip"] * 6 + ["scnn"] * 6 + ["vip"])
    made = information.neuron_information(x, rate=10.0)
    table = groups.compare(made, names, {"vip": 10.0, "scnn": 90.0})
    assert table.names.tolist() == ["scnn", "vip"] and table.constant.tolist() == [0, 1]
    np.testing.assert_allclose(table.raw, 24_000)
    np.testing.assert_allclose(table.effective, table.raw * table.fisher)  # equal frames
    np.testing.assert_allclose(table.efficiency[1], np.mean(1 / quiet.var(0)))
    np.testing.assert_allclose(table.bound[0], np.mean(bursts.var(0)))
    np.testing.assert_allclose(table.factors["stability"], [1 / 9, 1])
    weights = {"fidelity": 0.3, "stability": 0.25, "regularity": 0.2, "entropy": 0.15,
               "statistics": 0.1}  # fmt: skip
    assert dict(table.weights) == pytest.approx(weights)
    by_hand = sum(w * table.factors[k] for k, w in weights.items())
    np.testing.assert_allclose(table.score, by_hand)
    assert table.score[1] > table.score[0] and table.score.max() <= 1
    without = groups.compare(made, names)
    assert "stability" not in without.factors and sum(without.weights.values()) == pytest.approx(1)
    with pytest.raises(AnalysisError, match="two groups"):
        groups.compare(made, np.array(["vip"] * 13))


def test_effective_size_weighs_neurons_by_their_frames():
    x = np.random.default_rng(0).normal(size=(1000, 4)) * [1, 2, 1, 1]
    x[500:, 1] = np.nan
    made = information.neuron_information(x, rate=10.0)
    table = groups.compare(made, np.array(["a", "a", "b", "b"]))
    by_hand = 1000 / x[:, 0].var() + 500 / x[:500, 1].var()
    assert table.effective[0] == pytest.approx(by_hand)
    assert table.efficiency[0] == pytest.approx(by_hand / 1500)


def test_the_interval_of_a_ratio_covers_it():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = np.concatenate([rng.lognormal(0.7, 0.5, 80), rng.lognormal(0, 0.5, 60), [np.nan]])
        names = np.repeat(["a", "b"], [80, 61])
        made = groups.ratio(x, names, "a", "b", draws=200, seed=seed)
        covered += made.low <= np.exp(0.7) <= made.high
        assert made.low < made.value < made.high and made.n == (80, 60)
    assert covered >= 49  # of 60 at 95 %: less with probability below 0.001
    assert made.value == pytest.approx(x[:80].mean() / x[80:140].mean())
    with pytest.raises(AnalysisError, match="too few neurons of c"):
        groups.ratio(x, names, "a", "c")
