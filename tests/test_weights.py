"""Exported models: loaded as the run they came from, and refused in one line when broken."""

from __future__ import annotations

import json
import re
import shutil

import jax
import numpy as np
import pytest

import calm_jax
from calm_jax import cli, model_files, runs, weights
from calm_jax.errors import CalmError, WeightsError
from calm_jax.registry import MODELS, Model
from tests.test_decoding import QUICK, make_run, write

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    (folder / "data").mkdir()
    for i in range(2):
        write(folder / "data" / f"s{i}.npz", i, neurons=5 + i)
    make_run(folder / "run", folder / "data")
    assert cli.main(["export", str(folder / "run"), "--out", str(folder / "made")]) == 0
    return folder


@pytest.fixture
def copy(home, tmp_path):
    shutil.copytree(home / "made", tmp_path / "made")
    return tmp_path / "made"


def test_an_exported_model_is_the_run(home):
    a, b = runs.load(home / "run"), calm_jax.load(home / "made")
    for x, y in zip(jax.tree.leaves(a.model), jax.tree.leaves(b.model), strict=True):
        assert np.array_equal(x, y) and x.dtype == y.dtype
    assert b.run.tailored().transformer == a.run.tailored().transformer
    for name in ("session", "animal", "rate", "offset", "neuron"):
        assert np.array_equal(getattr(a.table, name), getattr(b.table, name))
    for x, y in zip(a.scalers.mean + a.scalers.sd, b.scalers.mean + b.scalers.sd, strict=True):
        assert np.array_equal(x, y)
    assert a.scalers.config == b.scalers.config
    assert a.scalers.split_hash == b.scalers.split_hash


def test_export_is_the_same_to_the_byte_and_names_no_folder_of_this_machine(home, tmp_path):
    made = weights.export(home / "run", tmp_path / "again")
    for name in ("model.json", "weights.safetensors", "split.json", "MODEL_CARD.md"):
        first, again = ((x / name).read_bytes() for x in (home / "made", tmp_path / "again"))
        assert first == again
        assert str(home).encode() not in first
    assert f'sha256="{made}"' in (home / "made" / "MODEL_CARD.md").read_text()
    assert calm_jax.load(home / "made", sha256=made).table.session.tolist() == ["s0", "s1"]


def test_the_card_tells_data_licence_limits_and_how_to_load(home):
    card = (home / "made" / "MODEL_CARD.md").read_text()
    for part in ("Load", "Data", "Training", "Metrics", "Licence", "Limits"):
        assert f"\n## {part}\n" in card
    assert "2 sessions of 2 animals, 11 neurons" in card
    assert "The data set is yours" in card and "no score is known" in card


def test_commands_take_an_exported_model(home, tmp_path, capsys):
    run, made, data = (str(home / x) for x in ("run", "made", "data"))
    for folder, out in ((run, "a"), (made, "b")):
        words = [folder, f"{data}/s0.npz", "--out", str(tmp_path / f"{out}.npz")]
        assert cli.main(["forecast", *words]) == 0
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert np.array_equal(a["mean"], b["mean"])
    words = ["--target", "speed", "--no-baselines", *QUICK, "--steps", "2"]
    assert cli.main(["decode", made, "--data", data, *words]) == 0
    for command in (["decode", made, "--target", "speed"], ["evaluate", made]):
        capsys.readouterr()
        assert cli.main(command) == 2
        assert "an exported model comes without its recordings" in capsys.readouterr().err


def _changed(copy, **fields):
    path = copy / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _without(copy, key):
    path = copy / "model.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


def _cut(copy, name, keep):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: int(keep * len(data))])


def _resaved(copy, change):
    """The arrays changed, and the sha256 with them: a wrong model in sound files."""
    content, arrays = model_files.read(copy)
    others = {n: (copy / n).read_bytes() for n in content["files"] if n != model_files.WEIGHTS}
    left = {k: v for k, v in content.items() if k in weights.KEYS}
    change(left, arrays)
    model_files.write(copy, left, arrays, others)


CASES = {
    "a later version": (lambda c: _changed(c, version=2), "a format version that this calm_jax"),
    "no version": (lambda c: _without(c, "version"), "found None; expected 1 to 1"),
    "another format": (lambda c: _changed(c, format="torch"), "another format; found 'torch'"),
    "no table": (lambda c: _without(c, "table"), "the key 'table' is missing"),
    "no files": (lambda c: _without(c, "files"), "the key 'files' is missing"),
    "a list": (lambda c: (c / "model.json").write_text("[]"), "another format; found 'list'"),
    "half a description": (lambda c: _cut(c, "model.json", 0.5), "no JSON"),
    "half the weights": (lambda c: _cut(c, "weights.safetensors", 0.5), "the file is damaged"),
    "no weights": (lambda c: (c / "weights.safetensors").unlink(), "is missing"),
    "another split": (lambda c: (c / "split.json").write_text("{}"), "found another sha256"),
    "out of the folder": (
        lambda c: _changed(c, files={"weights.safetensors": "0", "../x": "0"}),
        "the file is damaged",
    ),
    "an array gone": (
        lambda c: _resaved(c, lambda t, a: a.pop("transformer/token/embedding")),
        "transformer/token/embedding: missing",
    ),
    "another shape": (
        lambda c: _resaved(c, lambda t, a: a.update({"tokenizer/quantizer/codebook": np.ones(3)})),
        "found tokenizer/quantizer/codebook: (3,)",
    ),
    "an unknown field": (
        lambda c: _resaved(c, lambda t, a: t["experiment"].update(colour=1)),
        "unknown field 'colour'",
    ),
    "a table of text": (
        lambda c: _resaved(c, lambda t, a: t.update(table="x")),
        "the description does not fit the model",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_model_is_one_clear_line(copy, case):
    damage, wanted = CASES[case]
    damage(copy)
    with pytest.raises(WeightsError, match=re.escape(wanted)) as e:
        calm_jax.load(copy)
    assert "\n" not in str(e.value) and str(copy) in str(e.value)


def test_sha256_is_checked(copy, home):
    with pytest.raises(WeightsError, match="not the model that was asked for"):
        calm_jax.load(copy, sha256="0" * 64)
    with pytest.raises(WeightsError, match="only an exported model can be checked"):
        calm_jax.load(home / "run", sha256="0" * 64)


def test_names_are_found_below_the_folders_of_models(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="calm-jax pretrain celegans"):
        calm_jax.load("celegans")
    with pytest.raises(WeightsError, match="Did you mean 'calm_base'"):
        calm_jax.load("calm_bose")
    shutil.copytree(home / "made", tmp_path / "weights" / "mine")
    assert calm_jax.load("mine").table.session.tolist() == ["s0", "s1"]
    shutil.copytree(home / "made", tmp_path / "other" / "calm_base")
    monkeypatch.setenv("CALM_JAX_WEIGHTS", str(tmp_path / "other"))
    assert calm_jax.load("calm_base").table.session.tolist() == ["s0", "s1"]
    monkeypatch.setitem(MODELS, "calm_base", Model("a model", sha256="1" * 64))
    with pytest.raises(WeightsError, match="not the model that was asked for"):
        calm_jax.load("calm_base")


def test_export_does_not_write_into_a_run_or_from_half_of_one(home, tmp_path, capsys):
    with pytest.raises(CalmError, match="the folder holds a run"):
        weights.export(home / "run", home / "run")
    assert cli.main(["export", str(home / "made"), "--out", str(tmp_path / "x")]) == 2
    assert "not a run folder" in capsys.readouterr().err
