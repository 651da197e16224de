"""Plain arrays in files and in memory: what must be given is asked for, the rest is exact."""

import types

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import calm_jax
from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import read, sessions_in
from calm_jax.recordings.formats.arrays import recognises

T, N = 40, 3
X = np.random.default_rng(0).normal(size=(T, N)).astype(np.float32)
TIMES = 100 + np.arange(T) / 29.97


def _mat73(path, **arrays):
    """A file as MATLAB 7.3 writes it: a header of 512 bytes, axes the other way round."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in arrays.items():
            file[name] = np.atleast_2d(value).T
        file["#refs#/a"] = np.ones((9, 9))
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def _zarr(path, **arrays):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    group = zarr.open_group(str(path), mode="w")
    for name, value in arrays.items():
        group.create_array(name, shape=value.shape, dtype=value.dtype, chunks=(7,) * value.ndim)
        group[name][...] = value


WRITERS = {
    "a.npz": np.savez,
    "a.mat": lambda path, **a: scipy.io.savemat(path, a, do_compression=True),
    "b.mat": lambda path, **a: scipy.io.savemat(path, a, format="4"),
    "c.mat": _mat73,
    "a.zarr": _zarr,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("turned", [False, True])
def test_every_kind_of_file(tmp_path, name, turned):
    path = tmp_path / name
    WRITERS[name](path, dff=X.T if turned else X, t=TIMES)
    orientation = "neurons,time" if turned else "time,neurons"
    assert recognises(path)
    with pytest.raises(RecordingError, match="orientation=.*which axis|which axis.*orientation="):
        read(path, rate=30)
    with pytest.raises(RecordingError, match="frame rate is not known.*rate=HZ"):
        read(path, orientation=orientation)
    session = read(path, rate=30, orientation=orientation, unit="dF/F")
    np.testing.assert_array_equal(session.traces, X)
    assert (session.rate, session.unit, session.session) == (30, "dF/F", name[0])
    session = read(path, time="t", orientation=orientation)
    np.testing.assert_array_equal(session.times, TIMES)  # exact, not float32
    wrong = "time,neurons" if turned else "neurons,time"
    with pytest.raises(RecordingError, match=f"40 times, 3 frames.*orientation={orientation}"):
        read(path, time="t", orientation=wrong)
    with pytest.raises(RecordingError, match="option time=x: no such vector.*expected t"):
        read(path, time="x", orientation=wrong)


@given(
    hnp.arrays(st.sampled_from(["<f4", ">f8", "|b1", "<i2"]), st.tuples(*[st.integers(1, 6)] * 2),
               elements=st.integers(0, 1)),
    st.booleans(),
)  # fmt: skip
def test_npy_round_trip(tmp_path_factory, x, fortran):
    path = tmp_path_factory.mktemp("a") / "x.npy"
    np.save(path, np.asfortranarray(x) if fortran else x)
    for orientation, want in (("time,neurons", x), ("neurons,time", x.T)):
        got = read(path, rate=10, orientation=orientation)
        np.testing.assert_array_equal(got.traces, want.astype(np.float32))


@pytest.mark.parametrize("name", ["a.npz", "a.mat", "c.mat", "a.zarr"])
def test_several_matrices(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, F=X, spks=2 * X, n=np.float64([3.0]))
    given = {"rate": 10, "orientation": "time,neurons"}
    with pytest.raises(RecordingError, match=r"several matrices.*F \(40, 3\).*variable=NAME"):
        read(path, **given)
    np.testing.assert_array_equal(read(path, variable="spks", **given).traces, 2 * X)
    with pytest.raises(RecordingError, match="variable=dff: no such matrix"):
        read(path, variable="dff", **given)


def test_tables(tmp_path):
    path = tmp_path / "a.csv"
    rows = [",".join(map(repr, [float(t), *x.tolist()])) for t, x in zip(TIMES, X, strict=True)]
    path.write_text("\ufeffTime,n1,\"n 2\",n3\r\n" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    session = read(path)
    np.testing.assert_array_equal(session.traces, X)
    np.testing.assert_array_equal(session.times, TIMES)
    assert session.neurons.id.tolist() == ["n1", "n 2", "n3"]
    assert any("time is column 'Time'" in n for n in session.notes)
    assert read(path, rate=30).timestamps is None
    with pytest.raises(RecordingError, match="one row per frame"):
        read(path, orientation="neurons,time")
    (tmp_path / "b.tsv").write_text("1\t2\n3\t4\n5\t\n")
    with pytest.raises(RecordingError, match="which axis is time"):
        read(tmp_path / "b.tsv", rate=1)
    session = read(tmp_path / "b.tsv", rate=1, orientation="time,neurons")
    assert session.traces.tolist() == [[1, 2], [3, 4], [5, 0]] and not session.mask[2, 1]
    assert read(tmp_path / "b.tsv", rate=1, orientation="neurons,time").n_frames == 2
    assert read(tmp_path / "b.tsv", time=0).times.tolist() == [1, 3, 5]
    (tmp_path / "c.csv").write_text(",x,y\n0,1,2\n1,3,4\n")
    session = read(tmp_path / "c.csv", rate=1)
    assert session.neurons.id.tolist() == ["x", "y"] and session.traces[1].tolist() == [3, 4]
    with pytest.raises(RecordingError, match="option time: no such column.*expected x, y"):
        read(tmp_path / "c.csv", time="z")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a,b\n1,x\n", "not a table of numbers.*'x'"),
        ("a,b\n1,2\n3\n", "not a table of numbers"),
        ("a,b\n", "without rows|not a table"),
        ("a;b\n1,5;2\n", "not a table of numbers"),
        ("time,a\n2,1\n1,1\n", "strictly increasing"),
        ("a,b\n1,2,3\n", "another length"),
        ("a,a\n1,2\n", "must be unique"),
        ("\n1,2\n", "first line"),
    ],
)
def test_bad_tables(tmp_path, text, match):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(RecordingError, match=match):
        read(tmp_path / "a.csv", **({} if "time" in text else {"rate": 1}))


def test_damaged_and_hostile_files(tmp_path):
    given = {"rate": 10, "orientation": "time,neurons"}
    for name, write in WRITERS.items():
        if name.endswith("zarr"):
            continue
        path = tmp_path / name
        write(path, dff=X)
        data = path.read_bytes()
        rng = np.random.default_rng(1)
        for cut in range(0, len(data), max(1, len(data) // 25)):
            flipped = bytearray(data)
            for at in rng.integers(0, len(data), 4):
                flipped[at] ^= int(rng.integers(1, 256))
            for hostile in (data[:cut], bytes(flipped)):
                path.write_bytes(hostile)
                try:
                    read(path, **given)
                except RecordingError as e:
                    assert str(path) in str(e) and "\n" not in str(e)
    np.savez(tmp_path / "o.npz", dff=np.array([[{}]], object))
    with pytest.raises(RecordingError, match="no matrix of real numbers"):
        read(tmp_path / "o.npz", **given)
    scipy.io.savemat(tmp_path / "s.mat", {"a": scipy.sparse.eye(4), "b": 1j * X, "c": "text"})
    with pytest.raises(RecordingError, match="no matrix of real numbers"):
        read(tmp_path / "s.mat", **given)
    with pytest.raises(RecordingError, match="no such orientation"):
        read(tmp_path / "s.mat", rate=10, orientation="rows")


def test_zarr_that_claims_more_than_it_holds(tmp_path):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    zarr.open_array(
        str(tmp_path / "a.zarr"), mode="w", shape=(1 << 34, 1 << 10), chunks=(1024, 1024),
        dtype="f4",
    )  # fmt: skip
    with pytest.raises(RecordingError, match="values are not in the file"):
        read(tmp_path / "a.zarr", rate=10, orientation="time,neurons")


def test_files_beside_recordings_are_passed_over(tmp_path):
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    assert [p.name for p in sessions_in(tmp_path)] == ["a.npy", "notes.csv"]
    np.savez(tmp_path / "b.npz", traces=X, rate=10.0)
    assert [p.name for p in sessions_in(tmp_path)] == ["b.npz"]


# --- in memory -----------------------------------------------------------------------


def test_from_array():
    session = calm_jax.from_array(X, rate=30, orientation="time,neurons", unit="dF/F", ids="abc")
    np.testing.assert_array_equal(session.traces, X)
    assert session.neurons.id.tolist() == ["a", "b", "c"] and session.unit == "dF/F"
    session = calm_jax.from_array(X.T.tolist(), times=TIMES, orientation="neurons,time")
    np.testing.assert_array_equal(session.traces, X)
    gone = X.copy()
    gone[3, 1] = np.nan
    valid = np.ones((T, N), bool)
    valid[5] = False
    session = calm_jax.from_array(
        gone.T, rate=1, orientation="neurons,time", valid=valid.T, animal="m1", session="s1"
    )
    assert session.mask.sum() == T * N - N - 1 and np.isnan(gone[3, 1])
    assert any("NaN" in n for n in session.notes) and session.animal == "m1"
    for options, match in (
        ({"rate": 1}, "which axis is time"),
        ({"orientation": "time,neurons"}, "no frame rate"),
        ({"orientation": "tn", "rate": 1}, "no such orientation"),
        ({"orientation": "time,neurons", "rate": "30"}, "rate: no number"),
        ({"orientation": "time,neurons", "times": ["a"] * T}, "times that are no numbers"),
    ):
        with pytest.raises(RecordingError, match=match):
            calm_jax.from_array(X, **options)
    for bad in (np.ones(3), np.ones((2, 2), complex), [[1], [1, 2]], object()):
        with pytest.raises(RecordingError, match="traces"):
            calm_jax.from_array(bad, rate=1, orientation="time,neurons")


def test_xarray():
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    coords = {"time": TIMES, "neuron": ["a", "b", "c"]}
    x = xarray.DataArray(X.T, dims=("neuron", "time"), coords=coords)
    session = calm_jax.from_array(x)
    np.testing.assert_array_equal(session.traces, X)
    np.testing.assert_array_equal(session.times, TIMES)
    assert session.neurons.id.tolist() == ["a", "b", "c"]
    assert calm_jax.from_array(x, rate=30).timestamps is None
    with pytest.raises(RecordingError, match="tell another orientation"):
        calm_jax.from_array(x, orientation="time,neurons")
    dates = np.datetime64("2020-01-01") + (np.arange(T) * 100).astype("m8[ms]")
    x = xarray.DataArray(X, dims=("time", "x"), coords={"time": dates})
    np.testing.assert_allclose(calm_jax.from_array(x).times, np.arange(T) / 10)
    x = xarray.DataArray(X, dims=("frame", "roi"), coords={"frame": np.arange(T)})
    with pytest.raises(RecordingError, match="no frame rate"):
        calm_jax.from_array(x)
    x = xarray.DataArray(X, dims=("x", "y"))
    with pytest.raises(RecordingError, match="which axis is time"):
        calm_jax.from_array(x, rate=1)
    assert calm_jax.from_array(x, rate=1, orientation="time,neurons").n_frames == T


def test_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame(X, columns=["a", "b", "c"])
    with pytest.raises(RecordingError, match="no frame rate"):
        calm_jax.from_array(table)
    session = calm_jax.from_array(table, rate=30)
    assert session.neurons.id.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(session.traces, X)
    table.index = TIMES
    np.testing.assert_array_equal(calm_jax.from_array(table).times, TIMES)
    turned = calm_jax.from_array(table.T, orientation="neurons,time")
    np.testing.assert_array_equal(turned.traces, X)
    np.testing.assert_array_equal(turned.times, TIMES)
    table["label"] = "x"
    with pytest.raises(RecordingError, match="column of no numbers"):
        calm_jax.from_array(table)


def test_tsd_frames_by_their_look():
    for clock in ({"t": TIMES}, {"times": lambda: TIMES}):
        frame = types.SimpleNamespace(values=X, columns=np.array([4, 5, 9]), **clock)
        session = calm_jax.from_array(frame, unit="dF/F")
        np.testing.assert_array_equal(session.traces, X)
        np.testing.assert_array_equal(session.times, TIMES)
        assert session.neurons.id.tolist() == ["4", "5", "9"]
    with pytest.raises(RecordingError, match="time first"):
        calm_jax.from_array(frame, orientation="neurons,time")
