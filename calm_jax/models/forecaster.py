"""Forecasts of a population: tokenizer and dual-axis transformer rolled out together.

`forecast` is pure and jitted, one compilation per shape. Only the context is seen:
its frames are tokenized from the context alone. All traces are scaled (z-scored).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from calm_jax.errors import CalmError
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import (
    DualAxisTransformer,
    Tokens,
    code_logits,
    empty_caches,
    extend,
    neuron_traces,
    window_scale,
)
from calm_jax.models.readouts import recent_frames

MODES = ("readout", "argmax", "sample", "expected")
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
# Codes that the tokenizer sees at once in a roll-out, more than it is trained on (50 codes in
# `calm_paper`, 25 in `calm_base`). Without this bound long roll-outs need memory and time that
# grow with the square of their length.
_LOOK = 64


class CalM(nnx.Module):
    """A tokenizer and the transformer trained on its codes; one pytree."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, transformer: DualAxisTransformer):
        self.tokenizer, self.transformer = tokenizer, transformer


class Context(NamedTuple):
    """What a forecast is made from.

    Attributes:
      traces: (B, T, N) scaled frames that end right before the forecast origin.
      neuron: (B, N) rows of the neuron table, -1 = never seen in training.
      session: (B,) rows of the session table, -1 = never seen.
      mask: (B, N) bool, False for padding.
    """

    traces: Array
    neuron: Array
    session: Array
    mask: Array


class Forecast(NamedTuple):
    """A forecast.

    Attributes:
      mean: (B, H, N).
      quantiles: (levels, B, H, N), or None without samples.
    """

    mean: Array
    quantiles: Array | None


def context_of(traces: Array) -> Context:
    """A context of neurons the model has never seen, from traces (B, T, N) or (T, N)."""
    traces = jnp.asarray(traces, jnp.float32)
    traces = traces[None] if traces.ndim == 2 else traces
    if traces.ndim != 3:
        raise CalmError(
            "traces of another shape", found=traces.shape, expected="(B, T, N) or (T, N)"
        )
    b, _, n = traces.shape
    return Context(
        traces,
        jnp.full((b, n), -1, jnp.int32),
        jnp.full((b,), -1, jnp.int32),
        jnp.ones((b, n), bool),
    )


def forecast(
    model: CalM,
    context: Context | Array,
    horizon: int,
    *,
    key: Array | None = None,
    mode: str = "argmax",
    samples: int = 0,
    quantiles: tuple[float, ...] = QUANTILES,
    temperature: float = 1.0,
) -> Forecast:
    """The next `horizon` frames of every neuron.

    Modes: `argmax` takes the likeliest code at each step; `sample` is the mean of
    `samples` trajectories of drawn codes; `expected` feeds back and decodes the mean
    over codes; `readout` predicts frames directly and re-encodes them to go on.
    With `samples` > 0 quantiles come from that many drawn trajectories, moved so that
    their mean is the mean of the mode. The first frames of a context that is not a
    whole number of codes are not used.

    Args:
      model: the pair of models.
      context: a `Context`, or scaled traces (B, T, N) of never-seen neurons.
      horizon: H, frames.
      key: needed for samples.
      temperature: of the drawn codes.

    Returns:
      a `Forecast`, scaled like the context.

    Raises:
      CalmError: for a context shorter than one code or of parts that do not belong
        together, an unknown mode, a model without the read-out asked for, samples
        without a key, or a number out of its range.
    """
    if not isinstance(context, Context):
        context = context_of(context)
    _check_shapes(context)
    patch = model.tokenizer.config.patch
    if context.traces.shape[1] < patch:
        raise CalmError(
            "the context is shorter than one code",
            found=f"{context.traces.shape[1]} frames",
            expected=f"at least {patch}",
        )
    if horizon < 1:
        raise CalmError("the horizon must be positive", found=horizon)
    if mode not in MODES:
        raise CalmError("unknown mode of forecasting", found=repr(mode), expected=", ".join(MODES))
    if mode == "readout" and model.transformer.readout is None:
        raise CalmError(
            "this model has no frame read-out",
            found="mode 'readout'",
            expected="argmax, sample or expected",
            remedy="Set transformer.readout_frames before training to have one.",
        )
    if mode == "sample" and samples < 1:
        raise CalmError("mode 'sample' needs samples", found=samples, expected="1 or more")
    if samples < 0:
        raise CalmError("a negative number of samples", found=samples, expected="0 or more")
    # Under jit a temperature may have no value yet; then it is not looked at.
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise CalmError("the temperature must be positive", found=temperature)
    if not all(0 <= q <= 1 for q in quantiles):
        raise CalmError("quantiles must lie between 0 and 1", found=tuple(quantiles))
    if samples and key is None:
        raise CalmError("samples need a random key", remedy="Pass key=jax.random.key(0).")
    return _forecast(
        model,
        context,
        jax.random.key(0) if key is None else key,
        jnp.float32(temperature),
        horizon=int(horizon),
        mode=mode,
        samples=int(samples),
        quantiles=tuple(quantiles),
    )


