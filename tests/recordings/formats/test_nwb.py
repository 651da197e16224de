"""NWB 2 files as pynwb writes them and as they are found: read right, or asked about."""

import os
from pathlib import Path

import h5py
import numpy as np
import pynwb
import pytest
from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries
from pynwb.ophys import DfOverF
from roiextractors import NwbSegmentationExtractor

import calm_jax
from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import format_of, peek_at
from tests.recordings.formats.nwb_files import RNG, TRACES, Made

OTHER = RNG.normal(size=(40, 6)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.nwb"


def refused(path, words, **options):
    with pytest.raises(RecordingError, match=words) as e:
        calm_jax.read(path, **options)
    assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)


# Traces


def test_a_plain_file(path):
    m = Made(session_id="s1", subject=pynwb.file.Subject(subject_id="m7"))
    m.series(unit="lumens", starting_time=2.0)
    s = calm_jax.read(m.write(path))
    np.testing.assert_array_equal(s.traces, TRACES)
    assert (s.rate, s.unit, s.animal, s.session) == (10.0, "lumens", "m7", "s1")
    np.testing.assert_allclose(s.times, 2 + np.arange(40) / 10)
    assert s.neurons.id.tolist() == list("012345") and s.notes == ()
    assert format_of(path).name == "NWB 2"


@pytest.mark.parametrize("chunks", [None, (6, 7), (1, 40)])
def test_transposed_files_are_read_the_right_way_round(path, chunks):
    m = Made()
    data = TRACES.T if chunks is None else pynwb.H5DataIO(TRACES.T, chunks=chunks)
    m.series(data, conversion=2.0, offset=1.0)
    s = calm_jax.read(m.write(path))
    np.testing.assert_allclose(s.traces, TRACES * 2 + 1, rtol=1e-6)
    assert "stored as (neurons, time)" in s.notes[0]
    refused(path, "does not fit what stands beside it", orientation="time,neurons")


def test_a_square_file_is_a_question(path):
    m = Made()
    m.series(TRACES[:6])
    m.write(path)
    refused(path, "which axis is time: as many frames as neurons \\(6\\); .*orientation=")
    s = calm_jax.read(path, orientation="neurons,time")
    np.testing.assert_array_equal(s.traces, TRACES[:6].T)
    np.testing.assert_array_equal(
        calm_jax.read(path, orientation="(time, neurons)").traces, TRACES[:6]
    )
    refused(path, "unknown orientation; found 'up'", orientation="up")


def test_some_rows_of_the_table_in_another_order(path):
    m = Made()
    m.plane(columns={"depth": np.arange(6.0)})
    m.series(TRACES[:, :3], rows=[4, 0, 2])
    s = calm_jax.read(m.write(path))
    assert s.neurons.id.tolist() == ["4", "0", "2"]
    assert s.neurons.columns["depth"].tolist() == [4, 0, 2]
    with h5py.File(path, "a") as f:
        f["processing/ophys/Fluorescence/RoiResponseSeries/rois"][1] = 9
    refused(path, "rois points outside its table; found row 9; expected 0 to 5")


def test_df_over_f_goes_before_fluorescence_with_a_note(path):
    m = Made()
    m.series()
    m.series(OTHER, box=DfOverF, unit="n.a.")
    m.series(OTHER, name="Neuropil")
    s = calm_jax.read(m.write(path))
    np.testing.assert_array_equal(s.traces, OTHER)
    assert s.unit == "dF/F" and "DfOverF/RoiResponseSeries was read and not" in s.notes[0]
    refused(path, "several series.*Fluorescence/Neuropil", series="Fluorescence")
    whole = "processing/ophys/Fluorescence/RoiResponseSeries"
    np.testing.assert_array_equal(calm_jax.read(path, series=whole).traces, TRACES)
    assert calm_jax.read(path, series="DfOverF").unit == "dF/F"
    assert calm_jax.read(path, series="Neuropil").n_neurons == 6
    refused(path, r"no series 'x'; found .*Neuropil \(40, 6\).*series=NAME", series="x")


def test_what_is_no_fluorescence_is_never_read_unasked(path):
    m = Made()
    m.series(name="Deconvolved")
    m.series(box_name="Neuropil")
    refused(m.write(path), r"neither dF/F nor .*Deconvolved \(40, 6\) \(spikes\).*\(neuropil\)")
    assert calm_jax.read(path, series="Deconvolved").n_neurons == 6


def test_two_of_a_kind_are_a_question(path):
    m = Made()
    m.series(name="a")
    m.series(name="b", box=None)
    refused(m.write(path), r"several series.*acquisition/b \(40, 6\).*Fluorescence/a \(40, 6\)")
    assert calm_jax.read(path, series="acquisition/b").n_neurons == 6


