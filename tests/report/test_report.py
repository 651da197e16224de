"""The page of a run: complete, self-contained, honest about what is missing."""

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calm_jax import config, experiments_loader, rows
from calm_jax.commands.fields import override
from calm_jax.errors import RunError
from calm_jax.report import command
from calm_jax.report.page import write_report
from tests.report.synthetic import make_run

FIGURES = {
    "calibration_A",
    "calibration_B",
    "loss_tokenizer", "mse_tokenizer", "loss_transformer", "accuracy_transformer", "code_usage",
    "reconstructions_1", "reconstructions_2", "forecasts_1", "forecasts_2", "per_step_A_mse",
    "per_step_A_r", "per_step_B_mse", "per_step_B_r", "neuron_r", "neuron_r_pairs", "summary",
}  # fmt: skip
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close in order; keeps ids, links, images and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.images, self.text = [], [], [], [], ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        if tag == "img":
            self.images.append(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    run = make_run(tmp_path_factory.mktemp("report") / "calm_base")
    assert write_report(run) == run / "report.html"
    return run


def test_every_figure_is_written_and_shown(complete):
    for suffix in ("png", "svg"):
        assert {p.stem for p in complete.glob(f"figures/*.{suffix}")} == FIGURES
    page = Page((complete / "report.html").read_text())
    assert {i.removeprefix("fig-") for i in page.ids if i.startswith("fig-")} == FIGURES
    assert len(page.images) == len(FIGURES)
    assert all(i["src"].startswith("data:image/svg+xml;base64,") and i["alt"] for i in page.images)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in complete.glob("figures/*.png"))


def test_the_page_needs_nothing_but_itself(complete):
    text = (complete / "report.html").read_text()
    page = Page(text)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids) and len(inside) >= 9
    outside = [link for link in page.links if not link.startswith("#")]
    assert all((complete / link).is_file() for link in outside)
    assert 'name="viewport"' in text and "color-scheme:light" in text


def test_numbers_commands_and_config_stand_on_the_page(complete):
    text = Page((complete / "report.html").read_text()).text
    # Mean over the sessions of 0.30, 0.315 and 0.33; best of all methods.
    assert "0.315" in text
    # A baseline of .31 against ours of .30 in every session: 1 - 30 / 31.
    assert "CalM has 3.2% less squared error than the best baseline, population ridge" in text
    assert "57 neurons scored, 3 constant or all but silent traces left out" in text
    assert "5.0%" in text
    assert "calm-jax pretrain calm_base" in text and "calm-jax evaluate" in text
    assert '"neurons_per_trial": 512' in text  # the configuration
    assert "sim_2" in text and "held out" in text and "1 h 06 min" in text
    assert "not there" not in text


def test_a_run_that_is_not_evaluated_gets_its_losses_and_one_line_for_the_rest(tmp_path):
    run = make_run(tmp_path / "young", evaluated=False)
    page = Page(write_report(run).read_text())
    assert len(page.images) == 4
    for what in ("example forecasts", "code usage", "skill per step ahead", "correlation per"):
        assert re.search(rf"{what}[^:]*: evaluation/\S+ not there yet", page.text), what


def test_the_tokenizer_is_shown_before_the_forecasts_are_scored(tmp_path, complete):
    run = make_run(tmp_path / "half", evaluated=False)
    (run / "metrics.jsonl").unlink()
    found = rows.select(rows.read(complete / "evaluation/rows.json"), protocol="tokenizer")
    rows.write(found, run / "evaluation/tokenizer.json")
    (run / "stages.json").write_text('{"codes": {"seconds": 9, "usage": {"test": [3, 0, 5]}}}')
    page = Page(write_report(run).read_text())
    assert [i for i in page.ids if i.startswith("fig-")] == ["fig-code_usage"]
    assert "0.975" in page.text and "2 / 3" in page.text  # reconstruction, codes used
    assert "forecasts in numbers: evaluation/rows.json not there yet" in page.text


def test_broken_parts_are_named_and_the_rest_is_shown(tmp_path, complete):
    run = tmp_path / "calm_base"
    run.mkdir()
    for name in ("experiment.json", "evaluation/rows.json"):
        (run / name).parent.mkdir(exist_ok=True)
        shutil.copy(complete / name, run / name)
    kept = [r for r in rows.read(run / "evaluation/rows.json") if r["step"] is None]
    rows.write(kept, run / "evaluation/rows.json")
    (run / "evaluation/examples.npz").write_bytes(b"PK\x03\x04 cut off")
    (run / "metrics.jsonl").write_text('{"stage": "tokenizer"}\n')
    (run / "stages.json").write_text("[]")
    page = Page(write_report(run).read_text())
    assert len(page.images) == 3  # summary and calibration: all that these rows allow
    assert "evaluation/examples.npz cannot be read" in page.text
    assert "losses of the tokenizer: metrics.jsonl cannot be read" in page.text
    assert "stages.json: cannot be read: found a list" in page.text
    assert "skill per step ahead: no rows per step ahead" in page.text


def test_text_of_the_user_is_escaped(tmp_path):
    (tmp_path / "run").mkdir()
    experiment = config.Experiment("a<b>", purpose="<script>alert(1)</script>")
    (tmp_path / "run/experiment.json").write_text(config.dumps(experiment))
    text = write_report(tmp_path / "run").read_text()
    assert "<script" not in text and "a&lt;b&gt;" in text
    Page(text)


def test_another_folder_is_refused_and_left_alone(tmp_path):
    with pytest.raises(RunError, match=r"not a run folder.*expected.*experiment\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_names_what_was_changed():
    plain = config.Experiment("mine")
    assert command.pretrain(plain, "runs/mine") == "calm-jax pretrain mine"
    base = experiments_loader.load_experiment("calm_tiny")
    forecasting = dataclasses.replace(base.forecasting, protocols=("B",), horizon=7)
    changed = dataclasses.replace(base, seed=base.seed + 5, forecasting=forecasting)
    text = command.pretrain(changed, "elsewhere")
    start, end = "calm-jax pretrain calm_tiny ", " --run elsewhere"
    assert text.startswith(start) and text.endswith(end)
    flags = text.removeprefix(start).removesuffix(end).split()
    assert "--forecasting.horizon" in flags and len(flags) == 6
    assert override(base, flags) == changed  # the command gives this very experiment
