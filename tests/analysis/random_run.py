"""Complete run folders around models that were never trained, for `calm-jax analyze`."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from calm_jax import config, runs
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import DualAxisTransformer
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build
from calm_jax.recordings.store import open_store
from calm_jax.tasks import codes

SIGNED = config.DualAxis(
    width=16, layers=2, heads=2, ffn=16, dropout=0.0, mixing="signed", mixing_heads=2,
    mixing_rank=4, mixing_width=8, values="both", readout_frames=8, linear_context=8,
)  # fmt: skip
CODES_ALONE = config.DualAxis(width=16, layers=1, heads=2, ffn=16, neuron_embedding=False)


def recording(path: Path, seed: int, frames: int = 400, neurons: int = 8, **change) -> Path:
    """An interchange file: slow traces, trials whose labels drive them, an area."""
    rng = np.random.default_rng(seed)
    slow = np.zeros((frames, neurons))
    for t in range(1, frames):
        slow[t] = 0.9 * slow[t - 1] + rng.normal(size=neurons)
    start = np.arange(0, frames, 40)
    trial, neuron = np.arange(len(start)), np.arange(neurons)
    cue, choice = trial % 2, trial // 2 % 2
    for a, *labels in zip(start, cue, choice):
        for label, sign in zip(labels, (neuron % 2, neuron // 2 % 2)):
            slow[a : a + 40] += 6.0 * label * np.where(sign, 1, -1)
    fields = {
        "traces": slow.astype(np.float32),
        "rate": 10.0,
        "session": path.stem,
        "animal": f"m{seed // 2}",
        "trial_start": start,
        "trial_stop": start + 40,
        "trial/cue": np.where(cue, "left", "right"),
        "trial/choice": np.where(choice, "left", "right"),
        "neuron/area": np.where(np.arange(neurons) % 2, "V1", "PPC"),
        "behavior/speed": slow[:, 0].astype(np.float32),
    }
    np.savez(path, **{k: v for k, v in (fields | change).items() if v is not None})
    return path


def experiment(folder: Path, data: config.Data, transformer: config.DualAxis) -> config.Experiment:
    """Small in everything; its store lies below `folder`."""
    read_out = transformer.readout_frames > 0
    return config.Experiment(
        "random",
        data=data,
        tokenizer=config.Tokenizer(width=16, layers=1, heads=2, codes=8, autoregressive_weight=0.0),
        transformer=transformer,
        transformer_training=config.Training(steps=1, window=40),
        forecasting=config.Forecasting(
            context=16, horizon=8, context_a=16, mode="readout" if read_out else "argmax"
        ),
    )


def make(folder: Path, e: config.Experiment) -> Path:
    """The run folder of `e`, its weights random, its codes exported."""
    store = open_store(build(e.data))
    run = runs.open_run(folder, e)
    made = splits.make_split(store, e.split)
    scalers = preprocess.fit(store, made, e.preprocess)
    tokenizer = tokenizers.init(e.tokenizer, jax.random.key(0))
    book = tokenizer.quantizer.codebook
    book[...] = jax.random.normal(jax.random.key(1), book[...].shape)
    transformer = DualAxisTransformer(
        e.transformer, codes=8, patch=4, neurons=store.n_neurons, sessions=len(store.sessions),
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    for stage in ("prepare", "tokenizer", "transformer"):
        with run.stage(stage):
            if stage == "prepare":
                made.save(run.path("split.json"))
                scalers.save(run.path("scalers.npz"))
                runs.table_of(store).save(run.path("sessions.npz"))
            else:
                model = tokenizer if stage == "tokenizer" else transformer
                runs.save_arrays(run.path(stage, "model.npz"), nnx.to_pure_dict(nnx.state(model)))
    codes.export(tokenizer, Prepared(store, made, scalers), run.path("codes.h5"), segment=40)
    return folder


def of_files(folder: Path, files: int, transformer: config.DualAxis = SIGNED, **fields) -> Path:
    """A run on `files` recordings in `folder / data`."""
    (folder / "data").mkdir(parents=True)
    for i in range(files):
        recording(folder / "data" / f"s{i}.npz", i, **fields)
    data = config.Data("interchange", source=str(folder / "data"), store=str(folder / "store"))
    return make(folder / "run", experiment(folder, data, transformer))


def of_simulation(folder: Path, transformer: config.DualAxis = SIGNED) -> Path:
    """A run on two simulated sessions of 8 neurons."""
    simulation = config.Simulation(sessions=2, trials=20, neurons=8, frames=40, burn_in=10)
    data = config.Data(store=str(folder / "store"), simulation=simulation)
    return make(folder / "run", experiment(folder, data, transformer))
