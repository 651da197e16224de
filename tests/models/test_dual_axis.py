"""The dual-axis transformer: causality, symmetry, caches, embeddings, gradients."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.config import DualAxis
from calm_jax.models.dual_axis import (
    DualAxisTransformer,
    Tokens,
    code_logits,
    empty_caches,
    extend,
    features,
    lookup,
    mixing_embedding,
    next_code_logits,
    running_scale,
)
from calm_jax.models.forecaster import read_frames

K, PATCH, NEURONS, SESSIONS = 9, 4, 11, 3
B, T, N = 2, 6, 5
pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = dict(width=8, layers=2, heads=2, ffn=12, dropout=0.2, mixing_heads=2, mixing_rank=3)
CASES = {
    "published": DualAxis(**SMALL),
    "signed": DualAxis(
        **SMALL, mixing="signed", axis_order="neuron_first", activation="swiglu",
        values="difference", readout_frames=8, linear_context=12,
    ),
    "level": DualAxis(
        **SMALL, axis_order="neuron_first", values="level", readout_frames=4, anchor=False,
        session_embedding=False,
    ),
    "scaled": DualAxis(
        **SMALL, mixing="signed", mixing_width=6, values="difference", window_scale=True,
        readout_frames=8, linear_context=8,
    ),
    "rough": DualAxis(
        **SMALL, values="both", readout_frames=4, linear_context=8, linear_start=True,
        linear_level=True, linear_knots=(0.1, 0.7, 2.0),
    ),
}


def build(config, dtype=jnp.float32):
    return DualAxisTransformer(
        config, codes=K, patch=PATCH, neurons=NEURONS, sessions=SESSIONS, dtype=dtype,
        rngs=nnx.Rngs(0),
    )


@functools.cache
def model(case):
    """A model with weights of order 1, so that every part of it matters."""
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.4 + (a.ndim == 1), a.dtype),
        build(CASES[case]),
    )


def tokens(seed=0, b=B, t=T, n=N, previous=False):
    rng = np.random.default_rng(seed)
    mask = np.ones((b, n), bool)
    mask[0, n - 1 :] = n == 1
    return Tokens(
        jnp.asarray(rng.integers(0, K, (b, t, n))),
        jnp.asarray(rng.permuted(np.tile(np.arange(NEURONS), (b, 1)), axis=1)[:, :n]),
        jnp.asarray(rng.integers(0, SESSIONS, b)),
        jnp.asarray(mask),
        jnp.asarray(rng.normal(size=(b, t, n, PATCH)), jnp.float32),
        jnp.asarray(rng.normal(size=(b, n)), jnp.float32) if previous else None,
    )


def everything(net, x):
    h = features(net, x)
    out = {"features": h, "logits": code_logits(net, h)}
    if net.readout is not None:
        out["readout"] = read_frames(net, h, x)
    return out


run = jax.jit(everything)
cases = pytest.mark.parametrize("case", CASES)


@cases
def test_causality_bit_for_bit(case):
    x = tokens()
    a = run(model(case), x)
    for t in (1, 3, T - 1):
        other = x._replace(
            codes=x.codes.at[:, t:].set((x.codes[:, t:] + 1) % K),
            values=x.values.at[:, t:].add(3.0),
        )
        b = run(model(case), other)
        for name in a:
            np.testing.assert_array_equal(a[name][:, :t], b[name][:, :t], err_msg=name)
            assert not np.allclose(a[name][:, t:], b[name][:, t:]), name


@cases
def test_permuting_neurons_permutes_everything(case):
    x = tokens()
    order = np.random.default_rng(1).permutation(N)
    moved = x._replace(
        codes=x.codes[:, :, order], neuron=x.neuron[:, order], mask=x.mask[:, order],
        values=x.values[:, :, order],
    )
    a, b = run(model(case), x), run(model(case), moved)
    for name in a:
        np.testing.assert_allclose(b[name], a[name][:, :, order], rtol=1e-4, atol=2e-5)
    if CASES[case].neuron_embedding:  # and who a neuron is matters
        c = run(model(case), moved._replace(neuron=x.neuron))
        assert not np.allclose(c["features"], b["features"], atol=1e-3)


@cases
def test_masked_neurons_change_nothing(case):
    x = tokens()
    pad = lambda a, axis, fill: jnp.pad(
        a, [(0, 3 * (i == axis)) for i in range(a.ndim)], constant_values=fill
    )
    wide = x._replace(
        codes=pad(x.codes, 2, 3), neuron=pad(x.neuron, 1, 0), mask=pad(x.mask, 1, False),
        values=pad(x.values, 2, 9.0),
    )
    a, b = run(model(case), x), run(model(case), wide)
    real = np.broadcast_to(x.mask[:, None], (B, T, N))
    assert not real.all()
    for name in a:
        np.testing.assert_allclose(
            b[name][:, :, :N][real], a[name][real], rtol=1e-4, atol=2e-5
        )
    # The same with what the masked neuron of `x` itself holds, bit for bit.
    hidden = ~x.mask[:, None]
    other = x._replace(
        codes=jnp.where(hidden, 0, x.codes), values=jnp.where(hidden[..., None], 50.0, x.values)
    )
    c = run(model(case), other)
    for name in a:
        np.testing.assert_array_equal(c[name][real], a[name][real])


@cases
def test_steps_through_the_cache_equal_the_whole(case):
    """Also with several new steps at once, and with `previous` instead of the past."""

    @functools.partial(jax.jit, static_argnames="sizes")
    def pieces(net, x, sizes):
        caches, at, out = empty_caches(net, B * N, T + 2), 0, []
        for size in sizes:
            part = x._replace(
                codes=x.codes[:, at : at + size],
                values=x.values[:, at : at + size],
                previous=x.values[:, at - 1, :, -1] if at else None,
                scale=running_scale(x.values)[:, at : at + size],
            )
            h, caches = extend(net, part, caches, at)
            out.append(h)
            at += size
        return jnp.concatenate(out, 1)

    x = tokens()
    whole = run(model(case), x)["features"]
    np.testing.assert_allclose(pieces(model(case), x, (3, 1, 2)), whole, rtol=1e-4, atol=2e-5)


def test_running_scale_is_the_sd_of_the_frames_so_far():
    x = np.asarray(tokens().values)
    found = running_scale(jnp.asarray(x) + 1e3, floor=0.5)
    frames = x.swapaxes(2, 3).reshape(B, -1, N)
    for t in range(T):
        expected = np.sqrt(frames[:, : (t + 1) * PATCH].var(1) + 0.25)
        np.testing.assert_allclose(found[:, t], expected, rtol=1e-3)


def test_a_scaled_model_speaks_in_units_of_the_trace():
    """Traces ten times as large give the same features and changes ten times as large."""
    x, net = tokens(), model("scaled")
    large = x._replace(values=10 * x.values)
    # A scale without floor or logarithm, which alone would tell the two apart.
    size = jnp.ones(x.values.shape[:3])
    a = everything(net, x._replace(scale=size))
    same = everything(net, x._replace(scale=size * 10.0))
    assert not np.allclose(a["readout"], same["readout"])
    kernel = np.array(net.value.kernel[...])
    kernel[-1] = 0  # the row of the logarithm
    blind = jax.tree.map(lambda v: v, net)
    blind.value.kernel[...] = jnp.asarray(kernel)
    a, b = (
        everything(blind, y._replace(scale=size * k)) for y, k in ((x, 1.0), (large, 10.0))
    )
    np.testing.assert_allclose(a["features"], b["features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(10 * a["readout"], b["readout"], rtol=1e-3, atol=1e-3)


def test_value_features():
    x = tokens(previous=True)
    frames = np.asarray(x.values).swapaxes(1, 2).reshape(B, N, -1)
    steps = lambda a: a.reshape(B, N, T, PATCH).swapaxes(1, 2)
    level = model("level")._value_features(x)
    np.testing.assert_array_equal(level, x.values)
    previous = np.asarray(x.previous)[..., None]
    expected = steps(np.diff(frames, prepend=previous, axis=-1))
    got = model("signed")._value_features(x)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    both = build(dataclasses.replace(CASES["signed"], values="both"))._value_features(x)
    last = np.asarray(x.values)[..., -1:]
    np.testing.assert_allclose(both, np.concatenate([expected, last], -1), atol=1e-6)
    unknown = steps(np.diff(frames, prepend=frames[..., :1], axis=-1))
    np.testing.assert_allclose(
        model("signed")._value_features(x._replace(previous=None)), unknown, atol=1e-6
    )
    # A constant added to a trace is not seen by differences, anchored read-outs follow it.
    shifted = x._replace(values=x.values + 5.0, previous=x.previous + 5.0)
    a, b = run(model("signed"), x), run(model("signed"), shifted)
    np.testing.assert_allclose(b["logits"], a["logits"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(b["readout"], a["readout"] + 5.0, rtol=1e-3, atol=1e-4)


@cases
def test_never_seen_neurons_take_the_mean_embedding(case):
    net, x = model(case), tokens()
    table = np.asarray(net.neuron.embedding[...])
    got = lookup(net.neuron, jnp.array([[2, -1], [-7, 0]]))
    mean = table.mean(0)
    np.testing.assert_allclose(got, [[table[2], mean], [mean, table[0]]], atol=1e-6)
    unknown = x._replace(neuron=jnp.full_like(x.neuron, -1), session=jnp.full((B,), -1))
    expected = mean if net.session is None else mean + net.session.embedding[...].mean(0)
    got = net.identity(unknown)
    np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), atol=1e-6)
    # Unknown neurons are all alike: they must not all drive each other at full strength.
    size = lambda e: float(jnp.sqrt(jnp.mean(jnp.square(e))))
    assert size(mixing_embedding(net, unknown)) < 0.7 * size(mixing_embedding(net, x))
    assert all(np.isfinite(v).all() for v in run(net, unknown).values())


def test_one_hot_probabilities_equal_codes():
    net, x = model("signed"), tokens()
    a = net.embed(x)
    b = net.embed(x, jax.nn.one_hot(x.codes, K))
    np.testing.assert_allclose(a, b, atol=1e-6)


@cases
def test_gradients_reach_every_parameter(case):
    def loss(net, x, key):
        h = features(net, x, key=key)
        nll = -jax.nn.log_softmax(code_logits(net, h)[:, :-1])[..., 0].mean()
        if net.readout is not None:
            nll += jnp.square(read_frames(net, h, x)).mean()
        return nll

    grad = jax.jit(jax.grad(loss))(model(case), tokens(), jax.random.key(1))
    flat = jax.tree_util.tree_flatten_with_path(grad)[0]
    for path, g in flat:
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_bfloat16_is_near_float32():
    narrow = build(CASES["signed"], jnp.bfloat16)
    values = jax.tree.leaves(model("signed"))
    narrow = jax.tree.unflatten(jax.tree.structure(narrow), values)
    x = tokens()
    # Flax's layer norm asks for the common type of bfloat16 and float32.
    with jax.numpy_dtype_promotion("standard"):
        a, b = run(model("signed"), x), run(narrow, x)
    assert b["features"].dtype == jnp.bfloat16
    assert b["logits"].dtype == b["readout"].dtype == jnp.float32
    for name in a:
        p, q = (np.asarray(v[name], np.float32).ravel() for v in (a, b))
        assert np.isfinite(q).all()
        assert np.corrcoef(p, q)[0, 1] > 0.998, name
        assert np.abs(p - q).max() < 0.25 * p.std(), name


def test_dropout_is_a_function_of_its_key():
    f = jax.jit(lambda key: features(model("published"), tokens(), key=key))
    a, b, c = f(jax.random.key(0)), f(jax.random.key(0)), f(jax.random.key(1))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)


def test_initial_readout_is_near_copy_last():
    x = tokens()
    got = run(build(CASES["signed"]), x)["readout"]
    expected = np.broadcast_to(x.values[..., -1:], got.shape)
    np.testing.assert_allclose(got, expected, atol=0.01)


configs = st.builds(
    DualAxis,
    width=st.just(8),
    layers=st.integers(0, 2),
    heads=st.sampled_from([1, 2]),
    ffn=st.just(12),
    dropout=st.sampled_from([0.0, 0.3]),
    activation=st.sampled_from(["gelu", "swiglu"]),
    axis_order=st.sampled_from(["time_first", "neuron_first"]),
    mixing=st.sampled_from(["softmax", "signed"]),
    mixing_heads=st.sampled_from([1, 4]),
    mixing_rank=st.integers(1, 3),
    neuron_embedding=st.booleans(),
    session_embedding=st.booleans(),
    values=st.sampled_from(["none", "level", "difference", "both"]),
    readout_frames=st.sampled_from([0, 4, 12]),
    anchor=st.booleans(),
    linear_context=st.sampled_from([0, 8]),
    linear_knots=st.sampled_from([(), (0.1, 1.0)]),
)


@settings(max_examples=8)
@given(
    configs, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans()
)
def test_shapes(config, b, t, n, narrow, soft):
    dtype = jnp.bfloat16 if narrow else jnp.float32

    def everything_there_is(x, p):
        net = build(config, dtype)
        key = jax.random.key(0)
        h = features(net, x, key=key, soft=p if soft else None)
        logits = next_code_logits(net, x, key=key)
        g, caches = extend(net, x, empty_caches(net, b * n, t + 3), 2)
        read = None if net.readout is None else read_frames(net, h, x)
        return h, logits, g, caches, read

    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tokens(0, b, t, n))
    p = jax.ShapeDtypeStruct((b, t, n, K), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        h, logits, g, caches, read = jax.eval_shape(everything_there_is, x, p)
    assert h.shape == g.shape == (b, t, n, 8) and h.dtype == g.dtype == dtype
    assert logits.shape == (b, t, n, K) and logits.dtype == jnp.float32
    assert len(caches) == config.layers
    if read is not None:
        assert read.shape == (b, t, n, config.readout_frames) and read.dtype == jnp.float32
