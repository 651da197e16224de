"""The behaviour task: masks, batches, whole ranges against windows."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from calm_jax import config
from calm_jax.baselines.behavior.tcn import TCNNetwork
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import make_split
from calm_jax.recordings.targets import Target
from calm_jax.tasks.behavior import Behavior, Populations

pytestmark = pytest.mark.usefixtures("quick_compilation")

COUNTS, FRAMES = (3, 5), 200


def task(hide: float | None = None, **change):
    """A TCN on two random sessions; `hide` is written where labels are unknown."""
    rng = np.random.default_rng(0)
    traces = [rng.normal(size=(FRAMES, n)).astype(np.float32) for n in COUNTS]
    sessions = [Session(x, rate=10.0, session=str(i)) for i, x in enumerate(traces)]
    splits = make_split(MemoryStore(sessions), config.Split())
    known = tuple(rng.random(FRAMES) < 0.7 for _ in COUNTS)
    speed = tuple(rng.normal(size=FRAMES).astype(np.float32) for _ in COUNTS)
    state = tuple(rng.integers(0, 3, FRAMES).astype(np.float32) for _ in COUNTS)
    if hide is not None:
        speed = tuple(np.where(k, x, np.float32(hide)) for x, k in zip(speed, known))
        state = tuple(np.where(k, x, np.float32(hide)) for x, k in zip(state, known))
    zero, one = (0.0,) * 2, (1.0,) * 2
    targets = [
        Target("speed", None, speed, known, zero, one),
        Target("state", ("a", "b", "c"), state, known, zero, one),
    ]
    settings = config.Decoding(window=32, dropout=0.0)
    settings = dataclasses.replace(settings, **change)
    table = tuple((np.full(n, -1, np.int32), -1) for n in COUNTS)
    data = Populations(splits, lambda i, a, b: traces[i][a:b], np.array([0, 3, 8]), table)
    network = TCNNetwork(settings, 8, 4)
    return Behavior(network, data, targets, settings, seed=3)


def test_labels_that_are_missing_reach_neither_loss_nor_gradient():
    values = []
    for hide in (0.0, 2.0):
        t = task(hide)
        params, extra = t.init(jax.random.key(0))
        loss = lambda p, t=t, e=extra: t.loss(p, e, t.batch(1), None, 0)[0]  # noqa: E731
        values.append((jax.jit(jax.value_and_grad(loss))(params), t.evaluate(params, extra)))
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), *values)
    assert all(jax.tree.leaves(same))


def test_batches_are_a_function_of_the_step_with_the_labels_of_their_frames():
    t = task()
    a, b = t.batch(5), t.batch(5)
    assert all((a[k] == b[k]).all() for k in a)
    assert (t.batch(6)["inputs"] != a["inputs"]).any()
    half = [t.batch(5, part, 2) for part in range(2)]
    for k in a:
        np.testing.assert_array_equal(np.concatenate([h[k] for h in half]), a[k])
    for row in range(len(a["length"])):
        n = int(a["real"][row].sum())
        i, length = COUNTS.index(n), int(a["length"][row])
        x = t.data.read(i, 0, FRAMES)
        [at] = [s for s in range(FRAMES) if (x[s] == a["inputs"][row, 0, :n]).all()]
        wanted = t.targets[0].values[i][at:][:length]
        np.testing.assert_array_equal(a["labels"][row, :length, 0], wanted)
        assert not a["known"][row, length:].any() and not a["inputs"][row, :, n:].any()
        assert (a["neuron"][row, :n] == t.data.offset[i] + np.arange(n)).all()


def test_a_whole_range_is_decoded_as_in_one_window():
    """Overlapping windows give what a single window over everything gives."""
    small, large = task(window=128), task(window=256)
    params, extra = small.init(jax.random.key(0))
    a, b = (t.predict(params, extra, 1, 0, FRAMES) for t in (small, large))
    assert a.shape == (FRAMES, 4)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_classes_weigh_the_same_unless_told_otherwise():
    t = task()
    count = np.zeros(3)
    for i, a, b in t.data.splits.ranges("train", (0, 1)):
        k = t.targets[1].known[i][a:b]
        count += np.bincount(t.targets[1].values[i][a:b][k].astype(int), minlength=3)
    weights = t._weights[1] * count
    np.testing.assert_allclose(weights, weights[0], rtol=1e-5)
    np.testing.assert_array_equal(task(balanced=False)._weights[1], 1)
