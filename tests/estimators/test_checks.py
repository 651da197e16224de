"""scikit-learn's own checks of the estimators.

The backbone is the tiny one of the kept release, so that `fit` fits the scaling and, of a
decoder, trains the head. The checks fit the same head on the same data again and again: each
is trained once (`test_fitting_twice_gives_the_same` trains twice).
"""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from calm_jax.estimators import CalMDecoder, CalMEmbedding, CalMForecaster
from tests.estimators.releases import FOLDER

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),
]

_FORECASTER = CalMForecaster.load(FOLDER / "0.1.0" / "forecaster")
_SMALL = dict(run=_FORECASTER.trained_, rate=10.0)
_HEAD = dict(decoder_steps=2, rank=2, random_state=0)

# A frame stands in time: what is said of it rests on the frames before it, so that another
# order of the rows, or some rows alone, are another recording. True of every estimator here.
ORDER = "rows are frames in time: another order is another recording"
SUBSET = "rows are frames in time: without the frames before them they are other ones"
EXPECTED = {
    "check_methods_sample_order_invariance": ORDER,
    "check_methods_subset_invariance": SUBSET,
}


@pytest.fixture(autouse=True)
def heads_are_trained_once(monkeypatch):
    """The same head on the same frames and labels comes out of a memo."""
    train = CalMDecoder._trained_head

    def once(self, sessions, targets):
        key = (
            self.seed_,
            *(s.traces.tobytes() for s in sessions),
            *(v.tobytes() for t in targets for v in (*t.values, *t.known)),
            *(t.outputs for t in targets),
        )
        if key not in _HEADS:
            _HEADS[key] = train(self, sessions, targets)
        return _HEADS[key]

    monkeypatch.setattr(CalMDecoder, "_trained_head", once)


_HEADS: dict = {}


def _cases(estimator, *words):
    """The checks of an estimator, or those with one of the words in their names."""
    made = estimator_checks_generator(
        estimator, legacy=True, expected_failed_checks=EXPECTED, mark="xfail"
    )
    for case in made:
        given, check = getattr(case, "values", case)
        name = getattr(check, "func", check).__name__
        if not words or any(w in name for w in words):
            kind = type(given).__name__ + ("" if not words else "-regressor")
            marks = getattr(case, "marks", ())
            yield pytest.param(given, check, marks=marks, id=f"{kind}-{name}")


# A decoder of numbers differs from one of labels in what comes of y: the rest is checked once.
@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        *_cases(CalMForecaster(**_SMALL)),
        *_cases(CalMEmbedding(**_SMALL)),
        *_cases(CalMDecoder(**_SMALL, **_HEAD, classify=True)),
        *_cases(CalMDecoder(**_SMALL, **_HEAD, classify=False), "regress", "supervised"),
    ],
)
def test_scikit_learn(estimator, check):
    check(estimator)
