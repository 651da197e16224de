"""Records are byte for byte those of tensorflow-datasets; mapped traces give the same store."""

import h5py
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from calm_jax import config
from calm_jax.recordings.build import build
from calm_jax.recordings.formats import interchange
from calm_jax.recordings.store import open_store
from data import wire
from data.parts import _serializer
from data.session_builder import _features

FEATURES = _features()
SERIALIZE = _serializer(FEATURES)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 300), st.integers(1, 40))),
    hnp.arrays(bool, st.integers(0, 300)),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**62),
    st.booleans(),
)
def test_the_bytes_of_tensorflow_datasets(traces, valid, session, start, turned):
    traces = np.asfortranarray(traces)[:, ::-1] if turned else traces
    record = {"session": session, "start": start, "traces": traces, "valid": valid}
    assert wire.record(record) == SERIALIZE(FEATURES.encode_example(record))


def write(path, frames=3000, chunks=None, dtype="<f4"):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["first"], file["rate"] = np.arange(7), 10.0
        data = rng.normal(size=(frames, 6))
        valid = rng.random((frames, 6)) > 0.1
        file.create_dataset("traces", data=np.where(valid, data, 0), dtype=dtype, chunks=chunks)
        file["valid"] = valid


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, True), ({"chunks": (50, 6)}, False), ({"dtype": ">f4"}, False),
     ({"dtype": "<f8"}, False)],
)  # fmt: skip
def test_a_map_of_the_traces_is_what_reading_gives(tmp_path, options, expected):
    path = tmp_path / "a.h5"
    write(path, **options)
    read, mapped = (interchange.read_interchange(path, mapped=m) for m in (False, True))
    with h5py.File(path) as file:
        assert (interchange._mapped(path, file) is not None) == expected
    for name in ("traces", "valid"):
        np.testing.assert_array_equal(getattr(read, name), getattr(mapped, name))
    assert not mapped.traces.flags.writeable
    assert (mapped.rate, mapped.notes, mapped.session) == (read.rate, read.notes, read.session)
    path.write_bytes(path.read_bytes()[:-5000])  # the end of it is lost: told, no crash
    with pytest.raises(Exception, match="damaged|cannot be read"):
        interchange.read_interchange(path, mapped=True)


def test_the_store_of_a_mapped_file(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.h5")
    folder = build(
        config.Data(name="interchange", source=str(tmp_path / "in"), store=str(tmp_path / "out"))
    )
    made, want = open_store(folder).session(0), interchange.read_interchange(tmp_path / "in/a.h5")
    np.testing.assert_array_equal(made.traces, want.traces)
    np.testing.assert_array_equal(made.mask, want.mask)
