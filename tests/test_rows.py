"""Rows average session -> animal -> all, and survive the disk."""

import math

import pytest

from calm_jax import rows as R
from calm_jax.errors import RunError


def _rows():
    put = lambda s, a, v, m="mse", k=None: R.row(
        "B", "calm", m, v, session=s, animal=a, seed=0, step=k
    )
    return [
        put("s1", "a", 1.0),
        put("s2", "a", 3.0),
        put("s3", "b", 10.0),
        put("s1", "a", 5, "n_neurons"),
        put("s2", "a", 6, "n_neurons"),
        put("s3", "b", 7, "n_neurons"),
        put("s1", "a", math.nan, "r"),
        put("s2", "a", 0.5, "r"),
        put("s3", "b", math.nan, "r"),
        put("s1", "a", 2.0, k=1),
    ]


def _one(rows, **fields):
    (found,) = R.select(rows, **fields)
    return found["value"]


def test_animals_count_alike_whatever_their_sessions():
    rows = R.averaged(_rows())
    top = {"session": None, "animal": None, "step": None}
    assert _one(rows, session=None, animal="a", metric="mse", step=None) == 2.0
    assert _one(rows, **top, metric="mse") == 6.0
    assert _one(rows, **top, metric="n_neurons") == 18
    assert _one(rows, **top, metric="r") == 0.5
    assert math.isnan(_one(rows, session=None, animal="b", metric="r"))
    assert _one(rows, session=None, animal=None, metric="mse", step=1) == 2.0
    assert len(R.averaged(rows)) == len(rows)


def test_rows_come_back(tmp_path):
    rows = R.averaged(_rows())
    R.write(rows, tmp_path / "new" / "rows.json")
    again = R.read(tmp_path / "new" / "rows.json")
    assert len(again) == len(rows)
    for a, b in zip(rows, again, strict=True):
        same = a["value"] == b["value"] or (math.isnan(a["value"]) and math.isnan(b["value"]))
        assert {**a, "value": 0} == {**b, "value": 0} and same
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["rows.json"]


@pytest.mark.parametrize("text", ["", "{}x", "[1]", '[{"value": 1}]', '[{"method": "a"}]'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(RunError, match="not a list of evaluation rows"):
        R.read(path)
    with pytest.raises(RunError, match="no such file"):
        R.read(tmp_path / "none.json")


def test_table():
    rows = R.averaged(_rows())
    lines = R.table(rows, ["mse", "r", "n_neurons"]).splitlines()
    assert lines[0] == "| protocol | method | mse | r | n_neurons |"
    assert lines[2:] == ["| B | calm | 6.000 | 0.500 | 18 |"]
    by_session = R.table(rows, ["mse", "r"], by="session").splitlines()
    assert by_session[2] == "| B | calm | s1 | 1.000 | - |" and len(by_session) == 5
    assert len(R.table(rows, ["mse"], by="animal").splitlines()) == 4
    assert len(R.table(rows, ["mse"], protocol="A").splitlines()) == 2
