"""`calm-jax info`: what is in a recording, as a table and as JSON."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from calm_jax.recordings.formats.interchange import write_interchange
from calm_jax.recordings.info import describe, print_info
from calm_jax.recordings.session import Channel, Intervals, Session, Trials


@pytest.fixture
def session():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    x[:, 2] = 0.5
    valid = np.ones((200, 3), bool)
    valid[:60, 1] = False
    mostly_nan = np.full(200, np.nan)
    mostly_nan[:20] = 1
    return Session(
        x,
        timestamps=np.where(np.arange(200) < 100, 0, 5) + np.arange(200) / 10,
        valid=valid,
        trials=Trials([0, 100], [100, 140]),
        intervals={"stim": Intervals([1.0, 2.0], [1.5, 2.5])},
        behavior={
            "gaze": Channel(mostly_nan, unit="deg"),
            "state": Channel(["run", "", "rest", "run"], "categorical", times=np.arange(4)),
        },
        unit="dF/F",
        animal="m[1]",
        session="d1",
    )


def test_describe(session):
    about = describe(session)
    assert (about["neurons"], about["frames"], about["rate"]) == (3, 200, 10.0)
    assert about["seconds"] == pytest.approx(25)
    assert about["trials"] == {"count": 2, "shortest": 40, "longest": 100}
    assert about["missing"] == pytest.approx(0.1)
    assert about["constant"] == ["2"]
    gaze, state = about["behavior"]
    assert gaze["missing"] == pytest.approx(0.9) and gaze["unit"] == "deg"
    assert state["classes"] == ["rest", "run"] and state["own_times"] and state["missing"] == 0.25
    text = "\n".join(about["warnings"])
    assert "1 of 3 traces never change (neurons 2)" in text
    assert "10.0% of the samples are missing" in text
    assert "1 gaps in the time stamps; the longest is 5.1 s" in text
    assert "1 of 2 trials are shorter than 64 frames" in text
    assert "more than half of behavior/gaze is missing" in text
    assert len(about["warnings"]) == 5


def test_a_sound_recording_has_no_warnings():
    assert describe(Session(np.eye(100)[:, :4], rate=5.0))["warnings"] == []


def test_a_broken_file_gets_its_line_and_the_others_print(session, tmp_path, capsys):
    write_interchange(session, tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"nothing")
    write_interchange(Session(np.eye(70)[:, :2], rate=2.0), tmp_path / "c.h5")
    out = io.StringIO()
    status = print_info([tmp_path, tmp_path / "gone"], console=Console(file=out, width=120))
    errors = capsys.readouterr().err.splitlines()
    assert status == 2 and len(errors) == 2
    assert errors[0].startswith(f"error: {tmp_path / 'b.npz'}: not an interchange file")
    assert errors[1].startswith(f"error: {tmp_path / 'gone'}: no such file or folder")
    text = out.getvalue()
    assert "d1 (animal m[1])" in text and "2 of 40 to 100 frames" in text and "10 Hz" in text
    assert "2 sessions of 2 animals, 5 neurons" in text


def test_json_is_one_list_and_plain(session, tmp_path, capsys):
    write_interchange(session, tmp_path / "a.npz")
    assert print_info([tmp_path / "a.npz"], as_json=True) == 0
    [about] = json.loads(capsys.readouterr().out)
    assert about == {"path": str(tmp_path / "a.npz"), **describe(session)}
    assert print_info([tmp_path / "a.npz", tmp_path / "x"], as_json=True) == 2
    [_, broken] = json.loads(capsys.readouterr().out)
    assert set(broken) == {"path", "error"}
