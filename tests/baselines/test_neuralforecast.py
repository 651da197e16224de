"""PatchTST and iTransformer: trained where the extra is installed, one clear line where not."""

import importlib.util
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from calm_jax import baselines, config
from calm_jax.baselines import neuralforecast
from calm_jax.benchmark import methods
from calm_jax.errors import ConfigError
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session

NAMES = tuple(baselines.EXTRAS)


def test_a_missing_extra_is_one_line_with_the_command(monkeypatch):
    real = importlib.util.find_spec
    gone = lambda name, *a: None if name == "neuralforecast" else real(name, *a)  # noqa: E731
    monkeypatch.setattr(neuralforecast.importlib.util, "find_spec", gone)
    for name in NAMES:
        with pytest.raises(ConfigError, match="pip install .*neuralforecast") as e:
            methods.chosen(name)
        assert "\n" not in str(e.value)
        with pytest.raises(ConfigError, match="pip install"):
            baselines.EXTRAS[name].fit(None, None, 8, 4)
    said = []
    assert not set(NAMES) & {m.name for m in methods.chosen("all", note=said.append)}
    assert len(said) == 2 and all("left out" in s and "pip install" in s for s in said)


@pytest.mark.parametrize("name", NAMES)
def test_trained_in_its_time_and_causal(name):
    if neuralforecast.missing():
        pytest.skip(neuralforecast.missing())
    t = np.arange(900)[:, None]
    sessions = []
    for k, n in enumerate((4, 6)):
        noise = np.random.default_rng(k).normal(size=(900, n))
        x = np.sin(t / (5 + np.arange(n))) + 0.05 * noise
        x[:, -1] = 1.0
        sessions.append(Session(x.astype(np.float32), rate=10, session=str(k)))
    store = MemoryStore(sessions)
    split = splits.make_split(store, config.Split())
    p = Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))
    neuralforecast._network(name, neuralforecast.GRID[name][0], 24, 8, 0)  # loads PyTorch
    begin = time.monotonic()
    made = baselines.EXTRAS[name].fit(p, split, 24, 8, budget_seconds=12.0, seed=1)
    assert time.monotonic() - begin < 14
    assert sum(bool(e.get("chosen")) for e in made.tuning) == 1
    a, b = split.parts[1]["test"][0]
    z, mask = p.range(1, a, b)
    x = z[None, :24]
    got = made(x, 1, mask[None, :24], 8)
    assert got.shape == (1, 8, 6) and np.isfinite(got).all()
    assert_array_equal(got, made(x.copy(), 1, mask[None, :24], 8))
    assert made(x, 1, mask[None, :24], 19).shape == (1, 19, 6)
    # Better than the weights it began with, however few steps fit on a busy machine.
    data = neuralforecast._Data(p, split, 24, 8, 1)
    (best,) = (e["validation"] for e in made.tuning if e.get("chosen"))
    for point in neuralforecast.GRID[name]:
        fresh = neuralforecast._network(name, point, 24, 8, 1)
        assert best < neuralforecast._error(name, fresh, data)
    assert best == pytest.approx(neuralforecast._error(name, made._net, data), rel=1e-4)
