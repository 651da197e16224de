"""The command line: what it parses, what it says about mistakes, what it calls."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import calm_jax
from calm_jax import cli, experiments_loader
from calm_jax.commands import fields, flags
from calm_jax.config import Experiment, Simulation
from calm_jax.errors import ConfigError, RunError

EXPERIMENT = """
from dataclasses import replace
from calm_jax.config import DualAxis, Experiment

def experiment():
    return Experiment("mine", transformer=DualAxis(layers=3))
"""


@pytest.fixture
def calls(monkeypatch):
    """Stands for the pipeline: what it was called with."""
    made = []

    def noted(name, result=None):
        return lambda *a, **k: made.append((name, a, k)) or result

    fake = types.ModuleType("calm_jax.pipeline")
    fake.pretrain = noted("pretrain")
    fake.forecast_file = noted("forecast", (None, ("mean embeddings",)))
    fake.evaluate_run = noted("evaluate")
    fake.write_report = noted("report")
    monkeypatch.setitem(sys.modules, "calm_jax.pipeline", fake)
    monkeypatch.setattr(calm_jax, "pipeline", fake, raising=False)
    monkeypatch.setattr(flags, "start_jax", lambda: None)
    return made


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENT)
    return str(path)


def said(capsys, *arguments, status=2):
    """The one line on standard error."""
    assert cli.main([str(a) for a in arguments]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_pretrain_with_typed_flags(calls, mine):
    flags = "--transformer.layers 2 --preprocess.z_score False --data.held-out a b".split()
    flags += ["--tokenizer.code-width=8", "--transformer_training.ema", "None", "--seed", "3"]
    assert cli.main(["pretrain", mine, *flags]) == 0
    ((name, (experiment, run), _),) = calls
    assert name == "pretrain" and run == Path("runs/mine")
    assert experiment.transformer.layers == 2 and experiment.preprocess.z_score is False
    assert experiment.data.held_out == ("a", "b") and experiment.tokenizer.code_width == 8
    assert experiment.transformer_training.ema is None and experiment.seed == 3
    assert experiment.transformer.width == Experiment("x").transformer.width


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_run_folder_can_be_named(calls, mine, order):
    run = ["--run", "there"]
    words = [*run, mine] if order == "before" else [mine, *run]
    assert cli.main(["pretrain", *words]) == 0
    assert calls[0][1] == (experiments_loader.load_experiment(mine), Path("there"))
    assert calls[0][1][0].transformer.layers == 3


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--transformer.layer", "2"], ["Did you mean --transformer.layers"]),
        (["--transfomer.layers=2"], ["Did you mean --transformer.layers"]),
        (["--transformer.layers", "two"], ["--transformer.layers", "'two'"]),
        (["--transformer.mixing", "sined"], ["'sined'", "softmax", "signed"]),
        (["--transformer.layers"], ["--transformer.layers", "Missing value"]),
        (["--preprocess.z-score", "maybe"], ["maybe", "True"]),
        (["stray"], ["stray"]),
    ],
)
def test_wrong_fields_are_explained(calls, mine, capsys, flags, words):
    text = said(capsys, "pretrain", mine, *flags)
    assert all(w in text for w in words), text
    assert calls == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "expected info, data, pretrain"),
        (["pretran", "x"], "Did you mean pretrain?"),
        (["info"], "PATH"),
        (["info", "--jsn", "x"], "Did you mean --json?"),
        (["forecast", "r"], "FILE"),
        (["forecast", "r", "f"], "--out"),
        (["forecast", "r", "f", "--out", "o", "--context", "0"], "positive number"),
        (["forecast", "r", "f", "--out", "o", "--horizn", "4"], "Did you mean --horizon?"),
        (["evaluate", "r", "--data"], "--data"),
        (["pretrain"], "no experiment named"),
        (["pretrain", "no/such.py"], "no such file"),
    ],
)
def test_wrong_commands_are_explained(calls, capsys, arguments, words):
    assert words in said(capsys, *arguments)
    assert calls == []


def test_an_unknown_experiment_names_the_nearest(tmp_path, monkeypatch, capsys):
    for name in ("calm_base", "calm_tiny", "_private"):
        (tmp_path / f"{name}.py").write_text(EXPERIMENT)
    assert experiments_loader.names(tmp_path) == ["calm_base", "calm_tiny"]
    with pytest.raises(ConfigError, match=r"'calm_bse'.*Did you mean 'calm_base'.*calm_tiny"):
        experiments_loader.load_experiment("calm_bse", tmp_path)
    assert "unknown experiment 'nothing_like_it'" in said(capsys, "pretrain", "nothing_like_it")


@pytest.mark.parametrize("text", ["x = 1", "def experiment():\n    return 5"])
def test_a_file_without_an_experiment(tmp_path, text):
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(ConfigError, match="holds no experiment"):
        experiments_loader.load_experiment(str(tmp_path / "odd.py"))


def test_experiments_of_the_repository_load():
    for name in experiments_loader.names():
        assert experiments_loader.load_experiment(name).name == name


def test_forecast_evaluate_report(calls, capsys):
    line = "forecast run file.npz --context 48 --horizon 16 --origin -3 --samples 4 --out p.npz"
    assert cli.main(line.split()) == 0
    assert capsys.readouterr().err == "note: mean embeddings\nwrote p.npz\n"
    assert cli.main("evaluate run --data d --json rows.json".split()) == 0
    assert cli.main("report run".split()) == 0
    wanted = {"context": 48, "horizon": 16, "origin": -3, "samples": 4, "out": Path("p.npz")}
    wanted |= {"options": (), "nwb": None}
    assert calls == [
        ("forecast", (Path("run"), Path("file.npz")), wanted),
        ("evaluate", (Path("run"),), {"data": Path("d"), "options": [], "out": Path("rows.json")}),
        ("report", (Path("run"),), {}),
    ]


def test_errors_are_one_line_and_bugs_keep_their_traceback(calls, monkeypatch, capsys):
    fake = sys.modules["calm_jax.pipeline"]

    def fails(error):
        def call(*a, **k):
            raise error

        return call

    monkeypatch.setattr(fake, "write_report", fails(RunError("not a run", where="here")))
    assert said(capsys, "report", "r") == "error: here: not a run\n"
    monkeypatch.setattr(fake, "write_report", fails(KeyboardInterrupt()))
    assert cli.main(["report", "r"]) == 130
    monkeypatch.setattr(fake, "write_report", fails(KeyError("bug")))
    with pytest.raises(KeyError):
        cli.main(["report", "r"])


def test_help_lists_every_field(mine, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(["pretrain", mine, "--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0 and "--run DIR" in text
    assert all(flag in text for flag in fields.field_flags(Experiment))
    assert len(fields.field_flags(Simulation)) == len(dataclasses.fields(Simulation))
    assert cli.main(["pretrain", "--help"]) == 0


def test_help_is_quick_and_light():
    code = "import sys; from calm_jax import cli\ntry: cli.main(['--help'])\nfinally:\n" + (
        " heavy = {'jax', 'matplotlib', 'tensorflow_datasets', 'tyro'} & set(sys.modules)\n"
        " print('heavy', heavy)"
    )
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "heavy set()" in out.stdout and "pretrain" in out.stdout
    assert time.monotonic() - start < 5  # 0.2 s on an idle machine


def test_lazy_names():
    assert calm_jax.Experiment is Experiment
    assert set(calm_jax._WHERE) < set(dir(calm_jax))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = calm_jax.nothing
    for name in calm_jax.__all__:
        assert getattr(calm_jax, name) is not None
