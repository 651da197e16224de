"""`calm-jax analyze` from end to end, on runs whose models have random weights."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from calm_jax import cli
from calm_jax.analyses.names import NAMES
from calm_jax.analyses.result import FOLDER, load, merged
from calm_jax.errors import RunError
from calm_jax.report import analyses, contents
from calm_jax.report.page import write_report
from tests.analysis import random_run as made

pytestmark = pytest.mark.usefixtures("quick_compilation")
FIELDS = {"analysis", "method", "session", "animal", "seed", "metric", "value"}


def analyze(run, *words: str, code: int = 0) -> None:
    quiet = ["--poco-seconds", "0", "--no-report"]
    assert cli.main(["analyze", str(run), *quiet, *words]) == code


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, quick_compilation):
    run = made.of_simulation(tmp_path_factory.mktemp("simulated"))
    analyze(run, "--json", str(run / "rows.json"), "--seed", "3")
    return run


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, quick_compilation):
    run = made.of_files(tmp_path_factory.mktemp("recorded"), 4)
    analyze(run, "--only", "tuning", "embeddings", "information")
    return run


def value(run, analysis: str, method: str, metric: str, session: str | None = None) -> float:
    return load(run / FOLDER, analysis).value(method, metric, session)


def test_every_analysis_is_saved_and_rows_are_strict_json(simulated):
    rows = json.loads((simulated / "rows.json").read_text(), parse_constant=pytest.fail)
    assert all(set(r) == FIELDS and r["seed"] == 3 for r in rows)
    with_numbers = set(NAMES) - {"tuning", "freezing"}
    assert with_numbers <= {r["analysis"] for r in rows}
    for name in NAMES:
        result = load(simulated / FOLDER, name)
        assert "--seed 3 --poco-seconds 0" in result.command


def test_what_is_not_possible_is_one_line(simulated):
    lines = [m for n in NAMES for m in load(simulated / FOLDER, n).missing]
    assert all("\n" not in line and "Traceback" not in line for line in lines)
    for wanted in ("no labels chosen", "budget is 0 s", "encoder freezing"):
        assert any(wanted in line for line in lines), wanted


def test_the_true_network_is_that_of_the_simulation(simulated):
    from calm_jax.runs import read_run
    from calm_jax.simulate.population import network, simulate

    config = read_run(simulated).experiment.data.simulation
    arrays = load(simulated / FOLDER, "coupling").arrays
    for k in range(2):
        j = simulate(config, k).coupling
        np.testing.assert_array_equal(network(config, k), j)
        np.testing.assert_array_equal(arrays[f"session{k}.true"], j)
    methods = ("response", "response_first", "mixing", "ridge", "ridge_first", "correlation")
    for method in methods:
        assert -1 <= value(simulated, "coupling", method, "r") <= 1
        assert 0 <= value(simulated, "coupling", method, "auc_sign", "sim0") <= 1


def test_page_has_the_sections_offline_and_report_draws_them_without_models(simulated, tmp_path):
    copy = shutil.copytree(simulated, tmp_path / "run")
    for name in ("tokenizer", "transformer", "codes.h5"):
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_report(copy)
    text = (copy / "report.html").read_text()
    for title in ("Embeddings", "Low-dimensional dynamics", "Couplings between neurons",
                  "Time constants", "Meaning of the codes", "Latent states"):  # fmt: skip
        key = title.lower().replace(" ", "-")
        assert f'<a href="#{key}">{title}</a>' in text
        assert f'<section id="{key}">' in text
    assert not re.search(r'(src|href)="https?:', text)
    assert "calm-jax analyze" in text
    for figure in ("coupling_r", "coupling_auc", "coupling_matrix", "time_constants",
                   "impulse", "code_gallery", "code_transitions", "code_graph", "tsne",
                   "dynamics_0"):  # fmt: skip
        assert f'id="fig-{figure}"' in text
        assert (copy / "figures" / f"{figure}.svg").stat().st_size > 1000
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_one_analysis_again_reads_the_other_and_repeats_to_the_digit(simulated, tmp_path):
    copy = shutil.copytree(simulated, tmp_path / "run")
    before = load(copy / FOLDER, "timescales")
    analyze(copy, "--only", "timescales", "--seed", "3")
    after = load(copy / FOLDER, "timescales")
    assert json.dumps(after.rows) == json.dumps(before.rows)
    np.testing.assert_array_equal(after.arrays["session0.impulse"],
                                  before.arrays["session0.impulse"])  # fmt: skip


def test_a_damaged_result_is_one_line_in_the_page(simulated, tmp_path):
    copy = shutil.copytree(simulated, tmp_path / "run")
    (copy / FOLDER / "codes.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(RunError, match="analyze"):
        load(copy / FOLDER, "codes")
    for name in set(NAMES) - {"codes"}:
        (copy / FOLDER / f"{name}.json").unlink()
    [(title, _, section, _)] = analyses.parts(contents.read(copy), [])
    assert title == "Meaning of the codes"
    assert "the file is damaged" in section.missing[0]


def test_cue_and_choice_are_taken_by_themselves(recorded):
    found = load(recorded / FOLDER, "tuning").facts["labels"]
    assert [f["name"] for f in found] == ["trial/cue", "trial/choice"]
    assert found[0]["classes"] == ["left", "right"]
    d = load(recorded / FOLDER, "tuning").arrays["label0.d"]
    assert d.shape == (32,)
    wanted = np.tile(np.where(np.arange(8) % 2, -1, 1), 4)  # odd ones are driven by "left"
    assert (np.sign(d) == wanted).mean() > 0.9
    rows = load(recorded / FOLDER, "embeddings").rows
    methods = {r["method"] for r in rows}
    assert "neuron embeddings -> area" in methods
    assert "neuron embeddings -> animal" in methods
    assert any("LDA by trial/cue+trial/choice" in m for m in methods)
    assert load(recorded / FOLDER, "information").facts["groups"] == "area"


def test_labels_of_behaviour_and_unknown_ones(recorded, tmp_path, capsys):
    copy = shutil.copytree(recorded, tmp_path / "run")
    analyze(copy, "--only", "tuning", "--labels", "speed", "spede")
    result = load(copy / FOLDER, "tuning")
    assert [f["name"] for f in result.facts["labels"]] == ["speed"]
    assert result.facts["labels"][0]["kind"] == "segments of 2 s"
    assert any("Did you mean speed?" in m for m in result.missing)
    assert "not possible: tuning to spede" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--only", "codez"], "Did you mean 'codes'?"),
        (["--labels", "a", "b", "c"], "at most two labels"),
        (["--seed", "-1"], "is negative"),
        (["--poco-seconds", "nan"], "not a number of seconds"),
        (["--read", "series=x"], "--read belongs to recordings named by --data"),
    ],
)
def test_wrong_words_are_one_line(recorded, capsys, words, message):
    analyze(recorded, *words, code=2)
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    analyze(tmp_path, code=2)
    assert "not a run folder" in capsys.readouterr().err


def test_one_session_of_two_neurons_and_a_model_of_codes_alone(tmp_path, capsys):
    """Fewer neurons than components, a constant one, no embeddings, no read-out."""
    x = np.random.default_rng(0).normal(size=(400, 3)).cumsum(0).astype(np.float32)
    x[:, 1] = 5.0
    fields = {"traces": x, "trial/choice": np.full(10, "left"), "neurons": 3, "neuron/area": None}
    run = made.of_files(tmp_path, 1, made.CODES_ALONE, **fields)
    analyze(run)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for wanted in ("no neuron embeddings", "2 of 20 components", "label needs two classes",
                   "softmax or inferred"):  # fmt: skip
        assert wanted in said, wanted
    response = load(run / FOLDER, "coupling").arrays["session0.response"]
    assert response.shape == (2, 2)
    assert np.isfinite(response).all()
    write_report(run)
    assert 'id="meaning-of-the-codes"' in (run / "report.html").read_text()


def test_a_session_without_a_neuron_that_varies_enough(tmp_path, capsys):
    x = np.full((400, 2), 3.0, np.float32)
    x[:, 0] = np.random.default_rng(0).normal(size=400)
    run = made.of_files(tmp_path, 1, traces=x, neurons=2, **{"neuron/area": None})
    analyze(run, "--only", "dynamics", "coupling", "latents", "landscape", "timescales")
    assert "1 neuron that varies" in capsys.readouterr().err


def test_recordings_of_others_are_kept_apart(recorded, tmp_path):
    copy = shutil.copytree(recorded, tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    made.recording(other / "new.npz", 9, animal="new")
    analyze(copy, "--data", str(other), "--only", "tuning", "embeddings")
    found = load(copy / f"{FOLDER}-of" / "other", "embeddings")
    assert any("none of the recordings trained this run" in m for m in found.missing)
    assert not (copy / "report.html").exists()


def test_the_same_reason_for_many_sessions_is_one_line():
    lines = ["a: x", "c in session s1: none", "c in session s2: none", "c in session s3: odd"]
    assert merged(lines) == ["a: x", "c in 2 sessions: none", "c in session s3: odd"]
