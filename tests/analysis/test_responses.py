"""Responses to a change of one neuron: against whole forecasts of changed windows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calm_jax.analyses.responses import head_gains, responses
from calm_jax.config import Tokenizer
from calm_jax.errors import AnalysisError
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import DualAxisTransformer
from calm_jax.models.forecaster import CalM, Context, forecast
from tests.analysis.random_run import CODES_ALONE, SIGNED

pytestmark = pytest.mark.usefixtures("quick_compilation")


def model_of(config) -> CalM:
    tokenizer = tokenizers.init(
        Tokenizer(width=16, layers=1, heads=2, codes=8, autoregressive_weight=0.0),
        jax.random.key(0),
    )
    book = tokenizer.quantizer.codebook
    book[...] = jax.random.normal(jax.random.key(1), book[...].shape)
    net = DualAxisTransformer(config, codes=8, patch=4, neurons=5, sessions=1, rngs=nnx.Rngs(2))
    # Read-outs start near 0: answers that can be told from rounding.
    state = nnx.state(net, nnx.Param)
    nnx.update(net, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(
        jax.random.key(x.size), x.shape), state))  # fmt: skip
    return CalM(tokenizer, net)


def windows(count: int = 2, frames: int = 24) -> Context:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, frames, 5)).cumsum(1) * 0.3
    return Context(
        jnp.asarray(x, jnp.float32),
        jnp.broadcast_to(jnp.arange(5, dtype=jnp.int32), (count, 5)),
        jnp.zeros((count,), jnp.int32),
        jnp.asarray(np.broadcast_to(np.arange(5) < 4, (count, 5))),  # the fifth is padding
    )


@pytest.mark.parametrize("kind", ["signed", "softmax", "scaled", "inferred"])
def test_they_are_differences_of_forecasts(kind):
    change = {
        "signed": {},
        "softmax": {"mixing": "softmax", "mixing_width": 0},
        "scaled": {"mixing": "softmax", "mixing_width": 0, "values": "difference",
                   "window_scale": True, "neuron_embedding": False, "session_embedding": False},
        "inferred": {"inferred": True, "mixing_width": 0},
    }[kind]  # fmt: skip
    model, given = model_of(dataclasses.replace(SIGNED, **change)), windows()
    found = responses(model, given, frames=4, step=0.5, block=3)
    assert found.shape == (8, 5, 5)
    mean = lambda x: np.asarray(  # noqa: E731
        forecast(model, given._replace(traces=x), 8, mode="readout").mean, np.float64
    )
    base = mean(given.traces)
    for j in range(4):
        sign = jnp.array([0.5, -0.5])  # in turn from window to window
        moved = given.traces.at[:, -4:, j].add(sign[:, None])
        wanted = ((mean(moved) - base) / np.array([0.5, -0.5])[:, None, None]).mean(0)
        np.testing.assert_allclose(found[:, :4, j], wanted[:, :4], atol=2e-5)


def test_a_model_of_codes_answers_by_their_waveforms():
    model, waves = model_of(CODES_ALONE), np.random.default_rng(0).normal(size=(8, 4))
    found = responses(model, windows(), frames=4, waveforms=waves)
    assert found.shape == (4, 5, 5)
    assert np.isfinite(found).all()
    assert np.abs(found[:, :4, :4]).max() > 0
    with pytest.raises(AnalysisError, match="waveforms of its codes"):
        responses(model, windows())


def test_gains_need_a_signed_table_values_and_a_read_out():
    gains, maps = head_gains(model_of(SIGNED))
    assert [g.shape for g in gains] == [(2,), (2,)]
    assert maps[0][0].shape == (8, 2, 4)
    with pytest.raises(AnalysisError, match="softmax"):
        head_gains(model_of(CODES_ALONE))


@pytest.mark.parametrize("frames, length", [(0, 24), (5, 24), (1, 7)])
def test_windows_that_are_too_short_are_refused(frames, length):
    with pytest.raises(AnalysisError, match="no response"):
        responses(model_of(SIGNED), windows(1, length), frames=frames)
