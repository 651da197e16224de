"""`calm-jax benchmark forecast` end to end on a tiny simulation, and what it says of mistakes."""

import dataclasses
import json

import numpy as np
import pytest

from calm_jax import baselines, cli, rows
from calm_jax.benchmark import calm, command, methods, names, recordings, worker
from calm_jax.errors import ConfigError, RecordingError, RunError
from tests.tiny import recording

EXPERIMENT = """
from dataclasses import replace
from calm_jax.config import Simulation
from experiments import calm_tiny

def experiment():
    e = calm_tiny.experiment()
    simulation = Simulation(sessions=2, trials=24, neurons=10, frames=80)
    return replace(e, data=replace(e.data, store={store!r}, simulation=simulation),
                   forecasting=replace(e.forecasting, samples=3))
"""
MINE = """
import numpy as np
TRAINED = {trained}

class Zero:
    tuning = [{{"point": 1, "validation": np.float32(0.5), "chosen": True}}]
    def __call__(self, context, session, mask, horizon):
        return np.zeros((len(context), horizon, context.shape[2]), np.float32) + self.value

def fit(prepared, splits, context, horizon, **budget):
    made = Zero()
    made.value = 0.1 * budget.get("seed", 0)
    assert set(budget) == ({{"budget_seconds", "seed", "folder"}} if TRAINED else set())
    return made
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tiny.py").write_text(EXPERIMENT.format(store=str(folder / "store")))
    (folder / "mine.py").write_text(MINE.format(trained=True))
    return folder


@pytest.fixture(scope="module")
def first(place):
    """copy-last and a trained file of the user's own, two seeds."""
    out = place / "out.json"
    words = ["benchmark", "forecast", "--experiment", str(place / "tiny.py")]
    words += ["--methods", f"copy_last,{place / 'mine.py'}", "--budget-seconds", "2"]
    words += ["--seeds", "2", "--json", str(out), "--markdown", str(place / "out.md")]
    words += ["--figure", str(place / "o.png")]
    assert cli.main(words) == 0
    return out, words


def test_rows_have_the_schema_of_evaluate(first):
    out, _ = first
    found = rows.read(out)
    assert {r["method"] for r in found} == {"copy_last", "mine"}
    assert {r["seed"] for r in rows.select(found, method="mine", metric="seconds")} == {0, 1}
    assert {r["seed"] for r in rows.select(found, method="copy_last", metric="mse")} == {0}
    for metric in ("mse", "r", "skill", "seconds", "peak_mib"):
        assert rows.select(found, method="mine", metric=metric, session=None, seed=1)
    per_step = [r for r in found if r["metric"] == "mse" and r["step"] is not None]
    assert {r["step"] for r in per_step} == set(range(1, 17))
    (peak,) = rows.select(found, method="copy_last", metric="peak_mib")
    assert 50 < peak["value"] < 5000
    # The mean of a z-scored trace: an error of one, plus the square of what was added.
    a, b = (
        rows.select(found, method="mine", metric="mse", seed=k, session=None, animal=None,
                    step=None)[0]["value"] for k in (0, 1)
    )  # fmt: skip
    assert 0.3 < a < 3 and a != b
    (sd,) = rows.select(found, method="mine", metric="mse_seed_sd")
    assert sd["value"] == pytest.approx(abs(a - b) / np.sqrt(2), rel=1e-6)
    for method in ("copy_last", "mine"):  # quantiles from the errors on the validation part
        share = rows.select(found, method=method, metric="coverage_80", session=None, animal=None)
        assert 0.6 < share[0]["value"] < 0.95
        assert rows.select(found, method=method, metric="crps", step=3)
    (d,) = rows.select(found, method="mine", metric="mse_minus_best_low")
    assert d["seed"] is None


def test_the_table_and_the_figure(first, place):
    text = (place / "out.md").read_text()
    assert "| copy last |" in text and "± " in text and "fewer than 5 sessions" in text
    assert "chosen" in text and str(place) not in text
    for suffix in ("png", "svg"):
        assert (place / f"o.{suffix}").stat().st_size > 1000


def test_finished_work_is_kept_and_changed_work_is_not(first, place, monkeypatch, capsys):
    out, words = first
    before = rows.read(out)
    ran = []
    real = command.subprocess.run
    monkeypatch.setattr(command.subprocess, "run", lambda *a, **k: ran.append(a) or real(*a, **k))
    assert cli.main(words) == 0 and not ran
    assert json.dumps(rows.read(out)) == json.dumps(before)
    assert "done before" in capsys.readouterr().err
    text = (place / "mine.py").read_text()
    (place / "mine.py").write_text(text + "\n# changed\n")
    assert cli.main(words) == 0 and len(ran) == 2  # both seeds; copy-last is kept


