"""Days joined by registered cells: every cell in one column, absent ones missing."""

import numpy as np
import pytest

from calm_jax.errors import RecordingError
from calm_jax.recordings.parts import Channel, NeuronTable, Trials
from calm_jax.recordings.registration import join
from calm_jax.recordings.session import Session


def day(seed, cells, frames=40, trials=True, **changes):
    rng = np.random.default_rng(seed)
    fields = dict(
        traces=rng.normal(size=(frames, len(cells))).astype(np.float32),
        rate=10.0,
        animal="m",
        session=f"d{seed}",
        neurons=NeuronTable(np.arange(len(cells)).astype(str), {"registered": np.array(cells)}),
        behavior={"position": Channel(rng.random(frames).astype(np.float32), "continuous")},
    )
    if trials:
        start = np.array([0, 20])
        fields["trials"] = Trials(start, start + 15, {"run": np.array([1, 2])})
    return Session(**(fields | changes))


def test_a_cell_is_one_neuron_on_all_days():
    days = [day(1, ["a", "", "b"]), day(2, ["b", "c", "a", ""], frames=50), day(3, ["c", "b"])]
    s = join(days)
    assert s.neurons.id.tolist() == ["a", "b", "c"]
    assert s.neurons.columns["days"].tolist() == [2, 3, 2]
    assert s.traces.shape == (130, 3) and s.session == "d1+d2+d3"
    np.testing.assert_array_equal(s.traces[:40, 1], days[0].traces[:, 2])
    np.testing.assert_array_equal(s.traces[40:90, 0], days[1].traces[:, 2])
    np.testing.assert_array_equal(s.traces[90:, 2], days[2].traces[:, 0])
    there = [[True, True, False], [True, True, True], [False, True, True]]
    np.testing.assert_array_equal(s.mask[[0, 40, 90]], there)
    assert not s.traces[~s.mask].any()
    assert s.trials.start.tolist() == [0, 20, 40, 60, 90, 110]
    assert s.trials.columns["day"].tolist() == [0, 0, 1, 1, 2, 2]
    assert s.trials.columns["run"].tolist() == [1, 2] * 3
    wanted = np.concatenate([d.behavior["position"].values for d in days])
    np.testing.assert_array_equal(s.behavior["position"].values, wanted)


def test_cells_of_enough_days_and_days_without_trials():
    days = [day(1, ["a", "b"]), day(2, ["b", "a"], trials=False, behavior={}), day(3, ["b", "c"])]
    s = join(days, least=3, name="all")
    assert s.neurons.id.tolist() == ["b"] and s.session == "all" and s.mask.all()
    assert s.trials.start.tolist() == [0, 20, 40, 80, 100]
    assert s.trials.stop.tolist() == [15, 35, 80, 95, 115]
    assert set(s.trials.columns) == {"day"} and not s.behavior


@pytest.mark.parametrize(
    "change, wanted",
    [
        (dict(animal="n"), "another animal"),
        (dict(unit="z"), "another unit"),
        (dict(rate=20.0), "another frame rate"),
        (dict(neurons=NeuronTable(np.array(["0", "1"]))), "no column 'registered'"),
        (
            dict(neurons=NeuronTable(np.array(["0", "1"]), {"registered": np.array(["a", "a"])})),
            "one cell stands for two neurons",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(change, wanted):
    with pytest.raises(RecordingError, match=wanted):
        join([day(1, ["a", "b"]), day(2, ["a", "b"], **change)])


def test_no_common_cell():
    with pytest.raises(RecordingError, match="registered on 2 of 2 days; found at most 1 days"):
        join([day(1, ["a"]), day(2, ["b"])], least=2)
    with pytest.raises(RecordingError, match="no sessions"):
        join([])
