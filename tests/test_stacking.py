"""The weighted forecast: weights against a solver of its own, causality, files, errors."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from calm_jax import config, stack_weights, stacking
from calm_jax import scored_windows as scored
from calm_jax.baselines import autoregression, copy_last, mean, population_change, windows
from calm_jax.errors import ConfigError, RunError
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import NeuronTable, Session

SETTINGS = config.Forecasting(context=8, horizon=4, origin_stride=2, protocols=("B",))


def recordings(seed=0, sessions=2, frames=500, neurons=6, spoilt=()):
    """Coupled autoregressive traces without trials; `spoilt` frames are of another world."""
    out = []
    for i in range(sessions):
        rng = np.random.default_rng([seed, i])
        j = rng.normal(0, 0.25 / np.sqrt(neurons), (neurons, neurons))
        x = np.zeros((frames, neurons))
        for t in range(1, frames):
            x[t] = 0.8 * x[t - 1] + x[t - 1] @ j + rng.standard_normal(neurons)
        for a, b in spoilt:
            x[a:b] = 1e3
        out.append(Session(
            session=f"s{i}", animal=f"a{i}", traces=x.astype(np.float32), rate=10.0,
            neurons=NeuronTable(id=tuple(f"n{k}" for k in range(neurons))),
        ))  # fmt: skip
    store = MemoryStore(out)
    made = splits.make_split(store, config.Split())
    return Prepared(store, made, preprocess.fit(store, made, config.Preprocess()))


@pytest.fixture(scope="module")
def prepared():
    return recordings()


def noisy(prepared, scale, seed):
    """The truth with noise: members whose best weights are known to differ."""

    def f(context, session, mask, horizon):
        rng = np.random.default_rng([seed, int(abs(context).sum() * 1e3) % 2**31])
        return (context[:, -1:] * scale + rng.standard_normal(
            (len(context), horizon, context.shape[2])
        ) * 0.3).astype(np.float32)  # fmt: skip

    return f


@pytest.mark.parametrize("breadth", [0.0, float("inf")])
def test_weights_are_non_negative_least_squares_of_their_steps(prepared, breadth):
    """lambda = 0 against scipy's bounded least squares on the stacked validation windows."""
    every = {
        stacking.NETWORK: noisy(prepared, 0.9, 1),
        "copy_last": copy_last.fit(prepared, prepared.splits, 8, 4),
        "autoregression": autoregression.fit(prepared, prepared.splits, 8, 4),
    }
    others = {k: v for k, v in every.items() if k != stacking.NETWORK}
    w = stacking.fit(prepared, every[stacking.NETWORK], others, SETTINGS, "B")
    assert w.members == tuple(every)
    assert w.sessions == (0, 1)
    found = [
        stacking._moments(
            prepared, i, scored.plan(prepared, prepared.splits, i, "valid", "B", SETTINGS),
            list(every.values()), 16, np.inf,
        ).sum((0, 1))
        for i in (0, 1)
    ]  # fmt: skip
    tables = stack_weights._solve_all(found, breadth)
    for h in range(4):
        steps = range(4) if breadth else [h]
        a, b = [], []
        for i in (0, 1):
            plan = scored.plan(prepared, prepared.splits, i, "valid", "B", SETTINGS)
            for part in scored.batches(prepared, i, plan, 16):
                n = len(part.truth)
                made = [f(part.context, i, part.seen, 4)[:n, steps] for f in every.values()]
                # Every session counts the same, however many windows it has.
                weight = 1 / np.sqrt(len(plan.origin))
                a.append(np.stack(made, -1).reshape(-1, 3) * weight)
                b.append(part.truth[:, steps].ravel() * weight)
        best = lsq_linear(np.concatenate(a), np.concatenate(b), (0, stack_weights.MOST)).x
        np.testing.assert_allclose(tables[0, h], best, atol=1e-4)
    assert (tables[-1] == [1, 0, 0]).all()  # lambda = inf: the network alone
    assert (w.table >= 0).all()


def test_the_breadth_is_a_ratio_of_steps():
    told = stack_weights._broadened(np.eye(10), 0.25)
    expected = {1: [1], 4: [4, 5], 8: [7, 8, 9, 10], 10: [8, 9, 10]}
    for step, around in expected.items():
        assert (np.flatnonzero(told[step - 1]) + 1).tolist() == around
    assert stack_weights._broadened(np.eye(10), np.inf).all()


