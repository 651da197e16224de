"""The paired bootstrap against what is known of it; spread over seeds."""

import numpy as np
from numpy.testing import assert_allclose

from calm_jax.benchmark import statistics as S
from calm_jax.rows import row


def _windows(errors, trials, session="s"):
    return {"session": session, "animal": "a", "trial": np.asarray(trials),
            "errors": np.asarray(errors, float)}  # fmt: skip


def test_over_sessions_it_is_the_normal_interval():
    rng = np.random.default_rng(0)
    a = [_windows(1 + 0.1 * rng.normal(size=20) + 0.3 * k / 40, [0] * 20, f"s{k}")
         for k in range(40)]  # fmt: skip
    b = [_windows(np.ones(20), [0] * 20, f"s{k}") for k in range(40)]
    d = S.difference(a, b, [4] * 40)
    means = np.array([w["errors"].mean() - 1 for w in a])
    half = 1.96 * means.std() / np.sqrt(40)
    assert d.unit == "session" and d.n == 40
    want = means.mean() + np.array([0, -half, half])
    assert_allclose([d.value, d.low, d.high], want, atol=0.004)
    same = S.difference(a, b, [4] * 40)
    assert same == d


def test_with_few_sessions_trials_are_drawn_and_pairs_cancel():
    rng = np.random.default_rng(1)
    trial = np.repeat(np.arange(30), 3)
    base = [rng.normal(size=90) * 5 for _ in range(2)]
    a = [_windows(x + 0.2, trial) for x in base]
    b = [_windows(x, trial) for x in base]
    d = S.difference(a, b, [12, 12])
    assert d.unit == "trial" and d.n == 60
    assert_allclose([d.value, d.low, d.high], 0.2, atol=1e-9)


def test_a_session_without_trials_is_drawn_in_blocks():
    a, b = [_windows(np.arange(64.0), [0] * 64)], [_windows(np.zeros(64), [0] * 64)]
    d = S.difference(a, b, [4])
    assert d.unit == "block" and d.n == 64 // (S.BLOCK // 4)
    assert d.low < d.value < d.high and d.value == 31.5


def test_windows_without_a_valid_frame_are_left_out():
    a = [_windows([1.0, np.nan, 3.0], [0, 1, 2])]
    d = S.difference(a, [_windows([0.0, np.nan, 0.0], [0, 1, 2])], [12])
    assert d.value == 2.0 and d.n == 2


def test_errors_are_averaged_over_seeds_and_their_spread_is_an_sd():
    results = [{"windows": [{"session": "s", "trial": [0, 1], "errors": e}]}
               for e in ([1.0, 3.0], [3.0, 5.0])]  # fmt: skip
    assert_allclose(S.mean_errors(results)[0]["errors"], [2.0, 4.0])
    rows = [row("B", "m", "mse", v, seed=k) for k, v in enumerate((1.0, 2.0, 4.0))]
    (out,) = S.spread_rows(rows, ["m"], "B")
    assert out["metric"] == "mse_seed_sd"
    assert_allclose(out["value"], np.std([1, 2, 4], ddof=1))
    assert S.spread_rows(rows[:1], ["m"], "B") == []
