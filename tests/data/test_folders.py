"""Builds of many recordings: resumed, in parallel, with unreadable files among them."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from calm_jax.config import Data
from calm_jax.errors import RecordingError
from calm_jax.recordings import build as build_module
from calm_jax.recordings.build import build
from calm_jax.recordings.formats.interchange import write_interchange
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import open_store
from data import workers
from data.interchange.builder import Interchange
from tests.recordings.allen_files import write_allen


def write_folder(folder, count=4, **changes):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        x = rng.normal(size=(50 + i, 3 + i)).astype(np.float32)
        s = Session(x, rate=10.0, session=f"s{i}", animal="m", **changes)
        write_interchange(s, folder / f"{i}.h5")
    return folder


def contents(folder):
    """Every file of a store, to the byte; of `sessions.h5`, whose groups are dated, the values."""
    out = {
        p.name: p.read_bytes()
        for p in sorted(folder.iterdir())
        if p.name not in ("dataset_info.json", "sessions.h5")
    }
    with h5py.File(folder / "sessions.h5") as file:
        file.visititems(
            lambda name, x: (
                out.update({name: (str(x.dtype), x.shape, str(np.asarray(x[()]).tolist()))})
                if isinstance(x, h5py.Dataset)
                else None
            )
        )
    return out


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read, in order."""
    seen, true = [], Interchange.session.__func__

    def noted(cls, source, config):
        seen.append(source.name)
        return true(cls, source, config)

    monkeypatch.setattr(Interchange, "session", classmethod(noted))
    return seen


def test_an_interrupted_build_goes_on_with_the_next_session(tmp_path, reads, monkeypatch):
    source = write_folder(tmp_path / "files")
    data = Data("interchange", source=str(source), store=str(tmp_path / "built"))
    true = Interchange.session.__func__

    def interrupted(cls, source, config):
        if source.name == "2.h5":
            raise KeyboardInterrupt
        return true(cls, source, config)

    with monkeypatch.context() as m:
        m.setattr(Interchange, "session", classmethod(interrupted))
        with pytest.raises(KeyboardInterrupt):
            build(data)
    assert reads == ["0.h5", "1.h5"]
    folder = build(data)
    assert reads == ["0.h5", "1.h5", "2.h5", "3.h5"]
    whole = build(Data("interchange", source=str(source), store=str(tmp_path / "again")))
    assert contents(folder) == contents(whole)
    assert not [p for p in (tmp_path / "built").rglob("unfinished*/*") if p.name != ".lock"]


def test_a_part_that_was_damaged_or_changed_is_made_again(tmp_path, reads):
    source = write_folder(tmp_path / "files")
    data = Data("interchange", source=str(source), store=str(tmp_path / "built"))
    (source / "9.h5").write_bytes(b"no recording")
    with pytest.raises(RecordingError, match=r"9\.h5: not an interchange file"):
        build(data)
    [unfinished] = (tmp_path / "built" / "interchange").glob("unfinished.*")
    parts = sorted(p for p in unfinished.iterdir() if p.is_dir())
    assert len(parts) == 4
    os.truncate(parts[0] / "0.records", 100)
    (parts[1] / "part.json").write_text("{")
    os.utime(source / "3.h5", ns=(1, 1))
    (source / "9.h5").unlink()
    reads.clear()
    folder = build(data)
    assert 2 <= len(reads) <= 3 and "3.h5" in reads  # 3.h5 may be one of the two
    whole = build(Data("interchange", source=str(source), store=str(tmp_path / "again")))
    assert contents(folder) == contents(whole)


def test_the_number_of_workers_does_not_change_the_store(tmp_path):
    source = write_folder(tmp_path / "files", 5)
    made = [
        build(Data("interchange", source=str(source), store=str(tmp_path / str(n))), workers=n)
        for n in (1, 2)
    ]
    assert contents(made[0]) == contents(made[1])
    assert [s.session for s in open_store(made[1]).sessions] == [f"s{i}" for i in range(5)]


