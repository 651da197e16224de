"""The same numbers on one device, on eight, and on two processes; stopping together."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calm_jax.errors import ConfigError
from calm_jax.training import mesh
from calm_jax.training.log import Log
from calm_jax.training.loop import train
from tests.training.toy import TRAINING, Toy

ROOT = Path(__file__).parents[2]
STEPS = 12


def start(arguments, **environment):
    """A worker process; its `wait` gives (status, output)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.worker", *map(str, arguments)],
        cwd=ROOT,
        env={**env, **environment, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def pair(folder, out, kill=-1):
    """Two processes that train together; the second gets a SIGTERM before step `kill`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    both = [
        start(
            [folder, out, STEPS, kill if i == 1 else -1],
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    return [finish(p) for p in both]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The result on one device, in this process."""
    folder = tmp_path_factory.mktemp("one")
    return train(Toy(noise=0.0), TRAINING, folder, seed=0, steps=STEPS, log=Log.silent())


def check(one, found, devices):
    assert int(found["devices"]) == devices
    np.testing.assert_allclose(found["loss"], one.best_metrics["loss"], rtol=1e-5)
    for name, values in one.params.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


def test_eight_devices_equal_one(tmp_path, one):
    flags = "--xla_force_host_platform_device_count=8"
    status, text = finish(start([tmp_path, tmp_path / "out", STEPS], XLA_FLAGS=flags))
    assert status == 0, text
    check(one, np.load(tmp_path / "out-0.npz"), 8)
    # A checkpoint written on eight devices is read on one.
    again = train(Toy(noise=0.0), TRAINING, tmp_path, seed=0, steps=STEPS, log=Log.silent())
    with np.load(tmp_path / "out-0.npz") as found:
        assert all(np.array_equal(found[k], v) for k, v in again.params.items())


def test_two_processes_equal_one_and_stop_together(tmp_path, one):
    stopped = pair(tmp_path / "run", tmp_path / "out", kill=4)
    assert [s for s, _ in stopped] == [143, 143], stopped
    assert re.search(r"stopped at step \d+ of 12", stopped[0][1]), stopped
    assert not (tmp_path / "out-0.npz").exists()
    resumed = pair(tmp_path / "run", tmp_path / "out")
    assert [s for s, _ in resumed] == [0, 0], resumed
    assert "continues from step" in resumed[0][1]
    assert "step 12/12" in resumed[0][1] and "step 12/12" not in resumed[1][1]
    first, second = (np.load(tmp_path / f"out-{i}.npz") for i in range(2))
    check(one, first, 2)
    assert all(np.array_equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES is not set"),
        (
            dict(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="two", JAX_PROCESS_ID="0"),
            "not a number",
        ),
        (
            dict(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="2"),
            "out of range; found 2; expected 0 to 1",
        ),
    ],
)
def test_a_wrong_environment_is_explained(environment, words):
    with pytest.raises(ConfigError, match=words):
        mesh.join_processes(environment)


def test_a_batch_that_does_not_divide(monkeypatch):
    class Eight:
        size = 8

    mesh.check_batch(16, Eight())
    with pytest.raises(ConfigError, match=r"batch of 10 .* 8 devices.*Set batch to 16"):
        mesh.check_batch(10, Eight())
    with pytest.raises(ConfigError, match="batch of 0"):
        mesh.check_batch(0, Eight())
