"""Brain Observatory files: stimuli in seconds, faults mended with a note, the rest refused."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import format_of, read
from calm_jax.recordings.formats.allen import cell_line, movie_template, peek_allen
from tests.recordings.allen_files import FRAMES, MOVIE, NEURONS, PIPELINE, REPEATS, write_allen

MOVIE_TABLE = "stimulus/presentation/natural_movie_one_stimulus"


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "496908818.nwb"
    return path, write_allen(path)


def replaced(path, name, value):
    with h5py.File(path, "r+") as f:
        del f[name]
        if value is not None:
            f[name] = value


def test_traces_ids_and_descriptions(made):
    path, wrote = made
    assert format_of(path).name == "Allen Brain Observatory"
    s = read(path)
    np.testing.assert_array_equal(s.traces, wrote["dff"].T)
    np.testing.assert_array_equal(s.times, wrote["times"])
    assert (s.animal, s.session, s.unit) == ("491604967", "496908818", "dF/F")
    assert s.neurons.id.tolist() == [str(517472000 + i) for i in range(NEURONS)]
    columns = s.neurons.columns
    assert set(columns["cell_line"]) == {"RORB IRES2 CRE"} and set(columns["area"]) == {"VISp"}
    assert set(columns["container"]) == {"511507144"} and columns["roi"][2] == "10"
    assert set(columns["depth"].tolist()) == {275.0}
    assert {"container 511507144", "session type three_session_A", "age 90 days"} <= set(s.notes)
    assert not any("left out" in n or "mended" in n for n in s.notes)


def test_other_traces_are_an_option(made):
    path, wrote = made
    for kind, plus in (("fluorescence", 0), ("demixed", 1), ("neuropil", 2)):
        s = read(path, traces=kind)
        np.testing.assert_array_equal(s.traces, wrote["raw"].T + np.float32(plus))
        assert s.unit == "a.u."
    with pytest.raises(RecordingError, match="unknown kind of traces; found 'spikes'"):
        read(path, traces="spikes")
    replaced(path, f"{PIPELINE}/DfOverF", None)
    with pytest.raises(RecordingError, match="no traces of the kind 'dff'; found fluoresc"):
        read(path)


def test_stimuli_lie_on_the_clock_of_the_traces(made):
    path, wrote = made
    s, t = read(path), wrote["times"]
    g = s.intervals["drifting_gratings"]
    np.testing.assert_array_equal(g.start, t[[10, 100, 190, 280]])
    np.testing.assert_array_equal(g.stop, t[[70, 160, 250, 340]])
    np.testing.assert_array_equal(g.columns["orientation"], [0, 90, np.nan, 315])
    assert g.columns["blank_sweep"].tolist() == [0, 0, 1, 0]
    assert set(s.intervals["static_gratings"].columns) == {
        "spatial_frequency", "orientation", "phase"
    }  # fmt: skip
    m = s.intervals["natural_movie_one"]
    np.testing.assert_array_equal(m.start, t[420 : 420 + MOVIE * REPEATS])
    assert m.columns["frame"].tolist() == list(range(MOVIE)) * REPEATS
    assert m.columns["repeat"].tolist() == np.repeat(range(REPEATS), MOVIE).tolist()
    scenes = s.intervals["natural_scenes"]
    assert scenes.columns["frame"].tolist() == [3, -1, 0, 3, 1, -1]
    assert scenes.columns["repeat"].tolist() == [0, 0, 0, 1, 0, 1]
    rest = s.intervals["spontaneous"]
    np.testing.assert_array_equal([rest.start[0], rest.stop[0]], t[[550, 590]])


def test_behaviour_keeps_its_own_clock(made):
    path, wrote = made
    s = read(path)
    run = s.behavior["running_speed"]
    np.testing.assert_array_equal(run.values, wrote["speed"])
    np.testing.assert_array_equal(run.times, wrote["times"][10:-10])
    assert run.unit == "cm/s" and s.behavior["pupil_location"].values.shape == (FRAMES, 2)
    replaced(path, f"{PIPELINE}/BehavioralTimeSeries/running_speed/timestamps", np.zeros(580))
    s = read(path)
    assert "running_speed" not in s.behavior and "pupil_size" in s.behavior
    assert any(n.startswith("running_speed was left out: ") for n in s.notes)


def test_movies_and_images(made):
    path, wrote = made
    np.testing.assert_array_equal(movie_template(path, "natural_movie_one"), wrote["movie"])
    part = movie_template(path, "natural_movie_one", slice(3, 9, 2))
    np.testing.assert_array_equal(part, wrote["movie"][3:9:2])
    scenes = movie_template(path, "natural_scenes")
    assert scenes.dtype == np.uint8 and (scenes == wrote["scenes"]).all()
    with pytest.raises(RecordingError, match="no images of 'clip'; found natural_movie_one, nat"):
        movie_template(path, "clip")


# --- the faults that such files have ------------------------------------------------


def test_rows_out_of_order_are_sorted(made):
    path, _ = made
    before = read(path).intervals["natural_movie_one"]
    order = np.random.default_rng(1).permutation(MOVIE * REPEATS)
    with h5py.File(path, "r+") as f:
        for name in ("data", "frame_duration"):
            f[f"{MOVIE_TABLE}/{name}"][...] = f[f"{MOVIE_TABLE}/{name}"][()][order]
    s = read(path)
    after = s.intervals["natural_movie_one"]
    for a, b in ((before.start, after.start), (before.stop, after.stop)):
        np.testing.assert_array_equal(a, b)
    for name in ("frame", "repeat"):
        np.testing.assert_array_equal(before.columns[name], after.columns[name])
    assert "natural_movie_one: rows out of order were sorted by time" in s.notes


def test_a_last_frame_that_runs_on_is_cut(made):
    path, wrote = made
    with h5py.File(path, "r+") as f:
        f[f"{MOVIE_TABLE}/frame_duration"][MOVIE * REPEATS - 1, 1] = 590
    s = read(path)
    m = s.intervals["natural_movie_one"]
    assert abs((m.stop[-1] - m.start[-1]) - 1 / 30) < 2e-3
    assert "natural_movie_one: 1 rows that ran on were cut to the usual length" in s.notes


def test_counts_that_are_off_by_a_few(made):
    path, wrote = made
    replaced(path, f"{PIPELINE}/DfOverF/imaging_plane_1/data", wrote["dff"][:, :-3])
    replaced(path, f"{MOVIE_TABLE}/data", np.tile(np.arange(MOVIE), REPEATS)[:-2])
    s = read(path)
    np.testing.assert_array_equal(s.traces, wrote["dff"].T[:-3])
    assert s.timestamps.size == FRAMES - 3
    assert any(n.startswith("597 frames beside 600 time stamps") for n in s.notes)
    assert "natural_movie_one: 58 rows, 60 times; the first 58 are used" in s.notes
    assert "natural_movie_one: some frames were shown more often than others" in s.notes
    replaced(path, f"{PIPELINE}/DfOverF/imaging_plane_1/data", wrote["dff"][:, :-30])
    with pytest.raises(RecordingError, match="traces and time stamps do not fit; found shape"):
        read(path)


def test_rows_outside_the_recording(made):
    path, wrote = made
    with h5py.File(path, "r+") as f:
        f["stimulus/presentation/static_gratings_stimulus/frame_duration"][3:] = [
            [FRAMES - 2, FRAMES + 3],
            [FRAMES + 4, FRAMES + 11],
        ]
    s = read(path)
    g = s.intervals["static_gratings"]
    assert len(g) == 4 and abs(g.stop[-1] - (wrote["times"][-1] + 1 / 30)) < 1e-3
    assert "static_gratings: 1 rows lie outside the recording; left out" in s.notes


def test_time_stamps_in_place_of_frames(made):
    path, wrote = made
    starts = wrote["times"][420 : 420 + MOVIE * REPEATS]
    replaced(path, f"{MOVIE_TABLE}/frame_duration", None)
    with h5py.File(path, "r+") as f:
        f[f"{MOVIE_TABLE}/timestamps"] = starts
    m = read(path).intervals["natural_movie_one"]
    np.testing.assert_array_equal(m.start, starts)
    np.testing.assert_array_equal(m.stop[:-1], starts[1:])


def test_missing_samples_and_a_transposed_file(made):
    path, wrote = made
    holes = wrote["dff"].copy()
    holes[2, 50:60] = np.nan
    replaced(path, f"{PIPELINE}/DfOverF/imaging_plane_1/data", holes.T.copy())
    s = read(path)
    assert not s.mask[50:60, 2].any() and s.mask.sum() == s.traces.size - 10
    np.testing.assert_array_equal(s.traces[:50], wrote["dff"].T[:50])
    assert "the traces of the file are (frames, neurons)" in s.notes


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (f"{PIPELINE}/DfOverF/imaging_plane_1/timestamps", np.zeros(FRAMES), "strictly increasing"),
        (f"{PIPELINE}/DfOverF/imaging_plane_1/timestamps", None, "timestamps: not an array"),
        (f"{PIPELINE}/DfOverF/imaging_plane_1/data", np.zeros(9), "traces must be a matrix"),
        (f"{PIPELINE}/DfOverF/imaging_plane_1/data", np.ones((1, 1)), "values were stripped"),
        (f"{MOVIE_TABLE}/data", np.full(60, 0.5), "frame numbers must be whole"),
        (f"{MOVIE_TABLE}/frame_duration", np.zeros((60, 3)), "not pairs of imaging frames"),
        (
            "stimulus/presentation/drifting_gratings_stimulus/features",
            np.array([b"a", b"b"]),
            "as many names as columns",
        ),
    ],
)
def test_what_cannot_be_read_is_named(made, name, value, message):
    path, _ = made
    replaced(path, name, value)
    with pytest.raises(RecordingError, match=message) as e:
        read(path)
    assert str(e.value).startswith(f"{path}: ")


def test_peek_agrees_with_read(made):
    path, _ = made
    p, s = peek_allen(path), read(path)
    assert (p.session, p.animal, p.unit) == (s.session, s.animal, s.unit)
    assert (p.neurons, p.frames) == (s.n_neurons, s.n_frames)
    assert abs(p.rate - s.rate) < 1e-9 and set(p.behavior) == set(s.behavior)
    assert set(p.intervals) == set(s.intervals)


def test_lines_are_named_as_in_table_s3():
    wanted = {
        "Slc17a7-IRES2-Cre/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/Ai93": "SLC17A7 IRES2 CRE",
        "Cux2-CreERT2/wt;Camk2a-tTA/wt": "CUX2 CREERT2",
        "Scnn1a-Tg3-Cre/wt": "SCNN1A TG3 CRE",
        "Rbp4-Cre_KL100/wt;Ai93": "RBP4 CRE KL100",
        "Ntsr1-Cre_GN220/wt;Ai148(TIT2L-GC6f-ICL-tTA2)/wt": "NTSR1 CRE GN220",
        "Tlx3-Cre_PL56/wt": "TLX3 CRE PL56",
        "Vip-IRES-Cre/wt": "VIP IRES CRE",
        "Sst-IRES-Cre/wt": "SST IRES CRE",
        "Pvalb-IRES-Cre/wt": "PVALB IRES CRE",
        "Fezf2-CreER/wt": "FEZF2 CREER",
        "Nr5a1-Cre/wt": "NR5A1 CRE",
    }
    assert {k: cell_line(k) for k in wanted} == wanted


def test_the_stripped_file_of_the_allen_institute():
    root = os.environ.get("CALM_JAX_RECORDINGS")
    if not root:
        pytest.skip("CALM_JAX_RECORDINGS names no folder with recordings")
    found = sorted((Path(root) / "formats" / "nwb").glob("allen_*NWB1*.nwb"))
    if not found:
        pytest.skip("no Allen file there")
    assert format_of(found[0]).name == "Allen Brain Observatory"
    with pytest.raises(RecordingError, match=r"values were stripped.*with 113854 frames"):
        read(found[0])
