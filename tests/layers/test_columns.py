"""The encoder's parts for CPUs beside the row-wise ones and beside plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import enable_x64

from calm_jax.layers import columns, perceiver

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH, HEADS, HEAD, BATCH, QUERIES, KEYS = 6, 2, 8, 3, 4, 5


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def code(*shape):
    angle = numbers(*shape, 2, seed=9)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -2)


def both(monkeypatch, module, *given):
    """(value, gradients) of a module by columns and by rows."""
    graph, state = nnx.split(module)
    leaves, tree = jax.tree.flatten(nnx.to_pure_dict(state))
    leaves = [numbers(*a.shape, seed=i) for i, a in enumerate(leaves)]

    def value(leaves, x):
        own = nnx.merge(graph, nnx.State(jax.tree.unflatten(tree, leaves)))
        y = own(x, *given[1:])
        return jnp.sum(jnp.cos(y) * numbers(*y.shape, seed=3)), y

    out = []
    for by in (True, False):
        monkeypatch.setattr(perceiver, "by_columns", lambda by=by: by)
        gradient = jax.jit(jax.grad(lambda *a: value(*a), (0, 1), has_aux=True))
        out.append(jax.tree.leaves(gradient(leaves, given[0])))
    return zip(*out, strict=True)


@pytest.mark.parametrize(
    "shared, masked, keys",
    [(False, False, KEYS), (True, True, KEYS), (True, True, 4 * QUERIES), (False, False, 30)],
)
def test_cross_attention_by_rows_and_columns(monkeypatch, shared, masked, keys):
    """With few keys and with many, whose gradient is another product."""
    with enable_x64(True):
        module = perceiver.RotaryCrossAttention(
            WIDTH, WIDTH + 1, heads=HEADS, head_width=HEAD, rotate_values=not masked,
            dtype=jnp.float64, rngs=nnx.Rngs(0),
        )  # fmt: skip
        mask = np.random.default_rng(1).random((BATCH, keys)) > 0.4
        mask[1] = False  # sees nothing
        x = numbers(1 if shared else BATCH, QUERIES, WIDTH)
        context, at = numbers(BATCH, keys, WIDTH + 1, seed=2), code(BATCH, keys)
        given = x, context, code(QUERIES), at, jnp.asarray(mask) if masked else None
        for a, b in both(monkeypatch, module, *given):
            np.testing.assert_allclose(a, b, atol=1e-11)


def test_self_attention_and_forward_by_rows_and_columns(monkeypatch):
    with enable_x64(True):
        how = {"dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        x = numbers(BATCH, KEYS, WIDTH)
        attention = perceiver.RotarySelfAttention(WIDTH, heads=HEADS, head_width=HEAD, **how)
        forward = perceiver.GatedForward(WIDTH, **how)
        for module, given in ((attention, (x, code(KEYS))), (forward, (x,))):
            for a, b in both(monkeypatch, module, *given):
                np.testing.assert_allclose(a, b, atol=1e-10)


def test_attention_with_dropout_is_the_formula_and_its_gradient():
    with enable_x64(True):
        q = numbers(HEADS, BATCH, HEAD, QUERIES)
        k, v = numbers(HEADS, BATCH, HEAD, KEYS, seed=1), numbers(HEADS, BATCH, HEAD, KEYS, seed=2)
        mask = jnp.asarray([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
        keep = jnp.asarray(np.random.default_rng(0).random((HEADS, BATCH, QUERIES, KEYS)) > 0.3)

        def plain(q, k, v):
            s = jnp.where(mask[None, :, None, :], jnp.einsum("hbdk,hbdq->hbqk", k, q), -jnp.inf)
            return jnp.einsum("hbdk,hbqk->hbdq", v, jnp.where(keep, jax.nn.softmax(s), 0) / 0.7)

        ours = lambda q, k, v: columns.attend(q, k, v, mask, keep, 0.3)
        value = lambda f: lambda *a: jnp.sum(jnp.sin(f(*a)))
        np.testing.assert_allclose(ours(q, k, v), plain(q, k, v), atol=1e-13)
        a, b = (jax.grad(value(f), (0, 1, 2))(q, k, v) for f in (ours, plain))
        for one, other in zip(a, b, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


def test_what_dropout_leaves():
    """The rate, and no correlation between neighbours or between keys split from one."""
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (np.asarray(columns.kept(k, (512, 512), 0.2), float) for k in keys)
    n = a.size
    for x in (a, b):
        assert abs(x.mean() - 0.8) < 5 * (0.16 / n) ** 0.5
        assert np.abs(x.mean(0) - 0.8).max() < 5.5 * (0.16 / 512) ** 0.5
        assert np.abs(x.mean(1) - 0.8).max() < 5.5 * (0.16 / 512) ** 0.5
    a, b = a - a.mean(), b - b.mean()
    for x, y in [(a, b)] + [
        (a[: 512 - i, : 512 - j], a[i:, j:]) for i, j in ((0, 1), (1, 0), (0, 2))
    ]:
        assert abs((x * y).mean() / 0.16) < 5 / n**0.5
    x = np.asarray(columns.dropout(jnp.full((64, 64), 4.0), 0.2, keys[0]))
    assert set(np.unique(x)) == {0.0, 5.0}


def test_exact_gelu_and_its_slope():
    with enable_x64(True):
        gate, value = numbers(50) * 3, numbers(50, seed=1)
        plain = lambda v, g: jnp.sum(jnp.sin(v * jax.nn.gelu(g, approximate=False)))
        ours = lambda v, g: jnp.sum(jnp.sin(columns.gated(v, g)))
        for a, b in zip(*(jax.grad(f, (0, 1))(value, gate) for f in (ours, plain)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-13)


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 5), max_size=2)
)
def test_dropout_of_a_part_is_that_of_the_whole(outer, rows, parts, rest):
    key = jax.random.key(outer + rows)
    whole = columns.kept(key, (outer, rows * parts, *rest), 0.4)
    for i in range(parts):
        with columns.part(jnp.int32(i), parts):
            own = columns.kept(key, (outer, rows, *rest), 0.4)
        np.testing.assert_array_equal(own, whole[:, i * rows : (i + 1) * rows])
    np.testing.assert_array_equal(columns.kept(key, whole.shape, 0.4), whole)  # left again