def test_a_method_that_fails_does_not_cost_the_others(place, capsys):
    (place / "broken.py").write_text(
        "from calm_jax.errors import CalmError\n"
        "def fit(*a):\n    raise CalmError('does not fit here')\n"
    )
    out = place / "broken.json"
    words = ["benchmark", "forecast", "--experiment", str(place / "tiny.py"), "--methods",
             f"mean,{place / 'broken.py'}", "--json", str(out)]  # fmt: skip
    assert cli.main(words) == 2
    assert "does not fit here" in capsys.readouterr().err.splitlines()[-1]
    assert {r["method"] for r in rows.read(out)} == {"mean"}


@pytest.mark.long
def test_calm_ends_in_its_budget_and_leaves_a_run(place, first):
    from calm_jax import compilation, experiments_loader

    e = experiments_loader.load_experiment(str(place / "tiny.py"))
    p = recordings.prepare(recordings.source_of(None, e.data), e)
    with compilation.effort("quick"):
        made = calm.fit(e, p, budget_seconds=1.0, seed=1, folder=place / "calm_run")
        assert [t["stage"] for t in made.tuning] == ["tokenizer", "transformer"]
        again = calm.finished(place / "calm_run", p)
        n = p.store.sessions[0].n_neurons
        x = np.random.default_rng(0).normal(size=(2, 48, n)).astype(np.float32)
        np.testing.assert_allclose(again(x, 1, None, 16), made(x, 1, None, 16), atol=1e-5)
    # Frames that the run was trained on are not tested.
    parts = [dict(x) for x in p.splits.parts]
    parts[0]["test"], parts[0]["train"] = parts[0]["train"], parts[0]["test"]
    other = dataclasses.replace(p.splits, parts=tuple(parts))
    q = recordings.Prepared(p.store, other, dataclasses.replace(p.scalers, split_hash=""))
    with pytest.raises(RunError, match="belong to the train part"):
        calm.finished(place / "calm_run", q)


def test_recordings_without_trials_have_origins_every_four_frames(tmp_path):
    from calm_jax import experiments_loader

    recording(tmp_path / "a.npz", frames=600)
    e = experiments_loader.load_experiment("calm_tiny")
    p = recordings.prepare(recordings.source_of(str(tmp_path), e.data), e)
    (train,), (valid,), (test,) = (p.splits.parts[0][k] for k in ("train", "valid", "test"))
    assert valid[0] - train[1] == 8 and test[0] - valid[1] == 8
    assert recordings.settings_of(p, 0, e.forecasting).origin_stride == 4


def test_names_are_those_of_the_baselines():
    assert set(names.BASELINES) == set(baselines.METHODS)
    assert names.SETS["closed_form"] == baselines.CLOSED_FORM
    assert set(names.EXTRAS) == set(baselines.EXTRAS)
    said = []
    found = [m.name for m in methods.chosen("all", note=said.append)]
    there = [n for n in names.EXTRAS if baselines.EXTRAS[n].missing() is None]
    assert found == [*names.BASELINES, *there, "calm"]
    assert len(said) == len(names.EXTRAS) - len(there)


def test_mistakes_are_named(tmp_path, capsys):
    with pytest.raises(ConfigError, match="Did you mean 'tsmixer'"):
        methods.chosen("tsmixr")
    with pytest.raises(ConfigError, match="no such file"):
        methods.chosen("nowhere.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="holds no method"):
        methods.chosen(str(tmp_path / "empty.py"))
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        methods.chosen(str(tmp_path / "bad.py"))
    (tmp_path / "tcn.py").write_text("def fit(*a): pass")
    with pytest.raises(ConfigError, match="two methods are called 'tcn'"):
        methods.chosen(f"tcn,{tmp_path / 'tcn.py'}")
    with pytest.raises(ConfigError, match="no such file, folder or data set"):
        recordings.source_of("celegan", recordings.config.Data())
    assert cli.main(["benchmark", "forecst", "--json", "x.json"]) == 2
    assert "Did you mean forecast?" in capsys.readouterr().err
    with pytest.raises(RecordingError):
        e = worker.config.Experiment("x")
        recording(tmp_path / "short.npz", frames=40)
        recordings.prepare(recordings.source_of(str(tmp_path / "short.npz"), e.data), e)
