"""Sessions of brainsets: found by type, in both layouts."""

import h5py
import numpy as np
import pytest

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import format_of, read
from calm_jax.recordings.formats.brainsets import peek_brainsets
from tests.recordings.brainsets_files import interval, typed, write_brainsets


@pytest.mark.parametrize("table", ["units", "rois"])
@pytest.mark.parametrize("regular", [True, False])
def test_both_layouts_and_clocks(tmp_path, table, regular):
    path = tmp_path / "s.h5"
    traces, times = write_brainsets(path, table=table, regular=regular, start=2.5)
    assert format_of(path).name == "brainsets"
    s = read(path)
    np.testing.assert_array_equal(s.traces, traces)
    np.testing.assert_allclose(s.times, times)
    assert abs(s.rate - 30) < 0.5 and s.unit == "dF/F"
    assert (s.animal, s.session) == ("222181", "496908818")
    assert s.neurons.id.tolist() == [f"cell{i}" for i in range(4)]
    assert set(s.neurons.columns["cell_line"]) == {"SST IRES CRE"}
    assert set(s.neurons.columns["depth"].tolist()) == {275.0}
    assert list(s.intervals) == ["drifting_gratings"]
    g = s.intervals["drifting_gratings"]
    assert g.columns["kind"].tolist() == ["moving", "blank"]
    assert g.columns["orientation"].tolist() == [45.0, 90.0] and g.stop.tolist() == [2.0, 4.0]
    assert set(s.behavior) == {"running", "gaze.x", "gaze.pos"}
    assert s.behavior["running"].times.size == 90
    assert "brainset allen_visual_coding_ophys_2016" in s.notes
    p = peek_brainsets(path)
    assert (p.neurons, p.frames, set(p.behavior)) == (4, 300, set(s.behavior))
    assert abs(p.rate - s.rate) < 1e-9 and p.intervals == {"drifting_gratings": 2}


def test_several_candidates_are_listed(tmp_path):
    path = tmp_path / "s.h5"
    traces, _ = write_brainsets(path)
    with h5py.File(path, "r+") as f:
        f["calcium_traces/fluorescence"] = traces + 1
    both = "calcium_traces/df_over_f, calcium_traces/fluorescence"
    with pytest.raises(RecordingError, match=f"several arrays could be the traces; found {both}"):
        read(path)
    s = read(path, series="calcium_traces/fluorescence")
    np.testing.assert_array_equal(s.traces, traces + 1)
    assert s.unit == "a.u." and "calcium_traces.df_over_f" in s.behavior
    with pytest.raises(RecordingError, match="no traces under the name 'spikes'; found calcium_tr"):
        read(path, series="spikes")


def test_trials_become_frames(tmp_path):
    path = tmp_path / "s.h5"
    write_brainsets(path)
    with h5py.File(path, "r+") as f:
        interval(f, "trials", [0.0, 4.0], [3.0, 5.0], cue=np.array([1, 2]))
    s = read(path)
    assert s.trials.start.tolist() == [0, 120] and s.trials.stop.tolist() == [90, 150]
    assert s.trials.columns["cue"].tolist() == [1, 2]
    with h5py.File(path, "r+") as f:
        f["trials/end"][0] = 4.5
    s = read(path)
    assert not len(s.trials) and len(s.intervals["trials"]) == 2


def test_faults_are_named(tmp_path):
    path = tmp_path / "s.h5"
    write_brainsets(path)
    with h5py.File(path, "r+") as f:
        f["calcium_traces"].attrs["sampling_rate"] = -1.0
    with pytest.raises(RecordingError, match="calcium_traces/sampling_rate: no frame rate"):
        read(path)
    write_brainsets(path)
    with h5py.File(path, "r+") as f:
        f["drifting_gratings/end"][0] = 0.5
    with pytest.raises(RecordingError, match="drifting_gratings.* interval 0 is not a stretch"):
        read(path)
    write_brainsets(path)
    with h5py.File(path, "r+") as f:
        f["running/timestamps"][5] = 0.0
        video = {"timestamps": [1.0], "video": np.ones((1, 2, 2))}
        typed(f, "events", "IrregularTimeSeries", video)
    s = read(path)
    assert "running" not in s.behavior and sum("left out" in n for n in s.notes) == 2