def test_planes_are_put_side_by_side(path):
    m = Made()
    m.series(name="a", plane="top")
    m.series(OTHER[:, :4].T.copy(), name="b", plane="deep", rows=[0, 1, 2, 3], starting_time=0.05)
    s = calm_jax.read(m.write(path))
    np.testing.assert_array_equal(s.traces, np.hstack([TRACES, OTHER[:, :4]]))
    assert s.neurons.id.tolist()[::6] == ["top:0", "deep:0"]
    assert s.neurons.columns["plane"].tolist() == ["top"] * 6 + ["deep"] * 4
    assert any("0.05 s beside" in n for n in s.notes)
    for planes in ("deep", 1, "b", ["deep"]):
        assert calm_jax.read(path, planes=planes).n_neurons == 4
    refused(path, r"no plane 'x'; expected 0 \(top\), 1 \(deep\)", planes="x")


def test_planes_on_different_clocks_are_refused(path, tmp_path):
    for how, words in (
        ({"data": OTHER[:30]}, "planes of different lengths; found 30 frames"),
        ({"rate": 11.0}, "planes on different clocks"),
        ({"starting_time": 0.1}, "up to 0.1 s apart"),
    ):
        m = Made()
        m.series(name="a", plane="top")
        m.series(name="b", plane="deep", **how)
        refused(m.write(path), f"{words}.*planes=NAME")


@pytest.mark.parametrize("column", ["Accepted", "iscell", "rejected"])
def test_rejected_rois_are_left_out_by_default(path, column):
    flags = np.array([1, 0, 1, 1, 0, 1])
    if column == "iscell":
        flags = np.stack([flags, np.full(6, 0.5)], 1)
    m = Made()
    m.plane(columns={column: 1 - flags if column == "rejected" else flags})
    m.series(TRACES.T)
    s = calm_jax.read(m.write(path))
    np.testing.assert_array_equal(s.traces, TRACES[:, [0, 2, 3, 5]])
    assert s.neurons.id.tolist() == ["0", "2", "3", "5"]
    assert any("2 of 6 ROIs are marked as rejected" in n for n in s.notes)
    np.testing.assert_array_equal(calm_jax.read(path, accepted=False).traces, TRACES)
    assert peek_at(path).neurons == 4 and peek_at(path, accepted=False).neurons == 6


def test_nan_and_invalid_times_are_missing(path):
    m = Made()
    data = TRACES.copy()
    data[3, 2] = np.nan
    m.series(data)
    m.intervals("invalid_times", start_time=[1.0], stop_time=[1.25])
    s = calm_jax.read(m.write(path))
    wanted = np.isfinite(data)
    wanted[10:13] = False
    np.testing.assert_array_equal(s.mask, wanted)
    assert any("3 frames are masked" in n for n in s.notes)


def test_without_a_clock_the_rate_of_the_plane_or_the_user_is_taken(path):
    m = Made()
    m.series()
    m.write(path)
    with h5py.File(path, "a") as f:
        del f["processing/ophys/Fluorescence/RoiResponseSeries/starting_time"]
    s = calm_jax.read(path)
    assert s.rate == 10 and "rate is that of its imaging plane" in s.notes[0]
    assert calm_jax.read(path, rate=7).rate == 7
    with h5py.File(path, "a") as f:
        del f["general/optophysiology/plane0/imaging_rate"]
    refused(path, "no frame rate.*rate=")
    refused(path, "must be positive; found -1", rate=-1)


# What lies beside


def test_trials_and_intervals(path):
    m = Made()
    m.series()
    m.intervals(
        "trials", start_time=[0.0, 1.0, 2.0], stop_time=[0.5, 2.0, 2.55], cue=["a", "b", "é"]
    )
    m.intervals("gratings", start_time=[0.1, 0.3], stop_time=[0.4, np.nan], angle=[0.0, 90.0])
    s = calm_jax.read(m.write(path))
    assert s.trials.start.tolist() == [0, 10, 20] and s.trials.stop.tolist() == [5, 20, 26]
    assert s.trials.columns["cue"].tolist() == ["a", "b", "é"] and list(s.intervals) == ["gratings"]
    assert s.intervals["gratings"].columns["angle"].tolist() == [0]
    assert any("1 of 2 rows have no finite start and stop" in n for n in s.notes)
    about = peek_at(path)
    assert (about.trials, dict(about.intervals)) == (3, {"gratings": 2})


def test_trials_that_are_no_frame_ranges_stay_intervals(path):
    for start, stop, trials, words in (
        ([0.0, 0.5], [1.0, 1.5], 0, "overlap"),
        ([0.0, 30.0], [1.0, 31.0], 1, "1 of 2 trials"),
        ([30.0], [31.0], 0, "no trial lies within"),
    ):
        m = Made()
        m.series()
        m.intervals("trials", start_time=start, stop_time=stop)
        s = calm_jax.read(m.write(path))
        assert len(s.trials) == trials and len(s.intervals["trials"]) == len(start)
        assert any(words in n for n in s.notes)


