"""The whole path: recordings to report, forecasts of files, evaluation, resuming."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import calm_jax
from calm_jax import cli, config, pipeline, quantile_files, rows, runs, uncertainty
from calm_jax.baselines import CLOSED_FORM
from calm_jax.forecasting import with_maps
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import open_store
from tests.tiny import arguments, pretrain, recording

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDEN = Path(__file__).parent / "golden" / "calm_tiny.json"
FIELDS = {"protocol", "method", "session", "animal", "seed", "step", "metric", "value"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def run(home, quick_compilation):
    return pretrain(home)


@pytest.fixture(scope="module")
def known(home, run):
    """A file with the first session of the run, its first five trials."""
    store = open_store(next(home.glob("store/simulated_population/*/*/sessions.h5")).parent)
    return write(home / "known.npz", store.session(0).frames(0, 400))


def write(path: Path, session: Session, frames: int | None = None, **change) -> Path:
    """An interchange file of a session, cut after `frames`."""
    frames = session.n_frames if frames is None else frames
    start = session.trials.start[session.trials.start < frames]
    fields = {
        "traces": session.traces[:frames],
        "rate": session.rate,
        "session": session.session,
        "animal": session.animal,
        "neuron/id": session.neurons.id,
        "trial_start": start,
        "trial_stop": np.minimum(session.trials.stop[: len(start)], frames),
    }
    np.savez(path, **(fields | change))
    return path


def forecast(run, file, out, *flags):
    assert cli.main(["forecast", str(run), str(file), "--out", str(out), *flags]) == 0
    with np.load(out, allow_pickle=False) as made:
        return dict(made)


# The run folder


def test_a_run_leaves_all_its_files(run):
    for name in (
        "experiment.json", "stages.json", "split.json", "scalers.npz", "sessions.npz",
        "tokenizer/model.npz", "codes.h5", "transformer/model.npz", "evaluation/rows.json",
        "evaluation/examples.npz", "metrics.jsonl", "report.html",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    assert len(list(run.glob("figures/*.png"))) >= 6
    assert {p.name for p in (run / "tensorboard").iterdir()} == {"tokenizer", "transformer"}
    assert list(json.loads((run / "stages.json").read_text())) == list(runs.STAGES)
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert {x["stage"] for x in lines} == {"tokenizer", "transformer"}


def test_rows_are_the_same_eight_fields_everywhere(run):
    found = json.loads((run / "evaluation" / "rows.json").read_text())
    assert all(set(r) == FIELDS for r in found)
    for protocol in "AB":
        methods = {r["method"] for r in found if r["protocol"] == protocol}
        assert methods == {"calm", "calm_network", *CLOSED_FORM}
    assert {"copy_last", "mean", "shared_linear", "population_ridge"} <= set(CLOSED_FORM)
    steps = [r["step"] for r in rows.select(found, protocol="B", method="calm", metric="mse")]
    assert set(steps) == {None, *range(1, 17)}


def test_golden_metrics(run):
    """Numbers of the small run, within 5% (metrics) or .03 (correlations): far wider than the
    rounding of another CPU moves them. A change that means to move them rewrites the file:
    CALM_GOLDEN=1 python -m pytest tests/test_pipeline.py -k golden, and says so in its commit.
    """
    found = rows.read(run / "evaluation" / "rows.json")

    def value(protocol, method, metric):
        [r] = rows.select(
            found, protocol=protocol, method=method, metric=metric, animal=None, step=None
        )
        return r["value"]

    now = {
        "tokenizer.test_pearson": value("tokenizer", "calm_tokenizer", "test_pearson"),
        "transformer.nll": runs.read_run(run).stages()["transformer"]["validation"]["nll"],
    }
    for method in ("calm", *CLOSED_FORM):
        now[f"B.{method}.mse"] = value("B", method, "mse")
    if os.environ.get("CALM_GOLDEN"):
        GOLDEN.write_text(json.dumps({k: round(v, 5) for k, v in now.items()}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert now.keys() == golden.keys()
    for name, wanted in golden.items():
        near = {"abs": 0.03} if name.endswith("pearson") else {"rel": 0.05}
        assert now[name] == pytest.approx(wanted, **near), name


def test_a_second_call_trains_nothing(home, run, capsys, monkeypatch):
    def never(*a, **k):
        raise AssertionError("trained again")

    monkeypatch.setattr(pipeline, "train", never)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    pretrain(home)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    said = capsys.readouterr().err
    assert all(f"{s}: done before" in said for s in ("tokenizer", "transformer", "evaluation"))


def copy_up_to(run: Path, other: Path, stage: str) -> Path:
    """A copy of a run as it was before `stage`."""
    shutil.copytree(run, other)
    done = json.loads((other / "stages.json").read_text())
    names = list(runs.STAGES)
    for name in names[names.index(stage) :]:
        del done[name]
        for file in runs.STAGES[name]:
            (other / file).unlink()
    shutil.rmtree(other / stage, ignore_errors=True)
    (other / "stages.json").write_text(json.dumps(done))
    return other


def same_arrays(a: Path, b: Path) -> bool:
    with np.load(a) as x, np.load(b) as y:
        return x.files == y.files and all((x[k] == y[k]).all() for k in x.files)


def test_a_killed_run_resumes_to_the_same_bits(home, run):
    other = copy_up_to(run, home / "killed", "transformer")
    code = (
        "import sys, jax; jax.config.update('jax_disable_most_optimizations', True)\n"
        "from calm_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments(home, "killed")],
        stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    checkpoints = other / "transformer" / "checkpoints"
    end = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < end:
        if checkpoints.is_dir():  # training is under way
            child.send_signal(signal.SIGTERM)
            break
        time.sleep(0.02)
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 128 + signal.SIGTERM, said
    assert "everything is saved" in said and "Traceback" not in said
    assert not (other / "transformer" / "model.npz").exists()
    assert pretrain(home, "killed") == other
    assert same_arrays(other / "transformer/model.npz", run / "transformer/model.npz")
    assert (other / "evaluation/rows.json").read_text() == (
        run / "evaluation/rows.json"
    ).read_text()


@pytest.mark.parametrize("name", ["scalers.npz", "split.json", "tokenizer/model.npz", "codes.h5"])
def test_a_file_that_was_removed_is_made_again(home, run, name, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / name).unlink()
    words = arguments(home)
    words[words.index("--run") + 1] = str(other)
    assert cli.main(words) == 0
    if name.endswith(".npz"):
        assert same_arrays(other / name, run / name)
    else:
        assert (other / name).stat().st_size == (run / name).stat().st_size


# Forecasts of files


@pytest.mark.parametrize("samples", [0, 3])
def test_a_forecast_file_is_in_the_unit_of_the_input(home, run, capsys, samples):
    file = recording(home / "new.npz", neurons=12)
    flags = f"--context 48 --horizon 16 --origin 300 --samples {samples}".split()
    made = forecast(run, file, home / "pred.npz", *flags)
    err = capsys.readouterr().err
    assert "not part of the run" in err and "mean embeddings" in err and "adapting" in err
    assert f"wrote {home / 'pred.npz'}" in err
    assert made["mean"].shape == (16, 12) and np.isfinite(made["mean"]).all()
    assert made["origin"] == 300 and made["rate"] == 10.0
    assert made["quantiles"].shape == (len(made["levels"]), 16, 12)
    assert np.isfinite(made["quantiles"]).all()
    assert (np.diff(made["quantiles"], axis=0) >= -1e-5).all()
    # From the errors on the validation part: this recording has none.
    assert ("scaled by the context alone" in err) == (samples == 0)
    with np.load(file) as f:
        fields = dict(f)
    moved = recording(home / "moved.npz", **fields | {"traces": 1000 * fields["traces"] + 7000})
    other = forecast(run, moved, home / "pred2.npz", *flags)
    np.testing.assert_allclose(other["mean"], 1000 * made["mean"] + 7000, rtol=1e-3, atol=2)


def test_a_forecast_goes_into_a_copy_of_an_nwb_file(home, run, capsys):
    from calm_jax.recordings.nwb_writer import write_nwb

    file, copy = home / "rec.nwb", home / "with_forecast.nwb"
    write_nwb(calm_jax.read(recording(home / "plain.npz", neurons=12)), file)
    before = file.read_bytes()
    flags = "--context 48 --horizon 16 --origin 300 --samples 2".split()
    made = forecast(run, file, home / "p.npz", *flags, "--nwb", str(copy))
    assert file.read_bytes() == before and f"and {copy}" in capsys.readouterr().err
    with h5py.File(copy) as f:
        table = f["processing/calm_jax/forecast"]
        np.testing.assert_array_equal(table["prediction"][()].T, made["mean"])
        np.testing.assert_allclose(
            f["processing/calm_jax/forecast_times/timestamps"][()], np.arange(300, 316) / 10
        )
    assert cli.main(["forecast", str(run), str(home / "plain.npz"), "--nwb", str(copy)]) == 2
    assert "not an NWB 2 file" in capsys.readouterr().err


@pytest.mark.parametrize("which, samples", [("known", 0), ("new", 0), ("known", 2)])
def test_frames_from_the_origin_on_change_no_bit(home, run, known, capsys, which, samples):
    file = known if which == "known" else recording(home / "never.npz", neurons=12)
    session = calm_jax.read(file)
    origin = 376 if which == "known" else 333
    flags = f"--context 48 --horizon 16 --origin {origin} --samples {samples}".split()
    wanted = forecast(run, file, home / "a.npz", *flags)
    assert ("mean embeddings" in capsys.readouterr().err) == (which == "new")
    later = session.traces.copy()
    later[origin:] = 1e6
    trials = len(session.trials) > 0
    cut = {} if trials else {"trial_start": np.zeros(0, int), "trial_stop": np.zeros(0, int)}
    changed = write(home / "changed.npz", session, traces=later, **cut)
    shorter = write(home / "shorter.npz", session, origin, **cut)
    for other in (changed, shorter):
        made = forecast(run, other, home / "b.npz", *flags)
        for key in ("mean", "quantiles"):
            assert (made[key] == wanted[key]).all(), (other, key)
    # The end of the recording is the default origin.
    made = forecast(run, shorter, home / "c.npz", "--horizon", "16", "--samples", str(samples))
    assert (made["mean"] == wanted["mean"]).all() and made["origin"] == origin


def test_a_run_without_fitted_quantiles_says_so_and_evaluate_fits_them(home, run, capsys):
    file = recording(home / "new2.npz", neurons=12)
    path = run / "evaluation" / "quantiles.npz"
    kept = path.read_bytes()
    path.unlink()
    made = forecast(run, file, home / "q.npz", "--horizon", "8")
    assert "quantiles" not in made and "calm-jax evaluate" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run)]) == 0
    with np.load(path) as a:
        again = {k: a[k] for k in a.files}
    path.write_bytes(kept)
    with np.load(path) as b:
        assert set(again) == set(b.files)
        for k, x in again.items():
            if x.dtype.kind == "U":
                assert x == b[k]
                continue
            np.testing.assert_allclose(x, b[k], rtol=1e-5, atol=1e-5)
    longer = forecast(run, file, home / "q.npz", "--horizon", "90")
    assert longer["quantiles"].shape[1:] == (90, 12) and "too narrow" in capsys.readouterr().err


def test_a_forecast_in_five_lines(home, run, known, capsys):
    trained = calm_jax.load(str(run))
    session = calm_jax.read(known)
    given = calm_jax.make_context(trained, session, frames=48, origin=400)
    prediction = calm_jax.forecast(trained.model, given.context, horizon=16, mode="readout")
    traces = prediction.mean[0] * given.sd + given.mean
    weights = run / "evaluation" / "stack.npz"
    kept = weights.read_bytes()
    weights.unlink()  # the network alone
    made = forecast(run, known, home / "d.npz", "--origin", "400")
    weights.write_bytes(kept)
    np.testing.assert_allclose(traces, made["mean"], rtol=1e-5, atol=1e-5)
    # With them the command weighs it with maps fitted to the recordings of the run.
    weighted = forecast(run, known, home / "d.npz", "--origin", "400")
    [own] = with_maps(trained, prediction, given)[0].mean
    np.testing.assert_allclose(own * given.sd + given.mean, weighted["mean"], rtol=1e-5, atol=1e-5)
    assert abs(weighted["mean"] - made["mean"]).max() > 1e-3
    capsys.readouterr()
    forecast(run, known, home / "d.npz", "--origin", "400", "--context", "40")
    assert "the network alone" in (err := capsys.readouterr().err)
    assert "for contexts of 36 and 48 frames" in err


def test_quantiles_around_the_network_stay_there_when_the_forecast_is_weighted(home, run, known):
    paths = run / "evaluation" / "stack.npz", run / "evaluation" / "quantiles.npz"
    stack, kept = (p.read_bytes() for p in paths)
    fitted = quantile_files.load(paths[1])
    inner = fitted["B" + uncertainty.ALONE]
    fitted["B"] = dataclasses.replace(inner, centre=uncertainty.NETWORK)
    quantile_files.save(paths[1], fitted)
    weighted = forecast(run, known, home / "c.npz", "--origin", "400")
    paths[0].unlink()
    alone = forecast(run, known, home / "c.npz", "--origin", "400")
    for path, data in zip(paths, (stack, kept), strict=True):
        path.write_bytes(data)
    np.testing.assert_array_equal(weighted["quantiles"], alone["quantiles"])
    assert abs(weighted["mean"] - alone["mean"]).max() > 1e-3


def test_without_the_recordings_of_the_run_the_network_forecasts_alone(
    home, run, known, capsys, monkeypatch, tmp_path
):
    both = forecast(run, known, home / "e.npz", "--origin", "400")
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path)
    e = runs.read_run(run).experiment
    elsewhere = dataclasses.replace(e, data=dataclasses.replace(e.data, store="store"))
    note = run / "experiment.json"
    text = note.read_text()
    note.write_text(config.dumps(elsewhere))
    capsys.readouterr()
    alone = forecast(run, known, home / "e.npz", "--origin", "400")
    note.write_text(text)
    assert "the network alone: the recordings of the run" in capsys.readouterr().err
    assert not any((tmp_path / "store").iterdir())  # nothing was built
    assert (alone["quantiles"] != both["quantiles"]).any()


# Evaluation


def test_evaluate_gives_the_rows_of_the_run(home, run, capsys):
    assert cli.main(["evaluate", str(run), "--json", str(home / "rows.json")]) == 0
    assert "CalM" in capsys.readouterr().out
    files = (home / "rows.json", run / "evaluation" / "rows.json")
    found, wanted = (json.loads(p.read_text()) for p in files)
    assert found == wanted


@pytest.mark.parametrize("trials", [True, False])
def test_evaluate_on_recordings_of_others(home, run, trials, tmp_path):
    for i in range(2):
        edges = {"trial_start": np.arange(0, 700, 70), "trial_stop": np.arange(70, 701, 70)}
        recording(tmp_path / f"s{i}.npz", 700, 7 + i, i, **(edges if trials else {}))
    data = tmp_path if trials else tmp_path / "s0.npz"
    out = tmp_path / "rows.json"
    assert cli.main(["evaluate", str(run), "--data", str(data), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert all(set(r) == FIELDS for r in found)
    assert {r["protocol"] for r in found} == ({"A", "B"} if trials else {"B"})
    assert {r["method"] for r in found} == {"calm", *CLOSED_FORM}
    sessions = {r["session"] for r in found} - {None}
    assert sessions == ({"s0", "s1"} if trials else {"s0"})


# Held-out sessions


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, quick_compilation):
    """Two runs that differ in the traces of their held-out session alone."""
    made = []
    for k in range(2):
        home = tmp_path_factory.mktemp("held")
        (home / "files").mkdir()
        for i in range(2):
            change = 50 * k * (i == 1)
            file = recording(home / "files" / f"s{i}.npz", 600, 6, i + change, animal=f"m{i}")
        flags = f"--data.name interchange --data.source {home / 'files'} --data.held-out s1 "
        flags += "--tokenizer-training.steps 12 --transformer-training.steps 6 "
        flags += "--tokenizer-training.window 64 --transformer-training.window 64"
        with pytest.MonkeyPatch.context() as m:
            if k:  # its parameters alone are looked at
                m.setattr(pipeline, "_evaluation", lambda *a: None)
                m.setattr(pipeline, "_report", lambda *a: None)
            made.append((pretrain(home, "run", *flags.split()), file))
    return made


@pytest.mark.long
def test_held_out_sessions_teach_nothing_and_are_scored(held_out, tmp_path, capsys):
    (a, file), (b, _) = held_out
    for stage in ("tokenizer", "transformer"):
        assert same_arrays(a / stage / "model.npz", b / stage / "model.npz")
    found = rows.read(a / "evaluation" / "rows.json")
    for method in ("calm", "copy_last", "population_ridge"):
        [r] = rows.select(
            found, protocol="B", method=method, metric="mse", session="s1", step=None
        )
        assert np.isfinite(r["value"])
    table = calm_jax.load(a).model.transformer.neuron.embedding[...]
    np.testing.assert_allclose(table[6:], np.broadcast_to(table[:6].mean(0), (6, 32)), atol=1e-7)
    assert calm_jax.load(a).offsets().tolist() == [0, -1]
    capsys.readouterr()
    forecast(a, file, tmp_path / "p.npz")
    assert "held out from training" in capsys.readouterr().err
    changed = config.differences(runs.read_run(a).experiment, runs.read_run(b).experiment)
    assert [c.split(":")[0] for c in changed] == ["data.source", "data.store"]
