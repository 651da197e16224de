"""The smallest run of every stage, for the tests of the whole path."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calm_jax import cli

# calm_tiny cut down further: most of the time is compilation, which no flag shortens.
SMALL = (
    "--data.simulation.trials 24 --data.simulation.neurons 12 --tokenizer-training.steps 40 "
    "--transformer-training.steps 24 --forecasting.samples 2 "
    "--transformer-training.checkpoint-seconds 0.2"
).split()


def arguments(folder: Path, run: str = "run", *flags: str) -> list[str]:
    """`calm-jax pretrain calm_tiny` into `folder / run`."""
    store = ["--data.store", str(folder / "store")]
    return ["pretrain", "calm_tiny", "--run", str(folder / run), *store, *SMALL, *flags]


def pretrain(folder: Path, run: str = "run", *flags: str) -> Path:
    """The run folder, once everything is done."""
    assert cli.main(arguments(folder, run, *flags)) == 0
    return folder / run


def recording(path: Path, frames: int = 500, neurons: int = 5, seed: int = 0, **fields) -> Path:
    """An interchange file of slow random traces; `fields` are added or replaced."""
    rng = np.random.default_rng(seed)
    traces = np.cumsum(rng.normal(size=(frames, neurons)), 0) * 0.1
    traces += rng.normal(size=traces.shape) * 0.05
    content = {"traces": traces.astype(np.float32), "rate": 10.0, "session": path.stem} | fields
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return path
