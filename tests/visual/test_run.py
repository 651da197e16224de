"""A tiny visual experiment from recordings to report and table, once."""

from __future__ import annotations

import dataclasses
import json

import pytest

from calm_jax import cli, experiments_loader
from calm_jax.errors import ConfigError, RunError
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.visual import cohorts, stages, table
from calm_jax.visual.experiment import Line, Table

TINY = """
import dataclasses
from calm_jax.config import Data
from calm_jax.models.movie_decoder import DecoderConfig
from calm_jax.models.population_encoder import EncoderConfig
from calm_jax.visual_config import VisualSimulation
from experiments import poyo_ssl

def experiment():
    base = poyo_ssl.experiment()
    short = lambda x: dataclasses.replace(
        x, steps=4, batch=4, eval_every=2, eval_batches=1, log_every=1)
    return dataclasses.replace(
        base, name="tiny", compilation="quick",
        data=Data(name="simulated_visual", store={store!r}, visual=VisualSimulation(
            lines=("SST", "PVALB", "CUX2", "RORB"), sessions=1, cells=12, directions=4,
            temporal_frequencies=(1.0,), grating_repeats=4, grating_blanks=2,
            movie_frames=60, movie_repeats=4, spontaneous=4.0, movie_height=32, movie_width=64)),
        encoder=EncoderConfig(width=8, depth=1, head_width=8, cross_heads=1, self_heads=1,
                              latents_per_step=1),
        decoder=DecoderConfig(kind="mlp", height=32, width=64, hidden=(8,)),
        pretraining=short(base.pretraining), gratings_training=short(base.gratings_training),
        movie_training=short(base.movie_training))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("visual")
    (folder / "tiny.py").write_text(TINY.replace("{store!r}", repr(str(folder / "data"))))
    assert cli.main(["pretrain", str(folder / "tiny.py"), "--run", str(folder / "run")]) == 0
    return folder


def test_a_run_leaves_results_and_a_report(home):
    found = json.loads((home / "run" / "results.json").read_text())
    values = {(r["task"], r["method"], r["metric"]): r["value"] for r in found["rows"]}
    assert values["gratings", "chance", "accuracy"] == 0.25
    assert {"poyo", "mean_frame", "nearest", "best_training_frame"} <= {k[1] for k in values}
    who = found["cohorts"]
    assert sorted(who["predictable"]) == ["PVALB", "SST"] and len(who["pretrain"]) == 4
    assert len(who["finetune"]) == 2 and not set(who["pretrain"]) & set(who["finetune"])
    page = (home / "run" / "report.html").read_text()
    assert page.count("<figure ") == 3 and "effective rank" in page and "http" not in page.replace(
        "http://www.w3.org", "")  # fmt: skip


def test_again_it_is_done_and_another_experiment_is_told(home, capsys):
    words = ["pretrain", str(home / "tiny.py"), "--run", str(home / "run")]
    assert cli.main(words) == 0
    assert "done before" in capsys.readouterr().err
    assert cli.main([*words, "--masking.ratio", "0.25"]) == 2
    assert "another experiment" in capsys.readouterr().err


def test_gratings_that_pretraining_never_saw_are_told(home):
    e = experiments_loader.load_experiment(str(home / "tiny.py"))
    store = open_store(build(e.data))
    who = cohorts.make(store, e.diet, e.split, 0)
    assert stages.read(next(home.glob("run/pretrained/*/pretraining.json")))["classes"] == [
        0, 90, 180, 270,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="never saw some of the gratings"):
        stages._gratings(e, store, who, {}, {"classes": [0.0, 90.0]}, print)


def test_a_table_goes_on_and_shares_pretraining(home):
    e = experiments_loader.load_experiment(str(home / "tiny.py"))
    e = dataclasses.replace(e, tasks=("movie",))
    scratch = dataclasses.replace(e, diet=dataclasses.replace(e.diet, pretrain="none"))
    still = dataclasses.replace(
        e, movie_tuning=dataclasses.replace(e.movie_tuning, freeze="all")
    )
    made = Table("tiny", "", (
        Line("ours", "a", e), Line("scratch", "a", scratch), Line("frozen", "a", still),
    ), "ours", "scratch")  # fmt: skip
    folder = home / "table"
    found = table.make(made, folder, seeds=1, only=("ours", "scratch"))
    assert [bool(x["metrics"]) for x in found["lines"]] == [True, True, False]
    assert len(list((folder / "pretrained").iterdir())) == 1
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("results.json")}
    found = table.make(made, folder, seeds=1)
    assert all(x["metrics"]["movie"]["seeds"] == 1 for x in found["lines"])
    assert len(list((folder / "pretrained").iterdir())) == 1
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert "p" in found["lines"][0]["metrics"]["movie"]
    with pytest.raises(ConfigError, match="no line 'x'"):
        table.make(made, folder, seeds=1, only=("x",))
    changed = dataclasses.replace(e, split=dataclasses.replace(e.split, seed=3))
    place = table.place(folder, made.lines[0], e)
    with pytest.raises(RunError, match="another experiment"):
        stages.run(changed, None, place, print)
