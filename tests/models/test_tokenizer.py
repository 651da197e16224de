"""The tokenizer: shapes, strict causality to the bit, separation of state, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from calm_jax import config
from calm_jax.errors import ConfigError
from calm_jax.layers.quantizer import CodebookState
from calm_jax.models import tokenizer as tokenizers

SMALL = config.Tokenizer(width=16, layers=1, heads=2, ffn=2, codes=12, code_width=4)


@functools.cache
def _tok(cfg=SMALL, seed=0):
    return jax.jit(functools.partial(tokenizers.init, cfg))(jax.random.key(seed))


latents, encode, decode = map(jax.jit, (tokenizers.latents, tokenizers.encode, tokenizers.decode))


def _traces(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@settings(max_examples=8)
@given(
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(8, 60),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([None, 3]),
)
def test_shapes(lead, frames, patch, code_width):
    cfg = dataclasses.replace(SMALL, patch=patch, code_width=code_width)
    tok = jax.eval_shape(lambda: tokenizers.init(cfg, jax.random.key(0)))
    shape = jax.eval_shape
    x = jax.ShapeDtypeStruct((*lead, frames), jnp.float32)
    tokens, d = frames // patch, code_width or cfg.width
    z = shape(tokenizers.latents, tok, x)
    assert (z.shape, z.dtype) == ((*lead, tokens, d), jnp.float32)
    codes = shape(tokenizers.encode, tok, x)
    assert (codes.shape, codes.dtype) == ((*lead, tokens), jnp.int32)
    assert shape(tokenizers.assign, tok, z).shape == codes.shape
    for out in (
        shape(tokenizers.decode, tok, codes),
        shape(tokenizers.decode_embeddings, tok, z),
    ):
        assert (out.shape, out.dtype) == ((*lead, tokens * patch), jnp.float32)
    near = shape(lambda t: tokenizers.nearest_codes(t, 5), tok)
    assert (near.shape, near.dtype) == ((cfg.codes, 5), jnp.int32)
    mask = shape(lambda m: tokenizers.token_mask(m, patch), x.update(dtype=bool))
    assert (mask.shape, mask.dtype) == ((*lead, tokens), bool)


@pytest.mark.parametrize("cut", [4, 7, 22])
def test_later_frames_change_no_earlier_latent_code_or_output(cut):
    tok, x = _tok(), _traces(0, 3, 40)
    other = x.at[:, cut:].set(_traces(1, 3, 40 - cut) * 100)
    whole = cut // 4  # codes whose frames all lie before the cut
    assert_array_equal(latents(tok, x)[:, :whole], latents(tok, other)[:, :whole])
    assert_array_equal(encode(tok, x)[:, :whole], encode(tok, other)[:, :whole])
    assert not np.array_equal(latents(tok, x), latents(tok, other))
    a, b = encode(tok, x), encode(tok, x).at[:, whole:].add(1) % 12
    assert_array_equal(decode(tok, a)[:, : whole * 4], decode(tok, b)[:, : whole * 4])
    assert not np.array_equal(decode(tok, a), decode(tok, b))


def test_codes_of_a_prefix_are_the_prefix_of_the_codes():
    tok, x = _tok(), _traces(2, 5, 40)
    codes = encode(tok, x)
    for frames in (6, 39):
        part = encode(tok, x[:, :frames])
        assert_array_equal(part, codes[:, : frames // 4])
        whole = decode(tok, codes)[:, : frames // 4 * 4]
        assert_allclose(decode(tok, part), whole, atol=1e-5)


def test_latents_are_a_causal_moving_average_of_the_encoder():
    plain = _tok(dataclasses.replace(SMALL, smoothing=0.0))
    z, x = np.asarray(latents(plain, _traces(3, 24))), _traces(3, 24)
    smooth = np.asarray(latents(_tok(), x))
    assert_allclose(smooth[0], z[0], atol=1e-6)
    for t in range(1, 6):
        assert_allclose(smooth[t], 0.9 * z[t] + 0.1 * z[t - 1], atol=1e-5)


def test_leading_axes_are_independent_and_vmap_agrees():
    tok, x = _tok(), _traces(4, 2, 3, 20)
    codes = encode(tok, x)
    for i in np.ndindex(2, 3):
        assert_array_equal(encode(tok, x[i]), codes[i])
    twice = jax.vmap(jax.vmap(functools.partial(tokenizers.encode, tok)))
    assert_array_equal(jax.jit(twice)(x), codes)
    once = jax.jit(jax.vmap(functools.partial(tokenizers.decode, tok)))
    assert_allclose(once(codes), decode(tok, codes), atol=1e-5)


def test_assign_takes_the_nearest_code_and_decode_its_vector():
    tok = _tok()
    book = tok.quantizer.codebook[...]
    codes = jnp.arange(12)[None]
    assert_array_equal(tokenizers.assign(tok, book), jnp.arange(12))
    vectors = jax.jit(tokenizers.decode_embeddings)(tok, book[None])
    assert_allclose(decode(tok, codes), vectors, atol=1e-6)


def test_gradient_reaches_every_parameter():
    tok, x = _tok(), _traces(5, 4, 16)
    graph, params, rest = nnx.split(tok, nnx.Param, ...)

    def loss(params):
        tok = nnx.merge(graph, params, rest)
        z = tokenizers.latents(tok, x)
        y = tokenizers.decode_embeddings(tok, z)
        return jnp.sum((y - x) ** 2) + jnp.sum(tok.predictor(z) ** 2)

    for path, g in nnx.to_flat_state(jax.jit(jax.grad(loss))(params)):
        assert np.abs(g[...]).max() > 0, path


@pytest.mark.parametrize(("kind", "learned"), [("ema", False), ("gradient", True)])
def test_moving_average_codebook_is_no_parameter(kind, learned):
    tok = _tok(dataclasses.replace(SMALL, codebook=kind))
    _, params, rest = nnx.split(tok, nnx.Param, ...)
    own = {"/".join(map(str, p)) for p, _ in nnx.to_flat_state(rest)}
    state = {"quantizer/codebook", "quantizer/counts", "quantizer/sums"}
    assert own == (state - {"quantizer/codebook"} if learned else state)
    assert isinstance(tok.quantizer.counts, CodebookState)
    assert ("codebook" in nnx.to_pure_dict(params).get("quantizer", {})) == learned


def test_one_compilation_per_shape():
    encode = jax.jit(lambda tok, x: tokenizers.encode(tok, x))
    for frames in (20, 20, 24):
        for seed in (0, 1):
            encode(_tok(seed=seed), _traces(frames, 2, frames))
    assert encode._cache_size() == 2


def test_bfloat16_keeps_latents_and_traces_in_float32():
    init = functools.partial(tokenizers.init, SMALL, dtype=jnp.bfloat16)
    tok, x = jax.jit(init)(jax.random.key(0)), _traces(6, 2, 40)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm promotes on purpose
        z, full = latents(tok, x), latents(_tok(), x)
        assert decode(tok, tokenizers.assign(tok, z)).dtype == jnp.float32
    assert z.dtype == jnp.float32
    assert_allclose(z, full, atol=0.1)


def test_a_code_is_valid_when_all_of_its_frames_are():
    mask = jnp.ones((2, 11), bool).at[0, 5].set(False).at[1, 9].set(False)
    assert_array_equal(tokenizers.token_mask(mask, 4), [[True, False], [True, True]])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"patch": 3}, "tokenizer.patch"),
        ({"patch": 1}, "tokenizer.patch"),
        ({"width": 18, "heads": 4}, "tokenizer.width"),
        ({"width": 6, "heads": 2}, "tokenizer.width"),
        ({"width": 4, "heads": 2, "patch": 16}, "tokenizer.width"),
        ({"codes": 1}, "tokenizer.codes"),
        ({"code_width": 0}, "tokenizer.code_width"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, field):
    with pytest.raises(ConfigError, match=field):
        tokenizers.init(dataclasses.replace(SMALL, **change), jax.random.key(0))
