"""How much of the machine's matmul peak a training step reaches.

    python -m benchmarks.utilisation [--experiment calm_base] [--steps 12]
    python -m benchmarks.utilisation --experiment calm_paper --neurons 512 --frames 200

In one run: the best rate of several large matrix products through jax, then the
tokenizer step and the dual-axis step (loss, gradient and optimiser, the step of
calm_jax.training) on synthetic batches of the experiment's shapes, or of the neurons,
frames and windows that are asked for. Medians. The peak is that of the type that the step
computes in: float32 on CPUs, bfloat16 where the experiment's precision makes it so.

Multiply-adds count as two FLOPs, and only those of matrix products are counted
("analytic"); a step is three times its forward pass (gradients with respect to inputs
and to weights). With B windows, T' steps, N neurons, R = B T' N tokens, width D, FFN
F, K codes, P frames a code, forward:

  time axis   R (8 D^2 + 4 T' D)             query, key, value, out; scores and sums
  neurons     R (8 D^2 + 4 N D)              softmax
              R (4 D^2 + 4 r D) + 4 B N D H r     signed, H heads of rank r
  FFN         R 4 D F                        (6 D F with SwiGLU)
  heads       R (2 D K + 2 D f + 2 L f + 2 P D)   codes, f frames, linear path, values

The causal half of the scores is computed and masked, so it counts in full. The frozen
tokenizer that encodes the batch counts its own forward pass, and a forward pass more
of the transformer where scheduled sampling is on. "XLA" is what the compiler counts
for the whole step, element-wise operations included.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import compilation, config
from calm_jax.allocator import prefer_large_pages
from calm_jax.experiments_loader import load_experiment, names
from calm_jax.models import tokenizer as tokenizers
from calm_jax.recordings import preprocess
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.session import Session, Trials
from calm_jax.recordings.splits import make_split
from calm_jax.tasks.next_code import NextCode
from calm_jax.tasks.tokenization import Tokenization
from calm_jax.training.mesh import make_mesh, replicate, shard_batch
from calm_jax.training.optimizers import make_optimizer
from calm_jax.training.precision import compute_dtype
from calm_jax.training.state import create
from calm_jax.training.step import make_step


def matmul_peak(
    dtype: Any = jnp.float32, sizes: tuple[int, ...] | None = None, repeats: int = 6
) -> float:
    """The best rate of A @ B in FLOP/s; float32 as jax multiplies it by default (TF32 on GPUs)."""
    product, best = jax.jit(jnp.matmul), 0.0
    if sizes is None:
        small = jax.default_backend() == "cpu"
        sizes = (1024, 1536, 2048, 3072) if small else (4096, 8192, 12288)
    for n in sizes:
        a = jax.random.normal(jax.random.key(n), (n, n), dtype)
        product(a, a).block_until_ready()
        for _ in range(repeats):
            start = time.perf_counter()
            product(a, a).block_until_ready()
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def transformer_flops(c: config.DualAxis, b: int, t: int, n: int, codes: int, patch: int) -> float:
    """Forward pass of the dual-axis transformer; the formula stands on top."""
    rows, d, f = b * t * n, c.width, c.readout_frames
    block = rows * (8 * d * d + 4 * t * d)
    if c.mixing == "softmax":
        block += rows * (8 * d * d + 4 * n * d)
    else:
        r = c.mixing_rank
        block += rows * (4 * d * d + 4 * r * d) + 4 * b * n * d * c.mixing_heads * r
    block += rows * (6 if c.activation == "swiglu" else 4) * d * c.ffn
    heads = 2 * d * codes + 2 * (d + c.linear_context) * f
    return c.layers * block + rows * (heads + 2 * patch * d * (c.values != "none"))


def stack_flops(c: config.Tokenizer, layers: int, rows: int, t: int) -> float:
    """Forward pass of `layers` blocks of the tokenizer on `rows` codes in traces of t."""
    d = c.width
    return layers * rows * (8 * d * d + 4 * t * d + 4 * d * c.ffn * d)


def convolution_flops(c: config.Tokenizer, rows: int) -> float:
    """Strided convolutions of the encoder, or of the decoder, for `rows` codes."""
    widths = [1] + [c.width >> i for i in range(c.patch.bit_length() - 2, -1, -1)]
    halves = [c.patch >> (i + 1) for i in range(len(widths) - 1)]
    return sum(rows * m * 4 * a * b for m, a, b in zip(halves, widths, widths[1:]))


def encoder_flops(c: config.Tokenizer, rows: int, t: int) -> float:
    """Forward pass of the encoder and of the nearest code."""
    width = c.code_width or c.width
    project = 0 if width == c.width else 2 * c.width * width
    return (
        convolution_flops(c, rows)
        + stack_flops(c, c.layers, rows, t)
        + rows * (project + 2 * width * c.codes)
    )


def tokenizer_flops(c: config.Tokenizer, rows: int, t: int) -> float:
    """Forward pass of encoder, codebook, decoder and code predictor."""
    width = c.code_width or c.width
    total = 2 * encoder_flops(c, rows, t)  # the decoder mirrors it, the draw is a look-up
    if c.autoregressive_weight:
        head = 2 * c.width * (width + c.autoregressive_steps * c.codes)
        total += stack_flops(c, c.autoregressive_layers, rows, t) + rows * head
    return total


def synthetic(e: config.Experiment, neurons: int | None, frames: int | None) -> Prepared:
    """Noise in the shapes of the experiment's simulation: one session, a few trials."""
    s = e.data.simulation
    neurons, frames, trials = neurons or s.neurons, frames or s.frames, 24
    rng = np.random.default_rng(0)
    start = np.arange(trials) * frames
    session = Session(
        rng.standard_normal((trials * frames, neurons), np.float32),
        rate=1 / s.dt,
        session="synthetic",
        trials=Trials(start, start + frames),
    )
    store = MemoryStore([session])
    split = make_split(store, e.split)
    return Prepared(store, split, preprocess.fit(store, split, config.Preprocess()))


