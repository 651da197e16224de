"""The pretraining task: its batches, eq. 1, and the one training loop."""

import functools

import jax
import numpy as np
import pytest

from calm_jax import config
from calm_jax.errors import ConfigError
from calm_jax.models import siamese
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Intervals, Session
from calm_jax.recordings.splits import make_split
from calm_jax.tasks.latent_masking import LABEL, Labels, LatentMasking, Units
from calm_jax.training.log import Log
from calm_jax.training.loop import train
from calm_jax.training.task import Task

pytestmark = pytest.mark.usefixtures("quick_compilation")
ENCODER = EncoderConfig(
    latent_step=0.5, latents_per_step=2, width=16, depth=1, head_width=8, self_heads=2,
    forward_dropout=0.0, block_dropout=0.1, attention_dropout=0.0, embedding_scale=1.0,
)  # fmt: skip
TRAINING = config.Training(
    batch=8, learning_rate=1e-2, weight_decay=1e-4, eval_batches=6, eval_every=30, log_every=10,
    checkpoint_seconds=1e9, precision="float32", clip=None,
)  # fmt: skip


@functools.cache
def prepared(labelled=True):
    """Gratings of 2 s with two directions; even neurons are on for the one, odd for the other."""
    rng = np.random.default_rng(0)
    sessions = []
    for s, (rate, neurons) in enumerate([(10.0, 4), (8.0, 14)]):
        seconds = 160
        frames = int(seconds * rate)
        start = np.arange(0, seconds, 2.0)
        side = rng.integers(0, 2, start.size)
        traces = rng.normal(size=(frames, neurons)) * 0.3
        shown = side[np.minimum((np.arange(frames) / rate / 2).astype(int), side.size - 1)]
        traces += 2 * (np.arange(neurons) % 2 == shown[:, None])
        value = np.where(np.arange(start.size) % 9 == 8, np.nan, side * 45.0)
        intervals = {"drifting_gratings": Intervals(start, start + 2, {"orientation": value})}
        sessions.append(
            Session(traces, rate=rate, session=f"s{s}", intervals=intervals if labelled else {})
        )
    store = MemoryStore(sessions)
    split = make_split(store, config.Split())
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


def task(labelled=True, masking=None, steps=40, **options):
    return LatentMasking(
        ENCODER, masking or siamese.Masking(), TRAINING, prepared(labelled), seed=3, steps=steps,
        units=Units(minimum=4, maximum=8, mode=6, tail=8), **options,
    )  # fmt: skip


def test_batches_are_functions_of_seed_and_step():
    made = task()
    assert isinstance(made, Task)
    a, b = made.batch(5), task().batch(5)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    halves = [made.batch(5, part, 2) for part in range(2)]
    np.testing.assert_array_equal(a["values"], np.concatenate([h["values"] for h in halves]))
    assert a["values"].shape == (8, made.tokens) and a["tasks"].shape == (8, 1)
    shapes = {k: v.shape for k, v in a.items()}
    assert all({k: v.shape for k, v in made.batch(i).items()} == shapes for i in range(5))
    per_window = a["mask"].sum(1)
    assert (per_window <= 80).all() and (per_window >= 32).all()
    # Units of a session have their own rows, 1-4 and 5-18.
    for row, real in zip(a["units"], a["mask"]):
        own = row[real]
        assert (own <= 4).all() or (own >= 5).all()


def test_labels_are_those_in_the_middle():
    made = task()
    start, stop, value = made._marks[0]
    assert made.classes.tolist() == [0.0, 45.0] and np.isfinite(value).all()
    for k in (0, 3, 10):
        assert made._label(0, (start[k] + stop[k]) / 2) == int(value[k] == 45)
    assert made._label(0, 8 * 2 + 1.0) is None  # a blank
    assert made._label(0, 1e6) is None


def test_a_run_learns_labels_and_does_not_collapse(tmp_path):
    made = task(masking=siamese.Masking(masking_weight=0.1, label_weight=1.0), steps=60)
    params, extra = made.init(jax.random.key(0))
    before = made.evaluate(params, extra)
    found = train(made, TRAINING, tmp_path, seed=0, steps=60, log=Log.silent())
    after = made.evaluate(found.params, found.extra)
    # L1 has no scale of its own: it grows with the latents, so the labels are looked at.
    assert after["cross_entropy"] < before["cross_entropy"], (before, after)
    assert after["accuracy"] > after["chance"]
    expected = 0.1 * after["distance"] + after["cross_entropy"]
    assert after["loss"] == pytest.approx(expected, rel=1e-6)
    assert {"effective_rank", "variance", "variance_least", "participation"} <= after.keys()
    assert after["effective_rank"] >= 1 and after["variance"] > 0
    assert after["majority"] >= 0.5 == after["chance"]
    assert found.params["encoder"]["readouts"][LABEL]["kernel"].shape == (16, 2)


def test_the_optimiser_is_a_choice(tmp_path):
    lamb, adamw = task(), task(optimizer="adamw", steps=3)
    assert isinstance(adamw, Task)
    assert hasattr(lamb, "optimizer") and not hasattr(adamw, "optimizer")
    assert lamb.decays("encoder/units/table") and not adamw.decays("encoder/units/table")
    assert adamw.decays("encoder/value_map/kernel")
    found = train(adamw, TRAINING, tmp_path, seed=0, steps=3, log=Log.silent())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.params))


def test_labels_that_are_not_there():
    with pytest.raises(ConfigError, match="no weak labels.*label_weight"):
        task(labelled=False)
    with pytest.raises(ConfigError, match="0 classes of static/orientation"):
        task(labels=Labels(intervals="static"))
    alone = task(labelled=False, masking=siamese.Masking(label_weight=0.0))
    assert (alone.batch(0)["tasks"] == 0).all()
