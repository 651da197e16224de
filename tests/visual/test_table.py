"""Cohorts, statistics and the writing of a table; nothing is trained here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calm_jax import config, experiments_loader
from calm_jax.errors import ConfigError
from calm_jax.visual import cohorts, experiment, stages, table, table_output
from calm_jax.visual.cohorts import Source
from calm_jax.visual.experiment import Diet

GOOD = ("SST", "VIP", "PVALB", "NTSR1")
LINES = (*GOOD, "CUX2", "RORB", "RBP4")


def sources(containers=3, sessions=2, lines=LINES):
    return [
        Source(f"{line}{c}{s}", f"{line}{c}", f"box{line}{c}", line, line in GOOD)
        for line in lines
        for c in range(containers)
        for s in range(sessions)
    ]


def boxes(ids, all_):
    return {s.container for s in all_ if s.session in ids}


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 5), st.integers(1, 3),
    st.sampled_from(["predictable", "unpredictable", "inhibitory", "mixed", "random"]),
    st.floats(0.05, 0.95), st.integers(0, 5),
)  # fmt: skip
def test_no_container_is_in_both_parts(containers, sessions, diet, reserve, seed):
    found = sources(containers, sessions)
    second = {"unpredictable": "predictable", "inhibitory": "excitatory"}.get(diet, "unpredictable")
    first, rest = cohorts.divide(found, Diet(diet, second, reserve=reserve), seed)
    assert first and rest and not boxes(first, found) & boxes(rest, found)


def test_who_is_in_a_diet():
    found = sources()
    line = lambda ids: sorted({x[:-2] for x in ids})
    pretrain, finetune = cohorts.divide(found, Diet(), 0)
    assert line(pretrain) == sorted(GOOD) and line(finetune) == ["CUX2", "RBP4", "RORB"]
    assert len(pretrain) == 24 and len(finetune) == 6  # two containers of three in reserve
    inhibitory, rest = cohorts.divide(found, Diet("inhibitory", "excitatory"), 0)
    assert line(inhibitory) == ["PVALB", "SST", "VIP"] and "NTSR1" in line(rest)
    random, same = cohorts.divide(found, Diet("random"), 0)
    assert len(random) == len(pretrain) and same == finetune
    assert random != cohorts.divide(found, Diet("random"), 1)[0]
    nobody, all_ = cohorts.divide(found, Diet("none", "all"), 0)
    assert nobody == () and set(all_) == set(pretrain) | set(finetune)
    mixed, same = cohorts.divide(found, Diet("mixed"), 0)
    assert len(mixed) == 12 + 12 and same == finetune


def test_a_diet_without_sessions_is_told():
    with pytest.raises(ConfigError, match="no session is left to pretrain"):
        cohorts.divide(sources(lines=("CUX2", "RORB")), Diet(), 0)
    with pytest.raises(ConfigError, match="no session is left to finetune"):
        cohorts.divide(sources(lines=GOOD), Diet(), 0)


def test_interval_and_test_against_scipy():
    x = [0.5, 0.6, 0.55]
    found = table.interval(x)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(x), scale=stats.sem(x))
    assert found["mean"] - found["half"] == pytest.approx(low)
    assert found["mean"] + found["half"] == pytest.approx(high)
    # t_2 = 4.30, as the paper has it for three seeds
    assert found["half"] == pytest.approx(4.303 * np.std(x, ddof=1) / np.sqrt(3), rel=1e-3)
    assert table.interval([0.5]) == {"mean": 0.5, "half": None, "seeds": 1}
    base = {0: 0.4, 1: 0.45, 2: 0.5, 3: 9.0}
    against = table.compared(dict(enumerate(x)), base)
    assert against["gain"] == pytest.approx(np.mean(x) / 0.45 - 1)
    assert against["p"] == pytest.approx(stats.ttest_rel(x, [0.4, 0.45, 0.5]).pvalue)
    assert table.compared({0: 1.0}, {1: 1.0}) == {"gain": None, "p": None}
    assert table.compared({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5})["p"] is None  # no spread


def result(label, seed, ssim, accuracy):
    row = lambda task, method, metric, value: {
        "task": task, "method": method, "metric": metric, "value": value,
    }  # fmt: skip
    return {
        "rows": [
            row("movie", "poyo", "ssim", ssim), row("movie", "nearest", "ssim", 0.3),
            row("gratings", "poyo", "accuracy", accuracy),
            row("gratings", "chance", "accuracy", 0.125),
        ],
        "pretraining": {"validation": {"variance": 0.1, "effective_rank": 3.0}},
        "cohorts": {"pretrain": ["a"], "finetune": ["b"], "scored": ["b"],
                    "predictable": list(GOOD), "thresholds": {"skewness": 3.5, "kurtosis": 22.6}},
        "seconds": 1.0, "seed": seed, "label": label, "said": {"gratings": "", "movie": "Said."},
    }  # fmt: skip


def test_summary_markdown_and_figure(tmp_path):
    made = experiments_loader.load_table("poyo_ssl_table3_full")
    done = {
        made.ours: [result("o", s, 0.5 + 0.01 * s, 0.6) for s in range(3)],
        made.baseline: [result("b", s, 0.4 + 0.02 * s, 0.5) for s in range(3)],
    }
    found = table.summary(made, done)
    ours = found["lines"][0]
    assert ours["metrics"]["movie"]["gain"] == pytest.approx(0.51 / 0.42 - 1)
    assert ours["metrics"]["movie"]["published"] == [0.593, 0.013]
    assert "gain" not in found["lines"][1]["metrics"]["movie"]
    text = table_output.markdown(found)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "0.510 ± 0.025" in text and "0.593 ± 0.013" in text and "+21.4 %" in text
    of_table = rows[: 1 + next(k for k, r in enumerate(rows) if r.startswith("| last third"))]
    assert {r.count("|") for r in of_table} == {9}
    assert "nearest 0.300" in text.replace("nearest activity", "nearest") and "chance" in text
    assert "“POYO-SSL”, first seed: Said." in text
    control = "from scratch, same animals"
    done[control] = [result("c", s, 0.45 + 0.01 * s * s, 0.6) for s in range(3)]
    listed = table_output.markdown(table.summary(made, done))
    a, b = np.array([0.5, 0.51, 0.52]), np.array([0.45, 0.46, 0.49])
    told = f"{100 * (a.mean() / b.mean() - 1):+.1f} %, p = {stats.ttest_rel(a, b).pvalue:.3f}"
    assert f"against the controls, movie SSIM: “{control}” {told}" in listed
    table_output.save_figure(found, tmp_path / "table")
    assert (tmp_path / "table.png").stat().st_size > 5000 and (tmp_path / "table.svg").is_file()


def test_each_split_of_the_movie_has_its_own_rival():
    made = experiments_loader.load_table("poyo_ssl_table3_full")
    unseen = [x for x in made.lines if x.experiment.movie.holdout == "frame_block_holdout"]
    ours, rival = unseen
    assert ours.against == rival.against == rival.label
    done = {
        made.ours: [result("o", 0, 0.5, 0.6)], made.baseline: [result("b", 0, 0.4, 0.5)],
        ours.label: [result("u", 0, 0.3, 0.6)], rival.label: [result("r", 0, 0.2, 0.5)],
    }  # fmt: skip
    found = table.summary(made, done)
    gain = {x["label"]: x["metrics"].get("movie", {}).get("gain") for x in found["lines"]}
    assert gain[ours.label] == pytest.approx(0.5) and gain[rival.label] is None
    assert gain[made.ours] == pytest.approx(0.25)
    text = table_output.markdown(found)
    assert f"; of “{ours.label}” against “{rival.label}”" in text
    assert "movie SSIM, repeat holdout: " in text and "movie SSIM, frame block holdout: " in text
    line = dataclasses.replace(ours, against="nobody")
    with pytest.raises(ConfigError, match="against"):
        experiment.check_table(dataclasses.replace(made, lines=(*made.lines[:2], line)))


@pytest.mark.parametrize("name", experiments_loader.names(kind="table"))
def test_tables_of_the_repository(name):
    made = experiments_loader.load_table(name)
    experiment.check_table(made)
    folders = {str(table.place(Path("t"), x, x.experiment).folder) for x in made.lines}
    assert len(folders) == len(made.lines)
    for line in made.lines:
        e = line.experiment
        assert config.from_dict(type(e), config.to_dict(e)) == e


def test_pretraining_is_shared_by_what_does_not_change_it():
    made = experiments_loader.load_table("poyo_ssl_table3")
    mark = {x.label: stages.pretraining_fingerprint(x.experiment, ["a"]) for x in made.lines}
    assert mark["movie: U-Net without skips"] == mark["all frozen"] == mark[made.ours]
    assert mark["random masking"] != mark[made.ours] != mark["CE weight 0.1"]
    first = made.lines[0].experiment
    assert stages.pretraining_fingerprint(first, ["b"]) != mark[made.ours]
    again = dataclasses.replace(first, seed=1)
    assert stages.pretraining_fingerprint(again, ["a"]) != mark[made.ours]


def test_contradictions_are_told():
    e = experiments_loader.load_experiment("poyo_ssl")
    scratch = dataclasses.replace(e.diet, pretrain="none")
    frozen = dataclasses.replace(e.movie_tuning, freeze="all")
    for changes, word in (
        ({"tasks": ()}, "no task"),
        ({"encoder_kind": "mlp"}, "MLP encoder"),
        ({"diet": dataclasses.replace(e.diet, reserve=1.0)}, "diet.reserve"),
        ({"movie_training": config.Training()}, "movie_training.steps"),
        ({"diet": scratch, "movie_tuning": frozen}, "random encoder"),
    ):
        with pytest.raises(ConfigError, match=word):
            experiment.check(dataclasses.replace(e, **changes))