def measure(task: Any, training: config.Training, steps: int) -> tuple[float, float, float, dict]:
    """Wall and processor seconds a step (medians), XLA's FLOPs, and a batch."""
    mesh = make_mesh()
    total = 10_000
    params, extra = task.init(jax.random.key(0))
    optimizer = make_optimizer(training, total, task.decays)
    state = create(params, extra, optimizer, task.trains, training.ema is not None)
    leaves, treedef = jax.tree.flatten(state)
    leaves = replicate(leaves, mesh)
    step = make_step(task, training, total, jax.random.key(1), mesh, treedef)
    rows = task.batch(0)
    batch = shard_batch(rows, mesh)
    flags = shard_batch({"flag": np.zeros(mesh.size, np.int32)}, mesh)["flag"]
    compiled = step.lower(leaves, batch, flags).compile()
    cost = compiled.cost_analysis() or {}
    wall, processor = [], []
    for i in range(steps + 2):
        a, p = time.perf_counter(), time.process_time()
        leaves, metrics = compiled(leaves, batch, flags)
        jax.block_until_ready((leaves, metrics))
        if i >= 2:
            wall.append(time.perf_counter() - a)
            processor.append(time.process_time() - p)
    return statistics.median(wall), statistics.median(processor), cost.get("flops", np.nan), rows


def show(name: str, peak: float, flops: float, found: tuple, windows: int, frames: int) -> None:
    """Prints the figures of one step."""
    wall, processor, xla, _ = found
    device = jax.devices()[0].memory_stats() or {}
    most = device.get("peak_bytes_in_use")
    print(f"{name}")
    print(f"  {wall:.4f} s a step ({processor:.4f} s of processor time)")
    if most:
        print(f"  {most / 2**30:.2f} GiB of device memory at most")
    print(f"  {windows / wall:.1f} windows/s, {frames / wall:.3g} neuron-frames/s")
    for label, count in (("analytic", flops), ("XLA", xla)):
        rate = count / wall
        print(
            f"  {count / 1e9:.2f} GFLOP ({label}): {rate / 1e9:.1f} GFLOP/s, "
            f"{100 * rate / peak:.1f}% of the matmul peak"
        )


