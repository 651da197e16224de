"""Embeddings inferred from the context: statistics, causality, symmetry, masks, caches."""

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

from calm_jax.config import DualAxis, Tokenizer
from calm_jax.errors import ConfigError
from calm_jax.models import tokenizer
from calm_jax.models.dual_axis import (
    DualAxisTransformer,
    Tokens,
    empty_caches,
    extend,
    features,
)
from calm_jax.models.forecaster import CalM, context_of, forecast, roll_readout
from calm_jax.models.inferred import describe
from calm_jax.tasks.transformer_checks import check

K, PATCH, B, T, N = 9, 4, 2, 6, 5
CONFIG = DualAxis(
    width=8, layers=2, heads=2, ffn=12, dropout=0.0, mixing_heads=2, inferred=True,
    inferred_rank=3, session_embedding=False, values="both", readout_frames=8, linear_context=8,
)
pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def model():
    """A model with weights of order 1, so that every part of it matters."""
    rng = np.random.default_rng(3)
    net = DualAxisTransformer(
        CONFIG, codes=K, patch=PATCH, neurons=7, sessions=2, rngs=nnx.Rngs(0)
    )
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.4 + (a.ndim == 1), a.dtype), net
    )


def tokens(seed=0, t=T, n=N, values=None):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(B, t, n, PATCH)) if values is None else values
    unknown = jnp.full((B, n), -1)
    return Tokens(
        jnp.asarray(rng.integers(0, K, (B, t, n))), unknown, jnp.full((B,), -1),
        jnp.ones((B, n), bool), jnp.asarray(values, jnp.float32),
    )  # fmt: skip


run = jax.jit(features)


def test_no_rows_are_made():
    names = dict(nnx.to_flat_state(nnx.state(model(), nnx.Param)))
    assert not [k for k in names if k[0] in ("neuron", "session", "coupling")]
    assert [k for k in names if k[0] == "own"]


def test_the_default_has_no_such_part():
    plain = dataclasses.replace(CONFIG, inferred=False)
    net = DualAxisTransformer(plain, codes=K, patch=PATCH, neurons=7, sessions=2, rngs=nnx.Rngs(0))
    names = dict(nnx.to_flat_state(nnx.state(net, nnx.Param)))
    assert not [k for k in names if k[0] == "own"]


def test_statistics_against_numpy():
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.normal(size=(T * PATCH, N)), 0).astype(np.float32)
    values = x.reshape(1, T, PATCH, N).swapaxes(2, 3)
    found = np.asarray(describe(jnp.asarray(values), jnp.ones((1, N), bool)).own)[0]
    for t in range(T):
        seen = x[: (t + 1) * PATCH].astype(np.float64)
        change = np.diff(seen, axis=0, prepend=seen[:1])
        common = change.mean(1, keepdims=True)
        power = np.mean(change**2, 0) + 1e-4
        joint, shared = np.mean(change * common, 0), np.mean(common**2) + 1e-4
        lagged = np.mean(change[1:] * change[:-1], 0) * (len(change) - 1) / len(change)
        expected = [
            0.5 * np.log(seen.var(0) + 0.01), 0.5 * np.log(power), (seen - seen[0]).mean(0),
            lagged / power, joint / shared, joint / np.sqrt(power * shared),
        ]  # fmt: skip
        np.testing.assert_allclose(found[t], np.stack(expected, -1), rtol=2e-3, atol=2e-4)


@settings(max_examples=8)
@given(st.integers(0, 99), st.integers(1, T - 1))
def test_no_step_sees_a_later_one(seed, step):
    x = tokens(seed)
    other = tokens(seed + 1000)
    late = jnp.arange(T)[:, None] >= step
    mixed = x._replace(
        codes=jnp.where(late, other.codes, x.codes),
        values=jnp.where(late[..., None], other.values, x.values),
    )
    a, b = run(model(), x), run(model(), mixed)
    np.testing.assert_allclose(a[:, :step], b[:, :step], atol=1e-5)
    assert np.abs(a - b)[:, step:].max() > 1e-3


@settings(max_examples=8)
@given(st.integers(0, 99))
def test_neurons_may_come_in_any_order(seed):
    x = tokens(seed)
    order = np.random.default_rng(seed).permutation(N)
    moved = x._replace(codes=x.codes[:, :, order], values=x.values[:, :, order])
    np.testing.assert_allclose(run(model(), x)[:, :, order], run(model(), moved), atol=2e-4)


def test_every_neuron_matters_to_the_others_and_padding_to_none():
    x = tokens()
    loud = x._replace(values=x.values.at[:, :, -1].multiply(3.0))
    assert np.abs(run(model(), x) - run(model(), loud))[:, :, :-1].max() > 1e-3
    padded = x._replace(mask=x.mask.at[:, -1].set(False))
    a = run(model(), padded)
    b = run(model(), padded._replace(values=padded.values.at[:, :, -1].set(99.0)))
    np.testing.assert_array_equal(a[:, :, :-1], b[:, :, :-1])
    fewer = Tokens(x.codes[:, :, :-1], *(v[:, :-1] if v.ndim == 2 else v for v in x[1:4]),
                   x.values[:, :, :-1])  # fmt: skip
    np.testing.assert_allclose(a[:, :, :-1], run(model(), fewer), atol=1e-4)


def test_the_cache_gives_the_same_numbers():
    x = tokens()
    h, _ = extend(model(), x, empty_caches(model(), B * N, T), 0)
    np.testing.assert_allclose(h, run(model(), x), atol=1e-5)


def test_a_roll_out_keeps_what_the_context_told():
    cfg = Tokenizer(width=8, layers=1, heads=2, codes=K, code_width=4, autoregressive_weight=0.0)
    calm = CalM(tokenizer.init(cfg, jax.random.key(1)), model())
    x = np.random.default_rng(2).normal(size=(1, 16, N)).astype(np.float32)
    whole = forecast(calm, x, 20, mode="readout").mean
    assert whole.shape == (1, 20, N) and np.isfinite(whole).all()
    np.testing.assert_allclose(whole[:, :8], roll_readout(calm, context_of(x), 8), atol=1e-5)
    assert np.isfinite(forecast(calm, x, 6, mode="argmax").mean).all()


def test_a_model_without_values_cannot_infer():
    with pytest.raises(ConfigError, match="transformer.values"):
        check(dataclasses.replace(CONFIG, values="none"), PATCH)
    with pytest.raises(ConfigError, match="mixing_heads"):
        check(dataclasses.replace(CONFIG, mixing_heads=3), PATCH)
    check(dataclasses.replace(CONFIG, mixing="signed", neuron_embedding=False), PATCH)