def test_all_unreadable_files_are_listed_or_left_out(tmp_path, capsys):
    source = write_folder(tmp_path / "files")
    for name in ("0b.npz", "2b.h5"):
        (source / name).write_bytes(b"no recording")
    data = Data("interchange", source=str(source), store=str(tmp_path / "built"))
    with pytest.raises(RecordingError, match="2 of 6 recordings cannot be read") as e:
        build(data)
    assert "0b.npz: not an" in str(e.value) and "2b.h5: not an" in str(e.value)
    assert "--skip-unreadable" in str(e.value)
    folder = build(data, skip_unreadable=True)
    store = open_store(folder)
    assert [s.session for s in store.sessions] == ["s0", "s1", "s2", "s3"]
    assert len(json.loads((folder / "left_out.json").read_text())) == 2
    said = capsys.readouterr().err
    assert "built without 2 recordings" in said and "2b.h5: not an interchange file" in said
    assert build(data) == folder  # told again to whoever uses it
    assert "built without 2 recordings" in capsys.readouterr().err
    # Sessions are numbered in the store as if the unreadable files had not been there.
    for name in ("0b.npz", "2b.h5"):
        (source / name).unlink()
    whole = build(data)
    left, same = contents(folder), contents(whole)
    left.pop("left_out.json")
    assert left == same
    with pytest.raises(RecordingError, match="not an interchange file"):
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "x.npz").write_bytes(b"no")
        build(
            Data("interchange", source=str(tmp_path / "bad"), store=str(tmp_path)),
            skip_unreadable=True,
        )


def _fails(item):
    if item == "dies":
        os._exit(11)
    if item == "memory":
        raise MemoryError
    if item == "bug":
        raise ZeroDivisionError("here")
    return item.upper()


def test_a_process_that_dies_takes_one_recording_with_it():
    items = ["a", "dies", "memory", "b", "c"]
    done = dict(workers.run(_fails, items, 2, lambda x: f"file {x}"))
    assert [done[i] for i in (0, 3, 4)] == ["A", "B", "C"]
    assert "file dies: reading this ended its process; found exit status 11" in str(done[1])
    assert "does not fit into memory" in str(done[2])
    with pytest.raises(RuntimeError, match="ZeroDivisionError: here"):
        list(workers.run(_fails, ["bug", "a"], 2, str))


def test_options_and_the_rate_belong_to_the_store(tmp_path):
    source = tmp_path / "files"
    (source / "day").mkdir(parents=True)
    write_allen(source / "day" / "1.nwb")
    plain = Data("allen_visual_coding", source=str(source), store=str(tmp_path / "built"))
    raw = Data(**{**vars(plain), "read": ("traces=fluorescence",)})
    folders = {build(plain), build(raw)}
    assert len(folders) == 2
    assert {open_store(f).sessions[0].unit for f in folders} == {"dF/F", "a.u."}
    with pytest.raises(RecordingError, match="has no option 'trace'.*Did you mean 'traces'"):
        build(Data(**{**vars(plain), "read": ("trace=dff",)}))


def test_a_damaged_file_of_the_wanted_kind_is_no_hole(tmp_path):
    source = tmp_path / "files"
    (source / "a" / "b").mkdir(parents=True)
    write_allen(source / "a" / "1.nwb")
    write_allen(source / "a" / "b" / "2.nwb")
    os.truncate(source / "a" / "b" / "2.nwb", 3000)
    (source / "notes.txt").write_text("not a recording")
    (source / "a" / "loop").symlink_to(source)
    with pytest.raises(RecordingError, match=r"2\.nwb: .*(damaged|cut short)"):
        build(Data("allen_visual_coding", source=str(source), store=str(tmp_path / "built")))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RecordingError, match="no recording in this folder; expected Allen Brain"):
        build(Data("allen_visual_coding", source=str(empty), store=str(tmp_path / "built")))


def test_a_folder_by_animal_names_the_animal(tmp_path):
    source = tmp_path / "files"
    for animal in ("m1", "m2"):
        plane = source / animal / "day1" / "suite2p" / "plane0"
        plane.mkdir(parents=True)
        rng = np.random.default_rng(1)
        f = (1000 + 50 * rng.random((4, 300))).astype(np.float32)
        np.save(plane / "F.npy", f)
        np.save(plane / "Fneu.npy", f / 3)
        np.save(plane / "iscell.npy", np.ones((4, 2)))
    data = Data(
        "suite2p", source=str(source), store=str(tmp_path / "built"), read=("rate=30",)
    )
    store = open_store(build(data))
    assert [s.animal for s in store.sessions] == ["m1", "m2"]
    assert "animal 'm1': the name of the folder" in store.session(0).notes


def test_no_console_is_needed(tmp_path):
    source = write_folder(tmp_path / "files", 1)
    flags = ["--source", str(source), "--store", str(tmp_path)]
    assert build_module.main(["interchange", *flags]) == 0


def real(name):
    root = os.environ.get("CALM_JAX_RECORDINGS")
    if not root:
        pytest.skip("CALM_JAX_RECORDINGS names no folder with recordings")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return folder


def test_real_suite2p_folders(tmp_path):
    folder = real("formats")
    data = Data("suite2p", source=str(folder), store=str(tmp_path), read=("rate=10",))
    store = open_store(build(data))
    assert len(store.sessions) == 3
