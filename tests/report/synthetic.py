"""A run folder as a pipeline leaves it, made of random numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from calm_jax import config, rows
from calm_jax.config import Experiment

METHODS = {
    "calm": 0.30,
    "copy_last": 0.44,
    "mean": 0.98,
    "shared_linear": 0.36,
    "population_ridge": 0.31,
}
SESSIONS = ("sim_0", "sim_1", "sim_2")


def make_run(
    folder: Path, *, neurons: int = 60, codes: int = 128, horizon: int = 16, evaluated: bool = True
) -> Path:
    """Writes a run below `folder`: everything, or all but the evaluation."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    experiment = Experiment("calm_base", "Simulated benchmark; figures of a synthetic run.")
    (folder / "experiment.json").write_text(config.dumps(experiment))
    stages = {
        "tokenizer": {"seconds": 312.4, "finished": "2026-01-02T03:04:05+00:00", "steps": 2000},
        "transformer": {"seconds": 4010.0, "finished": "2026-01-02T04:04:05+00:00"},
    }
    (folder / "stages.json").write_text(json.dumps(stages))
    parts = {"train": [[0, 100], [100, 200]], "valid": [[200, 300]], "test": [[300, 400]]}
    sessions = [{"session": s, "n_frames": 400, "parts": parts} for s in SESSIONS]
    split = {"hash": "0123abcd", "held_out": ["sim_2"], "sessions": sessions}
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "metrics.jsonl").write_text("".join(_metrics(rng)))
    if evaluated:
        rows.write(_rows(rng, neurons, horizon), folder / "evaluation" / "rows.json")
        np.savez(folder / "evaluation" / "examples.npz", **_examples(rng, neurons, codes, horizon))
    return folder


def _metrics(rng: np.random.Generator):
    for stage, floor in (("tokenizer", 0.05), ("transformer", 2.2)):
        for step in range(20, 2001, 20):
            value = floor * (1 + 10 * np.exp(-step / 300))
            if stage == "tokenizer":
                more = {"mse": value * rng.lognormal(0, 0.1), "temperature": 1.0}
                loss = value - 3.0 * (step > 100)
            else:
                more = {"nll": value, "accuracy": 0.5 - 0.4 * np.exp(-step / 400)}
                loss = value
            line = {"stage": stage, "split": "train", "step": step,
                    "loss": None if step == 40 else loss + rng.normal(0, 0.05), **more,
                    "time": 1e9 + step}  # fmt: skip
            yield json.dumps(line) + "\n"
            if step % 200 == 0:
                yield json.dumps({**line, "split": "valid", "loss": value}) + "\n"
    yield '{"stage": "transformer", "split": "tr'  # cut off by an interruption


def _rows(rng: np.random.Generator, neurons: int, horizon: int) -> list[rows.Row]:
    out: list[rows.Row] = []

    def put(protocol: str, method: str, i: int, metric: str, value: float, step=None) -> None:
        where = {"session": SESSIONS[i], "animal": f"animal_{i}", "seed": 0}
        out.append(rows.row(protocol, method, metric, value, step=step, **where))

    for i in range(len(SESSIONS)):
        for protocol, first in (("A", 5), ("B", 1)):
            for method, mse in METHODS.items():
                error = mse * (1 + 0.05 * i)
                put(protocol, method, i, "mse", error)
                put(protocol, method, i, "mae", np.sqrt(error) * 0.8)
                put(protocol, method, i, "r", 0 if method == "mean" else np.sqrt(1 - error))
                put(protocol, method, i, "skill", 1 - mse / METHODS["copy_last"])
                put(protocol, method, i, "n_neurons", neurons // 3 - 1)
                put(protocol, method, i, "n_constant", 1)
                put(protocol, method, i, "crps", 0.5 * np.sqrt(error))
                for k in (50, 80, 95):
                    put(protocol, method, i, f"coverage_{k}", k / 100 - 0.02 * (i + 1))
                for step in range(first, first + horizon):
                    grow = 1.4 - np.exp(-step / 6) * 1.1 if method != "mean" else 1.0
                    at = error * grow + rng.normal(0, 0.004)
                    put(protocol, method, i, "mse", at, step)
                    r = 0 if method == "mean" else np.sqrt(max(1 - at, 0))
                    put(protocol, method, i, "r", r, step)
        for part in ("train", "test"):
            found = {"pearson": 0.975, "mse": 0.04, "r2": 0.95, "codes_used": 121, "perplexity": 96}
            for metric, value in found.items():
                put("tokenizer", "calm_tokenizer", i, f"{part}_{metric}", value)
    return rows.averaged(out)


def _examples(rng: np.random.Generator, neurons: int, codes: int, horizon: int) -> dict:
    def smooth(*shape: int) -> np.ndarray:
        spikes = rng.poisson(0.08, shape) + rng.normal(0, 0.03, shape)
        kernel = np.exp(-np.arange(40) / 10)
        out = np.apply_along_axis(lambda x: np.convolve(x, kernel)[: x.size], -1, spikes)
        return (out - out.mean(-1, keepdims=True)) / out.std(-1, keepdims=True)

    true = smooth(6, 100)
    traces = smooth(6, 48 + horizon)
    context, future = traces[:, :48], traces[:, 48:]
    mean = future + rng.normal(0, 0.3, future.shape)
    levels = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    width = np.sqrt(np.arange(1, horizon + 1)) * 0.25
    z = np.array([-1.28, -0.67, 0, 0.67, 1.28])
    copy = np.repeat(context[:, -1:], horizon, 1)
    baselines = np.stack([copy, 0 * copy, copy * 0.8, copy * 0.6], 1)
    r = np.clip(rng.normal(0.84, 0.07, neurons), -1, 1)
    r[:2] = np.nan
    best = np.clip(r - rng.normal(0.01, 0.03, neurons), -1, 1)
    return {
        "recon_true": true,
        "recon_pred": true + rng.normal(0, 0.12, true.shape),
        "recon_label": np.array([f"sim_{i % 3}, neuron {17 * i}" for i in range(6)]),
        "rate": np.array(10.0),
        "unit": np.array("z-score"),
        "usage_train": rng.gamma(2.0, 500, codes).astype(int) * (np.arange(codes) > 6),
        "usage_test": rng.gamma(2.0, 100, codes).astype(int) * (np.arange(codes) > 9),
        "fc_context": context,
        "fc_true": future,
        "fc_mean": mean,
        "fc_quantiles": mean[:, None] + z[:, None] * width,
        "fc_levels": levels,
        "fc_baselines": baselines,
        "fc_baseline_names": np.array(["copy_last", "mean", "shared_linear", "population_ridge"]),
        "fc_label": np.array([f"sim_{i % 3}, neuron {31 * i}, frame 3{i}0" for i in range(6)]),
        "neuron_r": np.stack([r, best, 0 * r]),
        "neuron_r_names": np.array(["calm", "population_ridge", "mean"]),
    }
