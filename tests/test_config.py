"""Configs: there and back through JSON, and what is said about wrong fields."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_jax import config
from calm_jax.config import Experiment
from calm_jax.errors import ConfigError

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def values(hint):
    """Values of an annotated type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return instances(hint)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if args:
        return st.one_of(*(st.none() if a is type(None) else values(a) for a in args))
    return {int: st.integers(), float: FLOATS, str: st.text(), bool: st.booleans()}[hint]


def instances(cls):
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{f.name: values(hints[f.name]) for f in dataclasses.fields(cls)})


@given(instances(Experiment))
def test_there_and_back(experiment):
    again = config.loads(config.dumps(experiment))
    assert again == experiment and hash(again) == hash(experiment)
    assert config.fingerprint(again) == config.fingerprint(experiment)
    assert config.differences(again, experiment) == []


@given(st.data())
def test_the_fingerprint_tells_fields_apart(data):
    base = Experiment("x")
    part = data.draw(st.sampled_from([f.name for f in dataclasses.fields(Experiment)]))
    value = data.draw(values(typing.get_type_hints(Experiment)[part]))
    other = dataclasses.replace(base, **{part: value})
    assert (config.fingerprint(other) == config.fingerprint(base)) == (other == base)
    assert (config.differences(base, other) == []) == (other == base)


def test_the_fingerprint_is_the_same_in_every_version():
    assert config.fingerprint(config.Split()) == config.fingerprint(
        {"gap": 8, "seed": 0, "test": 0.15, "train": 0.7, "valid": 0.15}
    )


def test_differences_name_the_field():
    a = Experiment("x")
    b = dataclasses.replace(a, transformer=dataclasses.replace(a.transformer, layers=2))
    assert config.differences(a, b) == ["transformer.layers: 4 -> 2"]


@pytest.mark.parametrize(
    "change, words",
    [
        (("transformer", "layer", 2), r"config\.transformer: unknown field 'layer'.*'layers'"),
        (("transformer", "layers", "2"), r"transformer\.layers: wrong value; found '2'.*int"),
        (("transformer", "layers", True), r"found True"),
        (("transformer", "layers", 2.0), r"found 2\.0"),
        (("transformer", "mixing", "sined"), r"softmax"),
        (("tokenizer", "code_width", "x"), r"code_width"),
        (("preprocess", "z_score", 1), r"expected bool"),
        (("data", "simulation", 3), r"simulation: not a table of fields; found int"),
    ],
)
def test_wrong_fields_are_named(change, words):
    part, field, value = change
    tree = config.to_dict(Experiment("x"))
    tree[part][field] = value
    with pytest.raises(ConfigError, match=words):
        config.loads(json.dumps(tree))


def test_a_field_without_default_is_missed():
    with pytest.raises(ConfigError, match="'name' is missing"):
        config.loads("{}")


def test_older_files_get_the_defaults_of_newer_fields():
    assert config.loads('{"name": "x"}') == Experiment("x")
    assert config.loads('{"name": "x", "split": {"gap": 3}}').split.gap == 3
