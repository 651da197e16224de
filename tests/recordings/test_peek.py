"""Large files are told from their headers, and options reach the readers."""

import json

import h5py
import numpy as np
import pytest

from calm_jax import config
from calm_jax.cli import main
from calm_jax.errors import RecordingError
from calm_jax.recordings import info
from calm_jax.recordings.build import build
from calm_jax.recordings.formats import options_from, peek_at, read
from calm_jax.recordings.formats.interchange import write_interchange
from calm_jax.recordings.loading import load_session
from calm_jax.recordings.session import Channel, Intervals, Session, Trials
from calm_jax.recordings.store import open_store
from tests.recordings.allen_files import write_allen


@pytest.fixture
def recording():
    rng = np.random.default_rng(0)
    return Session(
        rng.normal(size=(200, 5)).astype(np.float32),
        timestamps=np.cumsum(rng.uniform(0.09, 0.11, 200)),
        trials=Trials([0, 100], [80, 190], {"cue": np.array(["l", "r"])}),
        intervals={"light": Intervals([1.0], [2.0], {"power": np.array([3.0])})},
        behavior={"speed": Channel(rng.normal(size=9), times=np.arange(9))},
        animal="m",
        session="d",
        unit="dF/F",
        notes=("kept",),
    )


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_a_peek_says_what_reading_says(tmp_path, recording, suffix):
    path = tmp_path / f"x{suffix}"
    write_interchange(recording, path)
    p, s = peek_at(path), read(path)
    assert (p.session, p.animal, p.unit, p.notes) == (s.session, s.animal, s.unit, s.notes)
    assert (p.frames, p.neurons, p.trials) == (s.n_frames, s.n_neurons, len(s.trials))
    assert abs(p.rate - s.rate) < 1e-9
    assert set(p.behavior) == set(s.behavior) and dict(p.intervals) == {"light": 1}


def test_info_reads_only_the_headers_of_large_files(tmp_path, recording, monkeypatch, capsys):
    path = tmp_path / "x.h5"
    write_interchange(recording, path)
    monkeypatch.setattr(info, "LARGE", 1000)
    monkeypatch.setattr(info, "read", lambda *a, **k: pytest.fail("the traces were read"))
    assert main(["info", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "missing data not computed" in out and "--full" in out and "trials 2" in out
    assert main(["info", str(path), "--json"]) == 0
    [about] = json.loads(capsys.readouterr().out)
    assert about["missing"] is None and about["constant"] is None and about["frames"] == 200
    monkeypatch.undo()
    assert main(["info", str(path), "--json", "--full"]) == 0
    [whole] = json.loads(capsys.readouterr().out)
    assert whole["missing"] == 0 and whole["constant"] == []
    for name in ("session", "animal", "unit", "neurons", "frames", "rate", "intervals"):
        assert whole[name] == about[name]


def test_damaged_large_files_are_refused(tmp_path, recording):
    for name, change in (
        ("traces", lambda f: f.__delitem__("traces")),
        ("rate", lambda f: (f.__delitem__("rate"), f.__delitem__("timestamps"))),
    ):
        path = tmp_path / "x.h5"
        write_interchange(recording, path)
        with h5py.File(path, "r+") as f:
            change(f)
        with pytest.raises(RecordingError, match=f"{path}: {name}: no "):
            peek_at(path)


def test_options_of_the_command_line(tmp_path, capsys):
    assert options_from(["a=1", "b=true", "c=text", "d=[1, 2]", "e=x=y"]) == {
        "a": 1, "b": True, "c": "text", "d": [1, 2], "e": "x=y"
    }  # fmt: skip
    write_allen(tmp_path / "a.nwb")
    flags = ["--read", "traces=fluorescence"]
    assert main(["info", str(tmp_path / "a.nwb"), "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)[0]["unit"] == "a.u."
    assert main(["info", str(tmp_path / "a.nwb"), "--read", "trace=dff"]) == 2
    assert "has no option 'trace'" in capsys.readouterr().err
    store = ["--store", str(tmp_path / "built")]
    source = ["--source", str(tmp_path)]
    assert main(["data", "allen_visual_coding", *source, *store, *flags]) == 0
    folder = capsys.readouterr().out.strip()
    assert open_store(folder).sessions[0].unit == "a.u."
    assert main(["evaluate", str(tmp_path), "--read", "a=1"]) == 2
    assert "--read belongs to recordings named by --data" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "a.nwb"), "--read", "traces"]) == 2
    assert "an option without a value" in capsys.readouterr().err


def test_a_rate_resamples_files_and_stores(tmp_path, recording):
    source = tmp_path / "files"
    source.mkdir()
    write_interchange(recording, source / "x.npz")
    slow = load_session(source / "x.npz", rate=2.5)
    assert abs(slow.rate - 2.5) < 1e-9 and 45 <= slow.n_frames <= 51
    data = config.Data("interchange", source=str(source), store=str(tmp_path / "built"), rate=2.5)
    store = open_store(build(data))
    np.testing.assert_array_equal(store.session(0).traces, slow.traces)
    assert len(list((tmp_path / "built" / "interchange").glob("*/1.0.0"))) == 1


def test_experiments_without_the_new_fields_still_load():
    made = config.from_dict(config.Data, {"name": "interchange", "source": "x"})
    assert made.read == () and made.rate is None
    assert config.from_dict(config.Data, config.to_dict(made)) == made
