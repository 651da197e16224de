"""A tiny visual experiment from recordings to report and table, once."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from calm_jax import cli, compilation, experiments_loader
from calm_jax.analyses.result import Result
from calm_jax.errors import ConfigError, RunError
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.training.state import named
from calm_jax.visual import cohorts, freezing, latents, runs, stages, table
from calm_jax.visual.experiment import Line, Table
from calm_jax.visual.material import VisualSettings, material_of

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


def test_two_processes_give_what_one_gives(home):
    words = ["pretrain", str(home / "tiny.py"), "--run", str(home / "both"), "--processes", "2"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-m", "calm_jax", *words],
        env={**environment, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("gratings step 4/4  validation") == 1
    one, two = (
        json.loads((home / name / "results.json").read_text()) for name in ("run", "both")
    )
    assert one["cohorts"] == two["cohorts"] and len(one["rows"]) == len(two["rows"])
    for a, b in zip(one["rows"], two["rows"]):
        assert a | {"value": pytest.approx(a["value"], rel=1e-3, abs=1e-4)} == b
    for name in ("gratings", "movie"):
        a, b = (np.load(home / k / name / "model.npz") for k in ("run", "both"))
        assert sorted(a) == sorted(b)
        for leaf in a:
            np.testing.assert_allclose(a[leaf], b[leaf], atol=1e-4, err_msg=leaf)


# Analyses


def analyze(run, *words: str, code: int = 0) -> None:
    assert cli.main(["analyze", str(run), *words]) == code


def test_a_run_is_analysed_beside_itself_and_the_page_shows_it(home):
    run = home / "run"
    words = ["--only", "latents", "codes", "--beside", str(run), "--json", str(home / "rows.json")]
    analyze(run, *words)
    rows = json.loads((home / "rows.json").read_text(), parse_constant=pytest.fail)
    values = {(r["method"], r["metric"], r["session"]): r["value"] for r in rows}
    for name in ("gratings", "movie"):
        # The same encoder under another name: what is compared is of the same windows.
        assert values[f"{name}/poyo", "cka_with_run", None] == pytest.approx(1, abs=1e-9)
        assert values[f"{name}/poyo", "procrustes_to_run", None] == pytest.approx(0, abs=1e-6)
        for space in ("pretrained", "untrained", "traces"):
            assert 0 <= values[f"{name}/poyo", f"cka_with_{space}", None] < 0.999
    scored = json.loads((run / "results.json").read_text())["cohorts"]["scored"]
    assert {r["session"] for r in rows} - {None} == set(scored)
    page = (run / "report.html").read_text()
    for title in ("Latent spaces", "Not of this run", "The run"):
        assert f'<a href="#{title.lower().replace(" ", "-")}">{title}</a>' in page
    assert 'id="fig-tsne_gratings_poyo"' in page and "a visual run has no codes" in page
    assert "calm-jax analyze" in page and "too few test windows" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and not re.search(r'(src|href)="https?:', page)


def test_latents_are_of_test_windows_and_do_not_depend_on_their_batch(home):
    run = runs.load(home / "run")
    task = run.task("gratings")
    shown = latents.windows(task, run)
    ids = [s.session for s in run.store.sessions]
    assert {ids[i] for i in shown.session} == set(run.cohorts.scored)
    for i, start in zip(shown.session, shown.start):
        inside = task.prepared.splits.parts[i]["test"]
        assert ((inside[:, 0] <= start) & (start + task._frames[i] <= inside[:, 1])).any()
    space = latents.Space(task, run.fine_tuned("gratings", task))
    states, order = space.states(shown), np.random.default_rng(0).permutation(len(shown))
    np.testing.assert_allclose(space.states(shown.take(order)), states[order], atol=1e-6)


@pytest.mark.long
def test_frozen_parts_stay_and_fine_tuning_is_done_once(home, monkeypatch):
    run = runs.load(home / "run")
    e = dataclasses.replace(run.experiment, tasks=("gratings",))
    run = runs.VisualRun(run.folder, run.shared, e, run.results)
    made = material_of(run, VisualSettings(), home / "analysis", print)
    result = Result("freezing", 0)
    with compilation.effort("quick"):
        freezing.run_freezing(made, result)
    assert "thirds of the encoder: it has 1 block" in result.missing[0]
    assert result.value("gratings/linear", "accuracy") >= 0  # of the run, beside them
    begin = named(run.pretrained[0]["encoder"]["blocks"]).items()
    for variant, same in (("all", True), ("none", False)):
        folder = home / "analysis" / "freezing" / f"gratings_{variant}_seed0"
        with np.load(folder / "model.npz") as file:
            learned = dict(file)
        equal = [np.array_equal(learned[f"encoder/blocks/{k}"], v) for k, v in begin]
        assert all(equal) == same
    # With nothing frozen and as many steps it is the fine-tuning of the run itself.
    with np.load(home / "run" / "gratings" / "model.npz") as file:
        assert set(file) == set(learned)
        for k in file:
            np.testing.assert_allclose(learned[k], file[k], rtol=1e-5, atol=1e-7)
    assert result.value("gratings/none", "accuracy") == result.value("gratings/poyo", "accuracy")
    monkeypatch.setattr(freezing, "train", lambda *_, **__: pytest.fail("trained again"))
    changed = freezing._variant(e, "gratings", "none", 4, 0)
    task = run.task("gratings", changed)
    params = freezing._trained(task, changed.gratings_training, changed, folder, made)
    for k, v in named(params["encoder"]["blocks"]).items():
        np.testing.assert_array_equal(v, learned[f"encoder/blocks/{k}"])


def test_what_is_not_possible_is_one_line_and_wrong_flags_are_told(home, tmp_path, capsys):
    copy = tmp_path / "run"
    copy.mkdir()
    found = json.loads((home / "run" / "results.json").read_text())
    found["cohorts"]["predictable"] = []  # nothing was selected
    (copy / "results.json").write_text(json.dumps(found))
    analyze(copy, "--only", "information", "landscape", "latents", "freezing", "--no-report")
    said = capsys.readouterr().err
    for wanted in ("a comparison needs two groups", "no session is of predictable lines",
                   "the pretrained encoder of this run is missing"):  # fmt: skip
        assert wanted in said
    lines = json.loads((copy / "analysis" / "information.json").read_text())["rows"]
    assert {r["method"] for r in lines} >= {"cell_line CUX2", "cell_line SST"}
    analyze(copy, "--only", "latents", "--beside", str(tmp_path), code=2)
    assert "no run of a visual experiment" in capsys.readouterr().err
    analyze(copy, "--labels", "trial/cue", code=2)
    assert "--labels belongs to a CalM run" in capsys.readouterr().err
    (copy / "results.json").unlink()
    (copy / "experiment.json").write_bytes((home / "run" / "experiment.json").read_bytes())
    analyze(copy, code=2)
    assert "the run is not finished" in capsys.readouterr().err


def test_gratings_that_pretraining_never_saw_are_told(home):
    e = experiments_loader.load_experiment(str(home / "tiny.py"))
    store = open_store(build(e.data))
    who = cohorts.make(store, e.diet, e.split, 0)
    assert stages.read(next(home.glob("run/pretrained/*/pretraining.json")))["classes"] == [
        0, 90, 180, 270,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="never saw some of the gratings"):
        stages._gratings(e, store, who, {}, {"classes": [0.0, 90.0]}, print)


@pytest.mark.long
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
    line = runs.load(folder / "ours" / "seed0")  # a line is a run, its pretraining that of all
    assert line.label == "ours" and line.shared == (folder / "pretrained").resolve()
    assert line.command == f"calm-jax table tiny --run {folder}" and runs.is_visual(line.folder)
    with pytest.raises(ConfigError, match="no line 'x'"):
        table.make(made, folder, seeds=1, only=("x",))
    changed = dataclasses.replace(e, split=dataclasses.replace(e.split, seed=3))
    place = table.place(folder, made.lines[0], e)
    with pytest.raises(RunError, match="another experiment"):
        stages.run(changed, None, place, print)
