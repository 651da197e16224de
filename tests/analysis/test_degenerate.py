"""Small and degenerate data: a result or one clear line, never a warning or another error."""

import warnings

import numpy as np
import pytest

from calm_jax.analysis import (
    classification,
    components,
    curriculum,
    dynamics,
    embeddings,
    freezing,
    groups,
    information,
    landscape,
    latents,
    spectrum,
    tuning,
)
from calm_jax.errors import AnalysisError, CalmError

_RNG = np.random.default_rng(0)
TABLES = {
    "empty": np.empty((0, 3)),
    "no columns": np.empty((9, 0)),
    "one row": np.ones((1, 4)),
    "one column": _RNG.normal(size=(40, 1)),
    "two rows": _RNG.normal(size=(2, 6)),
    "constant": np.full((60, 4), 0.1),
    "one constant column": np.column_stack([_RNG.normal(size=60), np.full(60, 1e6)]),
    "all zero": np.zeros((60, 4)),
    "all NaN": np.full((60, 4), np.nan),
    "some NaN": np.where(_RNG.random((60, 4)) < 0.1, np.nan, 1.5),
    "infinite": np.where(_RNG.random((60, 4)) < 0.1, np.inf, _RNG.normal(size=(60, 4))),
    "huge": _RNG.normal(size=(120, 4)) * 1e150,
    "tiny": _RNG.normal(size=(120, 4)) * 1e-150,
    "one line": np.outer(np.arange(120.0), [1, 2, 3]),
    "two values": np.repeat([[0.0, 1.0], [1.0, 0.0]], 60, 0),
    "rare events": (_RNG.random((400, 5)) < 0.01) * 1.0,
    "whole numbers": _RNG.integers(0, 3, (120, 5)),
    "true and false": _RNG.random((120, 5)) < 0.5,
    "float32": _RNG.normal(size=(120, 5)).astype(np.float32),
    "more columns than rows": _RNG.normal(size=(12, 90)),
    "text": np.array([["a", "b"], ["c", "d"]]),
    "one axis": np.arange(9.0),
}
ANALYSES = {
    "components": lambda x: components.fit(x, 2, fewer=True),
    "d_prime": lambda x: tuning.d_prime(x, np.arange(len(x)) % 2),
    "share": lambda x: tuning.shuffled_share(x, np.arange(len(x)) % 2, shuffles=3),
    "lda": lambda x: embeddings.lda(x, np.arange(len(x)) % 3, shuffles=3),
    "angle": lambda x: embeddings.coding_angle(x, x[:, 0], np.arange(len(x)), draws=3),
    "classify": lambda x: classification.classify(x, np.arange(len(x)) % 2, shuffles=2),
    "dynamics": lambda x: dynamics.dynamics(np.asarray(x)[None], {"a": np.asarray(x)[None]}),
    "fitted": lambda x: dynamics.dynamics(np.ones((2, 3, 4)), {}, fit_on=x),
    "information": lambda x: information.neuron_information(x, rate=2.0),
    "condition": lambda x: information.condition_number(x, draws=2),
    "spectrum": lambda x: spectrum.power_spectrum(x, 2.0),
    "groups": lambda x: groups.compare(
        information.neuron_information(x, rate=2.0), np.arange(np.shape(x)[1]) % 2
    ),
    "landscape": lambda x: landscape.landscape(x, grid=6),
    "curriculum": lambda x: curriculum.curriculum(x, repeats=1, batch=4),
    "tsne": lambda x: latents.tsne(x, most=30),
    "dimension": latents.intrinsic_dimension,
    "cka": lambda x: latents.cka(x, np.arange(len(x))[:, None] % 7.0),
    "debiased": lambda x: latents.cka(x, np.arange(len(x))[:, None] % 7.0, debiased=True),
    "procrustes": lambda x: latents.procrustes(x, np.arange(len(x))[:, None] % 7.0),
    "temporal": latents.temporal_neighbourhood,
    "change": lambda x: freezing.representation_change(x, {"all": x}),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_a_result_or_one_clear_line(name):
    for kind, table in TABLES.items():
        if name == "angle" and (table.ndim < 2 or not table.size):
            continue
        if name == "tsne" and kind not in ("empty", "two rows", "constant", "one line", "text"):
            continue  # a second each
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                made = ANALYSES[name](table)
            except AnalysisError as e:
                assert "\n" not in str(e) and 10 < len(str(e)) < 300, (kind, e)
            except Exception as e:
                raise AssertionError(f"{name} of {kind}: {type(e).__name__}: {e}") from e
            else:
                assert made is not None


def test_the_error_is_one_of_the_house():
    assert issubclass(AnalysisError, CalmError)
