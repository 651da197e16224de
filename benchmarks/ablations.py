"""What each part of the forecasting network gives: one part changed at a time.

    python -m benchmarks.ablations runs/calm_base --steps 110 --out ablations

Every variant of the transformer is trained on the tokenizer and the recordings of a finished
run, with its training shortened to `--steps`, from the same seed; then it forecasts the
validation and the test part (protocol B) in the modes that it has:

    readout   the continuous read-out of the next frames
    argmax    greedy roll-out of codes (as published)
    expected  roll-out of expected code vectors
    sample    mean of 16 sampled roll-outs

Network alone, no maps in closed form; the first session is scored, few windows of each trial.
Finished variants are not run again. Writes OUT/NAME.json and OUT/table.md; choose on validation,
the test column is there to be reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from calm_jax import compilation, evaluation, runs
from calm_jax.allocator import prefer_large_pages
from calm_jax.files import replacing
from calm_jax.forecasting import CalmForecaster
from calm_jax.models.dual_axis import DualAxisTransformer
from calm_jax.models.forecaster import CalM
from calm_jax.pipeline import fill_untrained
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.tasks.next_code import NextCode
from calm_jax.training.log import Log
from calm_jax.training.loop import train

_STRIDE = 48  # frames between origins: one or two windows a trial
CODES = ("argmax", "expected", "sample")
_CODES_ONLY = {
    "readout_frames": 0, "linear_context": 0, "linear_start": False, "code_weight": 1.0,
}  # fmt: skip
# name -> (what changes in the transformer, modes)
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "as it is": ({}, ("readout", *CODES)),
    "softmax mixing": ({"mixing": "softmax", "mixing_width": 0}, ("readout",)),
    "mixing reads the neuron embedding": ({"mixing_width": 0}, ("readout",)),
    "linear path starts at random": ({"linear_start": False}, ("readout",)),
    "no linear path": ({"linear_context": 0, "linear_start": False}, ("readout",)),
    "codes alone, no frame values": ({"values": "none"}, ("readout",)),
    "frame levels": ({"values": "level"}, ("readout",)),
    "read-out not anchored": ({"anchor": False}, ("readout",)),
    "code loss as heavy": ({"code_weight": 1.0}, ("readout", "expected")),
    "code head alone": (_CODES_ONLY, CODES),
    "code head alone, codes alone": ({**_CODES_ONLY, "values": "none"}, CODES),
    "published: softmax, codes alone": (
        {**_CODES_ONLY, "values": "none", "mixing": "softmax", "mixing_width": 0}, CODES,
    ),
    "published, own predictions in training": (
        {**_CODES_ONLY, "values": "none", "mixing": "softmax", "mixing_width": 0,
         "scheduled_probability": 0.6}, CODES,
    ),
}  # fmt: skip


def variant(
    trained: runs.Trained, prepared: Prepared, changes: dict[str, Any], modes: Sequence[str],
    steps: int, seed: int, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Trains and scores one variant: seconds, and MSE and r by part and mode."""
    e = trained.run.tailored()
    size = dataclasses.replace(e.transformer, **changes)
    training = dataclasses.replace(
        e.transformer_training, steps=steps, epochs=None, eval_every=max(1, steps // 4),
        early_stop=None,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    task = NextCode(
        size, training, prepared, trained.model.tokenizer, None, seed=seed, steps=steps
    )
    found = train(task, training, folder, seed=seed, steps=steps, log=Log.silent())
    seconds = time.monotonic() - start
    shutil.rmtree(folder, ignore_errors=True)
    blank = jax.eval_shape(
        lambda: DualAxisTransformer(
            size,
            codes=e.tokenizer.codes,
            patch=e.tokenizer.patch,
            neurons=int(trained.table.offset[-1]),
            sessions=len(trained.table.session),
            rngs=nnx.Rngs(0),
        )
    )
    transformer = nnx.merge(
        nnx.graphdef(blank), nnx.State(fill_untrained(found.params, prepared))
    )
    model = CalM(trained.model.tokenizer, transformer)
    settings = dataclasses.replace(e.forecasting, origin_stride=_STRIDE, protocols=("B",))
    most = max(s.n_neurons for s in prepared.store.sessions)
    out: dict[str, Any] = {"seconds": round(seconds, 1), "steps": steps, "scores": {}}
    for mode in modes:
        forecaster = CalmForecaster(
            model, trained.offsets(), most, mode=mode, batch=8,
            samples=16 if mode == "sample" else 0, seed=seed,
        )  # fmt: skip
        for part in ("valid", "test"):
            scores = evaluation.score_forecasts(
                prepared, prepared.splits,
                {"it": lambda x, i, mask, h, f=forecaster: f.predict(x, i, h).mean},
                settings, part, sessions=[0], batch=8,
            )  # fmt: skip
            rows = evaluation.rows_of(scores)
            pick = {
                r["metric"]: r["value"] for r in rows
                if r["session"] is None and r["animal"] is None and r["step"] is None
            }  # fmt: skip
            out["scores"][f"{mode}/{part}"] = {k: pick[k] for k in ("mse", "r")}
    return out


def table(folder: Path) -> str:
    """The table of what is finished."""
    lines = ["| variant | mode | validation MSE | test MSE | test r | seconds |", "|---" * 6 + "|"]
    for name, (_, modes) in VARIANTS.items():
        path = place(folder, name)
        if path.is_file():
            found = json.loads(path.read_text())
            for mode in modes:
                v, t = (found["scores"][f"{mode}/{part}"] for part in ("valid", "test"))
                lines.append(
                    f"| {name} | {mode} | {v['mse']:.4f} | {t['mse']:.4f} | {t['r']:.3f} | "
                    f"{found['seconds']:.0f} |"
                )
    return "\n".join(lines) + "\n"


def place(folder: Path, name: str) -> Path:
    """The file of a variant."""
    return folder / ("".join(c if c.isalnum() else "_" for c in name) + ".json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(prog="ablations", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, required=True)
    known = parser.parse_args(arguments)
    prefer_large_pages()
    compilation.enable()
    known.out.mkdir(parents=True, exist_ok=True)
    trained = runs.load(known.run)
    store = open_store(build(trained.run.experiment.data))
    prepared = Prepared(store, runs.load_split(trained.run, store), trained.scalers)
    for name in known.only:
        path = place(known.out, name)
        if not path.is_file():
            changes, modes = VARIANTS[name]
            made = variant(
                trained, prepared, changes, modes, known.steps, known.seed, known.out / "training"
            )
            with replacing(path) as part:
                part.write_text(json.dumps({"name": name, "changes": changes, **made}) + "\n")
            print(name, {k: round(v["mse"], 4) for k, v in made["scores"].items()}, flush=True)
        (known.out / "table.md").write_text(table(known.out))
    print(table(known.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
