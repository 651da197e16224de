"""The experiment that an estimator trains: its sizes, cut to what the recordings hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from calm_jax import config
from calm_jax.estimators.inputs import PATCH, InputError, fingerprint
from calm_jax.experiments_loader import load_experiment
from calm_jax.recordings.session import Session
from calm_jax.recordings.splits import Splits


def experiment_of(
    estimator: Any, sessions: Sequence[Session], made: Splits, seed: int
) -> config.Experiment:
    """The experiment of an estimator: the one it names, or one of its sizes.

    The parts are those of `calm_base`. Context and horizon become whole codes, and shorter
    where no training range is as long as both.

    Raises:
      InputError: for a size out of its range.
    """
    data = config.Data("interchange", source=f"arrays:{fingerprint(sessions)}")
    e = estimator.experiment
    if e is not None:
        e = load_experiment(e) if isinstance(e, str) else e
        if not isinstance(e, config.Experiment):
            raise InputError(
                "no experiment",
                where="experiment",
                found=type(e).__name__,
                expected="a name, or a calm_jax.Experiment",
            )
        return dataclasses.replace(e, data=data, seed=seed)
    p = _checked(estimator)
    ranges = made.ranges("train")
    longest = int((ranges[:, 2] - ranges[:, 1]).max()) // PATCH * PATCH
    horizon = min(-(-p["horizon"] // PATCH) * PATCH, max(longest - PATCH, PATCH))
    context = min(-(-p["context"] // PATCH) * PATCH, max(longest - horizon, PATCH))
    training = config.Training(
        batch=8, log_every=20, eval_every=100, eval_batches=4, checkpoint_seconds=1e9, keep=1
    )
    heads = 4 if p["width"] >= 32 else 2
    return config.Experiment(
        name=type(estimator).__name__,
        purpose="trained by an estimator",
        seed=seed,
        data=data,
        tokenizer=config.Tokenizer(
            patch=PATCH, width=p["width"], layers=1, heads=2, ffn=2, dropout=0.0, code_width=8,
            codes=p["codes"], temperature=1.0, anneal_fraction=0.5, commitment_weight=0.25,
            entropy_weight=0.1, autoregressive_weight=0.01, autoregressive_layers=1,
        ),
        tokenizer_training=dataclasses.replace(
            training, steps=p["tokenizer_steps"], batch=64, window=context + horizon,
            learning_rate=4e-3, final_learning_rate=1e-5, weight_decay=5e-6,
        ),
        transformer=config.DualAxis(
            width=p["width"], layers=p["layers"], heads=heads, ffn=2 * p["width"], dropout=0.0,
            mixing="signed", mixing_heads=heads, mixing_rank=min(32, p["width"]), values="both",
            readout_frames=horizon, linear_context=context, linear_start=True,
            linear_knots=(0.05, 0.3, 1.0, 2.0), code_weight=0.1,
            tokens="encoded", scheduled_probability=0.0,
        ),
        transformer_training=dataclasses.replace(
            training, steps=p["steps"], window=context + horizon, learning_rate=2e-3,
            final_learning_rate=2e-5, ema=0.9,
        ),
        forecasting=config.Forecasting(context=context, horizon=horizon, mode="readout"),
        compilation="quick",
    )  # fmt: skip


def _checked(estimator: Any) -> dict[str, int]:
    """The sizes as whole numbers.

    Raises:
      InputError: naming the first that is none.
    """
    out = {}
    for name in ("width", "layers", "codes", "tokenizer_steps", "steps", "context", "horizon"):
        value = getattr(estimator, name)
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        step = 8 if name == "width" else 1
        least = 2 if name == "codes" else step
        if not whole or value < least or value % step:
            raise InputError(
                "out of range",
                where=name,
                found=repr(value),
                expected=f"a whole number, at least {least}"
                + (" and a multiple of 8" if step == 8 else ""),
            )
        out[name] = int(value)
    return out
