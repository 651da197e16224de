"""Residual quantiles: exact where exactness is known, and they hold what they promise."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import norm

from calm_jax import calibration, config, quantile_files, rows, uncertainty
from calm_jax.baselines.copy_last import CopyLast
from calm_jax.errors import ConfigError, RecordingError, RunError
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import make_split

SETTINGS = config.Forecasting(context=12, horizon=4, origin_stride=4)


def _prepared(x, change=None):
    store = MemoryStore([Session(x, rate=10, session="a")])
    split = make_split(store, config.Split())
    if change is not None:
        a, b = split.parts[0][change][0]
        x = x.copy()
        x[a:b] = np.random.default_rng(9).normal(size=x[a:b].shape)
        store = MemoryStore([Session(x, rate=10, session="a")])
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


def _bursts(frames=12_000, neurons=5, seed=0):
    """Random walks around a mean; the step size changes slowly by a factor of four."""
    rng = np.random.default_rng(seed)
    size = np.exp(np.sin(np.arange(frames)[:, None] / 300 + np.arange(neurons)) * 0.7)
    x = np.zeros((frames, neurons))
    for t in range(1, frames):
        x[t] = 0.98 * x[t - 1] + rng.normal(size=neurons) * size[t] * 0.1
    return x


def _coverage(p, fitted, part="test"):
    spread = uncertainty.Calibrated(CopyLast(), fitted)
    found = calibration.quantile_rows(p, p.splits, "x", spread, SETTINGS, "B", part)
    get = lambda m: rows.select(found, metric=m, session=None, animal=None, step=None)[0]["value"]
    return {k: get(f"coverage_{k}") for k in calibration.INTERVALS}, get("crps")


def test_intervals_hold_what_they_say_and_the_local_scale_helps():
    p = _prepared(_bursts())
    fitted = uncertainty.fit(p, CopyLast(), SETTINGS, "B")
    found, crps = _coverage(p, fitted)
    for k, share in found.items():
        assert abs(share - k / 100) < 0.04, found
    assert fitted.weight > 0
    plain = dataclasses.replace(fitted, weight=0.0)
    errors = uncertainty._errors(
        p, 0, CopyLast(), calibration.scored.plan(p, p.splits, 0, "valid", "B", SETTINGS), 5, 16
    )
    table = uncertainty._table([errors], fitted.sigma, fitted.ratio, 0.0, fitted.floor)
    plain = dataclasses.replace(plain, tables=np.stack([table, table]))
    assert crps < _coverage(p, plain)[1]


def test_exact_for_white_noise():
    """y ~ N(0, 1) and a forecast of zero: quantiles of the normal, whatever the context."""
    p = _prepared(np.random.default_rng(0).normal(size=(60_000, 3)))
    zero = lambda c, i, m, h: np.zeros((len(c), h, c.shape[2]), np.float32)  # noqa: E731
    fitted = uncertainty.fit(p, zero, SETTINGS, "B")
    assert fitted.weight == 0
    x = np.random.default_rng(1).normal(size=(2, 12, 3)).astype(np.float32)
    q = fitted.quantiles(zero(x, 0, None, 4), x, np.ones(x.shape, bool), 0, (0.1, 0.5, 0.9))
    assert_allclose(q.mean((1, 2, 3)), norm.ppf([0.1, 0.5, 0.9]), atol=0.06)


def test_only_the_validation_part_and_the_context_are_looked_at(tmp_path):
    x = _bursts(2400)
    a, b = (uncertainty.fit(_prepared(x, c), CopyLast(), SETTINGS, "B") for c in (None, "test"))
    assert (a.tables == b.tables).all() and a.weight == b.weight
    c = uncertainty.fit(_prepared(x, "valid"), CopyLast(), SETTINGS, "B")
    assert not (a.tables == c.tables).all()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(3, 30), st.integers(1, 4),
    st.sampled_from([0.0, 1.0, 1e4]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_quantiles_are_finite_and_never_cross(horizon, context, neurons, size, known, seed):
    rng = np.random.default_rng(seed)
    tables = np.sort(rng.normal(size=(2, len(uncertainty.GRID), 4)), 1)
    sigma = {0: np.abs(rng.normal(size=neurons)) + 0.01}
    r = uncertainty.Residuals(tables, 0.5, np.abs(rng.normal(size=4)), 0.01, sigma)
    x = rng.normal(size=(3, context, neurons)) * size
    mask = rng.random(x.shape) > 0.5
    levels = (0.005, 0.1, 0.5, 0.77, 0.995)
    q = r.quantiles(np.zeros((3, horizon, neurons)), x, mask, 0 if known else 7, levels)
    assert q.shape == (5, 3, horizon, neurons)
    assert np.isfinite(q).all() and (np.diff(q, axis=0) >= 0).all()


def test_restlessness_by_hand():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(2, 9, 3)), rng.random((2, 9, 3)) > 0.3
    got = uncertainty.restlessness(x, mask, 5)
    for b, h, n in np.ndindex(2, 5, 3):
        lag = min(h + 1, 3)
        pairs = [(x[b, t, n] - x[b, t - lag, n]) ** 2 for t in range(lag, 9)
                 if mask[b, t, n] and mask[b, t - lag, n]]  # fmt: skip
        assert_allclose(got[b, h, n], np.mean(pairs) if pairs else np.nan)
    assert_allclose(uncertainty.restlessness(x, None, 2),
                    uncertainty.restlessness(x, np.ones(x.shape, bool), 2))  # fmt: skip


def test_saved_and_read_again(tmp_path):
    p = _prepared(_bursts(2400))
    made = {"B": uncertainty.fit(p, CopyLast(), SETTINGS, "B")}
    path = tmp_path / "evaluation" / "quantiles.npz"
    assert quantile_files.load(path) is None
    quantile_files.save(path, made)
    back = quantile_files.load(path)["B"]
    x = np.random.default_rng(0).normal(size=(1, 12, 5))
    for session in (0, None):
        assert_allclose(
            back.quantiles(x[:, :4], x, None, session, (0.1, 0.9)),
            made["B"].quantiles(x[:, :4], x, None, session, (0.1, 0.9)),
            rtol=1e-5, atol=1e-6,
        )  # fmt: skip
    for levels in ((0.001,), (0.5, 0.1), ()):
        with pytest.raises(ConfigError, match="forecasting.quantiles.*increasing"):
            back.quantiles(x[:, :4], x, None, 0, levels)
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"", b"\0" * 100):
        path.write_bytes(broken)
        with pytest.raises(RunError, match="damaged.*calm-jax evaluate"):
            quantile_files.load(path)


def test_a_weighted_forecast_that_troubles_silent_traces_has_quantiles_around_its_network(tmp_path):
    """Traces exactly silent but for rare events, and a forecast that trembles with others."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((6000, 4)) < 0.02, rng.exponential(3, (6000, 4)), 0)
    x[:, 0] = rng.normal(size=6000)

    class Trembling:
        network = CopyLast()

        def __call__(self, context, session, mask, horizon):
            made = self.network(context, session, mask, horizon)
            return made * 0.9 + 0.3 * context[:, -1:, :1]

    p, weighted = _prepared(x), Trembling()
    own, alone = (uncertainty.fit(p, f, SETTINGS, "B") for f in (weighted, weighted.network))
    made = uncertainty.centred(own, alone)
    assert made.centre == uncertainty.NETWORK and own.centre == uncertainty.FORECAST
    assert uncertainty.centred(alone, own) is alone
    context = rng.normal(size=(2, 12, 4)).astype(np.float32)
    seen = np.ones(context.shape, bool)
    ask = lambda f, r: uncertainty.Calibrated(f, r).quantiles(context, 0, seen, 4, (0.1, 0.9))  # noqa: E731
    np.testing.assert_array_equal(ask(weighted, made), ask(weighted.network, alone))
    assert np.abs(ask(weighted, made) - ask(weighted, own)).max() > 0.01
    score = lambda r: rows.select(  # noqa: E731
        calibration.quantile_rows(
            p, p.splits, "x", uncertainty.Calibrated(weighted, r), SETTINGS, "B", "test"
        ), metric="crps", session=None, animal=None, step=None,
    )[0]["value"]  # fmt: skip
    assert score(made) < score(own)
    quantile_files.save(tmp_path / "q.npz", {"B": made, "B-network": alone})
    back = quantile_files.load(tmp_path / "q.npz")
    assert back["B"].centre == uncertainty.NETWORK
    assert back["B-network"].centre == uncertainty.FORECAST


def test_without_a_validation_window_it_is_said():
    p = _prepared(_bursts(2400))
    with pytest.raises(RecordingError, match="validation range"):
        uncertainty.fit(p, CopyLast(), config.Forecasting(context=4000, horizon=4), "B")
