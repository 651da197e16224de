"""`.npy` files and pickles of any content: plain data, or one line; never run, never large."""

import datetime
import io
import os
import pathlib
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import pickles
from calm_jax.recordings.formats.npy import load_objects, open_npy

DTYPES = st.sampled_from(["<f4", ">f8", "|b1", "<i8", ">u2", "<c8", "<U3", "|S2"])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | ARRAYS
    | ARRAYS.map(np.asfortranarray) | st.sampled_from([np.float32(2), np.int64(-3), np.bool_(1)])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda x: st.lists(x) | st.dictionaries(st.text(), x) | st.tuples(x, x),
    max_leaves=8,
)


def _same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            _same(a[k], b[k])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")  # numpy may swap
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b or a != a


@given(VALUES, st.integers(1, 5))
def test_plain_pickles_give_what_pickle_gives(value, protocol):
    data = pickle.dumps(value, protocol)
    _same(pickles.loads(data), pickle.loads(data))


def test_object_arrays_are_lists_and_items(tmp_path):
    stat = np.array([{"med": [1, 2], "npix": np.int64(3)}, {"ypix": np.arange(3)}], object)
    np.save(tmp_path / "stat.npy", stat)
    _same(load_objects(tmp_path / "stat.npy"), stat.tolist())
    ops = {"fs": 30.0, "date_proc": datetime.datetime.now().astimezone(), "at": pathlib.Path("a")}
    np.save(tmp_path / "ops.npy", ops)
    assert load_objects(tmp_path / "ops.npy") == {"fs": 30.0, "date_proc": None, "at": None}


class _Run:
    """Pickled, it asks for any call."""

    def __init__(self, call, *arguments):
        self.asked = (call, arguments)

    def __reduce__(self):
        return self.asked


def _attacks(file):
    touch = f"open({str(file)!r}, 'w').close()"
    yield _Run(eval, touch)
    yield _Run(exec, touch)
    yield _Run(os.system, f"touch {file}")
    yield _Run(pathlib.Path.touch, pathlib.Path(file))
    yield _Run(open, str(file), "w")
    yield _Run(np.load, str(file), None, True)
    yield _Run(np.zeros, (1 << 40,))
    yield _Run(getattr, "text", "upper")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_that_would_execute_are_refused_by_name(tmp_path, protocol):
    file = tmp_path / "made"
    for attack in _attacks(file):
        for value in (attack, [attack], {"fs": attack}):
            with pytest.raises(RecordingError, match="names something else|not plain data"):
                pickles.loads(pickle.dumps(value, protocol))
    assert not file.exists()
    np.save(tmp_path / "ops.npy", {"fs": _Run(os.system, f"touch {file}")})
    with pytest.raises(RecordingError, match=r"ops\.npy: .*(posix|nt)\.system"):
        load_objects(tmp_path / "ops.npy")
    assert not file.exists()


def _array_state(shape, dtype, raw):
    """An opcode stream of an array with any state."""
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nttR"
    out = io.BytesIO()
    out.write(b"\x80\x04" + head + b"(K\x01" + pickle.dumps(shape, 2)[2:-1])
    out.write(b"cnumpy\ndtype\n(" + pickle.dumps(dtype, 2)[2:-1] + b"K\x00K\x01tR")
    out.write(b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    out.write(b"\x89" + pickle.dumps(raw, 3)[2:-1] + b"tb.")
    return out.getvalue()


def test_arrays_must_fit_their_bytes():
    _same(pickles.loads(_array_state((2,), "f4", b"\0" * 8)), np.zeros(2, np.float32))
    for shape, dtype, raw in [
        ((1 << 60,), "f4", b"\0" * 8),
        ((1 << 40, 1 << 40), "f4", b""),
        ((-2,), "f4", b"\0" * 8),
        ((3,), "f4", b"\0" * 8),
        ((2,), "(1000000000,)f4", b"\0" * 8),
        ((2,), "f4,O", b"\0" * 16),
        ((1,), "O8", b"\0" * 8),
        ((1,), "O8", [1, 2]),
        ((2,), "f4", [1, 2]),
        ((2,), "M8[ns]", b"\0" * 16),
    ]:
        with pytest.raises(RecordingError):
            pickles.loads(_array_state(shape, dtype, raw))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N",
        b"\x80\x04]r\xff\xff\xff\xffh\x00.",  # a memo of four billion places
        b"\x80\x05\x96" + (1 << 61).to_bytes(8, "little") + b".",  # a bytearray of exabytes
        b"\x80\x04\x8e" + (1 << 61).to_bytes(8, "little") + b"x.",
        b"(" * 100 + b".",
        b"K\x01b.",
        b"Pid\n.",
        b"\x82\x01.",
        b"0.",
        b"]" * 3 + b"a" * 9 + b".",
        b"}](K\x01K\x02u.",
        b"I" + b"9" * 6000 + b"\n.",
    ],
)
def test_damaged_pickles_are_refused(data):
    with pytest.raises(RecordingError):
        pickles.loads(data)


