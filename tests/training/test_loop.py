"""The loop on a toy task: resume to the bit, early stopping, NaN, signals, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import optax
import pytest

from calm_jax.errors import ConfigError, RunError
from calm_jax.training.log import Log
from calm_jax.training.loop import train
from calm_jax.training.optimizers import learning_rate
from calm_jax.training.signals import Interrupted, StopSignals
from tests.training.toy import TRAINING, Toy

pytestmark = [
    pytest.mark.usefixtures("no_signals_left"),
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
]


def run(folder, task=None, training=TRAINING, steps=30, seed=0, **options):
    log = Log(folder, stage="toy", shown=False, tensorboard=False)
    return train(task or Toy(), training, folder, seed=seed, steps=steps, log=log, **options)


class Killed(Toy):
    """Gets a signal from outside while step `at` is prepared or validated."""

    def __init__(self, at, signum=signal.SIGTERM, **options):
        super().__init__(**options)
        self.at, self.signum = at, signum

    def event(self, step):
        if step == self.at:
            os.kill(os.getpid(), self.signum)
        return super().event(step)


def equal(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


def lines(folder):
    read = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k not in ("time", "steps_per_second")} for x in read]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, its folder and result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def by_hand(steps):
    """The toy run written out: plain optax on the whole params, no loop of ours."""
    task = Toy()
    init_key, key = jax.random.split(jax.random.key(0))
    params, extra = task.init(init_key)
    t = TRAINING
    adam = optax.chain(
        optax.clip_by_global_norm(t.clip),
        optax.adamw(
            lambda s: learning_rate(s, t, steps),
            weight_decay=t.weight_decay,
            mask={"w": True, "b": False, "fixed": False},
        ),
    )
    opt, average = adam.init(params), params
    grad = jax.jit(jax.grad(task.loss, has_aux=True))
    for s in range(steps):
        event = task.event(s)
        if event:
            params, extra = event(params, extra)
        step = np.int32(s)
        grads, (extra, _) = grad(params, extra, task.batch(s), jax.random.fold_in(key, s), step)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = adam.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        d = min(t.ema, (1 + s) / (10 + s))
        average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, average, params)
    return average, extra


def test_equals_the_same_run_written_out(whole):
    params, extra = by_hand(30)
    for name in params:
        np.testing.assert_allclose(whole[1].params[name], params[name], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(whole[1].extra["shift"], extra["shift"])
    assert whole[1].extra["count"] == 30


def test_the_step_compiles_once_and_lines_are_complete(tmp_path):
    task = Toy()
    run(tmp_path, task)
    assert task.traces == 1
    assert [x["step"] for x in lines(tmp_path) if x["split"] == "train"] == [1, *range(5, 31, 5)]
    assert [x["step"] for x in lines(tmp_path) if x["split"] == "valid"] == [10, 20, 30]


# Before the event at step 7, after it, and where a validation is due (10 and 20)
@pytest.mark.parametrize("at", [5, 8, 9, 19])
def test_resume_is_equal_to_the_bit(tmp_path, whole, at):
    with pytest.raises(Interrupted) as stopped:
        run(tmp_path, Killed(at))
    assert stopped.value.code == 143
    assert run(tmp_path).step == 30
    resumed = run(tmp_path)  # a third time: nothing is left to do
    assert equal(resumed.params, whole[1].params)
    assert equal(resumed.extra, whole[1].extra)
    assert resumed.best_metrics == whole[1].best_metrics
    assert lines(tmp_path) == lines(whole[0])
    a, b = (np_state(f) for f in (tmp_path, whole[0]))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def np_state(folder):
    """All arrays of the last checkpoint: optimiser, average, everything."""
    from calm_jax.training.checkpoint import ARRAYS, Checkpoints

    points = Checkpoints(folder / "checkpoints")
    found = points._arrays.restore(points.path(points.newest()) / ARRAYS)
    return {k: np.asarray(v) for k, v in found.items()}


def test_a_batch_that_fails_costs_no_work(tmp_path, whole):
    class Crash(Toy):
        def batch(self, step, part=0, parts=1):
            if step == 17:
                raise MemoryError("out of memory")
            return super().batch(step, part, parts)

    with pytest.raises(MemoryError):
        run(tmp_path, Crash())
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000017"]
    assert equal(run(tmp_path).params, whole[1].params)
    assert lines(tmp_path) == lines(whole[0])


def test_ctrl_c_leaves_with_130(tmp_path):
    with pytest.raises(Interrupted) as stopped:
        run(tmp_path, Killed(3, signal.SIGINT))
    assert stopped.value.code == 130
    assert isinstance(stopped.value, SystemExit)


def test_a_second_ctrl_c_ends_the_process():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_lines_after_the_last_checkpoint_of_a_killed_run_are_written_once(tmp_path, whole):
    # A kill -9 after step 12: the checkpoint is of step 10, the log is ahead of it.
    with pytest.raises(Interrupted):
        run(tmp_path, Killed(10))
    with open(tmp_path / "metrics.jsonl", "a") as f:
        ahead = {"stage": "toy", "split": "train", "step": 15, "loss": -1.0, "time": 0.0}
        f.write(json.dumps(ahead) + "\n")
    run(tmp_path)
    assert lines(tmp_path) == lines(whole[0])


def test_early_stopping_keeps_the_best(tmp_path):
    class Worse(Toy):
        """Best at step 20."""

        def __init__(self):
            super().__init__()
            self.seen = {}

        def evaluate(self, params, extra):
            count = int(extra["count"])
            self.seen[count] = jax.tree.map(np.array, params)
            return {"loss": abs(count - 20) + 1.0, "other": 3.0}

    task = Worse()
    training = dataclasses.replace(TRAINING, early_stop=2, keep=1)
    result = run(tmp_path, task, training, steps=200)
    assert result.step == 20 and max(task.seen) == 40
    assert equal(result.params, task.seen[20])
    assert result.best_metrics == {"loss": 1.0, "other": 3.0}
    again = run(tmp_path, task, training, steps=200)
    assert again.step == 20 and equal(again.params, result.params)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000020", "00000040"]


def test_early_stopping_survives_interruption(tmp_path):
    class Worse(Killed):
        def evaluate(self, params, extra):
            return {"loss": abs(int(extra["count"]) - 20) + 1.0}

    training = dataclasses.replace(TRAINING, early_stop=2)
    with pytest.raises(Interrupted):
        run(tmp_path, Worse(34), training, steps=200)
    result = run(tmp_path, Worse(-1), training, steps=200)
    assert result.step == 20 and int(result.extra["count"]) == 20
    assert max(x["step"] for x in lines(tmp_path)) == 40


def test_frozen_parameters_stay_and_carry_no_moments(tmp_path):
    task = Toy(frozen=("w",))
    result = run(tmp_path, task, steps=5)
    start, _ = task.init(jax.random.split(jax.random.key(0))[0])
    assert equal(result.params["w"], start["w"])
    assert not equal(result.params["b"], start["b"])
    assert not any("mu/w" in k for k in np_state(tmp_path))


@pytest.mark.parametrize("log_every", [1, 5, 100])
def test_nan_names_its_step_and_the_last_good_checkpoint(tmp_path, log_every):
    class Poisoned(Toy):
        def batch(self, step, part=0, parts=1):
            rows = super().batch(step, part, parts)
            if step == 12:
                rows["x"][0, 0] = np.nan
            return rows

    training = dataclasses.replace(TRAINING, log_every=log_every, early_stop=9)
    with pytest.raises(RunError, match=r"step 13.*last good checkpoint is step 10"):
        run(tmp_path, Poisoned(), training)
    assert all(np.isfinite(x).all() for x in np_state(tmp_path).values())


def test_a_validation_loss_that_is_nan_stops(tmp_path):
    class Blind(Toy):
        def evaluate(self, params, extra):
            return {"loss": float("nan")}

    with pytest.raises(RunError, match="validation loss is nan at step 10"):
        run(tmp_path, Blind())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"steps": 40}, "steps 30 -> 40"),
        ({"config_fingerprint": "abc"}, "config '' -> 'abc'"),
        ({"training": dataclasses.replace(TRAINING, clip=2.0)}, "clip 1.0 -> 2.0"),
    ],
)
def test_another_run_is_refused(whole, change, words):
    with pytest.raises(RunError, match="another experiment") as e:
        run(whole[0], **change)
    assert words in str(e.value) and "--run" in str(e.value)


def test_what_only_concerns_logs_may_change(whole):
    other = dataclasses.replace(TRAINING, log_every=3, keep=5, checkpoint_seconds=1.0)
    assert equal(run(whole[0], training=other).params, whole[1].params)


def test_another_task_is_refused(whole):
    class Other(Toy):
        name = "other"

    with pytest.raises(RunError, match="task 'toy' -> 'other'"):
        run(whole[0], Other())


def test_a_damaged_checkpoint_is_skipped(tmp_path, whole):
    notes = []

    class Heard(Log):
        def note(self, text):
            notes.append(text)

    often = dataclasses.replace(TRAINING, checkpoint_seconds=0.0, keep=3)
    run(tmp_path, training=often)
    data = next(p for p in (tmp_path / "checkpoints/00000030/arrays").rglob("d/*"))
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    (tmp_path / "checkpoints" / "00000031").mkdir()
    log = Heard(tmp_path, stage="toy", shown=False, tensorboard=False)
    result = train(Toy(), often, tmp_path, seed=0, steps=30, log=log)
    assert equal(result.params, whole[1].params)
    assert any("31 is skipped" in n and "manifest" in n for n in notes)
    assert any("30 is skipped" in n and "checksum" in n for n in notes)
    assert any("continues from step 29" in n for n in notes)
    assert sorted(p.name[-2:] for p in (tmp_path / "checkpoints").iterdir()) == ["28", "29", "30"]


def test_no_steps_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="steps"):
        run(tmp_path, steps=0)


def test_a_task_that_changes_its_state_is_a_bug(tmp_path):
    class Grows(Toy):
        def loss(self, params, extra, batch, key, step):
            value, (extra, metrics) = super().loss(params, extra, batch, key, step)
            return value, ({**extra, "more": value}, metrics)

    with pytest.raises(TypeError, match="toy returned another"):
        run(tmp_path, Grows())


def test_an_event_on_parameters_restarts_their_average(tmp_path):
    class Set(Toy):
        def event(self, step):
            if step == 4:
                return lambda params, extra: ({**params, "w": params["w"] * 0 + 9.0}, extra)
            return None

    slow = dataclasses.replace(TRAINING, learning_rate=1e-6, weight_decay=0.0, ema=0.99)
    result = run(tmp_path, Set(), slow, steps=6)
    np.testing.assert_allclose(result.params["w"], 9.0, atol=1e-3)
