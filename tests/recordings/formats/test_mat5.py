"""MATLAB 5 to 7 beside scipy, which wrote the files; and every damage is refused."""

import tracemalloc

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.io

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import mat5

OTHERS = {"s": "text", "c": 1j * np.ones((2, 2)), "cell": np.array([1, "a"], object),
          "st": {"a": 1.0}, "sparse": scipy.sparse.eye(4)}  # fmt: skip
DTYPES = st.sampled_from("f8 f4 i1 u1 i2 u2 i4 u4 i8 u8 ?".split())


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    hnp.arrays(DTYPES, hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=7)),
    st.booleans(),
)
def test_as_scipy_reads_it(tmp_path_factory, x, packed):
    path = tmp_path_factory.mktemp("m") / "a.mat"
    scipy.io.savemat(path, {"first": x, **OTHERS, "last_one": x}, do_compression=packed)
    found, want = mat5.matrices(path), scipy.io.loadmat(path)
    assert set(found) == {k for k in want if not k.startswith("__")}
    assert {k for k, m in found.items() if m.numeric} == {"first", "last_one"}
    for name in ("first", "last_one"):
        assert found[name].shape == want[name].shape
        for turned in (False, True):
            got = mat5.load(path, name, found[name], turned)
            value = want[name].T if turned and x.ndim == 2 else want[name]
            if x.ndim == 2 and min(x.shape) > 1:
                with np.errstate(over="ignore"):
                    value = value.astype(np.float32)
            np.testing.assert_array_equal(got, value)
            assert got.flags.c_contiguous
    for name in OTHERS:
        with pytest.raises(RecordingError, match=f"{name}: not a full matrix"):
            mat5.load(path, name, found[name], False)


@pytest.mark.parametrize("packed", [False, True])
def test_every_flipped_byte_and_every_cut(tmp_path, packed):
    path = tmp_path / "a.mat"
    x = np.random.default_rng(0).normal(size=(5, 4))
    scipy.io.savemat(path, {"x": x, "other": x.astype("f4")}, do_compression=packed)
    whole, refused = path.read_bytes(), 0
    for i in range(4, len(whole)):
        for data in (whole[:i], whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :]):
            path.write_bytes(data)
            try:
                for name, m in mat5.matrices(path).items():
                    if m.numeric:
                        mat5.load(path, name, m, True)
            except RecordingError:
                refused += 1
    assert refused > len(whole) * (1.5 if packed else 1)


def test_the_table_of_types_is_not_left(tmp_path):
    """This one bit ended scipy's reader with a segmentation fault."""
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"x": np.ones((50, 4))})
    data = bytearray(path.read_bytes())
    assert data[136] == 6  # the type of the flags
    data[136] = 70
    path.write_bytes(data)
    with pytest.raises(RecordingError, match="flags of type 70"):
        mat5.matrices(path)


def test_headers_only_and_the_values_once(tmp_path):
    path = tmp_path / "a.mat"
    x = np.random.default_rng(0).integers(0, 9, (50_000, 60)).astype(np.float64)
    scipy.io.savemat(path, {"x": x}, do_compression=True)
    tracemalloc.start()
    found = mat5.matrices(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * mat5.BLOCK
    tracemalloc.reset_peak()
    got = mat5.load(path, "x", found["x"], False)
    assert tracemalloc.get_traced_memory()[1] < got.nbytes + 10 * mat5.BLOCK
    tracemalloc.stop()
    np.testing.assert_array_equal(got, x)