def _check_shapes(context: Context) -> None:
    """Raises a `CalmError` where the parts would only fit together by broadcasting."""
    shapes = tuple(jnp.shape(x) for x in context)
    b, n = (shapes[0][0], shapes[0][-1]) if shapes[0] else (0, 0)
    if len(shapes[0]) != 3 or shapes[1:] != ((b, n), (b,), (b, n)):
        raise CalmError(
            "the parts of the context have shapes that do not belong together",
            found=", ".join(f"{k} {v}" for k, v in zip(Context._fields, shapes)),
            expected="traces (B, T, N), neuron (B, N), session (B,), mask (B, N)",
        )


@functools.partial(jax.jit, static_argnames=("horizon", "mode", "samples", "quantiles"))
def _forecast(
    model: CalM,
    context: Context,
    key: Array,
    temperature: Array,
    *,
    horizon: int,
    mode: str,
    samples: int,
    quantiles: tuple[float, ...],
) -> Forecast:
    patch = model.tokenizer.config.patch
    cut = context.traces.shape[1] % patch
    context = context._replace(traces=context.traces[:, cut:])
    drawn = None
    if samples:
        # One trajectory at a time: memory does not grow with the number of samples.
        draw = lambda k: roll_codes(model, context, horizon, "sample", k, temperature)  # noqa: E731
        drawn = jax.lax.map(draw, jax.random.split(key, samples))
    if mode == "sample":
        mean = drawn.mean(0)
    elif mode == "readout":
        mean = roll_readout(model, context, horizon)
    else:
        mean = roll_codes(model, context, horizon, mode, key, temperature)
    if drawn is None:
        return Forecast(mean, None)
    spread = drawn - drawn.mean(0)
    return Forecast(mean, mean + jnp.quantile(spread, np.asarray(quantiles), axis=0))


def _tokens(
    model: CalM,
    context: Context,
    codes: Array,
    frames: Array,
    previous: Array | None = None,
    kept: tuple = (None, None),
) -> Tokens:
    """Tokens of codes (B, S, N) with their frames (B, N, S * patch); `kept` as `_at_origin`."""
    b, s, n = codes.shape
    values = None
    if model.transformer.value is not None or model.transformer.readout is not None:
        values = frames.reshape(b, n, s, -1).swapaxes(1, 2)
    return Tokens(codes, context.neuron, context.session, context.mask, values, previous, *kept)


def _at_origin(net: DualAxisTransformer, tokens: Tokens) -> tuple:
    """The scale (B, 1, N) at the end of the context, and its traces: a roll-out keeps both."""
    scale = window_scale(net, tokens)
    return None if scale is None else scale[:, -1:], neuron_traces(net, tokens)


def _encode(model: CalM, frames: Array) -> Array:
    """Codes (B, S, N) of frames (B, N, S * patch)."""
    return tokenizers.encode(model.tokenizer, frames).swapaxes(1, 2)


