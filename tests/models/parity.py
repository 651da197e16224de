"""The parity file of torch_brain's calcium model, by the environment variable CALM_JAX_PARITY."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pytest

from calm_jax.recordings import population_tokens

TASKS = {
    "drifting_gratings_orientation": 1,
    "drifting_gratings_temporal_frequency": 2,
    "running_speed": 3,
}


@functools.cache
def load() -> dict[str, np.ndarray]:
    """All arrays; skips the test where the file is not at hand."""
    given = os.environ.get("CALM_JAX_PARITY")
    path = Path(given or "", "capoyo_parity.npz")
    if not given or not path.is_file():
        pytest.skip("CALM_JAX_PARITY is not a folder with capoyo_parity.npz")
    with np.load(path, allow_pickle=False) as data:
        return {k: data[k] for k in data.files}


def under(prefix: str) -> dict[str, np.ndarray]:
    """The arrays below a prefix, by the rest of their name."""
    return {k[len(prefix) :]: v for k, v in load().items() if k.startswith(prefix)}


def reference_code(times, omega, dtype=np.float32):
    """Rotary codes as the reference made them: the angle is a float32 product."""
    angle = (np.asarray(times, np.float32)[..., None] * omega.astype(np.float32)).astype(
        np.float32
    )
    return np.stack([np.cos(angle), np.sin(angle)], axis=-2).astype(dtype)


def batch(which: str, omega, dtype=np.float32, code=None) -> dict[str, np.ndarray]:
    """The inputs "in" or "in2" with their targets, as `collate` would give them."""
    code = code or population_tokens.rotary_code
    x = under(f"{which}/")
    own = which.removeprefix("in")
    out = {
        "values": x["input_values"][..., 0].astype(dtype),
        "units": x["input_unit_index"].astype(np.int32),
        "mask": x["input_mask"],
        "code": code(x["input_timestamps"], omega, dtype),
        "sessions": x["output_session_index"].astype(np.int32),
        "tasks": x["output_decoder_index"].astype(np.int32),
        "query_code": code(x["output_timestamps"], omega, dtype),
    }
    weights = np.zeros(out["tasks"].shape, dtype)
    for name, task in TASKS.items():
        rows = out["tasks"] == task
        target = load().get(f"tgt{own}/{name}")
        if target is None:
            kind, size = (np.int32, ()) if task < 3 else (dtype, (1,))
            out[f"target/{name}"] = np.zeros((*rows.shape, *size), kind)
            continue
        classes = target.dtype.kind == "i"
        full = np.zeros((*rows.shape, *target.shape[1:]), np.int32 if classes else dtype)
        full[rows] = target
        weights[rows] = load()[f"tgtw{own}/{name}"]
        out[f"target/{name}"] = full
    return out | {"weights": weights}
