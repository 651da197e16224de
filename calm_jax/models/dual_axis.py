"""The dual-axis transformer: codes of a population in, the next codes of all neurons out.

Spec section 3 of CalM. Inside the model arrays are (batch B, steps T', neurons N,
width D): a step is one code, `patch` frames. Everything is causal in time and
equivariant to permutations of the neurons.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from calm_jax.config import DualAxis
from calm_jax.layers.attention import Cache, SelfAttention
from calm_jax.layers.basic import FeedForward, dropout, layer_norm, normal_start, split_key
from calm_jax.layers.mixing import make_mixing
from calm_jax.models import inferred
from calm_jax.models.readouts import FrameReadout


class Tokens(NamedTuple):
    """What the model is given.

    Attributes:
      codes: (B, T', N) integers in [0, K).
      neuron: (B, N) rows of the neuron table; negative = unknown, the mean row.
      session: (B,) rows of the session table; negative = unknown, the mean row.
      mask: (B, N) bool, False for padding.
      values: (B, T', N, patch) scaled traces, or None where the model takes codes only.
      previous: (B, N) the scaled frame before the first, or None: then unknown, and
        the first frame counts as no change.
      scale: (B, T', N) what changes of the trace are measured in, for models with
        `window_scale`; None = from `values`, which then begin with the window.
      traces: what models with `inferred` know of every neuron, of the steps of the context;
        None = from `values`, which then begin with the window.
    """

    codes: Array
    neuron: Array
    session: Array
    mask: Array
    values: Array | None = None
    previous: Array | None = None
    scale: Array | None = None
    traces: inferred.Traces | None = None


def lookup(table: nnx.Embed, index: Array) -> Array:
    """Rows of an embedding table; the mean row for negative indices."""
    rows = table(jnp.maximum(index, 0))
    mean = table.embedding[...].mean(0).astype(rows.dtype)
    return jnp.where((index < 0)[..., None], mean, rows)


class Block(nnx.Module):
    """Temporal attention, neural mixing and feed-forward, pre-LN, scaled residuals."""

    def __init__(self, config: DualAxis, patch: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        c = config
        norm = lambda: layer_norm(c.width, rngs=rngs, dtype=dtype)  # noqa: E731
        self.time_norm, self.neuron_norm, self.ffn_norm = norm(), norm(), norm()
        self.time = SelfAttention(
            c.width, c.heads, causal=True, rope=True, dropout=c.dropout, dtype=dtype, rngs=rngs
        )
        self.neuron = (
            inferred.ContextMixing(
                c.width, c.mixing_heads, c.inferred_rank, 2 * patch,
                dropout=c.dropout, dtype=dtype, rngs=rngs,
            )
            if c.inferred
            else make_mixing(
                c.mixing,
                c.width,
                c.heads,
                signed_heads=c.mixing_heads,
                rank=c.mixing_rank,
                embedding=c.mixing_width or c.width,
                dropout=c.dropout,
                dtype=dtype,
                rngs=rngs,
            )
        )  # fmt: skip
        self.ffn = FeedForward(
            c.width, c.ffn, activation=c.activation, dropout=c.dropout, dtype=dtype, rngs=rngs
        )
        self.rate, self.order = c.dropout, c.axis_order
        # Three residual branches a layer: variance stays of order 1 at any depth.
        self.scale = (3 * c.layers) ** -0.5

    def __call__(
        self,
        x: Array,
        neurons: Array | inferred.Inference,
        mask: Array,
        key: Array | None = None,
        cache: Cache | None = None,
        position: Array | int = 0,
    ) -> tuple[Array, Cache | None]:
        """x (B, S, N, D): whole sequences, or with `cache` S new steps at `position`."""
        keys = split_key(key, 5)
        add = lambda x, y, k: x + self.scale * dropout(y, self.rate, k)  # noqa: E731

        def over_time(x: Array, cache: Cache | None) -> tuple[Array, Cache | None]:
            b, s, n, d = x.shape
            h = self.time_norm(x).swapaxes(1, 2).reshape(b * n, s, d)
            if cache is None:
                y = self.time(h, key=keys[0])
            else:
                y, cache = self.time.extend(h, cache, position)
            return add(x, y.reshape(b, n, s, d).swapaxes(1, 2), keys[1]), cache

        def over_neurons(x: Array) -> Array:
            y = self.neuron(self.neuron_norm(x), neurons, mask, keys[2])
            return add(x, y, keys[3])

        if self.order == "time_first":
            x, cache = over_time(x, cache)
            x = over_neurons(x)
        else:
            x = over_neurons(x)
            x, cache = over_time(x, cache)
        return add(x, self.ffn(self.ffn_norm(x), keys[4]), None), cache


class DualAxisTransformer(nnx.Module):
    """Parameters of the dual-axis transformer; use it through the functions below.

    Args:
      config: sizes and options.
      codes: K, the size of the code book.
      patch: frames per code.
      neurons, sessions: rows of the two embedding tables.
    """

    def __init__(
        self,
        config: DualAxis,
        *,
        codes: int,
        patch: int,
        neurons: int,
        sessions: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        embed = lambda rows, width=config.width: nnx.Embed(  # noqa: E731
            rows,
            width,
            embedding_init=normal_start(0.02),
            dtype=dtype,
            rngs=rngs,
        )
        self.token = embed(codes)
        named = not config.inferred  # else no neuron has a row
        self.neuron = embed(neurons) if config.neuron_embedding and named else None
        self.session = embed(sessions) if config.session_embedding else None
        self.coupling = (
            embed(neurons, config.mixing_width) if config.mixing_width and named else None
        )
        self.own = (
            inferred.OwnStatistics(config.width, dtype=dtype, rngs=rngs)
            if config.inferred
            else None
        )
        self.value = (
            None
            if config.values == "none"
            else nnx.Linear(
                patch + (config.values == "both") + config.window_scale,
                config.width,
                use_bias=False,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.blocks = nnx.List(
            [Block(config, patch, dtype=dtype, rngs=rngs) for _ in range(config.layers)]
        )
        self.norm = layer_norm(config.width, rngs=rngs, dtype=dtype)
        self.readout = (
            FrameReadout(
                config.width,
                config.readout_frames,
                patch=patch,
                anchor=config.anchor,
                linear_context=config.linear_context,
                level=config.linear_level,
                knots=config.linear_knots,
                dtype=dtype,
                rngs=rngs,
            )
            if config.readout_frames
            else None
        )
        self.config, self.codes, self.patch, self.dtype = config, codes, patch, dtype

    def identity(self, tokens: Tokens) -> Array:
        """(B, N, D) what does not change in time: neuron plus session embedding."""
        b, n = tokens.neuron.shape
        out = jnp.zeros((b, n, self.config.width), self.dtype)
        if self.neuron is not None:
            out = out + lookup(self.neuron, tokens.neuron)
        if self.session is not None:
            out = out + lookup(self.session, tokens.session)[:, None]
        return out

    def embed(self, tokens: Tokens, soft: Array | None = None) -> Array:
        """(B, S, N, D) inputs of the blocks; `soft` (B, S, N, K) replaces the codes."""
        if soft is None:
            x = self.token(tokens.codes)
        else:
            x = soft.astype(self.dtype) @ self.token.embedding[...].astype(self.dtype)
        if self.value is not None:
            x = x + self.value(self._value_features(tokens))
        if self.own is not None:
            x = x + self.own(_traces_at(self, tokens).own)
        return x + self.identity(tokens)[:, None]

    def _value_features(self, tokens: Tokens) -> Array:
        """(B, S, N, features): the frames of each step as `config.values` wants them."""
        found = self._frame_features(tokens)
        scale = window_scale(self, tokens)
        if scale is None:
            return found
        size = scale[..., None]
        return jnp.concatenate([found / size, jnp.log(size)], axis=-1)

    def _frame_features(self, tokens: Tokens) -> Array:
        values = tokens.values
        if self.config.values == "level":
            return values
        last = values[..., -1]
        first = values[:, :1, :, 0] if tokens.previous is None else tokens.previous[:, None]
        before = jnp.concatenate([first, last[:, :-1]], axis=1)
        change = jnp.diff(values, prepend=before[..., None], axis=-1)
        if self.config.values == "difference":
            return change
        return jnp.concatenate([change, last[..., None]], axis=-1)


def running_scale(values: Array, floor: float = 0.1) -> Array:
    """(B, T', N) SD of a trace from the window's first frame to the end of each step.

    s_t = sqrt(var(x_0 .. x_t) + floor^2); values (B, T', N, patch). Causal: the same
    at every origin as if the window ended there.
    """
    b, t, n, p = values.shape
    x = (values - values[:, :1, :, :1]).astype(jnp.float32)
    count = p * jnp.arange(1, t + 1, dtype=jnp.float32)[:, None]
    mean = jnp.cumsum(x.sum(-1), axis=1) / count
    square = jnp.cumsum(jnp.square(x).sum(-1), axis=1) / count
    return jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0.0) + floor**2)


def window_scale(model: DualAxisTransformer, tokens: Tokens) -> Array | None:
    """(B, T', N) the unit of changes; None for a model that takes traces as they are."""
    if not model.config.window_scale:
        return None
    return running_scale(tokens.values) if tokens.scale is None else tokens.scale


def neuron_traces(model: DualAxisTransformer, tokens: Tokens) -> inferred.Traces | None:
    """What a model with `inferred` knows of every neuron; None for other models."""
    if model.own is None:
        return None
    given = tokens.traces
    return inferred.describe(tokens.values, tokens.mask) if given is None else given


def _traces_at(model: DualAxisTransformer, tokens: Tokens) -> inferred.Traces:
    """The traces at the S steps of `tokens`; a roll-out keeps those of its origin."""
    found = neuron_traces(model, tokens)
    if tokens.traces is None:
        return found
    return jax.tree.map(lambda x: x[:, -1:], found)


def _mixed_by(
    model: DualAxisTransformer, tokens: Tokens, position: Array | int
) -> Array | inferred.Inference:
    """What the neural mixing of steps from `position` reads its couplings from."""
    traces = neuron_traces(model, tokens)
    if traces is None:
        return mixing_embedding(model, tokens)
    return inferred.Inference(traces.shape, position)


def mixing_embedding(model: DualAxisTransformer, tokens: Tokens) -> Array:
    """(B, N, E) embeddings the neural mixing reads its queries and keys from.

    Divided by the root mean square of the tables, so that the mixing has the same scale
    at any size of their entries. Never-seen neurons have the mean row, which is small
    against the others: they are mixed little, not all alike.
    """
    if model.coupling is not None:
        e, own = lookup(model.coupling, tokens.neuron), (model.coupling,)
    else:
        e, own = model.identity(tokens), (model.neuron, model.session)
    e = e.astype(jnp.float32)
    tables = [t.embedding[...] for t in own if t is not None]
    if not tables:
        return e.astype(model.dtype)
    power = sum(jnp.mean(jnp.square(t)) for t in jax.lax.stop_gradient(tables))
    return (e * jax.lax.rsqrt(power + 1e-8)).astype(model.dtype)


def features(
    model: DualAxisTransformer,
    tokens: Tokens,
    *,
    key: Array | None = None,
    soft: Array | None = None,
) -> Array:
    """Features of every step and neuron after the final layer norm.

    Args:
      tokens: the input, T' steps.
      key: for dropout; None in evaluation.
      soft: (B, T', N, K) code probabilities that replace the hard codes.

    Returns:
      (B, T', N, D).
    """
    x = model.embed(tokens, soft)
    e = _mixed_by(model, tokens, 0)
    keys = split_key(key, len(model.blocks) + 1)
    x = dropout(x, model.config.dropout, keys[-1])
    for block, k in zip(model.blocks, keys[:-1], strict=True):
        x, _ = block(x, e, tokens.mask, k)
    return model.norm(x)


def code_logits(model: DualAxisTransformer, h: Array) -> Array:
    """(..., K) float32 logits of the next code from features (..., D); tied head."""
    return model.token.attend(h).astype(jnp.float32)


def next_code_logits(
    model: DualAxisTransformer, tokens: Tokens, *, key: Array | None = None
) -> Array:
    """(B, T', N, K) float32: logits of the code at step t + 1 from steps <= t."""
    return code_logits(model, features(model, tokens, key=key))


def empty_caches(model: DualAxisTransformer, rows: int, length: int) -> tuple[Cache, ...]:
    """Caches for `rows` = B x N traces of up to `length` steps."""
    return tuple(b.time.cache(rows, length, model.dtype) for b in model.blocks)


def extend(
    model: DualAxisTransformer,
    tokens: Tokens,
    caches: tuple[Cache, ...],
    position: Array | int,
    *,
    soft: Array | None = None,
) -> tuple[Array, tuple[Cache, ...]]:
    """Features of S new steps that begin at `position`, given the steps before.

    The same numbers as `features` on the whole sequence.

    Returns:
      features (B, S, N, D) and the caches with these steps in them.
    """
    x = model.embed(tokens, soft)
    e = _mixed_by(model, tokens, position)
    out = []
    for block, cache in zip(model.blocks, caches, strict=True):
        x, cache = block(x, e, tokens.mask, None, cache, position)
        out.append(cache)
    return model.norm(x), tuple(out)