def test_few_windows_of_many_steps_share_their_weights():
    """The best weights are the same at every step, and the windows are few."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2):
        moments = np.zeros((2, 40, 4, 4))
        for half in (0, 1):
            f = rng.normal(size=(40, 12, 2))
            y = f @ [0.6, 0.4] + rng.normal(size=(40, 12))
            v = np.concatenate([f, y[..., None], np.ones((40, 12, 1))], -1)
            moments[half] = np.einsum("hwa,hwb->hab", v, v)
        found.append(np.stack([moments, 0 * moments]))  # no trace is rough
    w = stack_weights.solved((stacking.NETWORK, "copy_last"), found, [0, 1], np.inf)
    assert w.rough is None
    assert w.breadth == float("inf")
    np.testing.assert_allclose(w.table, np.tile([0.6, 0.4], (40, 1)), atol=0.08)


def test_a_useless_network_is_given_up_and_a_perfect_one_is_kept(prepared):
    others = {"autoregression": autoregression.fit(prepared, prepared.splits, 8, 4)}
    poor = lambda x, i, m, h: np.zeros((len(x), h, x.shape[2]), np.float32)
    w = stacking.fit(prepared, poor, others, SETTINGS, "B")
    assert (w.table[:, 1] > 0.8).all()
    same = stacking.fit(prepared, others["autoregression"], {"mean": mean.fit(
        prepared, prepared.splits, 8, 4)}, SETTINGS, "B")  # fmt: skip
    assert (abs(same.table[:, 0] - 1) < 0.15).all()


def test_the_forecast_is_the_weighted_sum_and_strangers_get_the_network(prepared):
    network, copy = noisy(prepared, 1.0, 3), copy_last.CopyLast()
    table = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.2, 0.3]])
    w = stacking.Weights((stacking.NETWORK, "copy_last"), table, 0.0, (), (0,))
    stack = stacking.Stack(network, {"copy_last": copy}, {8: w})
    x = np.random.default_rng(0).standard_normal((3, 8, 6)).astype(np.float32)
    seen = np.ones(x.shape, bool)
    made = stack(x, 0, seen, 6)
    each = np.stack([network(x, 0, seen, 6), copy(x, 0, seen, 6)], -1)
    rows = table[[0, 1, 2, 3, 3, 3]]  # steps beyond those fitted weigh as the last
    np.testing.assert_allclose(made, (each * rows[:, None]).sum(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stack(x, 1, seen, 6), network(x, 1, seen, 6))
    np.testing.assert_array_equal(stack(x[:, 2:], 0, seen[:, 2:], 6), network(x[:, 2:], 0, 0, 6))


def test_only_training_and_validation_are_read(prepared):
    """Another test part changes neither the weights nor a map."""
    ranges = prepared.splits.parts[0]["test"]
    assert (ranges == prepared.splits.parts[1]["test"]).all()
    changed = recordings(spoilt=ranges)
    assert changed.range(0, *ranges[0])[0].max() > 100
    results = []
    for p in (prepared, changed):
        others = stacking.members(("autoregression", "population_change"), p, 4, {})
        results.append(stacking.fit(p, noisy(p, 0.8, 5), others, SETTINGS, "B"))
    np.testing.assert_array_equal(results[0].table, results[1].table)


def test_population_change_adds_what_other_neurons_tell():
    p = recordings(seed=2, sessions=1, frames=4000, neurons=12)
    base = autoregression.fit(p, p.splits, 8, 4)
    f = population_change.fit(p, p.splits, 8, 4, base=base, components=(6, 12), alphas=(1e1, 1e3))
    plan = scored.plan(p, p.splits, 0, "test", "B", SETTINGS)
    errors = {"f": 0.0, "base": 0.0}
    for b in scored.batches(p, 0, plan, 64):
        for name, m in (("f", f), ("base", base)):
            made = m(b.context, 0, b.seen, 4)[: len(b.truth)]
            errors[name] += np.square(made - b.truth).sum()
    assert errors["f"] < 0.995 * errors["base"]
    assert f.chosen[0][0] in (6, 12)
    # Nothing to learn from: the autoregression alone.
    none = population_change.fit(p, p.splits, 8, 4, base=base, components=(6,), alphas=(1e12,))
    none._choose = lambda *a: (0, 0.0)
    x = np.random.default_rng(0).standard_normal((2, 8, 12)).astype(np.float32)
    np.testing.assert_allclose(
        none(x, 0, np.ones(x.shape, bool), 4), base(x, 0, np.ones(x.shape, bool), 4), atol=1e-6
    )


def test_files(tmp_path):
    table = np.array([[0.5, 0.25]])
    names = (stacking.NETWORK, "copy_last")
    w = stacking.Weights(names, table, float("inf"), (1.0, 2.0), (0, 2), 0.25)
    path = tmp_path / "evaluation" / "stack.npz"
    assert stacking.load(path) is None
    stacking.save(path, {48: w, 36: dataclasses.replace(w, sessions=())})
    back = stacking.load(path)
    assert set(back) == {36, 48}
    assert back[48].members == w.members
    assert back[48].sessions == (0, 2)
    assert (back[48].shrinkage, back[48].breadth) == (float("inf"), 0.25)
    np.testing.assert_array_equal(back[48].table, table)
    stacking.save(path, {48: dataclasses.replace(w, table=-table)})
    with pytest.raises(RunError, match="damaged"):
        stacking.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(RunError, match="damaged"):
        stacking.load(path)


def test_wrong_members_are_told():
    for names, found in ((("tcn",), "tcn"), (("mine",), "mine"), (("mean", "mean"), "mean")):
        with pytest.raises(ConfigError, match=found):
            stacking.check(names)
    stacking.check(("copy_last", "population_change"))


def test_no_weight_is_above_the_bound():
    """A member that is a hundredth of the truth would weigh a hundred times; against scipy."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal(400)
    x = np.stack([0.01 * y, 0.3 * y + 0.1 * rng.standard_normal(400)], 1)
    v = np.concatenate([x, y[:, None], np.ones((400, 1))], 1)
    table = stack_weights._solve_all([(v.T @ v)[None]], 0.0)[0, 0]
    wanted = lsq_linear(x, y, (0, stack_weights.MOST)).x
    assert wanted[0] == pytest.approx(stack_weights.MOST, abs=1e-3)
    np.testing.assert_allclose(table, wanted, atol=1e-2)
    assert table.max() <= stack_weights.MOST


