"""The classifier against scikit-learn, its levels, and groups kept whole."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold

from calm_jax.analysis import classification
from calm_jax.errors import AnalysisError


def blobs(n=90, d=6, classes=3, gap=1.0, seed=0):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    return rng.normal(size=(n, d)) + gap * rng.normal(size=(classes, d))[label], label


def test_equal_to_scikit_learn_without_shrinkage(monkeypatch):
    from sklearn import covariance

    monkeypatch.setattr(covariance, "ledoit_wolf_shrinkage", lambda *a, **k: 0.0)
    x, label = blobs()
    made = classification.classify(x, label, shuffles=0, seed=3)
    known = np.zeros((3, 3), int)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=3).split(x, label):
        model = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3)
        given = model.fit(x[train], label[train]).predict(x[test])
        np.add.at(known, (label[test], given), 1)
    np.testing.assert_array_equal(made.confusion, known)
    assert made.accuracy == pytest.approx(np.mean(np.diag(known) / known.sum(1)))
    assert made.confusion.sum() == made.n == 90 and made.chance == pytest.approx(1 / 3)


def test_more_dimensions_than_rows_and_names_as_labels():
    x, label = blobs(n=24, d=100, gap=2.0)
    made = classification.classify(x, np.array(["m1", "m2", "m3"])[label])
    assert made.accuracy > 0.9 and made.p < 0.05 and made.classes.tolist() == ["m1", "m2", "m3"]
    assert abs(made.null.mean() - 1 / 3) < 0.15


def test_noise_is_at_chance_also_when_classes_are_uneven():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [160, 40])
    made = classification.classify(rng.normal(size=(200, 5)), label)
    assert abs(made.accuracy - 0.5) < 0.12 and made.majority == 0.8 and made.p > 0.05


def test_a_session_shared_by_training_and_test_rows_flatters():
    rng = np.random.default_rng(0)
    session = np.repeat(np.arange(12), 20)
    animal = session % 3
    x = rng.normal(size=(240, 30)) + 2 * rng.normal(size=(12, 30))[session]  # sessions, no animals
    naive = classification.classify(x, animal)
    honest = classification.classify(x, animal, groups=session)
    assert naive.accuracy > 0.9 and honest.accuracy < 0.6 and honest.folds == 4
    assert honest.null.std() > naive.null.std()  # permuted by session: few of them


def test_classes_with_one_row_are_left_out_and_named():
    x, label = blobs(n=30)
    names = np.array(["a", "b", "c"], "U9")[label]
    names[0], names[1] = "alone", ""
    made = classification.classify(x, names, shuffles=0)
    assert made.left_out == ("alone",) and made.n == 28
    with pytest.raises(AnalysisError, match="two groups each"):
        classification.classify(x, names, groups=names)
    with pytest.raises(AnalysisError, match="two rows each"):
        classification.classify(x[:3], ["a", "b", "c"])
    with pytest.raises(AnalysisError, match="two classes"):
        classification.classify(x, ["m1"] * 30)


def test_rows_are_subsampled_by_the_seed():
    x, label = blobs(n=300)
    made = classification.classify(x, label, most=100, shuffles=0)
    again = classification.classify(x, label, most=100, shuffles=0)
    assert made.n == 100 and made.given == 300
    np.testing.assert_array_equal(made.confusion, again.confusion)


def test_constant_dimensions_do_no_harm():
    x, label = blobs()
    with_constant = np.concatenate([x, np.full((90, 2), 1e6)], 1)
    a, b = (classification.classify(v, label, shuffles=0) for v in (x, with_constant))
    assert abs(a.accuracy - b.accuracy) < 0.05
