"""Suite2p folders of both layouts against their arrays, scipy and another reader."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.suite2p import peek_suite2p, read_suite2p, recognises
from tests.recordings.suite2p_folders import fluorescence, write_plane


def _oracle(f, fneu, rate, window=60.0, smooth=10.0, c=0.7):
    """dF/F (T, N) written out with scipy, all ROIs at once in float64."""
    x = f.astype(float) - c * fneu
    base = ndi.gaussian_filter(x, [0, smooth])
    base = ndi.minimum_filter1d(base, int(window * rate), axis=1)
    base = ndi.maximum_filter1d(base, int(window * rate), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((x - base) / base).T


@settings(max_examples=25)
@given(
    st.integers(1, 4),
    st.integers(5, 40),
    st.sampled_from(["ops", "settings", "both"]),
    st.sampled_from([5.0, 10, np.float32(15.5), np.array([29.9])]),
    st.floats(0, 1),
    st.booleans(),
    st.data(),
)
def test_a_folder_of_either_layout(rois, frames, layout, fs, neucoeff, transposed, data):
    if rois == frames:
        frames += 1
    f, fneu = fluorescence(rois, frames, seed=frames)
    cells = data.draw(st.lists(st.booleans(), min_size=rois, max_size=rois).filter(any))
    with tempfile.TemporaryDirectory() as root:
        folder = write_plane(
            Path(root) / "suite2p" / "plane0", f, fneu, iscell=cells, layout=layout, fs=fs,
            neucoeff=neucoeff, win_baseline=2.0, sig_baseline=1.5,
        )  # fmt: skip
        if transposed:
            np.save(folder / "F.npy", np.asfortranarray(f.T))
            np.save(folder / "spks.npy", np.load(folder / "spks.npy").T)
        session = read_suite2p(root)
        spks = read_suite2p(folder.parent, traces="spks", cells_only=False)
        np.testing.assert_array_equal(spks.traces, np.maximum(f - 200, 0).T)
        plain = read_suite2p(folder, traces="F", neuropil=0.0, cells_only=False)
        np.testing.assert_array_equal(plain.traces, f.T)
    want = _oracle(f, fneu, float(np.ravel(fs)[0]), 2.0, 1.5, neucoeff)[:, cells]
    np.testing.assert_allclose(session.traces, want, atol=2e-4)
    assert session.rate == pytest.approx(float(np.ravel(fs)[0]))
    assert session.unit == "dF/F" and session.valid is None
    assert session.session == Path(root).name
    kept = np.flatnonzero(cells)
    assert session.neurons.id.tolist() == [f"0_{i}" for i in kept]
    table = session.neurons.columns
    np.testing.assert_array_equal(table["y"], 10 + kept)
    np.testing.assert_array_equal(table["x"], 20 + kept)
    np.testing.assert_array_equal(table["npix"], 3 + kept)
    np.testing.assert_allclose(table["cell_probability"], np.linspace(0.1, 0.9, rois)[kept])
    assert any("no cells" in n for n in session.notes) == (not all(cells))


def test_planes_side_by_side(tmp_path):
    shapes = {0: (3, 50), 1: (2, 49), 10: (4, 50)}
    f = {k: fluorescence(*s, seed=k) for k, s in shapes.items()}
    for k in shapes:
        write_plane(tmp_path / "suite2p" / f"plane{k}", *f[k])
    write_plane(tmp_path / "suite2p" / "combined", *fluorescence(9, 49))
    session = read_suite2p(tmp_path, traces="F", neuropil=0)
    want = np.concatenate([f[k][0][:, :49] for k in (0, 1, 10)]).T
    np.testing.assert_array_equal(session.traces, want)
    assert session.neurons.columns["plane"].tolist() == [0] * 3 + [1] * 2 + [10] * 4
    assert session.rate == 10.0  # fs is per plane already
    assert any("trimmed" in n for n in session.notes)
    alone = read_suite2p(tmp_path / "suite2p" / "plane1", traces="F", neuropil=0)
    np.testing.assert_array_equal(alone.traces, f[1][0].T)
    assert alone.session == f"{tmp_path.name}_plane1" and alone.neurons.id[0] == "1_0"
    assert read_suite2p(tmp_path / "suite2p" / "combined", traces="F").n_neurons == 9
    write_plane(tmp_path / "suite2p" / "plane1", *fluorescence(2, 40))
    with pytest.raises(RecordingError, match="different lengths.*plane1 40"):
        read_suite2p(tmp_path)
    write_plane(tmp_path / "suite2p" / "plane1", *fluorescence(2, 50), fs=20.0)
    with pytest.raises(RecordingError, match="different frame rates.*10 Hz, 20 Hz"):
        read_suite2p(tmp_path)
    assert read_suite2p(tmp_path, rate=12).rate == 12


def test_bad_frames_are_missing(tmp_path):
    f, fneu = fluorescence(3, 60)
    bad = np.zeros(60, bool)
    bad[[3, 20, 21]] = True
    hit = f.copy()
    hit[:, bad] = 9e4  # must touch nothing: neither the traces nor the baseline
    for layout in ("ops", "settings"):
        write_plane(tmp_path / layout, hit, fneu, layout=layout, badframes=bad)
        session = read_suite2p(tmp_path / layout)
        assert (session.mask == ~bad[:, None]).all() and (session.traces[bad] == 0).all()
        assert session.traces.max() < 5
    write_plane(tmp_path / "two" / "plane0", hit, fneu, badframes=bad)
    write_plane(tmp_path / "two" / "plane1", f, fneu, badframes=~bad & False)
    session = read_suite2p(tmp_path / "two")
    assert (session.mask[:, :3] == ~bad[:, None]).all() and session.mask[:, 3:].all()
    write_plane(tmp_path / "ops", hit, fneu, badframes=bad[:-1] | True)
    with pytest.raises(RecordingError, match="badframes.*bad frames that do not fit"):
        read_suite2p(tmp_path / "ops")


def test_second_channel_and_red_cells(tmp_path):
    f, fneu = fluorescence(3, 30)
    write_plane(tmp_path, f, fneu)
    np.save(tmp_path / "F_chan2.npy", f + 1000)
    np.save(tmp_path / "Fneu_chan2.npy", fneu)
    np.save(tmp_path / "redcell.npy", np.array([[1, 0.9], [0, 0.2], [1, 0.7]]))
    session = read_suite2p(tmp_path, channel=2, traces="F")
    np.testing.assert_allclose(session.traces, (f + 1000 - 0.7 * fneu).T, rtol=1e-6)
    assert session.neurons.columns["red_cell"].tolist() == [True, False, True]
    with pytest.raises(RecordingError, match="second channel"):
        read_suite2p(tmp_path, channel=2, traces="spks")
    (tmp_path / "F_chan2.npy").unlink()
    with pytest.raises(RecordingError, match="F_chan2.npy: no such file"):
        read_suite2p(tmp_path, channel=2)


def test_orientation_is_asked_for_where_shapes_leave_it_open(tmp_path):
    f, fneu = fluorescence(12, 12)
    write_plane(tmp_path, f, fneu)
    with pytest.raises(RecordingError, match="which axis is time.*orientation="):
        read_suite2p(tmp_path)
    for orientation, want in (("neurons,time", f.T), ("time,neurons", f)):
        got = read_suite2p(tmp_path, orientation=orientation, traces="F", neuropil=0)
        np.testing.assert_array_equal(got.traces, want)
    f, fneu = fluorescence(3, 12)
    write_plane(tmp_path, f, fneu)
    for name in ("stat.npy", "iscell.npy"):
        (tmp_path / name).unlink()
    with pytest.raises(RecordingError, match="neither iscell.npy nor stat.npy"):
        read_suite2p(tmp_path)
    got = read_suite2p(tmp_path, orientation="neurons,time", traces="F")
    assert got.n_neurons == 3 and any("no iscell.npy" in n for n in got.notes)


def test_a_baseline_near_zero_does_not_explode(tmp_path):
    f, fneu = fluorescence(4, 400)
    fneu[1] = f[1].mean() / 0.7  # nothing is left of it
    f[2, :100] = 0.7 * fneu[2, :100]  # nothing for a while
    f[3] = fneu[3] = 0  # dark
    write_plane(tmp_path, f, fneu, win_baseline=2.0)
    session = read_suite2p(tmp_path)
    assert session.neurons.id.tolist() == ["0_0", "0_2"]
    assert session.mask[:, 0].all() and not session.mask[:60, 1].any()
    assert session.mask[150:, 1].all() and np.abs(session.traces).max() < 10
    notes = " ".join(session.notes)
    assert "0_1, 0_3" in notes and "miss samples there: 0_2" in notes
    np.testing.assert_allclose(
        session.traces[:, 0], _oracle(f, fneu, 10.0, 2.0)[:, 0], atol=2e-4
    )
    np.save(tmp_path / "Fneu.npy", f * 2)
    with pytest.raises(RecordingError, match="no ROI has a baseline"):
        read_suite2p(tmp_path)


def test_causal_traces_do_not_know_the_future(tmp_path):
    f, fneu = fluorescence(2, 300)
    later = f.copy()
    later[:, 200:] *= 3
    write_plane(tmp_path / "a", f, fneu, win_baseline=5.0)
    write_plane(tmp_path / "b", later, fneu, win_baseline=5.0)
    for options in ({"baseline": "maximin"}, {"baseline": "percentile", "percentile": 20}):
        a, b = (read_suite2p(tmp_path / x, causal=True, **options).traces[:200] for x in "ab")
        np.testing.assert_array_equal(a, b)
        a, b = (read_suite2p(tmp_path / x, **options).traces[:200] for x in "ab")
        assert (a != b).any()
    assert read_suite2p(tmp_path / "a", baseline="none").unit == "fluorescence (a.u.)"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"traces": "dFF"}, "no such traces"),
        ({"baseline": "median"}, "no such baseline"),
        ({"channel": 3}, "no such channel"),
        ({"orientation": "rows"}, "no such orientation"),
        ({"neuropil": "x"}, "option neuropil"),
        ({"neuropil": -1}, "option neuropil"),
        ({"rate": 0}, "option rate"),
        ({"rate": "fast"}, "option rate"),
        ({"window": "x"}, "option window"),
        ({"window": -1}, "window"),
        ({"percentile": 101, "baseline": "percentile"}, "percentile"),
        ({"causal": 1}, "option causal"),
        ({"cells_only": "no"}, "option cells_only"),
    ],
)
def test_options_out_of_range(tmp_path, options, match):
    write_plane(tmp_path, *fluorescence(2, 30))
    with pytest.raises(RecordingError, match=match):
        read_suite2p(tmp_path, **options)


def test_files_that_do_not_fit(tmp_path):
    def broken(name, value, match):
        (tmp_path / "redcell.npy").unlink(missing_ok=True)
        write_plane(tmp_path, *fluorescence(3, 30))
        np.save(tmp_path / name, value)
        with pytest.raises(RecordingError, match=match):
            read_suite2p(tmp_path)

    broken("F.npy", np.ones((4, 30), np.float32), r"F\.npy: traces that do not fit")
    broken("F.npy", np.ones((3, 29), np.float32), "arrays of different shapes")
    broken("F.npy", np.ones(30, np.float32), "no matrix")
    broken("F.npy", np.full((3, 30), np.nan), r"F\.npy: values that are not finite.*ROI 0")
    broken("F.npy", np.array([{}], object), "Python objects")
    broken("iscell.npy", np.ones((2, 2)), "different numbers of ROIs.*stat.npy 3, iscell.npy 2")
    broken("iscell.npy", np.zeros((3, 2)), "no ROI is called a cell.*cells_only=false")
    broken("iscell.npy", np.zeros((3, 2, 2)), "no flag")
    broken("redcell.npy", np.zeros((2, 2)), "red cells that do not fit")
    broken("stat.npy", np.array([{}, {}, 3], object), "no list of ROIs")
    broken("stat.npy", np.array([{"med": [1, "x"]}] * 3, object), "med of an ROI is damaged")
    broken("ops.npy", {"fs": "fast"}, "fs: no number")
    broken("ops.npy", {"fs": np.nan}, "fs: out of range")
    broken("ops.npy", {"fs": 0.0}, "fs is no frame rate")
    broken("ops.npy", {"tau": 1.0}, "frame rate is not known")
    broken("ops.npy", {"fs": 10.0, "neucoeff": 99}, "neucoeff: out of range")
    broken("ops.npy", np.array([1, 2], object), "no dictionary")
    write_plane(tmp_path, *fluorescence(3, 30))
    (tmp_path / "Fneu.npy").unlink()
    with pytest.raises(RecordingError, match=r"Fneu\.npy: no such file.*neuropil=0"):
        read_suite2p(tmp_path)
    assert read_suite2p(tmp_path, neuropil=0).n_neurons == 3
    (tmp_path / "F.npy").write_bytes((tmp_path / "F.npy").read_bytes()[:-5])
    with pytest.raises(RecordingError, match=r"F\.npy: the file is cut short"):
        read_suite2p(tmp_path, neuropil=0)


def test_a_folder_is_told_by_its_files(tmp_path):
    assert not recognises(tmp_path) and not recognises(tmp_path / "nothing")
    write_plane(tmp_path / "x" / "suite2p" / "plane0", *fluorescence(2, 9))
    for path in ("x", "x/suite2p", "x/suite2p/plane0"):
        assert recognises(tmp_path / path)
    assert not recognises(tmp_path) and not recognises(tmp_path / "x/suite2p/plane0/F.npy")


def test_a_peek_tells_what_reading_gives(tmp_path):
    for k, layout in enumerate(("ops", "settings")):
        folder = tmp_path / f"plane{k}"
        write_plane(folder, *fluorescence(4, 50), iscell=[1, 0, 1, 1], layout=layout)
    for options in ({}, {"traces": "spks"}, {"cells_only": False, "rate": 3, "causal": True}):
        peek, session = peek_suite2p(tmp_path, **options), read_suite2p(tmp_path, **options)
        assert (peek.neurons, peek.frames) == (session.n_neurons, session.n_frames)
        for name in ("session", "animal", "unit", "rate", "notes"):
            assert getattr(peek, name) == getattr(session, name)
    with pytest.raises(RecordingError, match="no such traces"):
        peek_suite2p(tmp_path, traces="x")


def test_traces_are_held_once(tmp_path):
    """A child reads 48 MB of traces; what it takes beside them stays below one more."""
    rois, frames = 1200, 10_000
    f, fneu = fluorescence(4, frames)
    write_plane(tmp_path, np.tile(f, (rois // 4, 1)), np.tile(fneu, (rois // 4, 1)))
    code = (
        "import sys, tracemalloc; import numpy as np, scipy.ndimage\n"
        "from calm_jax.recordings.formats.suite2p import read_suite2p\n"
        "from calm_jax.recordings import baselines\n"
        "from calm_jax.recordings.formats import suite2p_traces\n"
        "baselines._BLOCK = suite2p_traces._BLOCK = 1 << 18\n"
        "tracemalloc.start(); s = read_suite2p(sys.argv[1])\n"
        "print(tracemalloc.get_traced_memory()[1] / s.traces.nbytes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.9  # 0.67 are the blocks in which Session checks them


# --- real folders and another reader -------------------------------------------------


def _real(name):
    root = os.environ.get("CALM_JAX_RECORDINGS")
    if not root:
        pytest.skip("CALM_JAX_RECORDINGS names no folder with recordings")
    folder = Path(root) / "formats" / name
    if not folder.is_dir():
        pytest.skip(f"no folder {name} in CALM_JAX_RECORDINGS")
    return folder


def test_a_complete_real_folder():
    session = read_suite2p(_real("suite2p_inscopix_ccbync"))
    assert (session.n_frames, session.n_neurons) == (300, 20)
    assert session.rate == pytest.approx(29.8739, abs=1e-4)


def test_a_real_folder_with_transposed_spks():
    folder = _real("suite2p_neuronsxnets_mit")
    with pytest.raises(RecordingError, match="ops_MINIMAL_MADE_HERE.npy: is it the ops.npy"):
        read_suite2p(folder)
    spks = read_suite2p(folder, rate=6, traces="spks")
    np.testing.assert_array_equal(spks.traces, np.load(folder / "plane0" / "spks.npy"))
    dff = read_suite2p(folder, rate=6)
    f, fneu = (np.load(folder / "plane0" / x) for x in ("F.npy", "Fneu.npy"))
    assert dff.traces.shape == spks.traces.shape == (11160, 10)
    np.testing.assert_allclose(dff.traces, _oracle(f, fneu, 6.0), atol=2e-3)


def test_a_real_folder_with_little_in_it():
    folder = _real("suite2p_il_gratings_nolicence")
    with pytest.raises(RecordingError, match="frame rate is not known.*rate=HZ"):
        read_suite2p(folder)
    session = read_suite2p(folder, rate=30)
    assert session.traces.shape == (24600, 20)


@pytest.mark.filterwarnings("ignore::Warning:roiextractors")
@pytest.mark.parametrize("real", [False, True])
def test_against_roiextractors(tmp_path, real):
    extractors = pytest.importorskip("roiextractors", reason="roiextractors is not installed")
    if real:
        folder = _real("suite2p_inscopix_ccbync")
    else:
        more = {"nframes": 40, "Ly": 64, "Lx": 64, "xrange": [0, 64], "yrange": [0, 64]}
        write_plane(tmp_path / "plane0", *fluorescence(5, 40), iscell=[1, 0, 1, 1, 0], **more)
        folder = tmp_path
    other = extractors.Suite2pSegmentationExtractor(folder_path=folder, plane_name="plane0")
    options = {"cells_only": False}
    raw = read_suite2p(folder, traces="F", neuropil=0, **options)
    np.testing.assert_array_equal(raw.traces, other.get_traces(name="raw"))
    spks = read_suite2p(folder, traces="spks", **options)
    np.testing.assert_array_equal(spks.traces, other.get_traces(name="deconvolved"))
    assert raw.rate == pytest.approx(other.get_sampling_frequency())
    table = raw.neurons.columns
    np.testing.assert_array_equal(other.roi_locations, np.stack([table["y"], table["x"]]))
    cells = other.get_property("iscell", ids=other.get_roi_ids())
    np.testing.assert_array_equal(table["is_cell"], np.asarray(cells) > 0.5)
