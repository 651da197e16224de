"""CRPS and coverage against a Gaussian whose scores are known in closed form."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from calm_jax import calibration, config, evaluation, rows
from calm_jax.errors import CalmError
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import make_split

SETTINGS = config.Forecasting(context=8, horizon=4, origin_stride=4)


class Gaussian:
    """N(0, sd^2) whatever the context."""

    def __init__(self, sd=1.0, seen=None):
        self.sd, self.seen = sd, seen

    def __call__(self, context, session, mask, horizon):
        return np.zeros((len(context), horizon, context.shape[2]), np.float32)

    def quantiles(self, context, session, mask, horizon, levels):
        if self.seen is not None:
            self.seen.append(context.copy())
        shape = (len(levels), len(context), horizon, context.shape[2])
        return np.broadcast_to(self.sd * norm.ppf(levels)[:, None, None, None], shape)


def _prepared(change=False):
    x = np.random.default_rng(0).normal(size=(20_000, 4))
    x[:, 3] = 1.0  # constant: not scored
    split = make_split(MemoryStore([Session(x, rate=10, session="a")]), config.Split())
    if change:
        a, b = split.parts[0]["test"][0]
        x[b - 4 : b] = 9
    store = MemoryStore([Session(x, rate=10, session="a")])
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


def _value(found, metric, step=None):
    (r,) = rows.select(found, metric=metric, session=None, animal=None, step=step)
    return r["value"]


@pytest.mark.parametrize("sd", [1.0, 2.0, 0.3])
def test_scores_of_a_gaussian(sd):
    p = _prepared()
    found = calibration.quantile_rows(p, p.splits, "g", Gaussian(sd), SETTINGS, "B", seed=3)
    # CRPS of N(0, sd^2) for y ~ N(0, 1): E|X - Y| - E|X - X'| / 2.
    exact = np.sqrt(2 * (1 + sd**2) / np.pi) - sd / np.sqrt(np.pi)
    assert_allclose(_value(found, "crps"), exact, rtol=0.06)  # of seven quantiles
    for k, level in ((50, 0.75), (80, 0.9), (95, 0.975)):
        share = 2 * norm.cdf(sd * norm.ppf(level)) - 1
        assert_allclose(_value(found, f"coverage_{k}"), share, atol=0.02)
    assert_allclose(np.mean([_value(found, "crps", h) for h in range(1, 5)]),
                    _value(found, "crps"), rtol=1e-6)  # fmt: skip
    assert {r["seed"] for r in found} == {3} and set(found[0]) == set(rows.FIELDS)


def test_without_spread_crps_is_the_absolute_error():
    p = _prepared()
    found = calibration.quantile_rows(p, p.splits, "g", Gaussian(0.0), SETTINGS, "B")
    scores = evaluation.evaluate_forecasts(p, p.splits, {"g": Gaussian()}, SETTINGS,
                                           protocols=["B"])  # fmt: skip
    (mae,) = rows.select(scores, method="g", metric="mae", session=None, animal=None, step=None)
    assert_allclose(_value(found, "crps"), mae["value"], rtol=1e-4)
    assert _value(found, "coverage_95") == 0


def test_only_contexts_are_handed_over():
    seen = [], []
    for place, change in zip(seen, (False, True)):
        p = _prepared(change)
        calibration.quantile_rows(p, p.splits, "g", Gaussian(seen=place), SETTINGS, "B")
    for a, b in zip(*seen):
        assert (a == b).all()  # the frames changed are behind the last origin


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda q: q[:, :, :2], "shape"),
        (lambda q: q * np.nan, "NaN"),
        (lambda q: q[::-1], "cross"),
    ],
)
def test_wrong_quantiles_are_named(wrong, said):
    p = _prepared()
    g = Gaussian()
    g.quantiles = lambda *a, made=g.quantiles: wrong(made(*a))
    with pytest.raises(CalmError, match=f"method g|g, session a.*{said}"):
        calibration.quantile_rows(p, p.splits, "g", g, SETTINGS, "B")
