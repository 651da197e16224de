"""CA1 of mice: traces are reconstructed from events and say so; cells keep their names."""

import os
from pathlib import Path

import numpy as np
import pytest

from calm_jax.config import Data
from calm_jax.errors import RecordingError
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from data.mouse_ca1_sheintuch2020.builder import TAU, read_ca1, reconstruct

FRAMES, CELLS = 200, 70


def write(path, day=1, **changes):
    rng = np.random.default_rng(day)
    run = np.full(FRAMES, -1, np.int8)
    run[20:80], run[80:120], run[150:190] = 2, 3, 3
    position = np.where(run >= 0, rng.random(FRAMES), np.nan).astype(np.float32)
    table = np.zeros((CELLS + 5, 3), np.uint16)
    table[:CELLS, 0] = rng.permutation(CELLS) + 1
    table[5:, 1] = rng.permutation(CELLS) + 1
    fields = {
        "event_frame": np.sort(rng.integers(0, FRAMES, 500)).astype(np.int32),
        "event_cell": rng.integers(0, CELLS, 500).astype(np.int32),
        "event_amp": rng.uniform(0.02, 0.6, 500).astype(np.float32),
        "shape": np.array([FRAMES, CELLS]),
        "fs": np.float32(20),
        "position": position,
        "velocity": position * 10,
        "trial": run,
        "animal": "C1_M1",
        "env": "A",
        "cell_to_index_map": table,
    } | changes
    np.savez(path, **{k: v for k, v in fields.items() if v is not None})
    return fields


def test_events_become_traces_by_the_kernel_they_name(tmp_path):
    path = tmp_path / "C1_M1_envA_s1.npz"
    f = write(path)
    s = read_ca1(path)
    # Independent of the filter: the sum over events of the kernel.
    wanted = np.zeros((FRAMES, CELLS))
    for t, c, a in zip(f["event_frame"], f["event_cell"], f["event_amp"]):
        wanted[t:, c] += a * np.exp(-np.arange(FRAMES - t) / (TAU * 20))
    np.testing.assert_allclose(s.traces, wanted, atol=1e-6)
    assert s.unit == "reconstructed dF/F (event kernel exp(-t / 0.5 s))"
    assert any("reconstructed" in n for n in s.notes) and s.rate == 20
    slow = read_ca1(path, tau=2.0)
    assert "2 s" in slow.unit and slow.traces.sum() > s.traces.sum()
    none = np.zeros(0, int)
    assert not reconstruct(none, none, np.zeros(0), (3, 2), 0.5).any()


def test_runs_behaviour_and_registered_cells(tmp_path):
    f = write(tmp_path / "C1_M1_envA_s1.npz")
    s = read_ca1(tmp_path / "C1_M1_envA_s1.npz")
    assert s.trials.start.tolist() == [20, 80, 150] and s.trials.stop.tolist() == [80, 120, 190]
    assert s.trials.columns["run"].tolist() == [2, 3, 3]
    assert s.behavior["position"].unit == "fraction of the track"
    assert s.behavior["velocity"].unit == "cm/s"
    np.testing.assert_array_equal(s.behavior["position"].values, f["position"])
    write(tmp_path / "C1_M1_envA_s2.npz", cell_to_index_map=f["cell_to_index_map"])
    other = read_ca1(tmp_path / "C1_M1_envA_s2.npz")
    first, second = s.neurons.columns["registered"], other.neurons.columns["registered"]
    table = f["cell_to_index_map"].astype(int)
    both = np.flatnonzero((table[:, 0] > 0) & (table[:, 1] > 0))
    assert both.size == CELLS - 5
    for row in both:
        i, j = table[row, 0] - 1, table[row, 1] - 1
        assert first[i] == second[j] == f"C1_M1_A_{row}"
    wide = write(tmp_path / "C1_M1_envB_s1.npz", position=f["position"] * 60 - 30, env="B")
    assert read_ca1(tmp_path / "C1_M1_envB_s1.npz").behavior["position"].unit == "cm"
    assert wide["env"] == "B"
    write(tmp_path / "x.npz", cell_to_index_map=None, velocity=None, trial=None)
    bare = read_ca1(tmp_path / "x.npz")
    assert "registered" not in bare.neurons.columns and not len(bare.trials)
    assert {"no velocity", "no cell_to_index_map: cells are not matched across days"} <= set(
        bare.notes
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"event_amp": None}, "no field 'event_amp'"),
        ({"event_frame": np.full(500, FRAMES)}, "event_frame: an event outside the recording"),
        ({"event_cell": np.full(500, -1)}, "event_cell: an event outside the recording"),
        ({"event_amp": np.full(500, np.nan)}, "event_amp: amplitudes must be finite"),
        ({"event_amp": np.ones(3)}, "events of three lengths"),
        ({"event_frame": np.zeros(500)}, "event_frame: not a list of numbers"),
        ({"shape": np.array([FRAMES])}, "shape: no sizes"),
        ({"shape": np.array([1 << 40, 1 << 40])}, "more samples than can be meant"),
        ({"fs": np.float32(0)}, "fs: no frame rate"),
        ({"trial": np.zeros(9, int)}, "trial: behaviour of another length"),
        ({"trial": np.zeros(FRAMES)}, "trial: run numbers must be whole"),
        ({"cell_to_index_map": np.ones((5, 2), int)}, "table of registered cells does not fit"),
        ({"cell_to_index_map": np.ones((5, 0), int)}, "has no such day"),
        ({"position": np.array([{}] * FRAMES)}, "the file cannot be read"),
    ],
)
def test_other_files_are_refused(changes, message, tmp_path):
    path = tmp_path / "C1_M1_envA_s1.npz"
    write(path, **changes)
    with pytest.raises(RecordingError, match=message) as e:
        read_ca1(path)
    assert str(e.value).startswith(str(path))


def test_the_builder_takes_tau(tmp_path):
    source = tmp_path / "files"
    source.mkdir()
    write(source / "C1_M1_envA_s1.npz")
    data = Data(
        "mouse_ca1_sheintuch2020",
        source=str(source),
        store=str(tmp_path / "built"),
        read=("tau=1.5",),
    )
    assert "1.5 s" in open_store(build(data)).sessions[0].unit
    with pytest.raises(RecordingError, match="no option 'decay'; expected tau"):
        build(Data(**{**vars(data), "read": ("decay=1",)}))
    with pytest.raises(RecordingError, match="tau: no decay time; found 'fast'"):
        build(Data(**{**vars(data), "read": ("tau=fast",)}))


def test_a_real_session():
    root = os.environ.get("CALM_JAX_RECORDINGS")
    if not root:
        pytest.skip("CALM_JAX_RECORDINGS names no folder with recordings")
    folder = Path(root) / "mouse_ca1_sheintuch2020"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    a, b = (read_ca1(folder / f"C11_M1_envA_s{k}.npz") for k in (1, 6))
    assert a.traces.shape == (25317, 458) and b.traces.shape == (25155, 519)
    names = [set(x.neurons.columns["registered"]) - {""} for x in (a, b)]
    assert 150 < len(names[0] & names[1]) < 458
    assert a.trials.columns["run"].tolist() == [2, 3, 4, 5, 6]