def roll_codes(
    model: CalM, context: Context, horizon: int, mode: str, key: Array, temperature: Array
) -> Array:
    """Roll-out of codes with a key-value cache, decoded at the end: (B, H, N).

    Args:
      context: traces of a whole number of codes.
      mode: argmax, sample or expected.
    """
    tok, net = model.tokenizer, model.transformer
    patch = tok.config.patch
    frames = context.traces.swapaxes(1, 2)
    b, n, t = frames.shape
    past, steps = t // patch, -(-horizon // patch)
    codes = _encode(model, frames)
    book = tok.quantizer.codebook[...]
    # Code vectors of the whole sequence; the decoder is causal, so rows that are not
    # written yet do not reach the frames before them.
    vectors = jnp.zeros((b, n, past + steps, book.shape[1]), book.dtype)
    vectors = vectors.at[:, :, :past].set(book[codes].swapaxes(1, 2))
    tokens = _tokens(model, context, codes, frames)
    h, caches = extend(net, tokens, empty_caches(net, b * n, past + steps), 0)
    last, kept = frames[..., -1], _at_origin(net, tokens)

    def step(carry: tuple, s: Array) -> tuple[tuple, None]:
        logits, vectors, caches, last = carry
        soft = None
        if mode == "sample":
            draw = jax.random.fold_in(key, s)
            code = jax.random.categorical(draw, logits / temperature, axis=-1)
        else:
            code = jnp.argmax(logits, axis=-1)
        if mode == "expected":
            soft = jax.nn.softmax(logits, axis=-1)
            vector = soft @ book
            soft = soft[:, None]
        else:
            vector = book[code]
        at = past + s
        vectors = jax.lax.dynamic_update_slice_in_dim(vectors, vector[:, :, None], at, axis=2)
        new = jnp.zeros((b, n, patch))
        if net.value is not None:
            new = _decode(tok, vectors, at, 1)
        tokens = _tokens(model, context, code[:, None], new, last, kept)
        h, caches = extend(net, tokens, caches, at, soft=soft)
        return (code_logits(net, h[:, -1]), vectors, caches, new[..., -1]), None

    start = (code_logits(net, h[:, -1]), vectors, caches, last)
    (_, vectors, _, _), _ = jax.lax.scan(step, start, jnp.arange(steps))
    if past + steps <= _LOOK:
        decoded = tokenizers.decode_embeddings(tok, vectors)[:, :, t:]
    else:
        size = min(steps, _LOOK // 2)
        pieces = -(-steps // size)
        vectors = jnp.pad(vectors, ((0, 0), (0, 0), (0, size * pieces - steps), (0, 0)))
        piece = lambda k: _decode(tok, vectors, past + k * size, size)  # noqa: E731
        decoded = jax.lax.map(piece, jnp.arange(pieces))
        decoded = jnp.moveaxis(decoded, 0, 2).reshape(b, n, -1)
    return decoded[:, :, :horizon].swapaxes(1, 2)


def _decode(tok: tokenizers.Tokenizer, vectors: Array, at: Array, size: int) -> Array:
    """Frames (B, N, size * patch) of the codes from `at` on, decoded with those before them.

    Args:
      vectors: (B, N, codes, width) code vectors of the whole sequence.
    """
    patch, length = tok.config.patch, vectors.shape[2]
    look = min(length, max(_LOOK, size))
    first = jnp.clip(at + size - look, 0, length - look)
    recent = jax.lax.dynamic_slice_in_dim(vectors, first, look, axis=2)
    decoded = tokenizers.decode_embeddings(tok, recent)
    return jax.lax.dynamic_slice_in_dim(decoded, (at - first) * patch, size * patch, axis=2)


def roll_readout(model: CalM, context: Context, horizon: int) -> Array:
    """Roll-out of the frame read-out, F frames at a time, re-encoded to go on: (B, H, N)."""
    net, patch = model.transformer, model.tokenizer.config.patch
    size = net.readout.frames
    frames = context.traces.swapaxes(1, 2)
    b, n, t = frames.shape
    past, new, blocks = t // patch, size // patch, -(-horizon // size)
    length = past + new * (blocks - 1)
    tokens = _tokens(model, context, _encode(model, frames), frames)
    h, caches = extend(net, tokens, empty_caches(net, b * n, length), 0)
    back, (scale, traces) = max(net.readout.linear_context, patch), _at_origin(net, tokens)

    def read(h: Array, frames: Array) -> Array:
        """(B, N, F) from the features of the last step and all frames so far."""
        recent = frames[..., -back:]
        known = jnp.ones(recent.shape[-1], bool)
        short = back - recent.shape[-1]
        recent = jnp.pad(recent, ((0, 0), (0, 0), (short, 0)))
        known = jnp.pad(known, (short, 0))
        return net.readout(h[:, -1:], recent[:, None], known[None], scale)[:, 0]

    first = read(h, frames)
    if blocks == 1:
        return first[..., :horizon].swapaxes(1, 2)
    # A buffer of fixed length: the tokenizer is causal, so the zeros behind the frames
    # written so far change nothing before them.
    buffer = jnp.pad(frames, ((0, 0), (0, 0), (0, size * (blocks - 1))))
    look = min(length, max(_LOOK, new))  # codes

    def block(carry: tuple, s: Array) -> tuple[tuple, Array]:
        buffer, caches, predicted = carry
        at = t + s * size
        buffer = jax.lax.dynamic_update_slice_in_dim(buffer, predicted, at, axis=2)
        first = jnp.clip(at // patch + new - look, 0, length - look)
        piece = jax.lax.dynamic_slice_in_dim(buffer, first * patch, look * patch, axis=2)
        codes = jax.lax.dynamic_slice_in_dim(
            _encode(model, piece), at // patch - first, new, axis=1
        )
        before = jax.lax.dynamic_slice_in_dim(buffer, at - 1, 1, axis=2)[..., 0]
        steps = None if scale is None else jnp.broadcast_to(scale, (b, new, n))
        tokens = _tokens(model, context, codes, predicted, before, (steps, traces))
        h, caches = extend(net, tokens, caches, at // patch)
        seen = jax.lax.dynamic_slice_in_dim(
            jnp.pad(buffer, ((0, 0), (0, 0), (back, 0))), at + size, back, axis=2
        )
        known = jnp.arange(back) + at + size - back >= 0
        out = net.readout(h[:, -1:], seen[:, None], known[None], scale)[:, 0]
        return (buffer, caches, out), out

    _, rest = jax.lax.scan(block, (buffer, caches, first), jnp.arange(blocks - 1))
    rest = jnp.moveaxis(rest, 0, 2).reshape(b, n, -1)
    out = jnp.concatenate([first, rest], axis=-1)[..., :horizon]
    return out.swapaxes(1, 2)


def frames_ahead(values: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """Targets of the read-out: the `size` frames after every step.

    Shapes: values, mask (B, T', N, patch) -> the same with `size` frames last; the
    mask is False beyond the end.
    """
    t, patch = values.shape[1], values.shape[-1]
    ahead = size // patch
    pad = ((0, 0), (0, ahead), (0, 0), (0, 0))
    x, m = jnp.pad(values, pad), jnp.pad(mask, pad)
    shifts = range(1, ahead + 1)
    return (
        jnp.concatenate([x[:, i : i + t] for i in shifts], axis=-1),
        jnp.concatenate([m[:, i : i + t] for i in shifts], axis=-1),
    )


def read_frames(transformer: DualAxisTransformer, h: Array, tokens: Tokens) -> Array:
    """The read-out at every step of whole windows.

    Shapes: h (B, T', N, D) features of `tokens` (T' steps) -> (B, T', N, F).
    """
    back = max(transformer.readout.linear_context, transformer.patch)
    recent, known = recent_frames(tokens.values, back)
    return transformer.readout(h, recent, known, window_scale(transformer, tokens))
