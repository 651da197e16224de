"""The tokenized data set: round trip, masks, resuming, few compilations."""

import h5py
import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from calm_jax import config
from calm_jax.errors import RunError
from calm_jax.models import tokenizer as tokenizers
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import PARTS, make_split
from calm_jax.tasks import codes as exported

CONFIG = config.Tokenizer(
    width=8, layers=1, heads=2, ffn=1, codes=10, code_width=4, autoregressive_weight=0.0
)


def _tok(seed=0):
    return jax.jit(lambda k: tokenizers.init(CONFIG, k))(jax.random.key(seed))


def _prepared():
    rng = np.random.default_rng(0)
    stop = np.cumsum(rng.integers(6, 30, 12))
    trials = Trials(np.concatenate([[0], stop[:-1]]), stop)
    valid = np.ones((stop[-1], 4), bool)
    valid[7, 2] = False
    one = Session(
        rng.normal(size=(stop[-1], 4)), rate=10, session="one", trials=trials, valid=valid
    )
    two = Session(rng.normal(size=(400, 3)), rate=10, session="two")
    held = Session(rng.normal(size=(60, 2)), rate=10, session="held",
                   trials=Trials(np.arange(0, 60, 10), np.arange(10, 61, 10)))  # fmt: skip
    store = MemoryStore([one, two, held])
    split = make_split(store, config.Split(), held_out=["held"])
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


def test_round_trip_of_every_range_of_every_session(tmp_path):
    tok, prepared = _tok(), _prepared()
    done = []
    path = exported.export(
        tok, prepared, tmp_path / "codes.h5", segment=26, progress=lambda *x: done.append(x)
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert list(tmp_path.iterdir()) == [path]
    codes = exported.Codes(path)
    assert codes.sessions == ("one", "two", "held")
    assert (codes.patch, codes.codes, codes.segment) == (4, 10, 24)
    assert codes.identity == exported.identity(tok, prepared)
    encode = jax.jit(tokenizers.encode)
    counted = 0
    for i in range(3):
        for part in PARTS:
            ranges = prepared.splits.parts[i][part]
            assert_array_equal(codes.ranges(i, part), ranges[np.argsort(ranges[:, 0])])
            for start, stop in ranges:
                z, mask = prepared.range(i, start, stop)
                found = codes.range(i, start, stop)
                whole = (stop - start) // 4
                assert found.dtype == np.uint8 and found.shape == (z.shape[1], whole)
                # Segment by segment, each on its own and unpadded.
                expected = [
                    np.asarray(encode(tok, z.T[:, a : min(a + 24, whole * 4)]))
                    for a in range(0, whole * 4, 24)
                ]
                assert_array_equal(found, np.concatenate(expected, 1))
                real = mask.T[:, : whole * 4].reshape(-1, whole, 4).all(-1)
                assert_array_equal(codes.mask(i, start, stop), real)
                counted += real.sum() if i < 2 and part == "train" else 0
    start, stop = prepared.range_of(0, 7)
    assert not codes.mask(0, start, stop)[2].all()
    assert codes.usage().sum() == counted + sum(
        codes.mask(2, a, b).sum() for a, b in codes.ranges(2, "train")
    )
    with pytest.raises(RunError, match=r"no codes for this range.*\[1, 3\)"):
        codes.range(0, 1, 3)
    codes.close()



def test_an_interrupted_export_goes_on_and_gives_the_same_file(tmp_path):
    tok, prepared = _tok(), _prepared()
    whole = exported.export(tok, prepared, tmp_path / "whole.h5", segment=24)

    def stop(done, _):
        if done == 2:
            raise KeyboardInterrupt

    path = tmp_path / "codes.h5"
    with pytest.raises(KeyboardInterrupt):
        exported.export(tok, prepared, path, segment=24, progress=stop)
    assert not path.exists()
    parts = tmp_path / "codes.h5.parts"
    assert {p.name for p in parts.iterdir()} == {"0.h5", "1.h5"}
    # A damaged part is written again, a good one is not.
    (parts / "1.h5").write_bytes(b"half")
    before = (parts / "0.h5").stat().st_mtime_ns
    seen = []
    exported.export(
        tok, prepared, path, segment=24,
        progress=lambda d, n: seen.append((parts / "0.h5").stat().st_mtime_ns),
    )  # fmt: skip
    assert set(seen) == {before}
    assert not parts.exists()
    with h5py.File(whole) as a, h5py.File(path) as b:
        assert dict(a.attrs) == dict(b.attrs)
        for i in "012":
            for name in a[f"sessions/{i}"]:
                assert_array_equal(a[f"sessions/{i}/{name}"][()], b[f"sessions/{i}/{name}"][()])


def test_a_complete_file_stays_and_another_tokenizer_replaces_it(tmp_path):
    prepared, path = _prepared(), tmp_path / "codes.h5"
    exported.export(_tok(), prepared, path, segment=24)
    before = path.stat().st_mtime_ns
    exported.export(_tok(), prepared, path, segment=24)
    assert path.stat().st_mtime_ns == before
    exported.export(_tok(1), prepared, path, segment=24)
    assert exported.Codes(path).identity == exported.identity(_tok(1), prepared)


def test_ragged_trials_need_few_compilations():
    lengths = np.arange(8, 200)
    parts = [{"train": np.stack([np.zeros_like(lengths), lengths], 1)}]
    found = exported._lengths(parts, 4, 120)
    assert len(found) <= exported.LENGTHS and max(found) == 120
    few = [{"train": np.array([[0, 10], [10, 30], [30, 50]])}]
    assert exported._lengths(few, 4, 120) == [8, 20]


@pytest.mark.parametrize(
    ("codes", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (70_000, "uint32")]
)
def test_smallest_type(codes, dtype):
    assert exported.code_dtype(codes) == dtype


def test_a_file_that_is_none_is_one_clear_line(tmp_path):
    for name, content in {"a.h5": None, "b.h5": b"junk"}.items():
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(RunError, match="tokenized data set") as e:
            exported.Codes(tmp_path / name)
        assert name in str(e.value) and "\n" not in str(e.value)