def test_roughness():
    rng = np.random.default_rng(0)
    x = np.zeros((2, 4000, 3), np.float32)
    x[..., 1] = rng.standard_normal((2, 4000))
    x[..., 2] = np.sin(np.arange(4000) / 40)
    found = windows.roughness(x)
    np.testing.assert_allclose(found[:, 1], 2, rtol=0.1)
    assert (found[:, 0] == 0).all() and (found[:, 2] < 0.01).all()


def test_smooth_and_rough_traces_have_weights_of_their_own(tmp_path):
    """Half of the neurons change slowly, half are white noise."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3000, 8))
    for k in range(1, len(x)):
        x[k, :4] = 0.97 * x[k - 1, :4] + 0.24 * x[k, :4]
    store = MemoryStore([Session(session="s", traces=x.astype(np.float32), rate=10.0)])
    made = splits.make_split(store, config.Split())
    p = Prepared(store, made, preprocess.fit(store, made, config.Preprocess()))
    others = {"copy_last": copy_last.fit(p, p.splits, 8, 4), "mean": mean.fit(p, p.splits, 8, 4)}
    half = lambda c, i, seen, h: np.repeat(0.5 * c[:, -1:], h, 1)
    w = stacking.fit(p, half, others, SETTINGS, "B")
    assert w.rough is not None
    share = lambda t: t @ [0.5, 1.0, 0.0]  # of the last frame
    assert (share(w.rough) < 0.35).all() and (share(w.table) > share(w.rough) + 0.4).all()
    stack = stacking.Stack(half, others, {8: w})
    context, seen = x[None, 50:58].astype(np.float32), np.ones((1, 8, 8), bool)
    rough = windows.roughness(context)[0] >= w.cut
    assert rough.any() and not rough.all()
    wanted = context[0, -1] * np.where(rough, share(w.rough)[:, None], share(w.table)[:, None])
    np.testing.assert_allclose(stack(context, 0, seen, 4)[0], wanted, rtol=1e-5)
    path = tmp_path / "stack.npz"
    stacking.save(path, {8: w})
    back = stacking.load(path)[8]
    np.testing.assert_array_equal(back.rough, w.rough)
    assert back.cut == w.cut and "8, rough" in stacking.described({8: back})
    stacking.save(path, {8: dataclasses.replace(w, rough=w.rough[:1])})
    with pytest.raises(RunError, match="damaged"):
        stacking.load(path)
