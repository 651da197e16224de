"""`--processes`: one command as several processes of a machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from calm_jax import cli, runs
from calm_jax.commands import processes
from calm_jax.errors import ConfigError
from tests import tiny

two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core"
)


def command(text: str, *more: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text), *map(str, more)]


@pytest.fixture(autouse=True)
def clean(monkeypatch, no_signals_left):
    for name in (*processes._NAMES, processes.MARK):
        monkeypatch.delenv(name, raising=False)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    yield
    assert cores is None or os.sched_getaffinity(0) == cores


@two_cores
def test_each_has_its_number_and_cores_of_its_own(tmp_path):
    text = """
        import os, sys
        i = os.environ["JAX_PROCESS_ID"]
        with open(sys.argv[1] + i, "w") as f:
            print(os.environ["JAX_NUM_PROCESSES"], os.environ["JAX_COORDINATOR_ADDRESS"],
                  *os.sched_getaffinity(0), file=f)
    """
    assert processes.launch(2, command(text, tmp_path / "p")) == 0
    a, b = ((tmp_path / f"p{i}").read_text().split() for i in range(2))
    assert a[:2] == b[:2] and a[0] == "2"
    assert not set(a[2:]) & set(b[2:])
    assert {int(c) for c in (*a[2:], *b[2:])} == os.sched_getaffinity(0)


@two_cores
def test_one_that_fails_alone_is_heard_and_ends_the_others(monkeypatch, capfd):
    monkeypatch.setattr(processes, "GRACE", 0.2)
    text = """
        import os, sys, time
        if os.environ["JAX_PROCESS_ID"] == "1":
            sys.exit("the disk is gone")
        time.sleep(60)
    """
    start = time.monotonic()
    assert processes.launch(2, command(text)) == 1
    assert time.monotonic() - start < 30
    assert "process 1: the disk is gone" in capfd.readouterr().err


@two_cores
def test_the_same_error_is_told_once(capfd):
    text = "import sys; sys.exit('error: no such file')"
    assert processes.launch(2, command(text)) == 1
    assert capfd.readouterr().err.count("no such file") == 1


@two_cores
def test_a_signal_reaches_all(tmp_path):
    text = """
        import os, signal, sys, time
        def stop(*_):
            open(sys.argv[1] + os.environ["JAX_PROCESS_ID"] + ".saved", "w").close()
            sys.exit(143)
        signal.signal(signal.SIGTERM, stop)
        open(sys.argv[1] + os.environ["JAX_PROCESS_ID"] + ".ready", "w").close()
        time.sleep(60)
    """

    def send():
        while len(list(tmp_path.glob("*.ready"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    assert processes.launch(2, command(text, tmp_path / "p")) == 143
    thread.join()
    assert len(list(tmp_path.glob("*.saved"))) == 2


def test_what_cannot_be_is_told(monkeypatch, capsys):
    with pytest.raises(ConfigError, match="more processes than cores.*found 4096"):
        processes.launch(4096, command("pass"))
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ConfigError, match="from the environment already.*JAX_NUM_PROCESSES"):
        processes.launch(2, command("pass"))
    assert cli.main(["pretrain", "calm_tiny", "--processes", "0"]) == 2
    assert "--processes" in capsys.readouterr().err
    assert cli.main(["pretrain", "no_such", "--processes", "2"]) == 2  # before any is started


def test_a_gpu_is_refused(monkeypatch):
    processes.started()  # not one that was started: nothing to look at
    monkeypatch.setenv(processes.MARK, str(os.getppid()))
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    with pytest.raises(ConfigError, match="one process uses all GPUs already"):
        processes.started()


@two_cores
def test_a_run_of_calm_ends_together(tmp_path):
    """Which stages are done is agreed: one process that saw a stage done a moment after the
    others had begun it would wait for them, and they for it."""
    steps = ("--tokenizer-training.steps", "4", "--transformer-training.steps", "4")
    words = tiny.arguments(tmp_path, "run", *steps, "--processes", "2")
    done = subprocess.run(
        [sys.executable, "-m", "calm_jax", *words],
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert set(runs.STAGES) <= set(stages)
    assert done.stderr.count("transformer step 4/4  validation") == 1
