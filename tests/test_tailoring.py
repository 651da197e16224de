"""The rule that chooses a transformer: by the validation part, never by a name."""

import dataclasses

import numpy as np
import pytest

from calm_jax import config
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import make_split
from calm_jax.tailoring import choose, tailored

SMALL = config.DualAxis(width=8)
BASE = config.Experiment(
    name="x",
    alternative=config.Alternative("shared_map_wins", SMALL, config.Training(steps=3)),
    forecasting=config.Forecasting(context=8, horizon=4),
)


def prepared(traces):
    store = MemoryStore([Session(traces, rate=10.0)])
    split = make_split(store, config.Split())
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


def coupled(frames):
    """Each neuron follows another with a lag of four frames; its own past is noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(frames, 6)).astype(np.float32)
    x[4:, 3:] = x[:-4, :3] + 0.1 * x[4:, 3:]
    return x


def drifting(frames):
    """Independent random walks with momentum."""
    steps = np.random.default_rng(1).normal(size=(frames, 30))
    for t in range(1, frames):
        steps[t] += 0.9 * steps[t - 1]
    return np.cumsum(steps, 0).astype(np.float32)


def test_a_population_that_predicts_itself_keeps_the_main_transformer():
    found = choose(BASE, prepared(coupled(2000)))
    assert found.variant == "main" and found.population < found.shared
    assert f"{found.shared:.3f}" in found.reason
    assert tailored(BASE, "main") is BASE


def test_independent_drifts_take_the_alternative():
    found = choose(BASE, prepared(drifting(400)))
    assert found.variant == "alternative" and found.shared < found.population
    e = tailored(BASE, "alternative")
    assert e.transformer == SMALL and e.transformer_training.steps == 3
    assert e.tokenizer == BASE.tokenizer


def test_the_test_part_has_no_say():
    x = drifting(400)
    other = x.copy()
    data = prepared(x)
    first = min(a for a, _ in data.splits.parts[0]["test"])
    other[first:] = np.random.default_rng(2).normal(size=other[first:].shape)
    assert choose(BASE, prepared(other)) == choose(BASE, data)


@pytest.mark.parametrize("rule, frames", [("never", 400), ("shared_map_wins", 60)])
def test_without_a_rule_or_windows_the_main_one_is_trained(rule, frames):
    e = dataclasses.replace(BASE, alternative=dataclasses.replace(BASE.alternative, rule=rule))
    found = choose(e, prepared(drifting(frames)))
    assert found.variant == "main" and found.shared is None and found.reason