def test_lists_and_references_in_tables_are_left_out_with_a_note(path):
    m = Made()
    series = m.series()
    m.file.add_trial_column("marks", "lists", index=True)
    m.file.add_trial(start_time=0.0, stop_time=1.0, marks=[1.0, 2.0], timeseries=[series])
    m.file.add_trial(start_time=1.0, stop_time=2.0, marks=[], timeseries=[series])
    s = calm_jax.read(m.write(path))
    assert len(s.trials) == 2 and dict(s.trials.columns) == {}
    assert "columns left out: marks (lists)" in s.notes[0]


def test_behavior_keeps_its_own_clock_and_unit(path):
    m = Made()
    m.series()
    position = SpatialSeries(
        name="place", data=RNG.normal(size=(25, 2)), timestamps=np.arange(25) / 6,
        reference_frame="x", unit="meters", conversion=0.01,
    )  # fmt: skip
    speed = pynwb.TimeSeries(
        "speed", data=np.arange(40.0), rate=10.0, starting_time=0.0, unit="m/s"
    )
    late = pynwb.TimeSeries(
        name="speed", data=np.arange(40), rate=10.0, starting_time=1.0, unit="n.a."
    )
    lick = pynwb.TimeSeries(
        name="lick", data=np.array([True] * 3), timestamps=[0.1, 0.2, 0.4], unit="x"
    )
    broken = pynwb.TimeSeries(name="broken", data=[1.0, 2.0], timestamps=[1.0, 0.5], unit="x")
    m.behavior(Position(spatial_series=position), BehavioralTimeSeries([speed, lick]))
    m.file.add_acquisition(late)
    m.file.add_acquisition(broken)
    s = calm_jax.read(m.write(path))
    place = s.behavior["place"]
    np.testing.assert_allclose(place.values, position.data * 0.01, rtol=1e-6)
    np.testing.assert_allclose(place.times, np.arange(25) / 6)
    assert place.unit == "meters" and s.behavior["lick"].kind == "categorical"
    on_frames = s.behavior["behavior.BehavioralTimeSeries.speed"]
    assert on_frames.times is None and on_frames.unit == "m/s"
    assert s.behavior["speed"].times[0] == 1.0 and s.behavior["speed"].unit == ""
    assert any("acquisition/broken/timestamps: time stamps must be" in n for n in s.notes)
    assert set(peek_at(path).behavior) == {*s.behavior, "broken"}


# An independent reader, and real files


@pytest.mark.parametrize("stamps", [False, True])
def test_roiextractors_reads_the_same(path, stamps):
    m = Made()
    clock = {"timestamps": 3 + np.arange(40) / 15} if stamps else {"rate": 15.0}
    m.series(box=DfOverF, name="RoiResponseSeries", **clock)
    m.series(OTHER, **clock)
    oracle = NwbSegmentationExtractor(str(m.write(path)))
    s = calm_jax.read(path)
    np.testing.assert_array_equal(s.traces, oracle.get_traces(name="dff"))
    raw = calm_jax.read(path, series="processing/ophys/Fluorescence/RoiResponseSeries")
    np.testing.assert_array_equal(raw.traces, oracle.get_traces(name="raw"))
    np.testing.assert_allclose(s.times, oracle.get_timestamps())
    if not stamps:
        assert s.rate == oracle.get_sampling_frequency()
    assert (s.n_neurons, s.n_frames) == (oracle.get_num_rois(), oracle.get_num_samples())


@pytest.fixture
def real():
    root = os.environ.get("CALM_JAX_RECORDINGS")
    if not root or not (Path(root) / "formats/nwb").is_dir():
        pytest.skip("CALM_JAX_RECORDINGS names no folder with formats/nwb")
    return Path(root) / "formats/nwb"


def test_real_mouse_v1(real):
    file = real / "mouse_v1_neuronsxnets_WRITTEN_HERE.nwb"
    s = calm_jax.read(file)
    with h5py.File(file) as f:
        group = f["processing/ophys/Fluorescence"]
        np.testing.assert_array_equal(s.traces, group["Fluorescence/data"][()])
        spikes = calm_jax.read(file, series="Deconvolved").traces
        np.testing.assert_array_equal(spikes, group["Deconvolved/data"][()])
    assert (s.n_frames, s.n_neurons, s.rate) == (11160, 10, 6.0)
    assert "Neuropil (neuropil)" in s.notes[0] and peek_at(file).frames == 11160


def test_real_movie_says_that_it_is_one(real):
    words = "no RoiResponseSeries; found acquisition/OnePhotonSeries .*Extract the cells"
    refused(real / "inscopix_onephoton_movie_ccbync.nwb", words)
