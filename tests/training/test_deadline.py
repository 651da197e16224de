"""Training that ends at a time: on a clock of its own, and with the real loop."""

import dataclasses
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.training.deadline import Deadline
from calm_jax.training.log import Log
from calm_jax.training.loop import train
from tests.training.toy import TRAINING, Toy


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def _walk(paces, steps, until, every, check, planned):
    """Steps taken with a list of seconds per step, repeated; the time at the end."""
    clock, step, seen, last = Clock(), 0, [0], 0
    deadline = Deadline(until, step=planned, check=check, clock=clock)
    while step < steps:
        clock.now += paces[min(len(seen), len(paces)) - 1]
        step = deadline.after(step, steps, every)
        if step // every > last // every or step == steps:
            clock.now += check
            deadline.checked(check)
            last = step
        seen.append(step)
    assert deadline.taken == len(seen) - 1
    return seen, clock.now


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=200),
    st.integers(20, 3000), st.floats(20.0, 200.0), st.floats(0.0, 0.3), st.floats(0.01, 1.0),
)  # fmt: skip
def test_it_ends_in_time_whatever_the_pace(paces, steps, until, check, planned):
    seen, end = _walk(paces, steps, until, max(steps // 8, 1), check, planned)
    assert seen[-1] == steps and (np.diff(seen) >= 1).all()
    assert end <= until + 2 * max(paces) + check  # one step may be under way


def test_with_time_to_spare_no_step_is_left_out():
    seen, _ = _walk([0.1], 200, 100.0, 50, 0.1, 0.1)
    assert seen == list(range(201))


def test_a_machine_that_gets_four_times_slower_walks_the_schedule_evenly():
    seen, end = _walk([0.1] * 100 + [0.4], 400, 44.0, 100, 0.0, 0.1)
    assert 42 < end <= 44.4
    jumps = np.diff(seen)
    assert (jumps[:100] == 1).all() and jumps[110:].max() <= 6 and jumps[110:].mean() > 2.5


class Slow(Toy):
    """Notes its events; batches take a while."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.heard, self.drawn = seconds, [], []

    def batch(self, step, part=0, parts=1):
        time.sleep(self.seconds)
        self.drawn.append(step)
        return super().batch(step, part, parts)

    def event(self, step):
        self.heard.append(step)
        return super().event(step)


def test_the_loop_ends_in_time_with_a_whole_schedule(tmp_path):
    task, seconds = Slow(0.1), 8.0
    training = dataclasses.replace(TRAINING, eval_every=200)
    train(Toy(), training, tmp_path / "first", seed=0, steps=3, log=Log.silent())  # compiles
    begin = time.monotonic()
    found = train(
        task, training, tmp_path, seed=0, steps=400, log=Log(tmp_path, stage="toy", shown=False),
        deadline=Deadline(begin + seconds, step=0.02),
    )  # fmt: skip
    took = time.monotonic() - begin
    assert took < 1.25 * seconds  # on a busy machine too
    assert found.at == 400 and found.taken < 100 and found.step <= 400
    assert task.heard == list(range(400))  # every event, once
    assert task.drawn[: found.taken] == list(range(found.taken))
    assert float(found.extra["shift"][0]) == 0.25
    assert int(found.extra["count"]) == found.taken


def test_events_are_not_lost_when_the_time_is_over_at_once(tmp_path):
    task = Slow(0.0)
    found = train(
        task, TRAINING, tmp_path, seed=0, steps=50, log=Log.silent(), deadline=Deadline(0.0)
    )
    assert found.taken == 1 and found.at == 50 and task.heard == list(range(50))
    assert float(found.extra["shift"][0]) == 0.25 and "loss" in found.best_metrics


def test_a_deadline_far_away_changes_no_number(tmp_path):
    runs = [
        train(Toy(), TRAINING, tmp_path / name, seed=0, steps=30, log=Log.silent(), deadline=d)
        for name, d in (("a", None), ("b", Deadline(time.monotonic() + 1e6)))
    ]
    for x, y in zip(*(r.params.values() for r in runs)):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert [r.taken for r in runs] == [30, 30]
