"""What the estimators do: they learn, stay causal, take several recordings, save and load."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score

import calm_jax
from calm_jax.errors import CalmError, WeightsError
from calm_jax.estimators import CalMDecoder, CalMEmbedding, CalMForecaster
from calm_jax.recordings.arrays import from_array
from calm_jax.recordings.parts import Trials
from tests.estimators.releases import FOLDER, SIZES, behavior, found, traces

pytestmark = pytest.mark.usefixtures("quick_compilation")

KINDS = {
    "forecaster": CalMForecaster,
    "embedding": CalMEmbedding,
    "decoder": CalMDecoder,
    "pooled": CalMDecoder,
}


@pytest.fixture(scope="module")
def run():
    """The tiny models of the kept release."""
    return CalMForecaster.load(FOLDER / "0.1.0" / "forecaster").trained_


@pytest.mark.parametrize("release", sorted(p.name for p in FOLDER.iterdir()))
def test_estimators_saved_by_a_release_load_and_say_the_same(release):
    with np.load(FOLDER / release / "expected.npz") as f:
        expected = dict(f)
    for name, cls in KINDS.items():
        estimator = cls.load(FOLDER / release / name)
        np.testing.assert_allclose(found(estimator), expected[name], rtol=2e-3, atol=2e-3)
    labels = CalMDecoder.load(FOLDER / release / "labels")
    assert labels.classes_.tolist() == ["rest", "run"]
    x = traces()[300:]
    np.testing.assert_allclose(labels.predict_proba(x), expected["labels"], rtol=2e-3, atol=2e-3)
    assert set(labels.predict(x)) <= {"rest", "run"}
    assert all(p.stat().st_size < 300_000 for p in FOLDER.rglob("*") if p.is_file())


def test_what_is_kept_learned_something():
    """The saved ones against what knows nothing: on frames after those of `fit`."""
    x, y = traces(), behavior(traces())
    folder = FOLDER / "0.1.0"
    forecaster = CalMForecaster.load(folder / "forecaster")
    assert 0.1 < forecaster.score(x[300:]) < 1
    shifted = np.roll(y[300:], 50, axis=0)
    for name in ("decoder", "pooled"):
        decoder = CalMDecoder.load(folder / name)
        assert decoder.score(x[300:], y[300:]) > 0.5
        assert decoder.score(x[300:], shifted) < 0.2
    labels = CalMDecoder.load(folder / "labels")
    assert labels.score(x[300:], np.where(y[300:, 0] > 0, "run", "rest")) > 0.75


def test_training_leaves_a_run_and_goes_on_with_it(tmp_path, capfd):
    x = traces(120, 3)
    sizes = SIZES | dict(tokenizer_steps=4, steps=2, context=8, horizon=4)
    first = CalMForecaster(**sizes, folder=tmp_path).fit(x[:100])
    trained = calm_jax.load(tmp_path / "run")
    assert trained.table.neuron.tolist() == ["0", "1", "2"]
    again = clone(first).fit(x[:100])  # finds everything done
    np.testing.assert_array_equal(first.predict(x), again.predict(x))
    assert first.predict(x).shape == (4, 3) and first.predict(x, horizon=11).shape == (11, 3)
    out = capfd.readouterr()
    assert out.out == "" and out.err == ""
    with pytest.raises(CalmError, match="holds a run of another experiment"):
        clone(first).fit(x[20:])


def test_a_forecast_sees_the_end_of_the_recording_alone(run):
    x = traces(seed=5)
    f = CalMForecaster(run=run).fit(x[:200])
    long, short = f.predict(x[:300]), f.predict(x[300 - 16 : 300])
    np.testing.assert_allclose(long, short, rtol=1e-6, atol=1e-6)
    assert not np.allclose(long, f.predict(x[:299]))


def test_the_score_is_r2_of_the_forecasts(run):
    x = traces(seed=5)
    f = CalMForecaster(run=run, horizon=8).fit(x[:200])
    new = x[200:290]
    origins = range(16, 90 - 8 + 1, 8)
    guess = np.concatenate([f.predict(new[:o]) for o in origins])
    truth = np.concatenate([new[o : o + 8] for o in origins])
    mean = f.scalers_.mean[0]
    per_neuron = 1 - np.square(truth - guess).sum(0) / np.square(truth - mean).sum(0)
    assert f.score(new) == pytest.approx(per_neuron.mean(), abs=1e-4)
    with pytest.raises(ValueError, match="no range is long enough"):
        f.score(new[:8])


@pytest.mark.parametrize("components", [None, 2])
def test_features_of_a_frame_read_nothing_after_it(run, components):
    x = traces(seed=6)
    e = CalMEmbedding(run=run, components=components).fit(x[:200])
    whole = e.transform(x)
    assert whole.shape == (400, 8 if components is None else 2) and whole.dtype == np.float32
    for end in (1, 37, 150, 399):
        np.testing.assert_allclose(e.transform(x[:end]), whole[:end], rtol=1e-3, atol=2e-3)
    changed = x.copy()
    changed[200:] += 3
    np.testing.assert_array_equal(e.transform(changed)[:200], whole[:200])
    assert not np.allclose(e.transform(changed)[200], whole[200])
    assert len(e.get_feature_names_out()) == whole.shape[1]
    assert e.neuron_embeddings_.shape == (6, 8)


def test_fitting_twice_gives_the_same(run):
    x, y = traces(), behavior(traces())
    for head in ("gated", "pooled"):
        d = CalMDecoder(run=run, head=head, decoder_steps=4, rank=2, random_state=3)
        first, again = d.fit(x, y).predict(x), clone(d).fit(x, y).predict(x)
        np.testing.assert_array_equal(first, again)
        other = clone(d).set_params(random_state=4).fit(x, y).predict(x)
        # The pooled head is solved: nothing in it is drawn.
        assert np.array_equal(first, other) == (head == "pooled")


@pytest.mark.parametrize("head", ["pooled", "gated"])
def test_several_recordings_missing_values_and_trials(run, head, tmp_path):
    a, b = traces(seed=1), traces(300, 4, seed=2)
    a[:30, 2] = np.nan
    trials = Trials(np.array([0, 60, 130, 210]), np.array([60, 120, 200, 280]))
    first = from_array(a, rate=10.0, orientation="time,neurons", session="a", animal="m")
    second = from_array(b, rate=10.0, orientation="time,neurons", session="b", animal="m")
    second = second.replace(trials=trials)
    ya, yb = behavior(np.nan_to_num(a))[:, 0], behavior(b)[:, 0]
    ya[50:90] = np.nan
    d = CalMDecoder(
        run=run, head=head, decoder_steps=30, rank=4, learning_rate=0.02, random_state=0
    )
    d.fit([first, second], [ya, yb])
    if head == "pooled":
        assert d.score([first, second], [ya, yb]) > 0.9
    assert d.n_features_in_ is None and len(d.recordings_) == 2
    one, two = d.predict([first, second])
    assert one.shape == (400,) and two.shape == (300,)
    np.testing.assert_allclose(d.predict(second), two, rtol=1e-5, atol=1e-5)
    known = np.isfinite(ya)
    wanted = r2_score(np.concatenate([ya[known], yb]), np.concatenate([one[known], two]))
    assert d.score([first, second], [ya, yb]) == pytest.approx(wanted)
    d.save(tmp_path / "saved")
    np.testing.assert_allclose(CalMDecoder.load(tmp_path / "saved").predict(second), two, rtol=1e-5)
    # A trial's edge is not crossed: what comes before it does not matter.
    changed = second.replace(traces=np.where(np.arange(300)[:, None] < 130, 9, b))
    np.testing.assert_allclose(d.predict(changed)[130:], two[130:], rtol=1e-5, atol=1e-5)
    stranger = first.replace(session="c")
    for given in (stranger, a, [a, b]):
        with pytest.raises(ValueError, match="fitted on"):
            d.predict(given)


LINES = {
    "run and experiment": (dict(experiment="calm_tiny"), {}, "found both"),
    "no such run": (dict(run="nowhere"), {}, "no run, no exported model"),
    "no such head": (dict(head="deep"), {}, "no such head"),
    "no rank": (dict(rank=0), {}, "rank: out of range"),
    "no y": ({}, dict(y=None), "requires y to be passed"),
    "a short y": ({}, dict(y=np.zeros(10)), "y of another length than X"),
    "an infinite y": ({}, dict(y=np.full(60, np.inf)), "contains infinity"),
    "one class": ({}, dict(y=np.ones(60, int)), "1 class"),
    "no label": ({}, dict(y=np.full(60, np.nan)), "no value in the training frames"),
    "labels as numbers": (
        dict(classify=False),
        dict(y=np.array(["a", "b"] * 30)),
        "With classify=True they are labels",
    ),
    "numbers as labels": (
        dict(classify=True),
        dict(y=np.linspace(0, 1, 60)),
        "Unknown label type",
    ),
    "few frames": ({}, dict(X=np.zeros((7, 2))), "minimum of 8 is required"),
    "constant": ({}, dict(X=np.ones((60, 2))), "every trace is constant"),
    "no rate": (dict(rate=0), {}, "the frame rate must be positive"),
}


@pytest.mark.parametrize("case", LINES)
def test_errors_are_value_errors_in_one_line(run, case):
    params, given, wanted = LINES[case]
    x = traces(60, 2)
    arguments = {"X": x, "y": x[:, 0]} | given
    with pytest.raises((ValueError, CalmError), match=wanted):
        CalMDecoder(**({"run": run, "decoder_steps": 2, "rank": 2} | params)).fit(**arguments)


def test_sizes_out_of_range_are_named():
    for name, value in {"width": 12, "steps": 0, "codes": 1, "context": 2.5}.items():
        with pytest.raises(ValueError, match=f"{name}: out of range"):
            CalMForecaster(**(SIZES | {name: value})).fit(traces(60, 2))


def test_a_saved_estimator_of_another_class_or_broken_is_one_line(tmp_path):
    source = FOLDER / "0.1.0" / "decoder"
    with pytest.raises(WeightsError, match="another class; found 'CalMDecoder'"):
        CalMForecaster.load(source)
    assert calm_jax.load(source).table.neuron.size == 6  # its models are models like others
    with pytest.raises(WeightsError, match="no model here"):
        CalMDecoder.load(tmp_path)

    def changed(change):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        shutil.copytree(source, tmp_path / "x")
        path = tmp_path / "x" / "model.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(WeightsError) as e:
            CalMDecoder.load(tmp_path / "x")
        assert "\n" not in str(e.value)
        return str(e.value)

    assert "'estimator' is missing" in changed(lambda c: c.pop("estimator"))
    assert "does not fit the estimator" in changed(lambda c: c["estimator"].pop("targets"))
    assert "colour" in changed(lambda c: c["estimator"]["params"].update(colour=1))
    assert "another model" in changed(lambda c: c["estimator"]["params"].update(rank=5))
    assert "does not know; found 9" in changed(lambda c: c.update(version=9))


def test_not_fitted():
    for cls, name in ((CalMForecaster, "predict"), (CalMEmbedding, "transform")):
        with pytest.raises(NotFittedError):
            getattr(cls(), name)(traces(60, 2))
    with pytest.raises(NotFittedError):
        CalMDecoder().save("anywhere")
