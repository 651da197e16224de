"""CaImAn's HDF5 files, written by the test, against their arrays and another reader."""

import h5py
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.caiman import read_caiman, recognises


def write_caiman(path, n=4, t=60, dims=(6, 5), have=("F_dff", "C", "YrA", "S"), **changes):
    """A file as `cnmf.save` writes it; `changes` replaces fields, "NoneType" for none."""
    rng = np.random.default_rng(n * t)
    a = scipy.sparse.random(dims[0] * dims[1], n, 0.3, format="csc", random_state=rng)
    a = a.tolil()
    a[0, 0] = 0.5
    fields = {x: rng.normal(size=(n, t)) for x in ("F_dff", "C", "YrA", "S")}
    fields |= {
        "idx_components": np.arange(0, n, 2), "SNR_comp": rng.uniform(1, 9, n),
        "r_values": rng.uniform(0, 1, n), "cnn_preds": np.zeros(0), "bl": "NoneType",
    }  # fmt: skip
    for name in ("F_dff", "C", "YrA", "S"):
        if name not in have:
            fields[name] = "NoneType"
    fields |= {k: v for k, v in changes.items() if k not in ("fr", "A")}
    a = a.tocsc()
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            if value is not None:
                file[f"estimates/{name}"] = value
        for name in ("data", "indices", "indptr"):
            file[f"estimates/A/{name}"] = getattr(a, name)
        file["estimates/A/shape"] = np.array(a.shape)
        file["params/data/fr"] = changes.get("fr", 30.0)
        file["params/data/dims"] = np.array(dims)
        file["dims"] = np.array(dims)
    return fields, a


@given(st.integers(1, 5), st.integers(2, 30), st.booleans())
def test_what_is_read(tmp_path_factory, n, t, accepted):
    path = tmp_path_factory.mktemp("caiman") / "mouse.hdf5"
    fields, a = write_caiman(path, n, t)
    session = read_caiman(path, accepted=accepted)
    keep = np.arange(0, n, 2) if accepted else np.arange(n)
    np.testing.assert_allclose(session.traces, fields["F_dff"][keep].T, rtol=1e-6)
    assert (session.unit, session.rate, session.session) == ("dF/F", 30.0, "mouse")
    assert session.neurons.id.tolist() == [str(i) for i in keep]
    table = session.neurons.columns
    np.testing.assert_array_equal(table["accepted"], keep % 2 == 0)
    np.testing.assert_allclose(table["snr"], fields["SNR_comp"][keep], rtol=1e-6)
    assert "cnn_prediction" not in table
    dense = a.toarray().reshape(6, 5, n, order="F")
    with np.errstate(invalid="ignore"):
        y = np.einsum("ijk,i->k", dense, np.arange(6)) / dense.sum((0, 1))
        x = np.einsum("ijk,j->k", dense, np.arange(5)) / dense.sum((0, 1))
    np.testing.assert_allclose(table["y"], y[keep], rtol=1e-5)
    np.testing.assert_allclose(table["x"], x[keep], rtol=1e-5)


def test_which_traces(tmp_path):
    path = tmp_path / "a.h5"
    fields, _ = write_caiman(path, have=("C", "YrA"))
    session = read_caiman(path, accepted=False)
    np.testing.assert_allclose(session.traces, (fields["C"] + fields["YrA"]).T, atol=1e-6)
    assert "C + YrA: fluorescence, not dF/F" in session.notes[0]
    fields, _ = write_caiman(path, have=("C",))
    session = read_caiman(path)
    np.testing.assert_allclose(session.traces, fields["C"][::2].T, rtol=1e-6)
    assert session.notes[0].startswith("ATTENTION") and session.unit == "fluorescence (a.u.)"
    fields, _ = write_caiman(path)
    for kind in ("C", "S"):
        np.testing.assert_allclose(
            read_caiman(path, traces=kind).traces, fields[kind][::2].T, rtol=1e-6
        )
    raw = read_caiman(path, traces="raw").traces
    np.testing.assert_allclose(raw, (fields["C"] + fields["YrA"])[::2].T, atol=1e-6)
    write_caiman(path, have=("S",))
    with pytest.raises(RecordingError, match="no traces.*F_dff, or C with YrA"):
        read_caiman(path)
    with pytest.raises(RecordingError, match="no such traces.*found estimates with S"):
        read_caiman(path, traces="raw")