def choose(name: str | None) -> config.Experiment:
    """The experiment, or sizes of a small run where it is not there yet."""
    if name is not None or "calm_base" in names():
        return load_experiment(name or "calm_base")
    return config.Experiment(
        "small",
        tokenizer=config.Tokenizer(width=64, layers=2, codes=128, code_width=16),
        tokenizer_training=config.Training(batch=256),
        transformer=config.DualAxis(
            width=96, layers=2, heads=4, ffn=384, dropout=0.0, mixing="signed",
            values="difference", readout_frames=16, linear_context=48, scheduled_probability=0.0,
        ),
        transformer_training=config.Training(batch=8),
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", help="name or file; default calm_base")
    parser.add_argument("--steps", type=int, default=12, help="steps measured")
    parser.add_argument("--neurons", type=int, help="default: as the experiment's simulation")
    parser.add_argument("--frames", type=int, help="of a trial; default: likewise")
    parser.add_argument("--windows", type=int, help="of a batch; default: as the experiment")
    parser.add_argument("--default-memory", action="store_true", help="without calm_jax.allocator")
    args = parser.parse_args(argv)
    if not args.default_memory:
        prefer_large_pages()
    compilation.enable()
    e = choose(args.experiment)
    if args.windows:
        own = dataclasses.replace(e.transformer_training, batch=args.windows)
        e = dataclasses.replace(e, transformer_training=own)
    run(e, args.steps, matmul_peak, args.neurons, args.frames)


def run(
    e: config.Experiment,
    steps: int,
    peak_of: Callable[..., float],
    neurons: int | None = None,
    frames: int | None = None,
) -> None:
    """Measures and prints everything."""
    device = jax.devices()[0]
    print(f"{e.name} on {device.device_kind} ({device.platform}), {jax.device_count()} device(s)")
    types = [compute_dtype(t.precision) for t in (e.tokenizer_training, e.transformer_training)]
    peaks = {d: peak_of(d) for d in dict.fromkeys(types)}
    for d, found in peaks.items():
        print(f"{jnp.dtype(d).name} matmul peak {found / 1e9:.1f} GFLOP/s")
    prepared = synthetic(e, neurons, frames)
    c = e.tokenizer

    task = Tokenization(c, e.tokenizer_training, prepared, seed=0, steps=10_000)
    found = measure(task, e.tokenizer_training, steps)
    traces, frames = found[3]["traces"].shape
    t = frames // c.patch
    flops = 3 * tokenizer_flops(c, traces * t, t)
    show(f"tokenizer step: {traces} traces x {frames} frames, width {c.width}, {c.layers} layers",
         peaks[types[0]], flops, found, traces, traces * frames)

    # Encoded tokens: the exported data set needs a run, and costs a step nothing.
    d = dataclasses.replace(e.transformer, tokens="encoded")
    tok = tokenizers.init(c, jax.random.key(0))
    task = NextCode(d, e.transformer_training, prepared, tok, None, seed=0, steps=10_000)
    found = measure(task, e.transformer_training, steps)
    b, frames, n = found[3]["traces"].shape
    t = frames // c.patch
    forward = transformer_flops(d, b, t, n, c.codes, c.patch)
    flops = forward * (4 if d.scheduled_probability else 3) + encoder_flops(c, b * t * n, t)
    show(f"dual-axis step: {b} windows x {n} neurons x {t} steps, width {d.width}, "
         f"{d.layers} layers, {d.mixing} mixing",
         peaks[types[1]], flops, found, b, b * n * frames)


if __name__ == "__main__":
    main()