def test_nesting_and_sharing_take_no_time():
    start = time.monotonic()
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    assert isinstance(pickles.loads(deep), list)
    # Each tuple holds the one before it twice: 2^60 leaves for whoever walks or hashes it.
    shared = b"\x80\x02)" + b"".join(b"q\x00h\x00\x86" for _ in range(60))
    assert isinstance(pickles.loads(shared + b"."), tuple)
    with pytest.raises(RecordingError, match="other keys than text"):
        pickles.loads(b"\x80\x02}" + shared[2:] + b"Ns.")
    assert time.monotonic() - start < 10


def test_too_many_parts(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPS", 100)
    with pytest.raises(RecordingError, match="too many parts"):
        pickles.loads(b"]" * 101 + b".")


@settings(max_examples=200)
@given(st.binary(max_size=40), st.integers(0, 400), st.integers(0, 5))
def test_bytes_changed_at_random_give_data_or_one_error(patch, at, protocol):
    value = {"fs": 30.0, "a": np.arange(6.0).reshape(2, 3), "b": [np.float32(1), "x", (1, None)]}
    data = pickle.dumps(value, protocol)
    at = at % len(data)
    for hostile in (data[:at] + patch + data[at + len(patch) :], data[:at], data[:at] + patch):
        try:
            pickles.loads(hostile)
        except RecordingError as e:
            assert "\n" not in str(e)


@given(hnp.arrays(st.sampled_from(["<f4", ">f8", "|b1", "<u2"]), hnp.array_shapes(max_dims=3)))
def test_numbers_are_mapped_as_they_are(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    for given_array in (array, np.asfortranarray(array)):
        np.save(path, given_array)
        _same(open_npy(path), array)
    assert not open_npy(path).flags.writeable


def _file(path, shape, descr="<f4", data=b"\0" * 64, version=b"\x01\x00"):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    width = 2 if version == b"\x01\x00" else 4
    head = b"\x93NUMPY" + version + len(header).to_bytes(width, "little") + header.encode()
    path.write_bytes(head + data)
    return path


@pytest.mark.parametrize(
    ("shape", "descr"),
    [
        ("(1000000000000,)", "<f4"),
        ("(4611686018427387904, 4611686018427387904)", "<f8"),
        ("(-4,)", "<f4"),
        ("(4.0,)", "<f4"),
        ("(17,)", "<f4"),
        ("4", "<f4"),
        ("(True,)", "<f4"),
        ("(" * 300 + ")" * 300, "<f4"),
        ("(4,)", "|O"),
        ("(4,)", "<U4"),
        ("(4,)", "(1000000,)<f4"),
        ("(4,)", "nonsense"),
        ("(__import__('os'),)", "<f4"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, shape, descr):
    for version in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        path = _file(tmp_path / "a.npy", shape, descr, version=version)
        with pytest.raises(RecordingError, match=r"a\.npy"):
            open_npy(path)


def test_no_npy_file(tmp_path):
    for content in (b"", b"\x93NUM", b"\x93NUMPY", b"\x93NUMPY\x09\x00", b"text, text\n" * 9):
        (tmp_path / "a.npy").write_bytes(content)
        for load in (open_npy, load_objects):
            with pytest.raises(RecordingError, match=r"a\.npy"):
                load(tmp_path / "a.npy")
    with pytest.raises(RecordingError, match="no such file"):
        open_npy(tmp_path / "b.npy")


def test_objects_that_do_not_fit_the_header(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, {}], object))
    (tmp_path / "a.npy").write_bytes(buffer.getvalue().replace(b"(2,)", b"(9,)", 1))
    with pytest.raises(RecordingError, match="damaged array of objects"):
        load_objects(tmp_path / "a.npy")
