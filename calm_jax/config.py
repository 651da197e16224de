"""Experiment and its parts: frozen dataclasses, hashable, JSON-round-trip.

An experiment derives from another with `dataclasses.replace`. The command line
overrides any field with a typed flag made from these classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from typing import Any, Literal

from calm_jax.errors import ConfigError
from calm_jax.visual_config import VisualSimulation


@dataclasses.dataclass(frozen=True)
class Simulation:
    """The simulated benchmark of CalM, eq. 17-18; times in seconds, rates in Hz."""

    sessions: int = 3  # one random network each
    trials: int = 400  # per session
    neurons: int = 200  # per session
    frames: int = 100  # per trial
    burn_in: int = 50  # frames discarded before each trial
    dt: float = 0.1  # s, one frame
    substeps: int = 5  # integration steps per frame
    gain: float = 1.5  # g, coupling J ~ N(0, 1/N)
    tau: float = 0.5  # s, rate time constant
    process_noise: float = 0.1  # times sqrt(2 h / tau) per sub-step
    rate_max: float = 10.0  # Hz, lambda_max
    tau_rise: float = 0.1  # s
    tau_decay: float = 1.0  # s
    observation_noise: float = 0.1  # times the SD of the clean trace
    seed: int = 0  # session i uses seed + i


@dataclasses.dataclass(frozen=True)
class Data:
    """Which recordings, and where they come from."""

    name: str = "simulated_population"  # a builder in data/
    source: str | None = None  # folder or file the builder reads, where it needs one
    store: str = "datasets"  # built stores are kept below this folder
    simulation: Simulation = Simulation()  # used by simulated_population only
    # Used by simulated_visual only (frozen).
    visual: VisualSimulation = VisualSimulation()  # noqa: RUF009
    held_out: tuple[str, ...] = ()  # session ids never used for training
    read: tuple[str, ...] = ()  # options of the reader, name=value (docs/formats.md)
    rate: float | None = None  # Hz that recordings are resampled to; None = as recorded


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What is done to traces before a model sees them; fitted on training frames."""

    smoothing: float | None = None  # causal exponential smoothing, a of spec 1.1; None = off
    z_score: bool = True  # per neuron, mean and SD of the training frames
    epsilon: float = 1e-6  # added to the SD
    # Times the median SD of the session: below it a trace counts as constant. A cell all but
    # silent in training that fires later would be thousands of training variances, and be all
    # that a mean over cells tells of.
    min_sd: float = 0.02


@dataclasses.dataclass(frozen=True)
class Split:
    """Parts of every session: by trial where there are trials, else blocks in time."""

    train: float = 0.70  # fraction of the trials, or of the frames
    valid: float = 0.15
    test: float = 0.15
    gap: int = 8  # frames between blocks of a recording without trials
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """The neural quantizer: one code per `patch` frames of one neuron."""

    patch: int = 4  # frames per code; a power of two (one stride-2 convolution per factor 2)
    width: int = 512  # d
    layers: int = 4
    heads: int = 4
    ffn: int = 4  # times width
    dropout: float = 0.2  # attention dropout
    codes: int = 128  # K
    code_width: int | None = None  # dimension of the codebook; None = width (as published)
    smoothing: float = 0.1  # z_t <- (1 - s) z_t + s z_{t-1}
    # Gumbel-softmax assignment
    temperature: float = 2.5
    final_temperature: float = 0.01
    anneal_fraction: float = 0.8  # of the training steps
    # codebook
    codebook: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    laplace: float = 1e-5
    warmup_fraction: float = 0.05  # of the steps un-quantised, then k-means
    revive_every: float = 0.03  # of the steps between revivals of rare codes
    revive_below: float = 0.2  # times the mean usage
    recluster_every: float | None = None  # of the steps between k-means re-clusterings
    # eq. 9
    pearson_weight: float = 0.5
    commitment_weight: float = 0.5
    embedding_weight: float = 1.0  # only with codebook = "gradient"
    entropy_weight: float = 0.5
    orthogonal_weight: float = 5e-6
    autoregressive_weight: float = 0.5
    autoregressive_steps: int = 4
    autoregressive_layers: int = 2
    label_smoothing: float = 0.05


