"""calm_tiny: the whole path in under a minute, for tests and a first look.

Data: two simulated sessions of 24 neurons. Expected: the code head beats chance, the
tokenizer reconstructs roughly; the numbers mean nothing else. Cost: 58 s on 2 cores with an
empty compilation cache, most of it tracing and compilation.
"""

from __future__ import annotations

import dataclasses

from calm_jax.config import (
    Data,
    DualAxis,
    Experiment,
    Forecasting,
    Simulation,
    Tokenizer,
    Training,
)


def experiment() -> Experiment:
    """The smallest run that goes through every stage."""
    training = Training(batch=8, log_every=10, eval_every=50, eval_batches=2)
    return Experiment(
        name="calm_tiny",
        purpose="every stage on a tiny simulation, for tests",
        data=Data(simulation=Simulation(sessions=2, trials=32, neurons=24, frames=80)),
        tokenizer=Tokenizer(
            width=32, layers=1, heads=2, ffn=2, dropout=0.0, codes=32, autoregressive_layers=1,
            revive_every=0.2,
        ),
        tokenizer_training=dataclasses.replace(
            training, steps=45, batch=32, learning_rate=3e-3, final_learning_rate=1e-4
        ),
        transformer=DualAxis(
            width=32,
            layers=1,
            heads=2,
            ffn=64,
            dropout=0.0,
            mixing="signed",
            mixing_heads=2,
            mixing_rank=8,
            values="difference",
            readout_frames=16,
            linear_context=48,
            tokens="encoded",
            scheduled_probability=0.0,
        ),
        transformer_training=dataclasses.replace(
            training, steps=30, learning_rate=3e-3, final_learning_rate=1e-4, ema=0.9
        ),
        forecasting=Forecasting(
            mode="readout",
            samples=4,
            stack=(
                "copy_last",
                "autoregression",
                "population_ridge",
                "population_change",
                "common_factors",
            ),
        ),
        compilation="quick",
    )
