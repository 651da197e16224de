"""The population encoder against a NumPy reference; invariances; new units; batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import enable_x64
from scipy.special import erf

from calm_jax.errors import ConfigError
from calm_jax.models import new_units
from calm_jax.models import population_encoder as pe
from calm_jax.models.vocabulary import Vocabulary
from calm_jax.recordings import population_tokens as tokens
from calm_jax.training import lamb
from calm_jax.training.state import named, trained, with_leaves

pytestmark = pytest.mark.usefixtures("quick_compilation")
HEADS = {"direction": (1, 8), "speed": (3, 1)}
CONFIG = pe.EncoderConfig(
    latent_step=0.25, latents_per_step=2, width=12, depth=2, head_width=8, self_heads=3
)


def make(dtype=jnp.float32, seed=0, config=CONFIG):
    init = lambda key: pe.init(config, key, units=9, sessions=2, heads=HEADS, dtype=dtype)
    model = jax.jit(init)(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    # Away from zeros, ones and tiny embeddings.
    move = lambda x: jnp.asarray(np.asarray(x) + 0.1 * rng.normal(size=x.shape), x.dtype)
    return jax.tree.map(move, model)


def test_scales_of_the_start():
    """Gains and scale change the values of cross-attentions and the latents, nothing else."""
    start = lambda config: named(
        nnx.to_pure_dict(
            nnx.state(pe.init(config, jax.random.key(2), units=9, sessions=2, heads=HEADS))
        )
    )
    plain = start(CONFIG)
    other = start(dataclasses.replace(CONFIG, value_gain=7.0, query_gain=3.0, latent_scale=0.1))
    changed = {k for k in plain if not np.array_equal(plain[k], other[k])}
    gains = {"encoder": 7, "decoder": 3}
    paths = {f"{part}/attention/key_value/kernel": gain for part, gain in gains.items()}
    assert changed == {*paths, "latents/table"}
    for path, gain in paths.items():
        half = plain[path].shape[1] // 2
        np.testing.assert_array_equal(other[path][:, :half], plain[path][:, :half])
        np.testing.assert_allclose(other[path][:, half:], gain * plain[path][:, half:], rtol=1e-6)
    ratio = 0.1 / CONFIG.embedding_scale
    np.testing.assert_allclose(
        other["latents/table"], ratio * plain["latents/table"], rtol=1e-5
    )


def test_modulated_tokens_weigh_the_activity_with_the_embedding():
    config = dataclasses.replace(CONFIG, token="modulated", embedding_scale=0.03)
    model = pe.init(config, jax.random.key(0), units=9, sessions=2, heads=HEADS)
    values, units = jnp.array([[0.0, 2.0, -3.0]]), jnp.array([[4, 4, 7]])
    out = np.asarray(pe.embed(model, values, units))
    half = CONFIG.width // 2
    table = np.asarray(model.units.table[...])
    np.testing.assert_allclose(out[0, :, half:], [0 * table[4], 2 * table[4], -3 * table[7]])
    kernel, bias = (np.asarray(x[...]) for x in (model.value_map.kernel, model.value_map.bias))
    np.testing.assert_allclose(out[0, :, :half], values[0][:, None] * kernel + bias, rtol=1e-5)
    # A silent cell is a token too: the normalisation has something to divide by.
    assert np.abs(out[0, 0]).max() > 0.01
    # All start at one scale.
    assert 0.3 < np.std(kernel) / 0.03 < 2 and 0.3 < np.std(bias) / 0.03 < 2


def sample(seed, frames=5, neurons=4, queries=(1, 1, 3)):
    rng = np.random.default_rng(seed)
    units = rng.choice(np.arange(1, 10), neurons, replace=False)
    traces = rng.normal(size=(frames, neurons)).astype(np.float32)
    parts = tokens.window_tokens(traces, None, np.sort(rng.random(frames)), units)
    tasks = np.array(queries, np.int32)
    targets = {
        "direction": rng.integers(0, 8, (tasks == 1).sum()).astype(np.int32),
        "speed": rng.normal(size=((tasks == 3).sum(), 1)).astype(np.float32),
    }
    return tokens.Sample(
        *parts, np.full(len(tasks), 1 + seed % 2, np.int32), tasks, rng.random(len(tasks)),
        targets, np.ones(len(tasks), np.float32),
    )  # fmt: skip


def collated(samples, model, sizes=(24, 48), queries=(4, 8)):
    return tokens.collate(
        samples, np.array(model.omega), HEADS, tokens=sizes, queries=queries
    )


# A forward pass in NumPy, one window and one token at a time where that is clearer.


def np_norm(x, p):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def np_turn(x, t, omega, sign=1):
    """One head x (h,) at time t: pairs as complex numbers."""
    n = len(omega)
    pairs = (x[0 : 2 * n : 2] + 1j * x[1 : 2 * n : 2]) * np.exp(sign * 1j * omega * t)
    return np.concatenate([np.column_stack([pairs.real, pairs.imag]).ravel(), x[2 * n :]])


def np_attention(q, k, v, tq, tk, heads, omega, turned):
    size = q.shape[-1] // heads
    out = np.zeros((len(q), heads, size))
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        keys = np.array([np_turn(x, t, omega) for x, t in zip(k[:, own], tk)])
        values = v[:, own]
        if turned:
            values = np.array([np_turn(x, t, omega) for x, t in zip(values, tk)])
        for i, t in enumerate(tq):
            s = keys @ np_turn(q[i, own], t, omega) / np.sqrt(size)
            w = np.exp(s - s.max())
            y = (w / w.sum()) @ values
            out[i, h] = np_turn(y, t, omega, -1) if turned else y
    return out.reshape(len(q), -1)


def np_linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def np_forward(x, p):
    value, gate = np.split(np_linear(np_norm(x, p["norm"]), p["up"]), 2, -1)
    return np_linear(value * gate * 0.5 * (1 + erf(gate / np.sqrt(2))), p["down"])


def np_reader(x, y, tx, ty, p, heads, omega, turned):
    a = p["attention"]
    q = np_linear(np_norm(x, a["norm"]), a["query"])
    k, v = np.split(np_linear(np_norm(y, a["norm_context"]), a["key_value"]), 2, -1)
    x = x + np_linear(np_attention(q, k, v, tx, ty, heads, omega, turned), a["out"])
    return x + np_forward(x, p["forward"])


def np_outputs(model, s):
    p = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.split(model)[1]))
    cfg, omega = model.config, np.array(model.omega)
    x = np.concatenate(
        [np_linear(s.values[:, None], p["value_map"]), p["units"]["table"][s.units]], -1
    )
    steps = int(cfg.window / cfg.latent_step)
    times = np.repeat((np.arange(steps) + 0.5) * cfg.latent_step, cfg.latents_per_step)
    z = np.tile(p["latents"]["table"], (steps, 1))
    z = np_reader(z, x, times, s.times, p["encoder"], cfg.cross_heads, omega, True)
    for i in range(cfg.depth):
        b = p["blocks"][i]
        a = b["attention"]
        qkv = np.split(np_linear(np_norm(z, a["norm"]), a["query_key_value"]), 3, -1)
        y = np_attention(*qkv, times, times, cfg.self_heads, omega, True)
        z = z + np_linear(y, a["out"])
        z = z + np_forward(z, b["forward"])
    q = p["sessions"]["table"][s.sessions] + p["tasks"]["table"][s.tasks]
    q = np_reader(q, z, s.query_times, times, p["decoder"], cfg.cross_heads, omega, False)
    return {name: np_linear(q, p["readouts"][name]) for name in HEADS}


def test_the_forward_pass_is_that_of_numpy():
    samples = [sample(0), sample(1, frames=3, queries=(3,))]
    with enable_x64(True):
        model = jax.tree.map(lambda x: x.astype(jnp.float64), make(jnp.float64))
        batch = collated(samples, model)
        times = [s.times for s in samples], [s.query_times for s in samples]
        for name, own in zip(("code", "query_code"), times):
            full = np.zeros(batch[name].shape[:2])
            for b, t in enumerate(own):
                full[b, : len(t)] = t
            batch[name] = tokens.rotary_code(full, np.array(model.omega), np.float64)
        out = jax.device_get(jax.jit(pe.outputs)(model, batch))
        for b, s in enumerate(samples):
            for name, y in np_outputs(model, s).items():
                np.testing.assert_allclose(out[name][b, : len(s.tasks)], y, atol=1e-10)
    narrow = make()
    out = jax.device_get(jax.jit(pe.outputs)(narrow, collated(samples, narrow)))
    for name, y in np_outputs(narrow, samples[0]).items():
        np.testing.assert_allclose(out[name][0, :3], y, atol=2e-4)


@pytest.fixture(scope="module")
def forward():
    return jax.jit(pe.outputs)


@settings(max_examples=4)
@given(st.integers(0, 1000))
def test_the_order_of_tokens_means_nothing(forward, seed):
    model, s = make(), sample(seed)
    order = np.random.default_rng(seed).permutation(len(s.values))
    import dataclasses

    mixed = dataclasses.replace(
        s, values=s.values[order], units=s.units[order], times=s.times[order]
    )
    a, b = (forward(model, collated([x], model)) for x in (s, mixed))
    for name in HEADS:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-4)


def test_padding_means_nothing(forward):
    """More padding, other windows beside it, anything where nothing is: the same numbers."""
    model, s = make(), sample(3)
    alone = forward(model, collated([s], model))
    wide = collated([s, sample(4, frames=10)], model, queries=(8,))
    dirty = np.where(wide["mask"], wide["values"], 1e6).astype(np.float32)
    units = np.where(wide["mask"], wide["units"], 5).astype(np.int32)
    beside = forward(model, {**wide, "values": dirty, "units": units})
    for name in HEADS:
        np.testing.assert_allclose(alone[name][0, :3], beside[name][0, :3], rtol=1e-5, atol=1e-4)


def test_a_window_without_tokens_is_finite(forward):
    model = make()
    batch = collated([sample(0)], model)
    batch["mask"] = np.zeros_like(batch["mask"])
    assert all(np.isfinite(x).all() for x in forward(model, batch).values())


def test_loss_is_weighted_by_windows_that_ask():
    model = make()
    batch = collated([sample(0), sample(1, queries=(3,))], model)
    out = jax.device_get(jax.jit(pe.outputs)(model, batch))
    total, each = pe.loss(model, out, batch)
    logits = out["direction"][0, :2].astype(float)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ce = -logp[[0, 1], batch["target/direction"][0, :2]].mean()
    error = np.concatenate([
        (out["speed"][0, 2] - batch["target/speed"][0, 2]) ** 2,
        (out["speed"][1, 0] - batch["target/speed"][1, 0]) ** 2,
    ])  # fmt: skip
    assert each["direction"] == pytest.approx(ce, rel=1e-5)
    assert each["speed"] == pytest.approx(error.mean(), rel=1e-5)
    assert total == pytest.approx((1 * ce + 2 * error.mean()) / 2, rel=1e-5)


def test_appended_units_train_alone():
    model = make()
    s = sample(0)
    forward = jax.jit(pe.outputs)
    before = forward(model, collated([s], model))
    grown = new_units.append(model, jax.random.key(5), units=3, sessions=1)
    same = forward(grown, collated([s], grown))
    for name in HEADS:
        np.testing.assert_array_equal(before[name], same[name])
    assert grown.units.rows().shape == (13, 6) and grown.sessions.rows().shape == (4, 12)
    graph, state = nnx.split(grown)
    tree = nnx.to_pure_dict(state)
    live = trained(tree, new_units.trains_added)
    assert set(live) == {"units/added", "sessions/added"}
    new = np.where(s.units > 2, s.units, s.units + 10 - 1).astype(np.int32)  # some are new
    batch = collated([s], grown)
    batch["units"][0, : len(new)] = new
    batch["sessions"][:] = np.where(batch["sessions"] > 0, 3, 0)

    def loss(live):
        own = nnx.merge(graph, nnx.State(with_leaves(tree, live)))
        return pe.loss(own, pe.outputs(own, batch), batch)[0]

    gradient = jax.jit(jax.value_and_grad(loss))
    optimizer = lamb.lamb(1e-2, sparse=lamb.sparse_path)
    first, grads = gradient(live)
    updates, _ = optimizer.update(grads, optimizer.init(live), live)
    after = optax.apply_updates(live, updates)
    assert gradient(after)[0] < first
    used = np.isin(np.arange(10, 13), new)
    changed = np.any(np.asarray(after["units/added"] != live["units/added"]), axis=1)
    np.testing.assert_array_equal(changed, used)
    again = new_units.append(grown, jax.random.key(6), units=1)
    assert again.units.table[...].shape[0] == 13 and again.units.added[...].shape[0] == 1
    assert named(nnx.to_pure_dict(nnx.split(model)[1])).keys() < named(tree).keys()


def test_vocabulary():
    words = Vocabulary(("a", "b")).extended(["c"])
    assert words.rows(["c", "a"]).tolist() == [3, 1] and len(words) == 3
    with pytest.raises(ConfigError, match="does not know.*Append"):
        words.rows(["d"])
    with pytest.raises(ConfigError, match="an id comes twice"):
        words.extended(["a"])


def test_few_shapes_are_compiled():
    model, counted = make(), []

    @jax.jit
    def run(model, batch):
        counted.append(1)
        return pe.outputs(model, batch)

    for frames in (1, 3, 5, 6, 9, 12):
        run(model, collated([sample(frames, frames=frames)], model))
    assert len(counted) == 2  # 24 and 48 tokens
    assert collated([sample(0, frames=13)], model)["values"].shape == (1, 96)


@given(st.integers(0, 2**31), st.integers(1, 400), st.integers(2, 30), st.integers(1, 300))
def test_unit_dropout_keeps_what_it_should(seed, units, least, room):
    rng = np.random.default_rng(seed)
    most = least + room
    kept = tokens.kept_units(rng, units, minimum=least, maximum=most, mode=least + room // 3)
    assert np.array_equal(kept, np.unique(kept)) and kept[-1] < units
    assert min(units, least) <= len(kept) <= min(units, most)


def test_unit_dropout_has_its_mode_at_fifty():
    rng = np.random.default_rng(0)
    counts = np.array([len(tokens.kept_units(rng, 300)) for _ in range(4000)])
    per_bin = np.histogram(counts, [10, 40, 60, 100, 200, 301])[0] / 4000
    x = np.arange(10, 301)
    density = tokens.kept_density(x)
    expected = np.histogram(x, [10, 40, 60, 100, 200, 301], weights=density)[0] / density.sum()
    np.testing.assert_allclose(per_bin, expected, atol=0.03)


@given(st.integers(0, 2**31), st.floats(0.1, 30), st.floats(0.2, 2))
def test_windows_stay_inside(seed, duration, length):
    rng = np.random.default_rng(seed)
    inside = [[5.0, 5.0 + duration]]
    for found in (
        tokens.random_windows(inside, length, rng),
        tokens.sequential_windows(inside, length, 0.5),
    ):
        assert (len(found) > 0) == (duration >= length - 1e-9)
        assert (found[:, 0] >= 5 - 1e-9).all() and (found[:, 1] <= 5 + duration + 1e-6).all()
        np.testing.assert_allclose(found[:, 1] - found[:, 0], length)
    starts = np.sort(tokens.random_windows(inside, length, rng)[:, 0])
    assert (np.diff(starts) > length - 1e-6).all()


def test_missing_samples_give_no_tokens():
    traces = np.arange(6, dtype=np.float32).reshape(3, 2)
    mask = np.array([[1, 1], [0, 1], [1, 0]], bool)
    values, units, times = tokens.window_tokens(traces, mask, np.array([0.0, 0.5, 1.0]), [7, 8])
    assert values.tolist() == [0, 1, 3, 4] and units.tolist() == [7, 8, 8, 7]
    assert times.tolist() == [0, 0, 0.5, 1.0]


def test_sizes_that_contradict_each_other():
    import dataclasses

    bad = [
        (dataclasses.replace(CONFIG, latent_step=0.3), HEADS, "whole number of latent steps"),
        (dataclasses.replace(CONFIG, head_width=6), HEADS, "multiple of 4"),
        (CONFIG, {"a": (0, 2)}, "begin at 1"),
        (CONFIG, {"a b": (1, 2)}, "letters, digits"),
    ]
    for config, heads, said in bad:
        with pytest.raises(ConfigError, match=said):
            pe.init(config, jax.random.key(0), units=1, sessions=1, heads=heads)
