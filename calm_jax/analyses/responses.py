"""What a change of one neuron's last frames does to the forecast of every neuron.

    R[f, i, j] = mean over windows of (y_f,i(x + s e_j) - y_f,i(x)) / s

with e_j = 1 at the last `frames` frames of neuron j, and s = +step and -step in turn from
window to window, so that curvature averages out. A finite change, not a derivative: codes
are chosen by the nearest neighbour and have none. Works for every mixing and read-out; a
model without a frame read-out answers for the next code alone, by the mean waveforms of the
codes under their predicted probabilities. Only the last step of the window is computed
again for each neuron, on the cached steps before it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from calm_jax.errors import AnalysisError
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import (
    Tokens,
    code_logits,
    empty_caches,
    extend,
    mixing_embedding,
    neuron_traces,
    window_scale,
)
from calm_jax.models.forecaster import CalM, Context


def responses(
    model: CalM,
    context: Context,
    *,
    frames: int = 1,
    step: float = 1.0,
    block: int = 8,
    waveforms: np.ndarray | None = None,
) -> np.ndarray:
    """R of the module's head, (F, N, N): F frames ahead, neuron i answers, neuron j changes.

    Args:
      context: W windows of one session, the same neurons in each; traces (W, T, N) scaled.
        Padded neurons answer and change nothing that counts: cut them off.
      frames: changed at the end of the window, at most one code. step: in SD.
      block: neurons changed side by side; bounds the memory.
      waveforms: (K, patch) mean frames of each code; needed without a frame read-out.

    Raises:
      AnalysisError: for a window shorter than two codes, or frames beyond a code.
    """
    patch, length = model.tokenizer.config.patch, context.traces.shape[1]
    if length < 2 * patch or not 0 < frames <= patch:
        raise AnalysisError(
            "no response can be computed",
            found=f"windows of {length} frames, {frames} frames changed",
            expected=f"at least {2 * patch} frames, of which 1 to {patch} are changed",
        )
    if model.transformer.readout is None and waveforms is None:
        raise AnalysisError("a model of codes alone needs the mean waveforms of its codes")
    cut = length % patch
    n = context.traces.shape[2]
    padded = -(-n // block) * block
    which = jnp.minimum(jnp.arange(padded), n - 1).reshape(-1, block)
    total = None
    for w in range(context.traces.shape[0]):
        one = Context(*(x[w : w + 1] for x in context))._replace(
            traces=context.traces[w : w + 1, cut:]
        )
        sign = jnp.float32(step if w % 2 == 0 else -step)
        found = _responses(model, one, which, sign, None if waveforms is None else
                           jnp.asarray(waveforms, jnp.float32), frames=frames)  # fmt: skip
        found = np.asarray(found, np.float64)
        total = found if total is None else total + found
    total = total.reshape(padded, n, -1)[:n] / context.traces.shape[0]
    return np.moveaxis(total, (0, 1, 2), (2, 1, 0)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("frames",))
def _responses(
    model: CalM,
    context: Context,
    which: Array,
    step: Array,
    waveforms: Array | None,
    *,
    frames: int,
) -> Array:
    """Blocks of changed neurons (blocks, J) -> (blocks, J, N, F) changes per unit."""
    net, tok = model.transformer, model.tokenizer
    patch = tok.config.patch
    x = context.traces.swapaxes(1, 2)  # (1, N, T)
    _, n, t = x.shape
    steps = t // patch
    codes = tokenizers.encode(tok, x).swapaxes(1, 2)  # (1, S, N)
    whole = _tokens(model, context, codes, x)
    scale = window_scale(net, whole)
    part = lambda a, cut: None if a is None else a[:, cut]  # noqa: E731
    before = whole._replace(
        codes=codes[:, :-1],
        values=part(whole.values, slice(None, -1)),
        scale=part(scale, slice(None, -1)),
    )
    _, caches = extend(net, before, empty_caches(net, n, steps), 0)

    def last(x: Array, codes: Array, count: int) -> Array:
        """(count, N, F) from windows (count, N, T) that differ in their last step alone."""
        wide = Context(
            x.swapaxes(1, 2),
            jnp.broadcast_to(context.neuron, (count, n)),
            jnp.broadcast_to(context.session, (count,)),
            jnp.broadcast_to(context.mask, (count, n)),
        )
        tokens = _tokens(model, wide, codes, x[..., -patch:])
        # What is measured over the window so far needs all of its frames.
        full = tokens._replace(values=x.reshape(count, n, steps, patch).swapaxes(1, 2))
        unit = window_scale(net, full)
        unit = None if unit is None else unit[:, -1:]
        known = neuron_traces(net, full)
        tokens = tokens._replace(previous=x[..., -patch - 1], scale=unit, traces=known)
        tiled = jax.tree.map(lambda c: jnp.tile(c, (count,) + (1,) * (c.ndim - 1)), caches)
        h, _ = extend(net, tokens, tiled, steps - 1)
        if net.readout is None:
            return jax.nn.softmax(code_logits(net, h[:, -1]), -1) @ waveforms
        back = max(net.readout.linear_context, patch)
        short = max(back - t, 0)
        recent = jnp.pad(x[..., -back:], ((0, 0), (0, 0), (short, 0)))
        seen = jnp.arange(back) >= short
        return net.readout(h, recent[:, None], seen[None], unit)[:, 0]

    base = last(x, codes[:, -1:], 1)

    def changed(which: Array) -> Array:
        count = which.shape[0]
        row = jnp.arange(count)
        own = x[0, which].at[:, -frames:].add(step)  # (J, T)
        traces = jnp.broadcast_to(x, (count, n, t)).at[row, which].set(own)
        new = tokenizers.encode(tok, own)[:, -1]
        tokens = jnp.broadcast_to(codes[:, -1:], (count, 1, n)).at[row, 0, which].set(new)
        return (last(traces, tokens, count) - base) / step

    return jax.lax.map(changed, which)


def _tokens(model: CalM, context: Context, codes: Array, frames: Array) -> Tokens:
    """Tokens of codes (B, S, N) with their frames (B, N, S patch)."""
    b, s, n = codes.shape
    values = None
    if model.transformer.value is not None or model.transformer.readout is not None:
        values = frames.reshape(b, n, s, -1).swapaxes(1, 2)
    return Tokens(codes, context.neuron, context.session, context.mask, values)


def head_gains(model: CalM) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Gains and queries and keys of every signed mixing, one entry per layer.

    gain_h = mean_f(r_f) . O_h V_h u: u what a rise of the last frame adds to a token, V_h and
    O_h the head's value and output maps, r_f the weights of the read-out. The straight path
    through the residual stream; norms, feed-forward parts and later layers are left out.

    Returns:
      per layer the gains (heads,), and the kernels of queries and keys (E, heads, rank).

    Raises:
      AnalysisError: for a model without signed mixing, frame values or read-out.
    """
    net = model.transformer
    if net.config.mixing != "signed" or net.config.inferred:
        raise AnalysisError("this mixing has no signed table of its own (softmax or inferred)")
    if net.value is None or net.readout is None:
        raise AnalysisError("the coupling has a sign only with frame values and a read-out")
    into = np.asarray(net.value.kernel[...], np.float64)
    patch = net.patch
    # The last frame rises by one: its level, or its difference to the frame before.
    direction = into[patch - 1] + (into[patch] if net.config.values == "both" else 0)
    out_of = np.asarray(net.readout.head.kernel[...], np.float64).mean(1)
    gains, maps = [], []
    for block in net.blocks:
        mix = block.neuron
        value = np.asarray(mix.value.kernel[...], np.float64)
        back = np.asarray(mix.out.kernel[...], np.float64)
        width = value.shape[1] // mix.heads
        cut = lambda h, w=width: slice(h * w, (h + 1) * w)  # noqa: E731
        gains.append(np.array([direction @ value[:, cut(h)] @ back[cut(h)] @ out_of
                               for h in range(mix.heads)]))  # fmt: skip
        shape = (-1, mix.heads, mix.rank)
        maps.append(tuple(np.asarray(m.kernel[...], np.float32).reshape(shape)
                          for m in (mix.query, mix.key)))  # fmt: skip
    return gains, maps


def mixing_embeddings(model: CalM, context: Context) -> np.ndarray:
    """(N, E) what the mixing reads its queries and keys from, for the neurons of a window."""
    tokens = Tokens(jnp.zeros((1, 1, context.neuron.shape[1]), jnp.int32), context.neuron[:1],
                    context.session[:1], context.mask[:1])  # fmt: skip
    return np.asarray(mixing_embedding(model.transformer, tokens), np.float32)[0]
