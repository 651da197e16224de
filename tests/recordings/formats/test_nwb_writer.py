"""Sessions and results written as NWB 2: nothing is lost, nwbinspector finds nothing critical."""

import datetime
import sys

import h5py
import numpy as np
import pynwb
import pytest
from hypothesis import HealthCheck, given, settings
from nwbinspector import Importance, inspect_nwbfile

import calm_jax
from calm_jax.errors import RecordingError, RunError
from calm_jax.recordings.nwb_results import add_embeddings, add_predictions
from calm_jax.recordings.nwb_writer import write_nwb
from calm_jax.recordings.session import Channel, Intervals, NeuronTable, Session, Trials
from tests.recordings.session_strategies import assert_same, sessions

FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
RNG = np.random.default_rng(1)


def example():
    valid = np.ones((60, 5), bool)
    valid[7, 2] = False
    return Session(
        traces=RNG.normal(size=(60, 5)),
        timestamps=np.arange(60) / 7 + 100,
        valid=valid,
        trials=Trials([0, 20], [20, 50], {"cue": np.array(["left", "right"])}),
        intervals={"gratings": Intervals([101.0, 103.0], [102.0, 104.0], {"angle": [0.0, 90.0]})},
        behavior={
            "speed": Channel(RNG.normal(size=60), unit="m/s"),
            "state": Channel(np.array(["rest", "run", ""]), "categorical", times=[1.0, 2.0, 3.0]),
        },
        neurons=NeuronTable(np.array(list("abcde")), {"x": np.arange(5.0)}),
        unit="dF/F",
        animal="m1",
        session="day/1 é",
        notes=("one", "two"),
    )


def critical(path):
    found = list(inspect_nwbfile(nwbfile_path=str(path)))
    worst = (Importance.CRITICAL, Importance.PYNWB_VALIDATION, Importance.ERROR)
    return [f"{m.check_function_name}: {m.message}" for m in found if m.importance in worst]


# Each example is written by pynwb, a third of a second.
@settings(max_examples=12, suppress_health_check=FIXTURE)
@given(session=sessions())
def test_round_trip_keeps_everything(session, tmp_path):
    path = tmp_path / "a.nwb"
    write_nwb(session, path)
    if session.timestamps is not None:  # NWB has one clock: the rate is that of the time stamps
        session = session.replace(rate=None)
    if not session.unit.strip():
        session = session.replace(unit="a.u.")
    assert_same(session, calm_jax.read(path))


def test_a_written_file_is_sound(tmp_path):
    path = tmp_path / "a.nwb"
    session = example()
    write_nwb(session, path, start=datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC))
    assert critical(path) == []
    back = calm_jax.read(path)
    assert back.session == "day_1 é" and "stands for" in back.notes[2]
    assert_same(session.replace(session="day_1 é"), back.replace(notes=session.notes))
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        file = io.read()
        series = file.processing["ophys"]["DfOverF"]["RoiResponseSeries"]
        assert np.isnan(series.data[7, 2]) and file.session_id == "day/1 é"
        assert file.trials["cue"][:].tolist() == ["left", "right"]
        np.testing.assert_allclose(file.trials["stop_time"][:], session.timestamps[[20, 50]])


def test_names_that_nwb_cannot_hold_are_refused(tmp_path):
    plain = Session(traces=np.ones((4, 2)), rate=1.0)
    for change, words in (
        ({"behavior": {"a/b": Channel(np.zeros(4))}}, "a name that NWB cannot hold; found 'a/b'"),
        (
            {"neurons": NeuronTable(["a", "b"], {"pixel_mask": [1, 2]})},
            "neuron/pixel_mask: NWB has",
        ),
        ({"intervals": {"x": Intervals([0.0], [1.0], {"tags": [1]})}}, "intervals/x/tags: NWB has"),
    ):
        with pytest.raises(RecordingError, match=words):
            write_nwb(plain.replace(**change), tmp_path / "a.nwb")
    with pytest.raises(RecordingError, match=r"expected FILE\.nwb"):
        write_nwb(plain, tmp_path / "a.h5")
    with pytest.raises(RunError, match="cannot be written"):
        (tmp_path / "f").write_text("")
        write_nwb(plain, tmp_path / "f" / "a.nwb")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_without_pynwb_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(RecordingError, match=r"needs pynwb.*pip install 'calm_jax\[nwb\]'"):
        write_nwb(Session(traces=np.ones((4, 2)), rate=1.0), tmp_path / "a.nwb")


def test_results_go_into_a_copy(tmp_path):
    first, second, third = (tmp_path / f"{n}.nwb" for n in "abc")
    session = example()
    write_nwb(session, first)
    before = first.read_bytes()
    made, spread = RNG.normal(size=(4, 5)), RNG.normal(size=(2, 4, 5))
    times = 110 + np.arange(4) / 7
    ids = session.neurons.id
    about = {"neurons": ids, "unit": "dF/F", "description": "a forecast"}
    add_predictions(first, second, made, times, quantiles=spread, levels=(0.1, 0.9), **about)
    add_embeddings(second, third, np.eye(5, 3), neurons=ids, description="x")
    add_embeddings(
        third, second, np.eye(60, 3), times=session.times, description="x", name="moments"
    )
    assert first.read_bytes() == before and critical(second) == [] and critical(third) == []
    with h5py.File(second) as f:
        box = f["processing/calm_jax"]
        np.testing.assert_array_equal(box["forecast/prediction"], made.T.astype(np.float32))
        np.testing.assert_array_equal(box["forecast/quantile_90"], spread[1].T.astype(np.float32))
        assert box["forecast/neuron_id"].asstr()[()].tolist() == list(ids)
        np.testing.assert_array_equal(box["forecast_times/timestamps"], times)
        np.testing.assert_array_equal(box["embeddings/embedding"], np.eye(5, 3))
        assert box["moments/data"].shape == (60, 3)
    assert_same(calm_jax.read(first), calm_jax.read(second))  # results are not read as data
    for path_in, path_out, words in (
        (first, first, "the original is never changed"),
        (second, third, "the file has 'forecast' already"),
        (first, tmp_path / "x.h5", r"expected FILE\.nwb"),
        (tmp_path / "gone.nwb", third, "not an NWB 2 file"),
    ):
        with pytest.raises(RecordingError, match=words):
            add_predictions(path_in, path_out, made, times, **about)
    with pytest.raises(RecordingError, match="do not fit together"):
        add_predictions(first, third, made.T, times, **about)
    with pytest.raises(RecordingError, match="one neuron or one time per row"):
        add_embeddings(first, third, np.eye(4), description="x")
