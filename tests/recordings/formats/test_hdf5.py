"""HDF5 made to harm: nothing outside the file is opened, nothing hangs, no memory is filled."""

import os
import resource

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import hdf5
from calm_jax.recordings.formats.hdf5 import (
    attribute_number,
    attribute_text,
    children,
    get,
    opened,
    read_array,
    read_text,
    read_traces,
    walk,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


def test_external_links_are_never_followed(path, tmp_path):
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for ever
    with h5py.File(path, "w") as f:
        f["out"] = h5py.ExternalLink(str(tmp_path / "fifo"), "/x")
        f["soft"] = h5py.SoftLink("/out/deep")
        f["g/data"] = np.arange(3)
        f["g/out"] = h5py.ExternalLink(str(tmp_path / "fifo"), "/y")
    with opened(path) as f:
        met = []
        assert [p for p, _ in walk(f, external=met)] == ["/g", "/g/data"]
        assert met == ["/g/out", "/out"] or met == ["/out", "/g/out"]
        assert [n for n, _ in children(f)] == ["g"]
    for name in ("out", "soft", "g/out"):
        with pytest.raises(RecordingError, match="link to another file.*fifo"), opened(path) as f:
            get(f, name)


def test_links_in_circles_end(path):
    with h5py.File(path, "w") as f:
        f["a"], f["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
        g = f.create_group("x/y")
        g["up"] = f["x"]  # a hard link to its own parent
        f["x/data"] = np.arange(3)
        g["alias"] = h5py.SoftLink("/x/data")
    with opened(path) as f:
        assert [p for p, _ in walk(f)] == ["/x", "/x/data", "/x/y"]
        assert get(f, "x/y/up/y/alias").shape == (3,)
        assert get(f, "x/nothing") is None and get(f, "x/data/deeper") is None
    with pytest.raises(RecordingError, match="links that lead in a circle"), opened(path) as f:
        get(f, "a")


def test_declared_sizes_are_not_believed(path, tmp_path):
    with h5py.File(path, "w") as f:
        f.create_dataset("huge", shape=(10**9, 10**6), dtype="f8", chunks=(1000, 1000))
        f.create_dataset("empty", shape=(10**5, 1000), dtype="f4", chunks=(1000, 1000))
        f.create_dataset(
            "chunk", shape=(2, 2), maxshape=(None, None), dtype="f4", chunks=(20000, 20000)
        )
        f.create_dataset("out", shape=(4,), dtype="f4", external=[(str(tmp_path / "o.bin"), 0, 16)])
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "v.h5"), "x", (4,))
        f.create_virtual_dataset("virtual", layout)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, words in (
        ("huge", "more values than this machine can hold; found shape"),
        ("empty", "the values are not in the file; .*declared, 0 bytes stored"),
        ("chunk", "the values are not in the file"),
        ("out", "values stored in another file"),
        ("virtual", "values stored in another file"),
    ):
        for read in (read_array, read_traces):
            with pytest.raises(RecordingError, match=f"{name}: {words}"), opened(path) as f:
                read(f[name], name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_other_types_are_refused_by_name(path):
    with h5py.File(path, "w") as f:
        f["text"] = ["a", "é"]
        f["bytes"] = np.array([b"a", b"\xff"])
        f["complex"] = np.ones(2, complex)
        f["reference"] = np.array([f["text"].ref], h5py.ref_dtype)
        f["lists"] = np.zeros(0, h5py.vlen_dtype(int))
        f["record"] = np.zeros(2, [("x", "u1")])
        f["none"] = h5py.Empty("f4")
        f.attrs["a"], f.attrs["b"], f.attrs["c"] = np.array(["x"], object), 2.5, np.nan
    with opened(path) as f:
        assert read_array(f["text"], "text", kinds="U").tolist() == ["a", "é"]
        assert read_array(f["bytes"], "bytes", kinds="U").tolist() == ["a", "\ufffd"]
        assert read_text(f, "gone", "x") == "x" and read_text(f, "text") == "a"
        assert attribute_text(f, "a") == "x" and attribute_text(f, "b", "no") == "no"
        assert attribute_number(f, "b") == 2.5 and attribute_number(f, "gone", 1.0) == 1.0
        for name in ("text", "complex", "reference", "lists", "record", "none"):
            with pytest.raises(RecordingError, match=f"{name}: not an array of numbers"):
                read_array(f[name], name)
        with pytest.raises(RecordingError, match="a@b|@c: not one finite number"):
            attribute_number(f, "c")
        with pytest.raises(RecordingError, match="x: not an array; found nothing"):
            read_array(None, "x")


@given(
    rows=st.integers(1, 60), columns=st.integers(1, 30), chunked=st.booleans(),
    transposed=st.booleans(), block=st.integers(1, 4000), data=st.data(),
)  # fmt: skip
def test_traces_come_whole_whatever_the_layout(
    tmp_path_factory, rows, columns, chunked, transposed, block, data
):
    values = np.arange(rows * columns).reshape(rows, columns)
    dtype = data.draw(st.sampled_from(["<f4", ">f4", "f8", "i2", "f2"]))
    stored = (values.T if transposed else values).astype(dtype)
    chunks = None
    if chunked:
        chunks = tuple(data.draw(st.integers(1, n)) for n in stored.shape)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=columns, max_size=columns)))
    scale, offset = data.draw(st.sampled_from([(1.0, 0.0), (0.5, -3.0)]))
    path = tmp_path_factory.mktemp("t") / "t.h5"
    with h5py.File(path, "w") as f:
        f.create_dataset("x", data=stored, chunks=chunks)
    wanted = values.astype(dtype).astype(np.float64) * scale + offset
    with pytest.MonkeyPatch.context() as patch, opened(path) as f:
        patch.setattr(hdf5, "BLOCK", block)
        how = {"transposed": transposed, "scale": scale, "offset": offset}
        np.testing.assert_array_equal(read_traces(f["x"], "x", **how), wanted.astype("f4"))
        some = read_traces(f["x"], "x", keep=keep, **how)
        np.testing.assert_array_equal(some, wanted[:, keep].astype("f4"))


def test_what_h5py_raises_inside_names_the_file(path):
    with h5py.File(path, "w") as f:
        f["x"] = np.arange(3)
    for error in (OSError("x"), KeyError("x"), UnicodeDecodeError("utf-8", b"x", 0, 1, "y")):
        with pytest.raises(RecordingError, match="damaged or cut short") as e, opened(path):
            raise error
        assert str(e.value).startswith(str(path))
    with pytest.raises(ZeroDivisionError), opened(path):  # a bug stays one
        1 / 0  # noqa: B018
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RecordingError, match="damaged or cut short"), opened(path):
        pass
