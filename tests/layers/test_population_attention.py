"""Attention over neurons in pieces: the same as all at once, its gradients, its memory."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.layers import mixing, population_attention
from calm_jax.layers.population_attention import attend

pytestmark = pytest.mark.usefixtures("quick_compilation")


def plain(q, k, v, mask):
    """As in the textbook, (B, T, N, H, d)."""
    scores = jnp.einsum("btqhd,btkhd->bthqk", q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(mask[:, None, None, None], scores, -jnp.inf)
    return jnp.einsum("bthqk,btkhd->btqhd", jax.nn.softmax(scores, -1), v)


def made(b, t, n, h, d, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    q, k, v, dy = (jnp.asarray(rng.normal(size=(b, t, n, h, d)), dtype) for _ in range(4))
    mask = rng.random((b, n)) < 0.7
    mask[:, 0] = True
    return q, k, v, jnp.asarray(mask), dy


@settings(max_examples=12, deadline=None)
@given(
    b=st.integers(1, 3),
    t=st.integers(1, 4),
    n=st.integers(1, 9),
    h=st.integers(1, 3),
    most=st.integers(1, 800),
)
def test_any_pieces_are_the_whole(b, t, n, h, most):
    q, k, v, mask, _ = made(b, t, n, h, 2)
    got = jax.eval_shape(lambda *a: attend(*a, most), q, k, v, mask)
    assert (got.shape, got.dtype) == (q.shape, q.dtype)
    np.testing.assert_allclose(attend(q, k, v, mask, most), plain(q, k, v, mask), atol=2e-6)


# Several steps at a time; one head of one step; blocks of queries with a ragged end.
@pytest.mark.parametrize("most", [2 * 7 * 7 * 3, 2 * 7 * 7, 2 * 7 * 3])
def test_gradients_are_those_of_the_whole(most):
    with jax.enable_x64(True):
        q, k, v, mask, dy = made(2, 3, 7, 2, 4, dtype=np.float64)
        pull = lambda f: jax.jit(lambda *a: jax.vjp(f, *a)[1](dy))(q, k, v)  # noqa: E731
        got = pull(lambda q, k, v: attend(q, k, v, mask, most))
        for a, e in zip(got, pull(lambda q, k, v: plain(q, k, v, mask)), strict=True):
            np.testing.assert_allclose(a, e, atol=1e-12)


@pytest.mark.parametrize("most", [2 * 7 * 7 * 3, 2 * 7 * 3])
def test_the_gradient_draws_the_dropout_of_the_forward_pass(most):
    q, k, v, mask, dy = made(2, 3, 7, 2, 4)
    f = jax.jit(
        lambda q, k, v: attend(q, k, v, mask, most, rate=0.4, key=jax.random.key(1))
    )
    y, pull = jax.vjp(f, q, k, v)
    assert not np.allclose(y, plain(q, k, v, mask), atol=1e-2)
    grads = pull(dy)
    # Linear in v; along q and k by differences.
    np.testing.assert_allclose((grads[2] * v).sum(), (dy * y).sum(), rtol=1e-4)
    step = 1e-2
    for i in (0, 1):
        way = jnp.asarray(np.random.default_rng(i).normal(size=q.shape), jnp.float32)
        at = [
            f(*(a + s * way * float(j == i) for j, a in enumerate((q, k, v))))
            for s in (step, -step)
        ]
        slope = ((at[0] - at[1]) * dy).sum() / (2 * step)
        np.testing.assert_allclose((grads[i] * way).sum(), slope, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("most", [2 * 7 * 7 * 3, 2 * 7 * 3])
def test_an_empty_row_stays_finite_and_leaves_the_others_alone(most):
    """As padding of a batch: it weighs nothing in a loss."""
    q, k, v, mask, dy = made(2, 3, 7, 2, 4)
    mask, dy = mask.at[1].set(False), dy.at[1].set(0)
    y, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask, most), q, k, v)
    mean = np.broadcast_to(v[1].mean(1, keepdims=True), y[1].shape)
    np.testing.assert_allclose(y[1], mean, atol=1e-5)
    alone = jax.vjp(lambda q, k, v: plain(q, k, v, mask[:1]), q[:1], k[:1], v[:1])[1](dy[:1])
    for a, e in zip(pull(dy), alone, strict=True):
        assert not np.any(a[1])
        np.testing.assert_allclose(a[0], e[0], atol=3e-6)


def test_dropout_keeps_the_mean():
    q, k, v, mask, _ = made(1, 2, 6, 2, 3)
    f = jax.jit(jax.vmap(lambda key: attend(q, k, v, mask, 36, rate=0.3, key=key)))
    y = f(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(y.mean(0), plain(q, k, v, mask), atol=0.06)
    assert y.std(0).max() > 0.1


def test_the_mixing_takes_pieces_where_the_scores_are_many(monkeypatch):
    m = mixing.make_mixing(
        "softmax", 8, 2, signed_heads=2, rank=2, dropout=0.0, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 9, 8)), jnp.float32)
    mask = jnp.asarray(rng.random((2, 9)) < 0.8)
    whole = m(x, None, mask, None)
    used = []
    attend_ = population_attention.attend
    monkeypatch.setattr(
        population_attention, "attend", lambda *a, **k: used.append(1) or attend_(*a, **k)
    )
    monkeypatch.setattr(population_attention, "scores_at_once", lambda: 2 * 3 * 9 * 9 * 2 - 1)
    np.testing.assert_allclose(m(x, None, mask, None), whole, atol=1e-6)
    assert used


def test_memory_does_not_grow_with_steps():
    """Temporaries of a gradient, as the compiler plans them: far below all scores."""

    def bytes_of(f, t):
        q, k, v, mask, _ = made(1, t, 128, 2, 4)
        g = jax.jit(jax.grad(lambda *a: (f(*a, mask) ** 2).sum(), (0, 1, 2)))
        return g.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * 2 * 128 * 128  # bytes of a step
    pieces = [bytes_of(lambda *a: attend(*a, 128 * 128), t) for t in (8, 32)]
    assert pieces[1] - pieces[0] < 24 * scores / 4
    assert bytes_of(plain, 32) > 32 * scores


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from calm_jax.layers.population_attention import attend
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
keys = jax.random.split(jax.random.key(0), 4)
q, k, v, dy = (jax.random.normal(key, (8, 3, 9, 2, 4)) for key in keys)
mask = jnp.ones((8, 9), bool).at[:, -2:].set(False)
rows = NamedSharding(mesh, P("data"))
for most in (8 * 9 * 9 * 2, 8 * 9 * 4):  # several pairs at a time; blocks of queries
    pull = jax.jit(
        lambda q, k, v, mask, dy: jax.vjp(lambda *a: attend(*a, mask, most), q, k, v)[1](dy)
    )
    one = pull(q, k, v, mask, dy)
    given = [jax.device_put(x, rows) for x in (q, k, v, mask, dy)]
    spread = pull(*given)
    for a, b in zip(one, spread):
        assert b.sharding.is_equivalent_to(rows, b.ndim), b.sharding
        np.testing.assert_allclose(a, b, atol=1e-6)
    text = pull.lower(*given).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-to-all", "all-reduce"))
print("equal")
"""


def test_eight_devices_keep_their_rows_and_exchange_nothing():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env={**os.environ, **flags}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
