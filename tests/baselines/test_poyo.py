"""The POYO+ read-out as a decoder: causal, inside its range, and it learns."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from calm_jax import config
from calm_jax.baselines.behavior.poyo import WINDOW, PoyoDecoding
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.parts import Channel
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import make_split
from calm_jax.recordings.targets import make_targets
from calm_jax.training.log import Log
from calm_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("quick_compilation")
TINY = EncoderConfig(
    latent_step=0.5, latents_per_step=2, width=16, depth=1, head_width=8, cross_heads=1,
    self_heads=1, forward_dropout=0.0, block_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


def problem(frames: int = 240, look_ahead: int = 0, change: int | None = None):
    """Two sessions, a number and a label that are functions of the present and of memory."""
    rng, sessions = np.random.default_rng(0), []
    for k, n in enumerate((5, 4)):
        x = rng.normal(size=(frames, n)).astype(np.float32)
        for t in range(1, frames):  # slow: what is seen in the window is the present
            x[t] += 0.95 * x[t - 1]
        x /= x.std()
        speed = x.mean(1) * np.sqrt(n)
        channels = {
            "speed": Channel(speed.astype(np.float32)),
            "state": Channel((x[:, 0] > 0).astype(np.float32)),
        }
        sessions.append(Session(x, rate=10.0, session=f"s{k}", behavior=channels))
    splits = make_split(MemoryStore(sessions), config.Split())
    targets, _ = make_targets(sessions, splits, ["speed", "state"], ["state"])
    if change is not None:
        x = sessions[0].traces.copy()
        x[change:] += 5
        sessions[0] = sessions[0].replace(traces=x)
    settings = config.Decoding(
        look_ahead=look_ahead, training=dataclasses.replace(config.Decoding().training, steps=150)
    )
    read = lambda i, a, b: sessions[i].traces[a:b]  # noqa: E731
    return PoyoDecoding(
        read, splits, np.array([0, 5, 9]), targets, settings, seed=0, encoder=TINY
    )


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_what_comes_later_moves_nothing(look_ahead):
    task, changed = problem(look_ahead=look_ahead), problem(look_ahead=look_ahead, change=60)
    params, _ = task.init(jax.random.key(1))
    a, b = task.predict(params, {}, 0, 20, 80), changed.predict(params, {}, 0, 20, 80)
    assert a.shape == (60, 3)
    first = 60 - 20 - look_ahead
    np.testing.assert_array_equal(a[:first], b[:first])
    assert (np.abs(a[first:] - b[first:]).max(1) > 0).all()
    # A frame is decoded from its window alone, and from nothing before its range.
    np.testing.assert_allclose(
        task.predict(params, {}, 0, 20, 80)[40:], task.predict(params, {}, 0, 30, 80)[30:],
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    assert WINDOW <= 30


def test_it_learns_and_validation_is_its_loss(tmp_path):
    task = problem()
    training = dataclasses.replace(task.training, batch=task.rows, early_stop=None)
    state = train(task, training, tmp_path, seed=0, steps=150, log=Log.silent())
    [[a, b]] = task._splits.parts[0]["test"].tolist()
    out = task.predict(state.params, {}, 0, a, b)
    speed, label = (t.values[0][a:b] for t in task.targets)
    assert np.corrcoef(out[:, 0], speed)[0, 1] > 0.6
    # The same by hand: balanced cross-entropy and squared error, all validation frames.
    frames = task._valid
    out = task._outputs(state.params, frames)
    number, label = ([t.values[i][k] for i, _, _, k in frames] for t in task.targets)
    label = np.array(label, int)
    log_p = out[:, 1:] - np.log(np.exp(out[:, 1:]).sum(1, keepdims=True))
    w = task._balance[1][label]
    wanted = (
        np.square(out[:, 0] - number).mean()
        - (w * log_p[np.arange(len(label)), label]).sum() / w.sum()
    ) / 2
    assert task.evaluate(state.params, {})["loss"] == pytest.approx(wanted, rel=1e-4)