@dataclasses.dataclass(frozen=True)
class DualAxis:
    """The dual-axis (time x neuron) autoregressive transformer and its read-outs."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    ffn: int = 1024
    activation: Literal["gelu", "swiglu"] = "gelu"
    dropout: float = 0.25
    axis_order: Literal["time_first", "neuron_first"] = "time_first"
    mixing: Literal["softmax", "signed"] = "softmax"  # neural axis; softmax is published
    mixing_heads: int = 4  # signed mixing only
    mixing_rank: int = 64  # signed mixing only, per head
    # Width of a table of its own that the mixing reads its queries and keys from; the
    # coupling between neurons has at most this rank. 0 = the neuron embedding.
    mixing_width: int = 0
    neuron_embedding: bool = True
    session_embedding: bool = True
    # In place of neuron_embedding and of the tables the mixing reads from: what a neuron is,
    # and how it is coupled, is read from the frames before each step (models/inferred).
    inferred: bool = False
    inferred_rank: int = 4  # per head and step
    # Beside the codes (ours; off = as published)
    # Frames of the patch added to the token: their levels, their successive differences
    # (which a drifting baseline leaves alone), or the differences and the last level.
    values: Literal["none", "level", "difference", "both"] = "none"
    readout_frames: int = 0  # frames predicted at once from each position; 0 = codes only
    # Frames a step must have seen for its read-out to count; where no window is that long,
    # the last step that has a target counts.
    readout_after: int = 0
    readout_weight: float = 1.0
    code_weight: float = 1.0
    anchor: bool = True  # read-out starts from the last value seen
    linear_context: int = 0  # frames of the linear path of the read-out; 0 = none
    # The linear path starts at the map that least squares gives on the training part.
    linear_start: bool = False
    # That map may also be one of levels, in place of changes from the last frame: the one that
    # forecasts the validation part better.
    linear_level: bool = False
    # Values of roughness (mean squared change from frame to frame over the variance of the recent
    # frames, 2 for white noise) between which the linear path goes over from one map to the next.
    linear_knots: tuple[float, ...] = ()
    # Changes of a trace are measured in its own SD since the start of the window.
    window_scale: bool = False
    # Training of the code head
    # "encoded" tokenizes each window as a forecast context is, at any first frame;
    # "exported" reads the codes of whole trials, as published (cheaper for large tokenizers).
    tokens: Literal["exported", "encoded"] = "exported"
    neurons_per_trial: int = 512
    noise_probability: float = 0.1  # a token becomes one of its nearest codes
    noise_neighbours: int = 12
    scheduled_probability: float = 0.6  # a block of steps takes the model's own predictions
    scheduled_block: int = 6


@dataclasses.dataclass(frozen=True)
class Training:
    """One stage of training."""

    steps: int | None = None  # optimiser steps; give steps or epochs
    epochs: float | None = None  # passes over the training windows
    batch: int = 16  # windows per step, over all devices
    window: int | None = None  # frames per window; None = whole trials
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup_fraction: float = 0.06
    weight_decay: float = 1e-3
    clip: float | None = 1.0  # global gradient norm
    ema: float | None = None  # decay of the parameter average used for evaluation
    precision: Literal["float32", "bfloat16", "auto"] = "auto"  # auto = bfloat16 on GPUs
    log_every: int = 20  # steps
    eval_every: int = 200  # steps
    eval_batches: int = 8  # validation batches each time
    watch: str = "loss"  # the validation metric that counts as loss (the least is the best)
    early_stop: int | None = None  # evaluations without improvement; the best is kept
    checkpoint_seconds: float = 120.0  # between checkpoints; with early_stop also at each new best
    keep: int = 2  # checkpoints kept


@dataclasses.dataclass(frozen=True)
class Forecasting:
    """How forecasts are made and scored."""

    context: int = 48  # protocol B, frames
    horizon: int = 16  # protocol B, frames
    origin_stride: int = 12  # protocol B, frames between origins
    context_a: int = 36  # protocol A: first frames given
    score_from_a: int = 40  # protocol A: first frame scored
    horizon_a: int = 400  # protocol A: frames forecast of a longer trial
    protocols: tuple[Literal["A", "B"], ...] = ("A", "B")
    mode: Literal["readout", "argmax", "sample", "expected"] = "argmax"
    samples: int = 16  # trajectories in mode "sample"
    temperature: float = 1.0
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    # Baselines in closed form that are weighted with the network, on the validation part
    # (`calm_jax.stacking`); none: the network alone.
    stack: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Alternative:
    """A second transformer of an experiment, and the rule that prefers it."""

    # "shared_map_wins": trained in place of the main one where, on the validation part, a
    # linear map shared by all neurons forecasts better than a ridge of the population.
    rule: Literal["never", "shared_map_wins"] = "never"
    transformer: DualAxis = DualAxis()
    training: Training = Training()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that determines a run."""

    name: str
    purpose: str = ""
    seed: int = 0
    data: Data = Data()
    preprocess: Preprocess = Preprocess()
    split: Split = Split()
    tokenizer: Tokenizer = Tokenizer()
    tokenizer_training: Training = Training()
    transformer: DualAxis = DualAxis()
    transformer_training: Training = Training()
    alternative: Alternative = Alternative()
    forecasting: Forecasting = Forecasting()
    # "quick" leaves most optimisations out: programs compile in half the time and run
    # slower, which pays in runs of a minute or two.
    compilation: Literal["full", "quick"] = "full"


