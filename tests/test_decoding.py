"""`calm-jax decode` from end to end, on a run whose backbone has random weights.

Random features of the population hold what is needed to decode a function of it, and cost
no training: what is tested here is the way from recordings to rows, not the backbone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from calm_jax import cli, config, decoding, runs
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import DualAxisTransformer
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.formats import read
from calm_jax.recordings.memory import MemoryStore

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIELDS = {"method", "target", "session", "animal", "seed", "metric", "value"}
QUICK = "--seeds 1 --steps 60 --rank 4 --dropout 0 --learning-rate 0.02".split()
BEST = ["--traces", "--every-frame"]


def write(path: Path, seed: int, frames: int = 480, neurons: int = 6, **change) -> Path:
    """A recording whose behaviour is a function of its slow traces.

    `speed` is a weighted sum of the traces, `state` its sign, `pair` two sums, one of them
    missing for a while, `noise` independent of everything.
    """
    rng = np.random.default_rng(seed)
    slow = np.zeros((frames, neurons))
    for t in range(1, frames):
        slow[t] = 0.9 * slow[t - 1] + rng.normal(size=neurons)
    weights = np.where(np.arange(neurons) % 2, -1.0, 1.0)
    speed = slow @ weights / np.sqrt(neurons)
    pair = np.stack([speed, slow.sum(1)], 1).astype(np.float32)
    pair[50:90, 1] = np.nan
    fields = {
        "traces": slow.astype(np.float32),
        "rate": 10.0,
        "session": path.stem,
        "animal": f"m{seed}",
        "behavior/speed": speed.astype(np.float32),
        "behavior/state": np.where(speed > 0, "run", "rest"),
        "behavior/pair": pair,
        "behavior/noise": rng.normal(size=frames).astype(np.float32),
    }
    np.savez(path, **{k: v for k, v in (fields | change).items() if v is not None})
    return path


def make_run(folder: Path, data: Path, held_out: tuple[str, ...] = ()) -> Path:
    """A complete run folder around models that were never trained."""
    e = config.Experiment(
        "random",
        data=config.Data("interchange", source=str(data), held_out=held_out),
        tokenizer=config.Tokenizer(width=16, layers=1, heads=2, codes=8, autoregressive_layers=1),
        transformer=config.DualAxis(
            width=16, layers=1, heads=2, ffn=16, values="level", neuron_embedding=True
        ),
        transformer_training=config.Training(steps=1, window=64),
    )
    store = MemoryStore([read(p) for p in sorted(data.glob("*.npz"))])
    run = runs.open_run(folder, e)
    made = splits.make_split(store, e.split, held_out)
    tokenizer = tokenizers.init(e.tokenizer, jax.random.key(0))
    transformer = DualAxisTransformer(
        e.transformer,
        codes=8,
        patch=4,
        neurons=store.n_neurons,
        sessions=len(store.sessions),
        rngs=nnx.Rngs(0),
    )
    for stage in ("prepare", "tokenizer", "transformer"):
        with run.stage(stage):
            if stage == "prepare":
                made.save(run.path("split.json"))
                preprocess.fit(store, made, e.preprocess).save(run.path("scalers.npz"))
                runs.table_of(store).save(run.path("sessions.npz"))
            else:
                model = tokenizer if stage == "tokenizer" else transformer
                runs.save_arrays(run.path(stage, "model.npz"), nnx.to_pure_dict(nnx.state(model)))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoding")
    (folder / "data").mkdir()
    for i in range(2):
        write(folder / "data" / f"s{i}.npz", i, neurons=6 + i)
    make_run(folder / "run", folder / "data")
    return folder


def decode(home, *words, data="data", code=0):
    assert cli.main(["decode", str(home / "run"), "--data", str(home / data), *words]) == code


@pytest.fixture(scope="module")
def found(home, quick_compilation):
    """The rows of all methods on all kinds of targets."""
    targets = ["--target", "speed", "state", "--target", "noise"]
    decode(home, *targets, *QUICK, *BEST, "--json", str(home / "rows.json"))
    return json.loads((home / "rows.json").read_text())


def value(rows, target, method, metric, **fields):
    fields = {"session": None, "animal": None} | fields
    [r] = [
        r
        for r in rows
        if (r["target"], r["method"], r["metric"]) == (target, method, metric)
        and all(r[k] == v for k, v in fields.items())
    ]
    return r["value"]


def test_rows_have_seven_fields_and_all_methods(found):
    assert all(set(r) == FIELDS for r in found)
    by = lambda target: {r["method"] for r in found if r["target"] == target}  # noqa: E731
    continuous = {"calm_pooled", "ridge", "reduced_rank", "tcn", "mean", "time_only", "shuffled"}
    assert by("speed") == by("noise") == continuous
    classes = {"calm_pooled", "logistic", "tcn", "majority", "chance", "time_only", "shuffled"}
    assert by("state") == classes
    assert {r["session"] for r in found} == {"s0", "s1", None}
    assert {r["animal"] for r in found} == {"m0", "m1", None}
    assert {r["seed"] for r in found if r["method"] == "tcn"} == {0}
    assert {r["seed"] for r in found if r["method"] == "calm_pooled"} == {None}


def test_what_the_population_holds_is_decoded_and_noise_is_not(found):
    assert value(found, "speed", "ridge", "r2") > 0.99
    assert value(found, "speed", "calm_pooled", "r2") > 0.98
    assert value(found, "state", "calm_pooled", "balanced_accuracy") > 0.85
    assert value(found, "state", "logistic", "balanced_accuracy") > 0.85
    for method in ("calm_pooled", "ridge"):
        assert abs(value(found, "noise", method, "r")) < 0.3
    assert value(found, "speed", "mean", "r") == 0 > value(found, "speed", "mean", "r2")
    assert value(found, "state", "majority", "balanced_accuracy") == 0.5


def test_the_levels_of_shifted_labels_hold_chance(found):
    for s in ("s0", "s1"):
        where = {"session": s, "animal": "m" + s[1]}
        low = value(found, "speed", "calm_pooled", "r_null_low", **where)
        high = value(found, "speed", "calm_pooled", "r_null_high", **where)
        assert low < 0 < high < value(found, "speed", "calm_pooled", "r", **where)
        assert value(found, "speed", "calm_pooled", "n_null", **where) == 200
        low = value(found, "state", "shuffled", "balanced_accuracy_null_low", **where)
        high = value(found, "state", "shuffled", "balanced_accuracy_null_high", **where)
        assert low <= 0.5 <= high or abs(low - 0.5) < 0.1
        assert value(found, "speed", "shuffled", "n_null", **where) == 20


def test_confusion_matrices_count_the_test_frames(found):
    cells = [
        value(found, "state", "logistic", f"confusion/{a}/{b}", session="s0", animal="m0")
        for a in ("rest", "run")
        for b in ("rest", "run")
    ]
    total = value(found, "state", "logistic", "n_test", session="s0", animal="m0")
    right = value(found, "state", "logistic", "accuracy", session="s0", animal="m0")
    assert sum(cells) == total > 50
    assert (cells[0] + cells[3]) / total == pytest.approx(right)


@pytest.fixture(scope="module")
def new(home):
    """The name of a folder with a session that no decoder knows."""
    (home / "new").mkdir()
    write(home / "new" / "s9.npz", 9, neurons=9)
    return "new"


def test_a_decoder_is_saved_and_handed_on_to_a_new_session(
    home, found, new, capsys, monkeypatch
):
    """The pooled head: directions stay, rows are solved for, from a minute of labels."""
    saved = home / "run" / "decoders" / "decoder"
    words = ["--target", "speed", "state", "noise", "--from", str(saved), "--rows-only"]
    words += ["--minutes", "0.5", "--no-baselines", "--name", "moved", *QUICK]
    monkeypatch.setattr(decoding, "Told", functools.partial(decoding.Told, every=0.0))
    decode(home, *words, data=new)
    told = re.findall(r"features of the model: (\d+) of (\d+) frames", capsys.readouterr().err)
    assert told[-1][0] == told[-1][1] and len({a for a, _ in told}) == len(told) > 1
    with np.load(saved / "seed0.npz") as a, np.load(saved.parent / "moved" / "seed0.npz") as b:
        assert a["0/rows"].shape[0] == 13 and b["0/rows"].shape[0] == 9
        np.testing.assert_array_equal(a["0/directions"], b["0/directions"])
    moved = json.loads((saved.parent / "moved" / "rows.json").read_text())
    assert value(moved, "speed", "calm_pooled", "r2", seed=None) > 0.9
    capsys.readouterr()
    decode(home, *words, "--fine-tune", data=new, code=2)
    assert "--fine-tune" in capsys.readouterr().err


def test_a_gated_decoder_is_saved_and_handed_on_to_a_new_session(home, new, capsys):
    saved = home / "run" / "decoders" / "gated"
    words = ["--target", "speed", "state", "noise", "--head", "gated", "--name", "gated"]
    decode(home, *words, "--no-baselines", *QUICK, *BEST)
    first = json.loads((saved / "rows.json").read_text())
    assert value(first, "speed", "calm_gated", "r", seed=0) > 0.6
    about = json.loads((saved / "decoder.json").read_text())
    assert about["look_ahead_s"] == 0 and about["targets"][1]["classes"] == ["rest", "run"]
    words = ["--target", "speed", "state", "noise", "--from", str(saved), "--rows-only"]
    words += ["--no-baselines", "--name", "moved_gated", *QUICK]
    decode(home, *words, data=new)
    assert "never trained the run" in capsys.readouterr().err
    moved = saved.parent / "moved_gated"
    with np.load(saved / "seed0.npz") as a, np.load(moved / "seed0.npz") as b:
        assert a["head/rows"].shape[0] == 13 and b["head/rows"].shape[0] == 9
        for name in a.files:
            assert name == "head/rows" or (a[name] == b[name]).all()
    moved = json.loads((moved / "rows.json").read_text())
    assert value(moved, "speed", "calm_gated", "r", seed=0) > 0.3
    other = ["--target", "speed", "--from", str(saved), *QUICK]
    decode(home, *other, data="new", code=2)
    assert "decodes other targets" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        "--head linear --look-ahead 0.3",
        "--fine-tune --minutes 0.5 --unbalanced",
    ],
)
def test_options_give_rows_too(home, capsys, flags):
    words = ["--target", "pair", "state", "--no-baselines", "--name", "other", *flags.split()]
    decode(home, *words, *QUICK, "--steps", "10")
    said = capsys.readouterr()
    ahead = "up to 3 frames (0.3 s) after t" if "look" in flags else "nothing after t"
    assert ahead in said.err
    rows = json.loads((home / "run" / "decoders" / "other" / "rows.json").read_text())
    assert {r["target"] for r in rows} == {"pair[0]", "pair[1]", "state"}
    [method] = {r["method"] for r in rows}
    assert method == ("calm_linear" if "linear" in flags else "calm_gated_tuned")


FRAMES = 300
LINES = {
    "a wrong name": ({}, ["--target", "sped"], "Did you mean speed?"),
    "no target": ({}, [], "no target named"),
    "all missing": (
        {"behavior/speed": np.full(FRAMES, np.nan, np.float32)},
        ["--target", "speed"],
        "every label is missing",
    ),
    "one class": (
        {"behavior/state": np.full(FRAMES, "run")},
        ["--target", "state"],
        "a single class",
    ),
    "constant": (
        {"behavior/speed": np.ones(FRAMES, np.float32)},
        ["--target", "speed"],
        "does not vary",
    ),
    "another length": (
        {"behavior/speed": np.ones(FRAMES - 7, np.float32)},
        ["--target", "speed"],
        "another length than the traces",
    ),
    "numbers as labels": ({}, ["--target", "speed", "--classify", "speed"], "--classify"),
    "a stray class": ({}, ["--target", "speed", "--classify", "state"], "is no target"),
    "rows alone": ({}, ["--target", "speed", "--rows-only"], "Name it with --from"),
    "no decoder": ({}, ["--target", "speed", "--from", "nowhere"], "no decoder"),
    "no seeds": ({}, ["--target", "speed", "--seeds", "0"], "--seeds"),
    "a folder": ({}, ["--target", "speed", "--name", "../x"], "--name"),
}


@pytest.mark.parametrize("case", LINES)
def test_errors_are_one_clear_line(home, tmp_path, capsys, case):
    change, words, wanted = LINES[case]
    file = write(tmp_path / "t.npz", 5, FRAMES, **change)
    assert cli.main(["decode", str(home / "run"), "--data", str(file), *words]) == 2
    err = capsys.readouterr().err
    [line] = [x for x in err.splitlines() if x.startswith("error:")]
    assert wanted in line and "Traceback" not in err


def test_a_recording_of_the_run_that_was_cut_is_refused(home, tmp_path, capsys):
    """Its split would be another one, and trained frames would be tested."""
    with np.load(home / "data" / "s0.npz") as f:
        whole = dict(f)
    cut = {k: v[:400] if np.shape(v)[:1] == (480,) else v for k, v in whole.items()}
    np.savez(tmp_path / "s0.npz", **cut)
    words = ["--data", str(tmp_path), "--target", "speed"]
    assert cli.main(["decode", str(home / "run"), *words]) == 2
    assert "not as it was there" in capsys.readouterr().err


def test_held_out_sessions_take_the_mean_embeddings(home, tmp_path):
    from calm_jax import decoding_data

    run = make_run(tmp_path / "run", home / "data", ("s1",))
    given = decoding_data.recordings(runs.load(run), home / "data")
    assert given.table[0][1] == 0 and given.table[1][1] == -1
    assert (given.table[1][0] == -1).all() and (given.table[0][0] >= 0).all()


def test_the_first_minutes_of_labels(home):
    from calm_jax import decoding_data

    given = decoding_data.recordings(runs.load(home / "run"), home / "data")
    made = decoding_data.limited(given.prepared.splits, given.sessions, 0.5)
    assert made.parts[0]["train"].tolist() == [[0, 300]]
    assert (made.parts[0]["test"] == given.prepared.splits.parts[0]["test"]).all()
    assert dataclasses.replace(made, parts=given.prepared.splits.parts).hash


def test_a_curve_against_minutes_of_labels(home, found, new, tmp_path, capsys):
    """Handed on and anew, with the same minutes; the same numbers as one decoding has."""
    saved = home / "run" / "decoders" / "decoder"
    words = ["--target", "speed", "state", "noise", "--from", str(saved), "--rows-only"]
    words += ["--minutes", "all", "0.25", "9", *"--seeds 1 --steps 3 --name curve".split()]
    out = tmp_path / "curve.json"
    decode(home, *words, "--json", str(out), "--figure", str(tmp_path / "curve"), data=new)
    said = capsys.readouterr()
    assert "as much as all; left out" in said.err and "0.25 min" in said.out
    rows = json.loads(out.read_text())
    assert set(rows[0]) == FIELDS | {"minutes", "given"}
    assert {(r["given"], r["minutes"]) for r in rows} == {("0.25 min", 0.25), ("all", 336 / 600)}
    methods = {r["method"] for r in rows}
    assert {"calm_pooled", "calm_pooled_handed_on", "ridge", "logistic", "tcn"} <= methods
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    few = [r for r in rows if r["given"] == "0.25 min"]
    assert value(few, "speed", "calm_pooled_handed_on", "r2", seed=None) > 0.8
    for label, name in (("0.25 min", "curve_0.25min"), ("all", "curve_all")):
        alone = json.loads((home / "run" / "decoders" / name / "rows.json").read_text())
        here = [r for r in rows if r["given"] == label]
        assert value(alone, "speed", "calm_pooled", "r2", seed=None) == value(
            here, "speed", "calm_pooled_handed_on", "r2", seed=None
        )
    again = [w for w in words if w not in ("0.25", "9")]
    decode(home, *again, "--no-baselines", data=new)
    whole = json.loads((saved.parent / "curve" / "rows.json").read_text())
    here = [r for r in rows if r["given"] == "all"]
    assert value(whole, "speed", "calm_pooled", "r2", seed=None) == pytest.approx(
        value(here, "speed", "calm_pooled_handed_on", "r2", seed=None), abs=1e-6
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--minutes", "two"], "not a number of minutes"),
        (["--minutes", "0"], "not a number of minutes"),
        (["--minutes", "1", "--figure", "x"], "several numbers of minutes"),
    ],
)
def test_minutes_that_cannot_be_used(home, capsys, words, expected):
    decode(home, "--target", "speed", *words, code=2)
    assert expected in capsys.readouterr().err
