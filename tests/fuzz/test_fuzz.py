"""A small run of `make fuzz`: a few damaged files of every format."""

from tests.fuzz.run import fuzz
from tests.fuzz.seeds import SEEDS


def test_damaged_recordings_are_read_or_refused():
    out = fuzz(5 * len(SEEDS))
    assert {name: x["kind"] for name, x in out["whole"].items()} == {s.name: "read" for s in SEEDS}
    assert not out["bad"]
    assert out["slowest"] < 20
    refused = sum(row["refused"] for row in out["table"].values())
    assert refused > 2 * len(SEEDS)  # the damage is real