def to_dict(config: Any) -> Any:
    """Plain dictionaries, lists and scalars, ready for JSON."""
    if dataclasses.is_dataclass(config):
        return {
            f.name: to_dict(getattr(config, f.name))
            for f in dataclasses.fields(config)
        }
    if isinstance(config, tuple):
        return [to_dict(x) for x in config]
    return config


def from_dict(cls: type, data: Any, where: str = "config") -> Any:
    """The dataclass `cls` from what `to_dict` gave.

    Raises:
      ConfigError: for an unknown field (with the nearest name) or a wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            "not a table of fields", where=where, found=type(data).__name__
        )
    hints = typing.get_type_hints(cls)
    names = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            raise ConfigError(
                f"unknown field {key!r}",
                where=where,
                remedy=f"Did you mean {near[0]!r}?" if near else None,
            )
    values = {
        k: _value(hints[k], v, f"{where}.{k}") for k, v in data.items()
    }
    missing = [
        f.name
        for f in names.values()
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"field {missing[0]!r} is missing", where=where)
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or a ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in (a for a in args if a is not type(None)):
            try:
                return _value(option, value, where)
            except ConfigError as e:
                error = e
        raise error
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(args[0], v, where) for v in value)
    if origin is Literal:
        if value in args:
            return value
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    wanted = args if origin is Literal else getattr(hint, "__name__", hint)
    raise ConfigError(
        "wrong value", where=where, found=repr(value), expected=str(wanted)
    )


def dumps(config: Any) -> str:
    """The config as JSON text."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def loads(text: str, cls: type = Experiment) -> Any:
    """The config from JSON text."""
    return from_dict(cls, json.loads(text))


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The fields in which two configs differ, as 'a.b: 1 -> 2'."""
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        out = []
        for f in dataclasses.fields(a):
            name = f"{where}.{f.name}" if where else f.name
            out += differences(getattr(a, f.name), getattr(b, f.name), name)
        return out
    return [] if a == b else [f"{where}: {a!r} -> {b!r}"]


def fingerprint(config: Any) -> str:
    """A short hash of the config, the same in every process and version of Python."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A behaviour decoder on the features of a run (spec section 5)."""

    # "pooled": ridge regressions with a shared prior; "gated", "linear": as published.
    head: Literal["pooled", "gated", "linear"] = "pooled"
    rank: int = 16  # per output; pooled: directions after a round
    kernel: int = 9  # frames of the smoothing
    dropout: float = 0.2
    look_ahead: int = 0  # frames after t that the decoder of frame t may read
    # Features at every frame, from `patch` tokenizations of it; else one per token.
    every_frame: bool = False
    traces: bool = False  # the frames of the token stand beside its features
    fine_tune: bool = False  # the transformer is trained too
    fine_tune_rate: float = 0.03  # its learning rate, times that of the head
    rows_only: bool = False  # of a decoder that is given: only the rows of neurons
    balanced: bool = True  # classes weigh the same, in every method
    minutes: float | None = None  # labels of the first minutes of training only
    window: int = 128  # frames of a training window
    lags: int = 5  # frames that the linear baselines see
    training: Training = Training(
        steps=400,
        batch=8,
        learning_rate=3.6e-3,
        final_learning_rate=3.6e-5,
        weight_decay=1e-2,
        precision="float32",
        eval_every=20,
        early_stop=6,
        checkpoint_seconds=1e9,
        keep=1,
    )
