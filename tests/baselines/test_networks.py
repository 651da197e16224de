"""The networks against the same sums in numpy; what they share; kept from test frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from calm_jax import baselines
from calm_jax.baselines import dlinear, networks, nlinear, poco, tcn, tsmixer, tuning
from calm_jax.baselines.networks import Given, Sizes
from calm_jax.errors import ConfigError, RecordingError, RunError
from tests.baselines.small import context, prepared

pytestmark = pytest.mark.usefixtures("quick_compilation")
NETS = [n for n, m in baselines.METHODS.items() if getattr(m, "TRAINED", False)]
SIZES = Sizes(context=12, horizon=4, neurons=8, rows=11, sessions=2)
RNG = np.random.default_rng(0)


def _given(b, real=5):
    neuron = np.broadcast_to(np.arange(SIZES.neurons) * (np.arange(SIZES.neurons) < real), (b, 8))
    mask = np.broadcast_to(np.arange(SIZES.neurons) < real, (b, SIZES.neurons))
    return Given(jnp.asarray(neuron, jnp.int32), jnp.zeros(b, jnp.int32), jnp.asarray(mask))


def _x(b=3, frames=12):
    return RNG.normal(size=(b, frames, SIZES.neurons)).astype(np.float32)


def _shaken(net):
    """All parameters away from their initial values, so that none is untested."""
    state = jax.tree.map(
        lambda a: a + jnp.asarray(RNG.normal(size=a.shape) * 0.2, a.dtype),
        nnx.state(net, nnx.Param),
    )
    nnx.update(net, state)
    return net


def test_nlinear_is_a_map_of_differences():
    net, x = _shaken(nlinear.NLinear(SIZES, rngs=nnx.Rngs(0))), _x()
    w, b = np.asarray(net.map.kernel[...]), np.asarray(net.map.bias[...])
    want = np.einsum("bcn,ch->bhn", x - x[:, -1:], w) + b[:, None] + x[:, -1:]
    assert_allclose(net(jnp.asarray(x), _given(3), None), want, atol=1e-5)


def test_dlinear_is_trend_and_rest():
    net, x = _shaken(dlinear.DLinear(SIZES, kernel=5, rngs=nnx.Rngs(0))), _x()
    padded = np.concatenate([x[:, :1]] * 2 + [x] + [x[:, -1:]] * 2, 1)
    trend = np.stack([padded[:, t : t + 5].mean(1) for t in range(12)], 1)
    want = 0
    for part, values in ((net.trend, trend), (net.rest, x - trend)):
        w, b = np.asarray(part.kernel[...]), np.asarray(part.bias[...])
        want = want + np.einsum("bcn,ch->bhn", values, w) + b[:, None]
    assert_allclose(net(jnp.asarray(x), _given(3), None), want, atol=1e-5)


def test_an_even_kernel_averages_as_many_frames():
    m = dlinear.moving_average(10, 4)
    assert_allclose(m.sum(1), 1, rtol=1e-6)
    assert_allclose(m[5], [0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0])


def test_tsmixer_block():
    block = _shaken(tsmixer.Block(12, 8, 6, 0.5, rngs=nnx.Rngs(0)))
    x, real = _x(2), 5
    x[:, :, real:] = 7  # padding, whatever stands there
    given = _given(2, real).real
    get = lambda layer: (np.asarray(layer.kernel[...]), np.asarray(layer.bias[...]))
    scale, shift = np.asarray(block.scale[...]), np.asarray(block.shift[...])
    for row in range(2):
        def norm(v, k):
            d = v[:, :real] - v[:, :real].mean()
            out = np.zeros_like(v)
            out[:, :real] = d / np.sqrt(d.var() + 1e-5)
            return out * scale[k] + shift[k]

        z = x[row].astype(float)
        w, b = get(block.time)
        z = z + np.maximum(norm(z, 0).T @ w + b, 0).T
        h = norm(z, 1)
        h[:, real:] = 0
        (w1, b1), (w2, b2) = get(block.up), get(block.down)
        z = z + np.maximum(h @ w1 + b1, 0) @ w2 + b2
        got = np.asarray(block(jnp.asarray(x), given))[row]
        assert_allclose(got[:, :real], z[:, :real], atol=1e-3)


def test_tcn_convolution_and_causality():
    conv = _shaken(tcn.CausalConvolution(8, 3, kernel=3, dilation=2, rngs=nnx.Rngs(0)))
    x = _x(1)
    w = np.asarray(conv.map.kernel[...]).reshape(3, 8, 3)
    want = np.zeros((12, 3)) + np.asarray(conv.map.bias[...])
    for t in range(12):
        for j in range(3):
            if t - 2 * j >= 0:
                want[t] += x[0, t - 2 * j] @ w[j]
    assert_allclose(conv(jnp.asarray(x))[0], want, atol=1e-5)
    net = _shaken(tcn.TCN(SIZES, width=6, rngs=nnx.Rngs(0)))
    later = x.copy()
    later[:, 7:] += 1
    a, b = (np.asarray(net.states(jnp.asarray(v))) for v in (x, later))
    assert_array_equal(a[:, :7], b[:, :7])
    assert (a[:, 7:] != b[:, 7:]).any(-1).all()


def _poco(**kw):
    kw = {"token": 4, "latents": 3, "hidden": 10, "width": 8, "heads": 2} | kw
    return poco.POCO(SIZES, rngs=nnx.Rngs(0), **kw)


def test_poco_has_the_published_shapes():
    sizes = Sizes(48, 16, 40, 100, 3)
    net = nnx.eval_shape(lambda: poco.POCO(sizes, rngs=nnx.Rngs(0)))
    assert net.segment.kernel.shape[0] == 16 and net.latents.shape[0] == 8
    assert net.up.kernel.shape == (48, 1024) and net.condition.kernel.shape[1] == 2048
    given = Given(
        jnp.zeros((2, 40), jnp.int32), jnp.zeros(2, jnp.int32), jnp.ones((2, 40), bool)
    )
    graph, state = nnx.split(net)
    out = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x, given, None), state,
                         jnp.zeros((2, 48, 40)))  # fmt: skip
    assert out.shape == (2, 16, 40)


def test_poco_permutes_with_its_neurons_and_ignores_padding():
    made, x, given = _shaken(_poco()), _x(2), _given(2)
    graph, state = nnx.split(made)
    net = jax.jit(lambda x, given, _: nnx.merge(graph, state)(x, given, None))
    y = np.asarray(net(jnp.asarray(x), given, None))
    order = np.r_[RNG.permutation(5), 5:8]
    moved = Given(given.neuron[:, order], given.session, given.real)
    assert_allclose(net(jnp.asarray(x[:, :, order]), moved, None), y[:, :, order], atol=1e-4)
    other = x.copy()
    other[:, :, 5:] = 9
    assert_allclose(net(jnp.asarray(other), given, None)[..., :5], y[..., :5], atol=1e-5)
    # A neuron's forecast depends on the others: that is its point.
    other = x.copy()
    other[:, :, 1] += 3
    assert np.abs(np.asarray(net(jnp.asarray(other), given, None))[..., 0] - y[..., 0]).max() > 1e-3


def test_poco_refuses_sizes_that_do_not_fit():
    with pytest.raises(ConfigError, match="shorter than one token"):
        _poco(token=16)
    with pytest.raises(ConfigError, match="even multiple of the heads"):
        _poco(width=6, heads=2)


@pytest.fixture
def quick(monkeypatch):
    """One grid point a method and small networks."""
    for name in NETS:
        module = baselines.METHODS[name]
        monkeypatch.setattr(module, "GRID", module.GRID[1:2])
    small = {"token": 4, "hidden": 8, "width": 8, "heads": 2}
    point = {k: poco.GRID[0][k] for k in ("learning_rate", "weight_decay")}
    monkeypatch.setattr(poco, "GRID", ({**point, **small},))
    monkeypatch.setattr(tcn, "GRID", ({**point, "width": 4, "blocks": 1},))
    monkeypatch.setattr(tsmixer, "GRID", ({**point, "hidden": 4, "blocks": 1},))


@pytest.mark.parametrize("name", NETS)
def test_test_frames_move_nothing(name, quick, tmp_path):
    module = baselines.METHODS[name]
    p, q = prepared(), prepared(["test"])
    fits = [module.fit(a, a.splits, 8, 4, steps=3, folder=tmp_path) for a in (p, q)]
    assert list(tmp_path.iterdir()) == []  # nothing of the training is left
    for i in range(2):
        x, mask = context(p, i)
        y = fits[0](x, i, mask, 9)
        assert y.shape == (3, 9, x.shape[2]) and y.dtype == np.float32
        assert_array_equal(fits[1](x, i, mask, 9), y)
        assert_allclose(fits[0](x, i, mask, 4), y[:, :4], atol=1e-5)
        assert_allclose(fits[0](x[1:2], i, mask[1:2], 4)[0], y[1, :4], atol=1e-5)
    (entry,) = fits[0].tuning
    assert entry["chosen"] and entry["steps"] == 3 and np.isfinite(entry["validation"])


def _task(p, **kw):
    settings = {"per_session": True, "batch": 4, "seed": 0} | kw
    return networks.Forecasting(tsmixer.TSMixer, {"hidden": 4}, p, p.splits, 8, 4, **settings)


def test_models_of_sessions_do_not_touch_each_other():
    p = prepared()
    task = _task(p)
    params, extra = task.init(jax.random.key(0))
    batch = task.batch(0)
    assert batch["traces"].shape == (4, 2, 12, 8)
    assert (batch["session"] == [0, 1]).all()
    loss = lambda v, b: task.loss(v, extra, b, jax.random.key(1), 0)[0]
    gradient = jax.jit(jax.grad(loss))
    grad = gradient(params, batch)
    other = {**batch, "traces": batch["traces"].copy()}
    other["traces"][:, 1] += 1
    pairs = list(zip(jax.tree.leaves(grad), jax.tree.leaves(gradient(params, other))))
    for a, b in pairs:
        assert_array_equal(a[0], b[0])
    assert any((a[1] != b[1]).any() for a, b in pairs)


def test_batches_are_a_function_of_the_step_and_share_over_hosts():
    task = _task(prepared(), per_session=False)
    whole = task.batch(3)
    parts = [task.batch(3, k, 2) for k in range(2)]
    for key, value in whole.items():
        assert_array_equal(value, np.concatenate([x[key] for x in parts]))
    assert_array_equal(task.batch(3)["traces"], whole["traces"])


def test_constant_neurons_and_padding_reach_no_loss():
    p = prepared()
    p.scalers.constant[0][2] = True
    batch = _task(p).batch(0)
    assert not batch["mask"][:, 0, :, 2].any() and not batch["mask"][:, 0, :, 5:].any()
    assert batch["mask"][:, 0, :, :2].all()


def test_a_short_part_and_an_unknown_session_are_named():
    p = prepared()
    with pytest.raises(RecordingError, match=r"session two.*30 frames"):
        nlinear.fit(p, p.splits, 40, 4, steps=1)
    task = _task(p)
    task.sessions = (0,)
    params, _ = task.init(jax.random.key(0))
    with pytest.raises(RecordingError, match="not trained on this one"):
        task.forecast(params, context(p, 1)[0], 1)


def test_the_best_point_wins_and_a_diverging_one_is_recorded():
    p = prepared()
    grid = [{"learning_rate": r, "weight_decay": 0.0} for r in (1e30, 1e-7, 3e-2)]
    made = tuning.fit(nlinear.NLinear, grid, p, p.splits, 8, 4, steps=12)
    bad, slow, good, again = made.tuning
    assert "inf" in bad["error"]
    assert bad["validation"] is None and slow["validation"] > good["validation"]
    assert again["learning_rate"] == 3e-2
    assert sum(e.get("chosen", False) for e in made.tuning) == 1
    assert min(good["validation"], again["validation"]) == next(
        e["validation"] for e in made.tuning if e.get("chosen")
    )
    with pytest.raises(RunError, match="inf"):
        tuning.fit(nlinear.NLinear, grid[:1], p, p.splits, 8, 4, steps=12)
