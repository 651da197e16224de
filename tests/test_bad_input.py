"""Whatever a user gives wrongly: one line that helps, status 2, nothing lost."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest

from calm_jax import cli, files
from tests.tiny import arguments, pretrain, recording

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


FEW = "--tokenizer-training.steps 8 --transformer-training.steps 4 --data.simulation.trials 12"


@pytest.fixture(scope="module")
def run(home, quick_compilation):
    """A finished run; never changed."""
    return pretrain(home, "run", *FEW.split())


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, to be damaged."""
    return shutil.copytree(run, tmp_path / "copy")


def error(capsys, *words, status=2):
    """The last line on standard error; there is no traceback and no other error."""
    capsys.readouterr()
    assert cli.main([str(w) for w in words]) == status
    err = capsys.readouterr().err
    assert err.count("error:") == 1 and "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def again(home, run, *flags):
    """The words of the pretrain command for a folder that need not lie in `home`."""
    words = arguments(home, "run", *FEW.split(), *flags)
    words[words.index("--run") + 1] = str(run)
    return words


# Recordings


def bad_files(folder):
    """File name and words that its error holds."""
    good = recording(folder / "good.npz")
    content = good.read_bytes()
    (folder / "text.npz").write_text("time,neuron 1\n0,1\n")
    (folder / "notes.txt").write_text("a diary")
    (folder / "cut.npz").write_bytes(content[: len(content) // 2])
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    traces = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    nan, inf = traces.copy(), traces.copy()
    nan[17, 2], inf[17, 2] = np.nan, np.inf
    overlapping = {"trial_start": [0, 50], "trial_stop": [60, 120]}
    empty = {"trial_start": [0, 50], "trial_stop": [50, 50]}
    made = {
        "nan": {"traces": nan},
        "infinite": {"traces": inf},
        "no_neurons": {"traces": traces[:, :0]},
        "negative_rate": {"rate": -5.0},
        "no_rate": {"rate": None},
        "overlapping": overlapping,
        "empty_trial": empty,
        "behaviour": {"behavior/speed": np.zeros(299)},
        "short": {"traces": traces[:20]},
    }
    for name, fields in made.items():
        recording(folder / f"{name}.npz", **({"traces": traces} | fields))
    return folder


WORDS = {
    "missing.npz": ["no such file"],
    "text.npz": ["text.npz"],
    "notes.txt": ["not a recording of a known format", "expected"],
    "cut.npz": ["damaged"],
    "picture.png": ["not a recording of a known format"],
    "nan.npz": ["traces", "17"],
    "infinite.npz": ["traces", "17"],
    "no_neurons.npz": ["traces"],
    "negative_rate.npz": ["rate", "-5"],
    "no_rate.npz": ["rate", "timestamps"],
    "overlapping.npz": ["trial"],
    "empty_trial.npz": ["trial"],
    "behaviour.npz": ["speed", "299", "300"],
    "short.npz": ["fewer frames", "20", "48"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bad_files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("command", ["forecast", "evaluate", "pretrain"])
def test_recordings(run, folder, tmp_path, capsys, command, name):
    file = folder / name
    words = {
        "forecast": ["forecast", run, file, "--out", tmp_path / "p.npz"],
        "evaluate": ["evaluate", run, "--data", file],
        "pretrain": [
            "pretrain", "calm_tiny", "--data.name", "interchange", "--data.source", file,
            "--data.store", tmp_path / "store", "--run", tmp_path / "run",
        ],
    }[command]  # fmt: skip
    if command == "pretrain" and name in ("notes.txt", "picture.png", "short.npz"):
        line = error(capsys, *words)  # a source is searched for recordings; 20 frames are split
    else:
        line = error(capsys, *words)
        assert all(w in line for w in WORDS[name]), line
    assert file.stem in line
    assert not (tmp_path / "p.npz").exists()


def test_a_broken_file_among_good_ones_is_named(run, tmp_path, capsys):
    for i in range(2):
        recording(tmp_path / f"good{i}.npz")
    (tmp_path / "torn.npz").write_bytes((tmp_path / "good0.npz").read_bytes()[:900])
    assert "torn.npz" in error(capsys, "evaluate", run, "--data", tmp_path)
    words = ["--data.name", "interchange", "--data.source", tmp_path]
    words += ["--data.store", tmp_path / "store", "--run", tmp_path / "run"]
    assert "torn.npz" in error(capsys, "pretrain", "calm_tiny", *words)


def test_an_empty_folder_and_no_source(run, tmp_path, capsys):
    assert "no recording in this folder" in error(capsys, "evaluate", run, "--data", tmp_path)
    words = ["pretrain", "celegans", "--run", tmp_path / "run", "--data.store", tmp_path / "s"]
    assert "source" in error(capsys, *words)


def test_constant_traces_are_counted_or_refused(run, tmp_path, capsys):
    traces = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
    traces[:, 1] = 3.0
    some = recording(tmp_path / "some.npz", traces=traces)
    out = tmp_path / "p.npz"
    assert cli.main(["forecast", str(run), str(some), "--out", str(out)]) == 0
    assert "1 of 5 traces are constant or all but silent" in capsys.readouterr().err
    np.testing.assert_allclose(np.load(out)["mean"][:, 1], 3.0, atol=3.0)
    none = recording(tmp_path / "none.npz", traces=np.ones((600, 5), np.float32))
    for words in (["forecast", run, none, "--out", out], ["evaluate", run, "--data", none]):
        assert "every trace is constant" in error(capsys, *words)
    words = ["--data.name", "interchange", "--data.source", none]
    words += ["--data.store", tmp_path / "store", "--run", tmp_path / "run"]
    assert "session none: every trace is constant" in error(capsys, "pretrain", "calm_tiny", *words)


# Commands


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--origin", "0"], ["outside the recording", "1 to 500"]),
        (["--origin", "-4"], ["outside the recording", "-4"]),
        (["--origin", "501"], ["outside the recording", "501"]),
        (["--samples", "-1"], ["--samples", "negative"]),
        (["--horizon", "0"], ["--horizon", "positive"]),
        (["--horizon", "many"], ["--horizon", "many"]),
        (["--context", "600"], ["fewer frames than the context", "500", "600"]),
        (["--context", "2"], ["shorter than one code"]),
        (["--origin", "20"], ["fewer frames", "20", "48"]),
    ],
)
def test_forecast_flags(run, tmp_path, capsys, flags, words):
    file = recording(tmp_path / "good.npz")
    line = error(capsys, "forecast", run, file, "--out", tmp_path / "p.npz", *flags)
    assert all(w in line for w in words), line


def test_the_output_cannot_be_written(run, tmp_path, capsys):
    file = recording(tmp_path / "good.npz")
    assert "cannot be written" in error(capsys, "forecast", run, file, "--out", tmp_path)
    assert "cannot be written" in error(capsys, "forecast", run, file, "--out", file / "p.npz")


def test_experiments_and_fields(home, capsys):
    assert "Did you mean 'calm_tiny'" in error(capsys, "pretrain", "calm_tny")
    assert "transformer.layers" in error(capsys, "pretrain", "calm_tiny", "--transformer.layrs", 2)
    assert "two" in error(capsys, "pretrain", "calm_tiny", "--transformer.layers", "two")
    line = error(capsys, *again(home, home / "new", "--tokenizer-training.epochs", "2"))
    assert "give steps or epochs" in line and not (home / "new").exists()


# Run folders


def test_a_run_of_another_experiment(home, run, capsys):
    before = (run / "experiment.json").read_text()
    line = error(capsys, *again(home, run, "--transformer.width", "48", "--seed", "5"))
    assert "another experiment" in line and "transformer.width: 32 -> 48" in line
    assert "seed: 0 -> 5" in line and "--run" in line
    assert (run / "experiment.json").read_text() == before


@pytest.mark.parametrize("command", ["forecast", "evaluate", "report"])
def test_a_folder_that_is_no_run(tmp_path, capsys, command):
    file = recording(tmp_path / "good.npz")
    rest = [file, "--out", tmp_path / "p.npz"] if command == "forecast" else []
    assert "not a run folder" in error(capsys, command, tmp_path, *rest)
    assert "not a run folder" in error(capsys, command, tmp_path / "nothing", *rest)


def test_a_run_whose_training_is_not_finished(copy, tmp_path, capsys):
    done = json.loads((copy / "stages.json").read_text())
    del done["transformer"]
    (copy / "stages.json").write_text(json.dumps(done))
    file = recording(tmp_path / "good.npz")
    for words in (["forecast", copy, file, "--out", tmp_path / "p.npz"], ["evaluate", copy]):
        line = error(capsys, *words)
        assert "not finished" in line and "no transformer yet" in line and "pretrain" in line


@pytest.mark.parametrize("how", ["cut", "other", "empty"])
@pytest.mark.parametrize(
    "name",
    ["transformer/model.npz", "scalers.npz", "sessions.npz", "stages.json", "split.json",
     "codes.h5", "experiment.json"],
)  # fmt: skip
def test_damaged_parts_of_a_run(home, run, copy, capsys, name, how):
    part = copy / name
    content = part.read_bytes()
    part.write_bytes({"cut": content[: len(content) // 2], "other": b"[1]", "empty": b""}[how])
    if name == "codes.h5":  # read by training and evaluation only
        (copy / "evaluation" / "rows.json").unlink()
        line = error(capsys, *again(home, copy))
    elif name == "split.json":
        line = error(capsys, "evaluate", copy)
    else:
        line = error(capsys, "forecast", copy, copy / "x.npz", "--out", copy / "p.npz")
    assert name in line
    if name != "experiment.json":
        assert "Remove" in line and "pretrain" in line
        part.unlink()
        if name in ("scalers.npz", "sessions.npz", "split.json"):
            assert cli.main(again(home, copy)) == 0  # the remedy is true


# A full disk

WRITES = {
    "split.json": "prepare",
    "model.npz": "tokenizer",
    "codes.h5": "codes",
    "rows.json": "evaluation",
    "report.html": "report",
}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_loses_nothing(home, copy, monkeypatch, capsys, name):
    stage = WRITES[name]
    done = json.loads((copy / "stages.json").read_text())
    kept = {k: v for k, v in done.items() if k != stage}
    (copy / "stages.json").write_text(json.dumps(kept))
    for part in copy.rglob(name):
        if part.parent.name != "transformer":
            part.unlink()
    replace = files.os.replace

    def full(source, target):
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    with monkeypatch.context() as m:
        m.setattr(files.os, "replace", full)
        line = error(capsys, *again(home, copy))
    assert "disk is full" in line and name in line and "same command" in line
    assert json.loads((copy / "stages.json").read_text()) == kept
    assert not list(copy.rglob(f".{name}*"))
    assert cli.main(again(home, copy)) == 0
    assert set(json.loads((copy / "stages.json").read_text())) == set(done)