def test_placeholders_and_nan(tmp_path):
    path = tmp_path / "a.h5"
    values = np.ones((4, 60))
    values[1, 5] = np.nan
    write_caiman(path, F_dff=values, idx_components="NoneType", SNR_comp="NoneType", r_values=None)
    session = read_caiman(path)
    assert session.n_neurons == 4 and any("not evaluated" in n for n in session.notes)
    assert not session.mask[5, 1] and session.mask.sum() == 4 * 60 - 1
    assert set(session.neurons.columns) == {"accepted", "x", "y"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fr": "NoneType"}, "frame rate is not known.*rate=HZ"),
        ({"fr": -1.0}, "frame rate is not known"),
        ({"F_dff": np.ones(60)}, "F_dff: no matrix"),
        ({"F_dff": np.full((4, 60), np.inf)}, "infinite"),
        ({"idx_components": np.array([0, 9])}, "idx_components: components that do not exist"),
        ({"idx_components": np.zeros(0)}, "no accepted component"),
        ({"SNR_comp": np.ones(3)}, "SNR_comp: a quality that does not fit"),
        ({"have": ("C", "YrA"), "YrA": np.ones((4, 59))}, "YrA: traces that do not fit C"),
        ({"F_dff": np.ones((3, 60)), "idx_components": "NoneType"}, "SNR_comp|footprints"),
    ],
)
def test_faults_are_told(tmp_path, changes, match):
    write_caiman(tmp_path / "a.h5", **changes)
    with pytest.raises(RecordingError, match=match):
        read_caiman(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("indptr", np.array([0, 9, 3, 4, 5])),
        ("indices", np.full(3, 10**9)),
        ("shape", np.array([10**12, 10**12])),
        ("data", np.zeros((2, 2))),
    ],
)
def test_damaged_footprints(tmp_path, name, value):
    path = tmp_path / "a.h5"
    write_caiman(path)
    with h5py.File(path, "a") as file:
        del file[f"estimates/A/{name}"]
        file[f"estimates/A/{name}"] = value
    with pytest.raises(RecordingError, match="estimates/A"):
        read_caiman(path)


def test_options_and_recognition(tmp_path):
    path = tmp_path / "a.h5"
    write_caiman(path, fr="NoneType")
    assert recognises(path) and not recognises(tmp_path)
    assert read_caiman(path, rate=7.5).rate == 7.5
    for options in ({"rate": 0}, {"rate": "x"}, {"accepted": 1}, {"traces": "F"}):
        with pytest.raises(RecordingError, match="option"):
            read_caiman(path, **options)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["traces"] = np.ones((2, 2))
    (tmp_path / "c.h5").write_bytes(path.read_bytes()[:600])
    assert not recognises(tmp_path / "b.h5") and not recognises(tmp_path / "c.h5")


@pytest.mark.filterwarnings("ignore::Warning:roiextractors")
def test_against_roiextractors(tmp_path):
    extractors = pytest.importorskip("roiextractors", reason="roiextractors is not installed")
    path = tmp_path / "a.hdf5"
    write_caiman(path, n=5, t=40)
    other = extractors.CaimanSegmentationExtractor(file_path=path)
    for ours, theirs in (("dff", "dff"), ("C", "denoised"), ("S", "deconvolved")):
        session = read_caiman(path, traces=ours, accepted=False)
        np.testing.assert_allclose(session.traces, other.get_traces(name=theirs), rtol=1e-6)
    assert session.rate == other.get_sampling_frequency()
    assert session.n_neurons == other.get_num_rois()
