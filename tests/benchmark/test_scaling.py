"""`calm-jax benchmark scaling`: which sessions, its groups and ratios, and the whole path."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_jax import cli, config, experiments_loader, rows
from calm_jax import scored_windows as scored
from calm_jax.benchmark import scaling
from calm_jax.benchmark.scaling_worker import Point, settings_of
from calm_jax.benchmark.subsets import Subset, choose
from calm_jax.errors import ConfigError
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import make_split
from tests.tiny import recording


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.lists(st.integers(1, 64), min_size=1, max_size=4), st.integers(0, 9))
def test_sets_are_nested_and_apart_from_what_is_held_out(total, sizes, held_out):
    if held_out >= total:
        with pytest.raises(ConfigError, match="no session is left"):
            choose(total, sizes, held_out)
        return
    c = choose(total, sizes, held_out)
    assert sorted([*c.train, *c.held_out]) == list(range(total))
    assert len(c.held_out) == held_out and c.seen == c.train[: c.sizes[0]]
    assert c.sizes == tuple(sorted({min(n, total - held_out) for n in sizes}))
    assert c.train == choose(total, [1], held_out).train  # whatever the sizes


def test_a_subset_reads_what_the_store_reads():
    rng = np.random.default_rng(0)
    sessions = [Session(rng.normal(size=(50, n)), rate=10, session=str(n)) for n in (3, 5, 2)]
    store = MemoryStore(sessions)
    s = Subset(store, [2, 0])
    assert [x.session for x in s.sessions] == ["2", "3"] and s.n_neurons == 5
    assert [s.neuron_offset(i) for i in range(2)] == [0, 2]
    np.testing.assert_array_equal(s.read(1, 5, 9)[0], store.read(0, 5, 9)[0])
    np.testing.assert_array_equal(s.neuron_ids(0), store.neuron_ids(2))
    assert s.session(0) is sessions[2]


def test_groups_and_ratios():
    made = [
        rows.row("B", m, metric, v, session=s, animal="a", seed=seed)
        for m, seed, v in (("calm_s1_w8", 0, 1.0), ("calm_s1_w8", 1, 3.0), ("copy_last", None, 4.0))
        for s, metric in (("x", "mse"), ("y", "mse"), ("x", "r"))
    ]
    found = scaling.grouped(made, {"seen": [("x", "a")], "held_out": [("y", "a")]})
    get = lambda metric: [r["value"] for r in rows.select(found, metric=metric)]  # noqa: E731
    assert get("mse_over_copy_last_seen") == [0.25, 0.75]
    assert get("mse_seen") == [1.0, 3.0, 4.0] and get("r_held_out") == []
    assert get("mse_over_shared_linear_seen") == []


@pytest.mark.parametrize("windows", [5, 40])
def test_about_as_many_windows_are_scored_as_asked_for(windows):
    traces = np.random.default_rng(0).normal(size=(4000, 3))
    store = MemoryStore([Session(traces, rate=10, session="a")])
    made = make_split(store, config.Split())
    prepared = Prepared(store, made, preprocess.fit(store, made, config.Preprocess()))
    own = settings_of(prepared, 0, config.Forecasting(context=16, horizon=4), windows)
    found = len(scored.plan(prepared, made, 0, "test", "B", own).origin)
    assert windows <= found < 2 * windows
    every = settings_of(prepared, 0, config.Forecasting(context=16, horizon=4))
    assert len(scored.plan(prepared, made, 0, "test", "B", every).origin) > found


def test_mistakes_are_named(tmp_path, capsys):
    out = ["--json", str(tmp_path / "x.json")]
    for words, said in (
        (["scalin", *out], "Did you mean scaling?"),
        (["scaling", *out, "--methods", "all"], "--methods does not belong"),
        (["forecast", *out, "--sessions", "1"], "--sessions does not belong"),
        (["forecast", *out, "--jobs", "2"], "--jobs does not belong"),
        (["scaling", *out, "--experiment", "calm_tiny", "--widths", "33"], "heads do not divide"),
    ):
        assert cli.main(["benchmark", *words]) == 2
        assert said in capsys.readouterr().err


def test_the_alternative_is_as_much_wider():
    from calm_jax.benchmark.recordings import Source

    base = experiments_loader.load_experiment("calm_base")
    c, source = choose(5, [1], 1), Source(config.Data())
    wide = lambda w: scaling._point("x", base, source, c, 1, w, 0, 1.0, Path("f")).experiment
    for w, main, other in ((96, 384, 48), (48, 192, 24), (192, 768, 96)):
        e = wide(w)
        assert (e.transformer.width, e.transformer.ffn) == (w, main)
        alternative = e.alternative.transformer
        assert (alternative.width, alternative.ffn) == (other, 2 * other)
    scaling._check([1], [16, 48], base, 1.0, 1)
    with pytest.raises(ConfigError, match="multiple of 16"):
        scaling._check([1], [24], base, 1.0, 1)


@pytest.mark.long
def test_end_to_end_and_finished_points_are_kept(tmp_path, capsys):
    place = tmp_path / "recordings"
    place.mkdir()
    for k in range(3):
        recording(place / f"s{k}.npz", frames=700, neurons=4 + k, seed=k)
    out = tmp_path / "out.json"
    words = ["benchmark", "scaling", "--data", str(place), "--experiment", "calm_tiny"]
    words += ["--sessions", "2", "--widths", "32", "--held-out", "1", "--budget-seconds", "1"]
    words += ["--seeds", "1", "--jobs", "2", "--json", str(out)]
    words += ["--figure", str(tmp_path / "f.png")]
    assert cli.main(words) == 0
    found = rows.read(out)
    assert {r["method"] for r in found} == {
        "copy_last", "shared_linear", "population_ridge", "calm_s2_w32",
    }  # fmt: skip
    for metric in ("mse_seen", "mse_held_out", "r_seen", "mse_over_copy_last_held_out",
                   "mse_over_shared_linear_seen", "seconds", "peak_mib", "steps"):  # fmt: skip
        (r,) = rows.select(found, method="calm_s2_w32", metric=metric)
        assert np.isfinite(r["value"])
    for kind in ("sessions", "width"):
        assert (tmp_path / f"f_{kind}.png").stat().st_size > 1000
    capsys.readouterr()
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    assert said.count("(done before)") == 2 and "sessions never" not in said
    assert json.dumps(rows.read(out)) == json.dumps(found)

    page = tmp_path / "page.md"
    assert cli.main([*words, "--steps", "3", "--markdown", str(page)]) == 0
    assert "at most 3 steps of the transformer" in page.read_text()
    (made,) = rows.select(rows.read(out), method="calm_s2_w32", metric="steps")
    assert made["value"] == 3
    assert "(done before)" in capsys.readouterr().err  # the references
    (part,) = (tmp_path / "out.json.parts").glob("calm_s2_w32.0.json")
    assert [t["steps"] for t in json.loads(part.read_text())["tuning"]] == [10, 3]


def test_a_point_survives_json():
    from calm_jax.benchmark.recordings import Source

    e = config.Experiment("x")
    p = Point("calm_s1_w8", Source(config.Data()), e, choose(5, [1, 2], 1), 2, 3, 60.0, "f", "o")
    assert Point.loads(p.dumps()) == p
