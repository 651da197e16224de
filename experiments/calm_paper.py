"""calm_paper: the released sizes and schedules of CalM, for GPUs.

Purpose: the published method as it was released (spec: tokenizer width 512, 4 + 4
blocks, 128 codes, 100 epochs; transformer width 256, 4 layers, softmax mixing, 512
neurons per trial, 160 epochs; causal smoothing 0.15; greedy codes).
Data: a folder of recordings; name yours with --data.source. The published data
(8 animals, 286 sessions) are not public; without a source it stops with one line.
Expected: what your data give; the paper reports a correlation of .402 or .290 on its own.
Cost: days on one GPU for hundreds of sessions. Not run by us: no GPU was at hand. A CPU
needs weeks; take calm_base there.
"""

from __future__ import annotations

from calm_jax.config import Data, DualAxis, Experiment, Forecasting, Preprocess, Tokenizer, Training


def experiment() -> Experiment:
    """The released settings; every default of the config classes is theirs."""
    return Experiment(
        name="calm_paper",
        purpose="the released sizes and schedules of CalM, for GPUs",
        data=Data(name="interchange"),
        preprocess=Preprocess(smoothing=0.15),
        tokenizer=Tokenizer(),
        tokenizer_training=Training(
            epochs=100,
            window=200,  # trials have 60-200 frames; longer ranges are cut
            batch=4096,  # neuron-trials; the release does not state its batch
            learning_rate=5e-5,
            final_learning_rate=1e-6,
            warmup_fraction=0.0,
            weight_decay=5e-6,
            clip=None,
            log_every=50,
            eval_every=2000,
        ),
        transformer=DualAxis(),
        transformer_training=Training(
            epochs=160,
            window=200,
            batch=16,
            learning_rate=1e-3,
            final_learning_rate=1e-6,
            warmup_fraction=0.06,
            weight_decay=1e-3,
            clip=1.0,
            ema=0.99,
            log_every=50,
            eval_every=2000,
        ),
        forecasting=Forecasting(mode="argmax"),
    )
