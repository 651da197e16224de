"""Couplings and their agreement with a true one: against scikit-learn, scipy and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from calm_jax.analysis import coupling
from calm_jax.errors import AnalysisError


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(5, 60), st.booleans())
def test_auc_is_that_of_scikit_learn(seed, n, ties):
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n)
    if ties:
        score = score.round(0)
    positive = rng.random(n) < 0.4
    positive[:2] = True, False
    assert coupling.auc(score, positive) == pytest.approx(roc_auc_score(positive, score))


def test_auc_without_a_class_is_not_known():
    assert np.isnan(coupling.auc(np.arange(3.0), np.zeros(3, bool)))


def test_agreement_is_that_of_scipy_over_different_neurons():
    rng = np.random.default_rng(0)
    j, c = rng.normal(size=(2, 20, 20))
    c += 0.5 * j
    np.fill_diagonal(c, 1e6)  # own influence never counts
    found = coupling.agreement(c, j, shuffles=99, seed=1)
    free = ~np.eye(20, dtype=bool)
    assert found["r"] == pytest.approx(stats.pearsonr(c[free], j[free])[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(c[free], j[free])[0])
    size = np.abs(j[free])
    strong = size >= np.quantile(size, 0.9)
    assert found["auc_strong"] == pytest.approx(roc_auc_score(strong, np.abs(c[free])))
    assert found["auc_sign"] == pytest.approx(roc_auc_score(j[free][strong] > 0, c[free][strong]))
    assert found["p"] == pytest.approx(0.01)
    assert found["r_null_low"] < 0 < found["r_null_high"] < found["r"]


def test_an_unrelated_coupling_lies_within_its_null():
    rng = np.random.default_rng(3)
    found = coupling.agreement(*rng.normal(size=(2, 30, 30)), shuffles=99)
    assert found["p"] > 0.05
    assert 0.35 < found["auc_sign"] < 0.65


def test_a_constant_estimate_says_nothing():
    j = np.random.default_rng(0).normal(size=(8, 8))
    found = coupling.agreement(np.zeros((8, 8)), j)
    assert found["r"] == 0
    assert found["auc_sign"] == 0.5


@pytest.mark.parametrize("shapes", [((2, 2), (2, 2)), ((4, 4), (5, 5)), ((4, 5), (4, 5))])
def test_matrices_that_cannot_be_compared_are_refused(shapes):
    with pytest.raises(AnalysisError, match="square matrices of at least 3 neurons"):
        coupling.agreement(*(np.ones(s) for s in shapes))


@pytest.mark.parametrize("change", [False, True])
def test_lagged_correlation_is_numpys_and_crosses_no_edge(change):
    rng = np.random.default_rng(0)
    pieces = [rng.normal(size=(t, 4)) + t for t in (30, 1, 45)]
    masks = [np.ones(p.shape, bool) for p in pieces]
    masks[0][7, 2] = False
    found = coupling.lagged_correlation(zip(pieces, masks), 2, change=change)
    x, y = [], []
    for p, m in zip(pieces, masks):
        for t in range(len(p) - 2):
            if m[t].all() and m[t + 2].all():
                x.append(p[t])
                y.append(p[t + 2] - p[t] if change else p[t + 2])
    wanted = np.corrcoef(np.array(y).T, np.array(x).T)[:4, 4:]
    np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_lag_zero_is_the_correlation_matrix_and_constant_neurons_have_none():
    x = np.random.default_rng(0).normal(size=(50, 3))
    x[:, 1] = 4.0
    found = coupling.lagged_correlation([(x, np.ones(x.shape, bool))], 0)
    assert found[0, 2] == pytest.approx(np.corrcoef(x[:, 0], x[:, 2])[0, 1])
    assert (found[1] == 0).all()
    assert (found[:, 1] == 0).all()


def test_too_few_frames_are_refused():
    with pytest.raises(AnalysisError, match="too few valid frames"):
        coupling.lagged_correlation([(np.ones((4, 2)), np.ones((4, 2), bool))], 3)


def test_the_impulse_map_of_a_linear_forecaster_is_its_weights():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 5, 5)).astype(np.float32)  # horizon, to, from

    def forecast(x):
        return np.einsum("hij,bj->bhi", weights, x[:, -1]) + 7 + x[:, 0].sum() * 0

    found = coupling.impulse_map(forecast, 6, 5, batch=2)
    np.testing.assert_allclose(found, weights, atol=1e-5)


def test_mixing_tables_are_what_the_layer_applies():
    import jax.numpy as jnp
    from flax import nnx

    from calm_jax.layers.mixing import SignedMixing

    layer = SignedMixing(8, 2, 3, embedding=6, dropout=0.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 5, 8)).astype(np.float32)
    e = rng.normal(size=(5, 6)).astype(np.float32)
    q, k = (np.asarray(e @ m.kernel[...]).reshape(5, 2, 3) for m in (layer.query, layer.key))
    tables = coupling.mixing_tables(q, k)
    v = np.asarray(x @ layer.value.kernel[...]).reshape(1, 4, 5, 2, 4)
    mixed = np.einsum("hij,btjhe->btihe", tables, v).reshape(1, 4, 5, 8)
    wanted = mixed @ np.asarray(layer.out.kernel[...])
    got = layer(jnp.asarray(x), jnp.asarray(e)[None], jnp.ones((1, 5), bool), None)
    np.testing.assert_allclose(np.asarray(got), wanted, atol=1e-5)
    np.testing.assert_allclose(coupling.weighted(tables, np.array([2.0, -1.0])),
                               2 * tables[0] - tables[1])  # fmt: skip


def test_queries_of_another_shape_are_refused():
    with pytest.raises(AnalysisError, match="neurons, heads, rank"):
        coupling.mixing_tables(np.ones((3, 2, 2)), np.ones((3, 2, 1)))
