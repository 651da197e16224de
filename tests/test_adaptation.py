"""Adapting a run to a new recording: minutes, units, rows, the linear path, run folders."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given as example
from hypothesis import settings
from hypothesis import strategies as st

from calm_jax import adaptation, adaptation_curve, cli, linear_adaptation, minutes, rows, runs
from calm_jax import config as configs
from calm_jax.adaptation_data import InUnits, given
from calm_jax.errors import ConfigError, RecordingError
from calm_jax.forecast_files import forecast_file
from calm_jax.models import tokenizer
from calm_jax.models.dual_axis import DualAxisTransformer
from calm_jax.recordings import preprocess
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split
from calm_jax.report import adaptation as figure
from calm_jax.report import style
from calm_jax.runs import Run
from calm_jax.tasks.new_rows import tables_of
from calm_jax.training.state import named
from tests.tiny import recording

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROWS = configs.DualAxis(
    width=8, layers=1, heads=2, ffn=8, dropout=0.0, mixing="signed", mixing_heads=2,
    mixing_rank=3, mixing_width=6, values="both", readout_frames=4, linear_context=8,
    tokens="encoded", noise_probability=0.0, scheduled_probability=0.0,
)  # fmt: skip
NONE = dataclasses.replace(
    ROWS, mixing="softmax", mixing_width=0, neuron_embedding=False, session_embedding=False
)
EXPERIMENT = configs.Experiment(
    name="small",
    data=configs.Data(name="interchange"),
    tokenizer=configs.Tokenizer(
        width=8, layers=1, heads=2, codes=8, code_width=4, autoregressive_weight=0.0
    ),
    transformer=ROWS,
    tokenizer_training=configs.Training(steps=1),
    transformer_training=configs.Training(
        steps=4, batch=2, window=16, eval_batches=1, precision="float32"
    ),
    forecasting=configs.Forecasting(
        context=12, horizon=4, origin_stride=8, protocols=("B",), mode="readout"
    ),
    compilation="quick",
)


def walk(frames, neurons=3, seed=0):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(frames, neurons)), 0).astype(np.float32)


def store_of(*sessions):
    store = MemoryStore(sessions)
    return store, make_split(store, EXPERIMENT.split)


def blocks(frames=2000, **fields):
    return Session(walk(frames), rate=10.0, session="new", **fields)


def trained(folder, transformer=ROWS, source=None):
    """A run with random weights whose two recordings have 2 and 3 neurons."""
    data = dataclasses.replace(
        EXPERIMENT.data, source=str(folder / "old"), store=str(folder / "store")
    )
    e = dataclasses.replace(EXPERIMENT, transformer=transformer, data=data)
    (folder / "old").mkdir(exist_ok=True)
    from calm_jax.recordings.build import build
    from calm_jax.recordings.store import open_store

    for n in (2, 3):
        recording(folder / "old" / f"old{n}.npz", neurons=n, seed=n)
    store = open_store(build(data))
    run = runs.open_run(folder / "run", e)
    if run.done("transformer"):
        return runs.load(run.folder)
    made = make_split(store, e.split)
    with run.stage("prepare"):
        made.save(run.path("split.json"))
        preprocess.fit(store, made, e.preprocess).save(run.path("scalers.npz"))
        runs.table_of(store).save(run.path("sessions.npz"))
    with run.stage("tokenizer"):
        tok = tokenizer.init(e.tokenizer, jax.random.key(0))
        runs.save_arrays(run.path("tokenizer", "model.npz"), nnx.to_pure_dict(nnx.state(tok)))
    with run.stage("transformer"):
        net = DualAxisTransformer(
            e.transformer, codes=8, patch=4, neurons=5, sessions=2, rngs=nnx.Rngs(0)
        )
        rng = np.random.default_rng(1)
        params = jax.tree.map(
            lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32),
            nnx.to_pure_dict(nnx.state(net, nnx.Param)),
        )
        runs.save_arrays(run.path("transformer", "model.npz"), params)
    return runs.load(run.folder)


# -- minutes


def test_the_minutes_of_a_block_hold_training_and_validation():
    store, whole = store_of(blocks())
    part = given(store, whole, 1.0, EXPERIMENT)
    own = part.prepared.splits.parts[0]
    assert own["train"].tolist() == [[0, 412]] and own["valid"].tolist() == [[420, 600]]
    assert part.minutes == 1.0 and part.fits and part.spans[0].tolist() == [[0, 600]]
    np.testing.assert_array_equal(own["test"], whole.parts[0]["test"])
    traces = store.sessions[0].traces[:412].astype(np.float64)
    np.testing.assert_allclose(part.prepared.scalers.mean[0], traces.mean(0), rtol=1e-5)
    np.testing.assert_allclose(part.prepared.scalers.sd[0], traces.std(0) + 1e-6, rtol=1e-5)


def test_few_minutes_are_split_but_not_fitted():
    store, whole = store_of(blocks())
    part = given(store, whole, 2.5 / 60, EXPERIMENT)  # 25 frames: no two windows of 16
    assert not part.fits
    assert given(store, whole, 4.1 / 60, EXPERIMENT).fits  # 41 = 2 x 16 + a gap of 8 and one more
    with pytest.raises(RecordingError, match="too few"):
        given(store, whole, 0.5 / 60, EXPERIMENT)


def test_more_minutes_than_there_are():
    store, whole = store_of(blocks())
    with pytest.raises(RecordingError, match=r"2\.3 minutes.*all"):
        given(store, whole, 3.0, EXPERIMENT)
    part = given(store, whole, None, EXPERIMENT)
    for name in ("train", "valid", "test"):
        np.testing.assert_array_equal(part.prepared.splits.parts[0][name], whole.parts[0][name])


@settings(max_examples=20)
@example(st.integers(2, 40), st.integers(16, 40), st.floats(0.1, 2.0), st.integers(0, 9))
def test_trials_are_taken_whole_and_in_time(count, length, minutes, seed):
    edges = np.arange(count + 3) * length
    traces = walk(edges[-1], seed=seed)
    session = Session(traces, rate=10.0, session="new", trials=Trials(edges[:-1], edges[1:]))
    store, whole = store_of(session)
    try:
        part = given(store, whole, minutes, EXPERIMENT)
    except RecordingError:
        return
    own, train = part.prepared.splits.parts[0], whole.parts[0]["train"]
    both = np.concatenate([own["train"], own["valid"]])
    assert (both[1:, 0] >= both[:-1, 1]).all() and len(both) * length <= minutes * 600 + 1e-6
    np.testing.assert_array_equal(both, train[: len(both)])


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "two", "1e9"])
def test_words_that_are_no_minutes(word):
    with pytest.raises(ConfigError, match="--minutes"):
        minutes.parse_minutes(["1", word])


def test_minutes_in_order():
    assert minutes.parse_minutes(["all", "5", "1", "5"]) == [1.0, 5.0, None]


def test_units_are_those_of_the_minutes_inside_and_of_the_test_outside():
    rng = np.random.default_rng(0)
    alive = (np.zeros(3, bool),)
    scalers = lambda: preprocess.Scalers(  # noqa: E731
        EXPERIMENT.preprocess, (rng.normal(size=3),), (rng.uniform(0.5, 2, 3),), alive
    )
    own, common = scalers(), scalers()
    seen = []

    def double(context, session, mask, horizon):
        seen.append(context)
        return 2 * context[:, -horizon:]

    x = rng.normal(size=(4, 5, 3))
    out = InUnits(double, own, common)(x, 0, None, 2)
    raw = x * common.sd[0] + common.mean[0]
    inside = (raw - own.mean[0]) / own.sd[0]
    np.testing.assert_allclose(seen[0], inside, rtol=1e-5, atol=1e-6)
    back = (2 * inside[:, -2:]) * own.sd[0] + own.mean[0]
    np.testing.assert_allclose(out, (back - common.mean[0]) / common.sd[0], rtol=1e-4, atol=1e-5)


# -- rows


@functools.cache
def new():
    store, whole = store_of(blocks(600), Session(walk(500, 4, 5), rate=10.0, session="more"))
    return given(store, whole, None, EXPERIMENT)


def test_only_the_new_rows_move(tmp_path, monkeypatch):
    run = trained(tmp_path)
    before = {k: np.array(v) for k, v in named(adaptation.parameters(run.model)).items()}
    monkeypatch.setattr(adaptation, "RATE", 0.1)
    made = adaptation.adapt(run, new(), tmp_path / "work", steps=4)
    assert made.how == "rows" and made.facts["used_step"] > 0
    after = named(made.params)
    tables = {"neuron/embedding": 7, "coupling/embedding": 7, "session/embedding": 2}
    for name, old in before.items():
        if name in tables:
            np.testing.assert_array_equal(after[name][tables[name] :], old)
            assert (np.ptp(after[name][: tables[name]], axis=0) > 0).any()
        else:
            np.testing.assert_array_equal(after[name], old)
    saved = {k: np.array(v) for k, v in named(adaptation.parameters(run.model)).items()}
    for name, old in before.items():
        np.testing.assert_array_equal(saved[name], old)


def test_before_any_step_the_model_is_as_it_was(tmp_path):
    run = trained(tmp_path)
    made = adaptation.adapt(run, dataclasses.replace(new(), fits=False), tmp_path / "w", steps=4)
    assert made.how == "none" and made.facts == {"steps": 0}
    x = walk(12).astype(np.float32)[None]
    calls = [
        adaptation.forecaster(run, m, new(), known=k)(x, 0, None, 4)
        for m, k in ((run.model, False), (made.model, True))
    ]
    # Rows at the mean leave the mean as it is; only the scale of the mixing sees more rows.
    power = lambda t: float(np.mean(np.square(t)))  # noqa: E731
    old = run.model.transformer.coupling.embedding[...]
    ratio = power(made.params["coupling"]["embedding"]) / power(old)
    assert 0.3 < ratio < 1
    np.testing.assert_allclose(calls[0], calls[1], atol=0.2)


# -- the linear path


class Persistence:
    """The last value, for every frame ahead."""

    def __call__(self, context, session, mask, horizon):
        return np.repeat(context[:, -1:], horizon, 1)


def made_of(traces):
    store = MemoryStore([Session(traces, rate=10.0, session="new")])
    whole = make_split(store, EXPERIMENT.split)
    return given(store, whole, None, EXPERIMENT)


def test_the_correction_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    x = np.zeros((3000, 5))
    for t in range(2, 3000):  # AR(2): its next change is -.5 times the last one
        x[t] = x[t - 1] - 0.5 * (x[t - 1] - x[t - 2]) + rng.normal(size=5)
    found = linear_adaptation.fit(Persistence(), made_of(x), 12, 4)
    # x_{t+1} - x_t = .5 (x_{t-1} - x_t): the weight of the last change is .5, others 0.
    np.testing.assert_allclose(found.delta[-1, 0], 0.5, atol=0.05)
    np.testing.assert_allclose(found.delta[:-1, 0], 0, atol=0.08)
    assert found.gain < 0.9 and np.isfinite(found.alpha)


def test_a_random_walk_is_left_alone():
    found = [
        linear_adaptation.fit(Persistence(), made_of(walk(400, 4, seed)), 12, 4)
        for seed in range(6)
    ]
    assert sum(np.isfinite(f.alpha) for f in found) <= 2
    assert all((f.delta == 0).all() for f in found if not np.isfinite(f.alpha))


def test_invalid_samples_count_for_nothing():
    rng = np.random.default_rng(1)
    x = walk(800, 3, 2)
    valid = rng.random(x.shape) < 0.97
    wild = np.where(valid, x, 1e6)
    finds = []
    for traces in (x, wild):
        session = Session(traces, rate=10.0, session="new", valid=valid)
        store = MemoryStore([session])
        part = given(store, make_split(store, EXPERIMENT.split), None, EXPERIMENT)
        finds.append(linear_adaptation.fit(Persistence(), part, 12, 4))
    np.testing.assert_array_equal(finds[0].delta, finds[1].delta)


def test_only_the_last_changes_of_the_path_move():
    kernel, delta = np.zeros((48, 16)), np.ones((12, 16))
    out = linear_adaptation.applied(kernel, delta)
    assert out[35:47].all() and not out[:35].any() and not out[47].any()
    assert linear_adaptation.applied(np.zeros((8, 4)), np.ones((12, 4)))[:7].all()


def test_a_model_without_rows_moves_its_linear_path_or_nothing(tmp_path):
    run = trained(tmp_path, NONE)
    assert not tables_of(adaptation.parameters(run.model))
    made = adaptation.adapt(run, new(), tmp_path / "w", steps=4)
    before, after = (named(p) for p in (adaptation.parameters(run.model), made.params))
    moved = [k for k in before if not np.array_equal(before[k], after[k])]
    assert moved == (["readout/linear/kernel"] if made.how == "linear" else [])
    greedy = dataclasses.replace(
        run.run.experiment, forecasting=dataclasses.replace(EXPERIMENT.forecasting, mode="argmax")
    )
    other = dataclasses.replace(run, run=Run(run.run.folder, greedy))
    assert "no linear path" in adaptation.adapt(other, new(), tmp_path / "w").text


# -- the command


def test_the_command_makes_runs_and_rows(tmp_path, capsys):
    run = trained(tmp_path)
    weights = run.run.path("transformer", "model.npz").read_bytes()
    file = recording(tmp_path / "fresh.npz", frames=900, neurons=4, seed=9)
    args = [str(run.run.folder), "--data", str(file), "--minutes", "30", "all"]
    out = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "rows.json")]
    draw = ["--figure", str(tmp_path / "curve"), "--steps", "2", "--seeds", "1"]
    assert cli.main(["adapt", *args, *out, *draw]) == 0
    said = capsys.readouterr().err
    assert "30 min: left out" in said and "best baseline" in said
    assert run.run.path("transformer", "model.npz").read_bytes() == weights
    found = rows.read(tmp_path / "rows.json")
    protocols = {r["protocol"] for r in found}
    assert protocols == {"B, all"}
    methods = {r["method"] for r in found}
    assert methods >= {
        "calm_adapted", "calm_unadapted", "calm_scratch", "copy_last", "mean", "autoregression",
        "shared_linear", "population_ridge", "shared_linear_others",
    }  # fmt: skip
    for name in ("curve.png", "curve.svg"):
        assert (tmp_path / name).stat().st_size > 1000
    made = runs.load(tmp_path / "out" / "all")
    assert made.run.done("evaluation") and made.run.done("report")
    assert made.table.offset[-1] == 9 and made.table.session[0] == "fresh"
    _, notes = forecast_file(made.run.folder, file, out=tmp_path / "forecast.npz")
    assert not [n for n in notes if "not part of the run" in n]
    # As evaluated with the run, so scored by the command: the same model on the same windows.
    own = rows.read(tmp_path / "out" / "all" / "evaluation" / "rows.json")
    pick = dict(metric="mse", step=None, session="fresh")
    [a] = rows.select(own, method="calm", protocol="B", **pick)
    [b] = rows.select(found, method="calm_adapted", protocol="B, all", **pick)
    np.testing.assert_allclose(a["value"], b["value"], rtol=1e-4)


def test_a_run_whose_linear_path_was_moved_is_a_run_like_any_other(tmp_path, monkeypatch, capsys):
    run = trained(tmp_path, NONE)
    found = linear_adaptation.Correction(np.full((7, 4), 0.01, np.float32), 1.0, 0.99, 10)
    monkeypatch.setattr(linear_adaptation, "fit", lambda *_: found)
    file = recording(tmp_path / "fresh.npz", frames=900, neurons=4, seed=9)
    out = tmp_path / "out"
    args = [str(run.run.folder), "--data", str(file), "--out", str(out), "--no-scratch"]
    assert cli.main(["adapt", *args]) == 0
    assert "scoring 7 methods on" in capsys.readouterr().err
    made = runs.load(out)
    assert made.run.done("report") and made.run.stages()["transformer"]["adapted"] == "linear"
    [card] = out.rglob("MODEL_CARD.md")
    assert "adapted: the model has no rows of neurons: the linear path" in card.read_text()


def test_the_map_of_the_other_animals_takes_contexts_of_any_length(tmp_path):
    said = []
    f = adaptation_curve._of_others(trained(tmp_path), said.append)
    for context in (12, 9):
        x = walk(context, 7)[None]
        assert f(x, 0, np.ones(x.shape, bool), 4).shape == (1, 4, 7)
    (tmp_path / "old" / "old2.npz").unlink()
    assert adaptation_curve._of_others(runs.load(tmp_path / "run"), said.append) is None
    assert "no linear map" in said[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"rate": 40.0}, "--rate 10"), ({"session": "old3", "neurons": 3, "seed": 3}, "never seen")],
)
def test_recordings_that_cannot_be_adapted_to(tmp_path, capsys, fields, words):
    run = trained(tmp_path)
    file = recording(tmp_path / "odd.npz", **fields)
    assert cli.main(["adapt", str(run.run.folder), "--data", str(file)]) == 2
    assert words in capsys.readouterr().err


# -- the figure


def test_curves_average_seeds_then_animals():
    found = [
        rows.row("B, 2 min", "calm_adapted", metric, value, session=s, animal=s, seed=seed)
        for s, seed, value in (("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.6))
        for metric, value in (("skill", value), ("minutes", 2.0))
    ]
    found += [
        rows.row("B, all", "calm_adapted", metric, value, session="a", animal="a", seed=0)
        for metric, value in (("skill", 0.5), ("minutes", 7.0))
    ]
    curve = figure.curves(found)["calm_adapted"]
    np.testing.assert_allclose(curve.minutes, [2, 7])
    np.testing.assert_allclose(curve.mean, [0.4, 0.5])
    np.testing.assert_allclose(curve.animals, [[0.2, 0.5], [0.6, np.nan]])


def test_the_figure_takes_an_axis_and_gives_it_back():
    with style.look():
        _, [ax] = style.panels(1)
        line = figure.Curve(np.array([1.0, 5.0]), np.array([0.1, 0.2]), np.zeros((1, 2)))
        bad = figure.Curve(np.array([1.0, 5.0]), np.array([-9.0, -8.0]), np.zeros((1, 2)))
        found = figure.skill_against_minutes(ax, {"calm_adapted": line, "mean": bad})
        assert found is ax and "mean" in ax.get_title(loc="left")


