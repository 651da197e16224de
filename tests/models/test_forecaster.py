"""Forecasts: the roll-outs against a plain loop without a cache, and their borders."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calm_jax import config as configs
from calm_jax.errors import CalmError
from calm_jax.models import forecaster, tokenizer
from calm_jax.models.dual_axis import (
    DualAxisTransformer,
    Tokens,
    code_logits,
    features,
    running_scale,
)
from calm_jax.models.forecaster import CalM, Context, context_of, forecast, read_frames

PATCH, K, B, N, T = 4, 8, 2, 5, 12
TOKENIZER = configs.Tokenizer(
    width=8, layers=1, heads=2, codes=K, code_width=4, autoregressive_weight=0.0
)
SMALL = dict(width=8, layers=2, heads=2, ffn=12, mixing_heads=2, mixing_rank=3)
CASES = {
    "published": configs.DualAxis(**SMALL),
    "signed": configs.DualAxis(
        **SMALL, mixing="signed", axis_order="neuron_first", values="difference",
        readout_frames=8, linear_context=16,
    ),
    "level": configs.DualAxis(
        **SMALL, mixing="signed", values="level", readout_frames=4, anchor=False
    ),
    "scaled": configs.DualAxis(
        **SMALL, mixing="signed", mixing_width=6, values="difference", window_scale=True,
        readout_frames=4, linear_context=8,
    ),
    "rough": configs.DualAxis(
        **SMALL, mixing="signed", values="difference", window_scale=True, readout_frames=4,
        linear_context=8, linear_start=True, linear_level=True, linear_knots=(0.1, 0.7, 2.0),
    ),
}
RNG = np.random.default_rng(5)
pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def model(case) -> CalM:
    rng = np.random.default_rng(6)
    net = DualAxisTransformer(
        CASES[case], codes=K, patch=PATCH, neurons=7, sessions=2, rngs=nnx.Rngs(0)
    )
    net = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.4 + (a.ndim == 1), a.dtype), net
    )
    tok = tokenizer.init(TOKENIZER, jax.random.key(1))
    if net.readout is not None:  # small steps, or the roll-out is chaotic
        net.readout.head.kernel[...] *= 0.2
    return CalM(tok, net)


def context(frames=T, neurons=N):
    traces = np.cumsum(RNG.normal(size=(B, frames, neurons)), 1)
    mask = np.ones((B, neurons), bool)
    mask[1, -1] = False
    return Context(
        jnp.asarray(traces, jnp.float32),
        jnp.asarray(RNG.permuted(np.tile(np.arange(7), (B, 1)), axis=1)[:, :neurons]),
        jnp.array([1, -1]),
        jnp.asarray(mask),
    )


@jax.jit
def whole(m, soft, values, c):
    """Logits and read-outs at every step, by one pass over the whole sequence."""
    codes = jnp.argmax(soft, -1)
    x = Tokens(codes, c.neuron, c.session, c.mask, values)
    if m.transformer.config.window_scale:  # that of the context, also behind it
        scale = running_scale(values)
        x = x._replace(scale=scale.at[:, T // PATCH :].set(scale[:, T // PATCH - 1][:, None]))
    h = features(m.transformer, x, soft=soft)
    read = h
    if m.transformer.readout is not None:
        read = read_frames(m.transformer, h, x)
    return code_logits(m.transformer, h), read


decode = jax.jit(tokenizer.decode_embeddings)
encode = jax.jit(tokenizer.encode)


def split(frames):
    """(B, frames, N) -> (B, T', N, PATCH)."""
    b, t, n = frames.shape
    return frames.reshape(b, t // PATCH, PATCH, n).swapaxes(2, 3)


def plain_codes(m, c, horizon, mode, look=99):
    """The roll-out of codes as one would write it first: everything again at each step.

    look: codes that the decoder sees, those that are decoded among them.
    """
    t, steps = T // PATCH, -(-horizon // PATCH)
    frames = np.zeros((B, T + steps * PATCH, N), np.float32)
    frames[:, :T] = c.traces
    soft = np.zeros((B, t + steps, N, K), np.float32)
    codes = encode(m.tokenizer, c.traces.swapaxes(1, 2)).swapaxes(1, 2)
    soft[:, :t] = np.eye(K)[codes]
    book = np.asarray(m.tokenizer.quantizer.codebook[...])
    for s in range(t, t + steps):
        logits = np.asarray(whole(m, soft, split(frames), c)[0])[:, s - 1]
        if mode == "argmax":
            soft[:, s] = np.eye(K)[logits.argmax(-1)]
        else:
            p = np.exp(logits - logits.max(-1, keepdims=True))
            soft[:, s] = p / p.sum(-1, keepdims=True)
        first = max(0, s + 1 - look)
        vectors = (soft @ book).swapaxes(1, 2)[:, :, first:]
        decoded = np.asarray(decode(m.tokenizer, vectors)).swapaxes(1, 2)
        at = (s - first) * PATCH
        frames[:, s * PATCH : (s + 1) * PATCH] = decoded[:, at : at + PATCH]
    return frames[:, T : T + horizon]


def plain_readout(m, c, horizon, look=99):
    size = m.transformer.readout.frames
    blocks = -(-horizon // size)
    frames = np.zeros((B, T + blocks * size, N), np.float32)
    frames[:, :T] = c.traces
    codes = np.zeros((B, (T + blocks * size) // PATCH, N), int)
    new = T
    for s in range(blocks):
        at = T + s * size
        first = max(0, at - look * PATCH) if s else 0
        made = encode(m.tokenizer, frames[:, first:at].swapaxes(1, 2)).swapaxes(1, 2)
        codes[:, (at - new) // PATCH : at // PATCH] = made[:, -new // PATCH :]
        new = size
        soft = np.eye(K, dtype=np.float32)[codes]
        read = np.asarray(whole(m, soft, split(frames), c)[1])[:, at // PATCH - 1]
        frames[:, at : at + size] = read.swapaxes(1, 2)
    return frames[:, T : T + horizon]


@pytest.mark.parametrize(
    "case, mode",
    [
        ("published", "argmax"),
        ("signed", "argmax"),
        ("signed", "expected"),
        ("signed", "readout"),
        ("level", "argmax"),
        ("level", "readout"),
        ("scaled", "argmax"),
        ("scaled", "readout"),
    ],
)
def test_cached_roll_out_equals_the_plain_loop(case, mode):
    m, c, horizon = model(case), context(), 9
    if mode == "readout":
        expected = plain_readout(m, c, horizon)
    else:
        expected = plain_codes(m, c, horizon, mode)
    got = forecast(m, c, horizon, mode=mode)
    assert got.mean.shape == (B, horizon, N) and got.quantiles is None
    assert np.abs(np.diff(expected, axis=1)).max() > 1e-3
    np.testing.assert_allclose(got.mean, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("mode", ["expected", "readout"])
def test_of_a_long_roll_out_the_tokenizer_sees_the_latest_codes(mode, monkeypatch):
    m, c, horizon, look = model("signed"), context(), 31, 2
    # The encoder listens to the past hardly at all before it is trained.
    m = jax.tree.map(lambda a: a, m)
    m.tokenizer = jax.tree.map(lambda a: a * 2 if a.ndim > 1 else a, m.tokenizer)
    plain = plain_readout if mode == "readout" else functools.partial(plain_codes, mode=mode)
    everything, expected = plain(m, c, horizon), plain(m, c, horizon, look=look)
    assert np.abs(everything - expected).max() > 0.01
    monkeypatch.setattr(forecaster, "_LOOK", look)
    forecaster._forecast.clear_cache()
    got = forecast(m, c, horizon, mode=mode).mean
    forecaster._forecast.clear_cache()
    if mode == "expected":  # what is returned is decoded in pieces, of one code here
        got, expected = got[:, -PATCH:], expected[:, -PATCH:]
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("mode", ["argmax", "readout"])
def test_a_longer_forecast_begins_with_the_shorter(mode):
    """Nothing of the horizon enters the frames before it; to rounding, since buffers of
    another length may be summed in another order."""
    m, c = model("signed"), context()
    a, b = (forecast(m, c, h, mode=mode).mean for h in (9, 23))
    np.testing.assert_allclose(b[:, :9], a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["argmax", "readout"])
def test_only_the_context_is_used(mode):
    """Cut from recordings that differ after the origin, forecasts are the same bits."""
    m, c = model("signed"), context(30)
    results = []
    for later in (0.0, 1e3, np.nan):
        parent = np.array(c.traces)
        parent[:, T:] += later
        results.append(forecast(m, c._replace(traces=parent[:, :T]), 9, mode=mode).mean)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert np.isfinite(results[0]).all()
    # And the last frame of the context matters.
    other = forecast(m, c._replace(traces=c.traces.at[:, T - 1].add(2.0)[:, :T]), 9, mode=mode)
    assert not np.allclose(other.mean, results[0], atol=1e-3)


def test_a_context_of_no_whole_number_of_codes_loses_its_first_frames():
    m, c = model("signed"), context(T + 3)
    a = forecast(m, c, 9, mode="readout").mean
    b = forecast(m, c._replace(traces=c.traces[:, 3:]), 9, mode="readout").mean
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["argmax", "readout"])
def test_permutation_and_padding(mode):
    m, c = model("signed"), context()
    a = forecast(m, c, 9, mode=mode).mean
    order = RNG.permutation(N)
    moved = Context(c.traces[:, :, order], c.neuron[:, order], c.session, c.mask[:, order])
    np.testing.assert_allclose(
        forecast(m, moved, 9, mode=mode).mean, a[:, :, order], rtol=1e-3, atol=1e-4
    )
    # Another padded neuron with another trace: the same bits for all others.
    real = np.broadcast_to(c.mask[:, None], a.shape)
    other = c._replace(traces=jnp.where(c.mask[:, None], c.traces, -30.0))
    np.testing.assert_array_equal(np.asarray(forecast(m, other, 9, mode=mode).mean)[real], a[real])
    if mode == "argmax":
        return
    wide = Context(
        jnp.pad(c.traces, ((0, 0), (0, 0), (0, 3))), jnp.pad(c.neuron, ((0, 0), (0, 3))),
        c.session, jnp.pad(c.mask, ((0, 0), (0, 3))),
    )
    got = np.asarray(forecast(m, wide, 9, mode=mode).mean)[:, :, :N]
    np.testing.assert_allclose(got[real], a[real], rtol=1e-3, atol=1e-4)


def test_samples_and_quantiles():
    m, c, key = model("signed"), context(), jax.random.key(3)
    f = functools.partial(forecast, m, c, 9, samples=5, mode="sample", quantiles=(0.0, 0.5, 1.0))
    a, b, other = f(key=key), f(key=key), f(key=jax.random.key(4))
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.quantiles, b.quantiles)
    assert not np.allclose(a.mean, other.mean)
    low, middle, high = a.quantiles
    assert a.quantiles.shape == (3, B, 9, N)
    assert (low <= middle).all() and (middle <= high).all() and (low < high).any()
    # The mean of five trajectories lies between the least and the greatest.
    assert (low <= a.mean + 1e-5).all() and (a.mean <= high + 1e-5).all()
    # At temperature 0 every draw is the likeliest code.
    cold = f(key=key, temperature=1e-5)
    argmax = forecast(m, c, 9, mode="argmax").mean
    np.testing.assert_allclose(cold.mean, argmax, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(cold.quantiles[0], cold.quantiles[2], atol=1e-4)


def test_quantiles_lie_around_the_mean_of_the_mode():
    m, c = model("signed"), context()
    got = forecast(
        m, c, 9, mode="readout", samples=5, key=jax.random.key(3), quantiles=(0.0, 1.0)
    )
    np.testing.assert_allclose(got.mean, forecast(m, c, 9, mode="readout").mean, atol=1e-5)
    assert (got.quantiles[0] <= got.mean + 1e-5).all()
    assert (got.mean <= got.quantiles[1] + 1e-5).all()


def test_one_compilation_per_shape():
    m = model("published")
    sized = lambda: forecaster._forecast._cache_size()
    forecast(m, context(), 9)
    start = sized()
    forecast(m, context(), 9)  # other numbers
    forecast(m, context(), 9, temperature=0.3, key=jax.random.key(9))
    forecast(jax.tree.map(lambda a: a * 0.9, m), context(), 9)  # other weights
    assert sized() == start
    forecast(m, context(), 3)
    forecast(m, context(), 3)
    assert sized() == start + 1


def test_contexts():
    c = context_of(np.zeros((7, 3)))
    assert c.traces.shape == (1, 7, 3) and c.traces.dtype == jnp.float32
    assert (c.neuron == -1).all() and (c.session == -1).all() and c.mask.all()
    assert c.neuron.shape == (1, 3) and c.session.shape == (1,)
    m = model("signed")
    # The least there is: one code of one neuron, one frame ahead.
    assert forecast(m, np.ones((PATCH, 1)), 1).mean.shape == (1, 1, 1)
    assert forecast(m, np.ones((PATCH, 1)), 1, mode="readout").mean.shape == (1, 1, 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frames, neurons, horizon", [(4, 1, 1), (7, 2, 4), (13, 3, 17)])
def test_shapes(case, frames, neurons, horizon):
    m = model(case)
    traces = jax.ShapeDtypeStruct((3, frames, neurons), jnp.float32)
    for mode in forecaster.MODES:
        if mode == "readout" and m.transformer.readout is None:
            continue
        f = lambda x, mode=mode: forecast(
            m, x, horizon, mode=mode, samples=2, key=jax.random.key(0), quantiles=(0.5,)
        )
        got = jax.eval_shape(f, traces)
        assert got.mean.shape == (3, horizon, neurons) and got.mean.dtype == jnp.float32
        assert got.quantiles.shape == (1, 3, horizon, neurons)


@pytest.mark.parametrize(
    "options, frames, words",
    [
        ({}, 3, "shorter than one code"),
        ({"mode": "median"}, 8, "unknown mode"),
        ({"mode": "readout"}, 8, "no frame read-out"),
        ({"mode": "sample"}, 8, "needs samples"),
        ({"samples": 3}, 8, "random key"),
        ({"samples": -1}, 8, "samples"),
        ({"horizon": 0}, 8, "horizon must be positive"),
        ({"temperature": 0.0}, 8, "temperature"),
        ({"samples": 2, "key": jax.random.key(0), "quantiles": (0.5, 2.0)}, 8, "quantiles"),
    ],
)
def test_errors_are_one_line(options, frames, words):
    options = {"horizon": 4, **options}
    with pytest.raises(CalmError, match=words) as e:
        forecast(model("published"), np.zeros((1, frames, 2)), **options)
    assert "\n" not in str(e.value)


def test_shapes_that_do_not_belong_together_are_refused():
    m, c = model("published"), context()
    wrong = [
        c.traces[0, :, 0],
        c._replace(traces=c.traces[:, :, :-1]),
        c._replace(mask=c.mask[:1]),
        c._replace(neuron=c.neuron[0]),
        c._replace(session=jnp.zeros((1,), jnp.int32)),
    ]
    for bad in wrong:
        with pytest.raises(CalmError, match="shape"):
            forecast(m, bad, 4)
