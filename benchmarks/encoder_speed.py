"""How fast the population encoder trains, beside torch_brain 0.1.2, in one run.

    python benchmarks/encoder_speed.py --peer-python OTHER/.venv/bin/python
    python benchmarks/encoder_speed.py --width 1024 --batch 64 ...    the movie model, on a GPU

Both make the same training step (forward, cross-entropy, backward, LAMB) on the same batch:
8 windows of 1,500 tokens, single-session size (width 64, 6 blocks, 2 cross and 8 self heads,
16 latents every 1/8 s). They run in processes of their own and take turns, a few steps each,
so that both meet the same load of the machine; told are medians and the ratio of pairs.
Our memory is kept on large pages, as `calm-jax pretrain` does; `--devices 2` divides the CPU
into two devices with half of the windows each, as JAX_NUM_CPU_DEVICES=2 does there, `--processes 2`
trains with two processes on their own cores, as `calm-jax pretrain --processes 2` does;
`--peer-processes 2` divides PyTorch likewise (gradients summed as one vector by
torch.distributed, Gloo). Both use a GPU where they see one, and multiply float32 matrices as
TF32 there (jax's default, switched on for PyTorch).

The peer needs PyTorch and torch_brain 0.1.2 in an environment of its own:
`pip install torch torch_brain==0.1.2`. Without `--peer-python` we run alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

COUNT = "JAX_NUM_PROCESSES"
PAUSE = 0.5  # s between turns
TOKENS, UNITS, FRAMES, CLASSES = 1500, 50, 30, 8
SIZES = {"depth": 6, "cross_heads": 2, "self_heads": 8, "latents_per_step": 16}


def batch(size: int) -> dict[str, np.ndarray]:
    """One batch, the same for both: values, units, times (s), classes."""
    rng = np.random.default_rng(0)
    frame, unit = np.divmod(np.arange(TOKENS), UNITS)
    one = lambda a: np.broadcast_to(a, (size, TOKENS)).copy()
    return {
        "values": rng.standard_normal((size, TOKENS)).astype(np.float32),
        "units": one(unit + 1),
        "times": one(frame / FRAMES),
        "classes": rng.integers(0, CLASSES, size),
    }


def ours(dropout: bool, width: int, size: int, devices: int = 1):
    """A function that makes n training steps of calm_jax."""
    import jax
    import optax
    from flax import nnx

    from calm_jax.allocator import prefer_large_pages
    from calm_jax.models import population_encoder as encoders
    from calm_jax.recordings import population_tokens as tokens
    from calm_jax.training import exchange
    from calm_jax.training import mesh as meshes
    from calm_jax.training.lamb import lamb, sparse_path
    from calm_jax.training.state import named, with_leaves

    prefer_large_pages()
    jax.config.update("jax_num_cpu_devices", devices)
    meshes.join_processes()
    mesh = meshes.make_mesh()
    config, made = encoders.EncoderConfig(width=width, **SIZES), batch(size)
    heads = {"grating": (1, CLASSES)}
    model = encoders.init(config, jax.random.key(0), units=UNITS, sessions=1, heads=heads)
    graph, state = nnx.split(model)
    tree = nnx.to_pure_dict(state)
    params = named(tree)
    optimizer = lamb(2.5e-4, weight_decay=1e-4, sparse=sparse_path)
    omega = tokens.frequencies(config.head_width, config.t_min, config.t_max)
    samples = [
        tokens.Sample(
            made["values"][b],
            made["units"][b].astype(np.int32),
            made["times"][b],
            sessions=np.array([1], np.int32),
            tasks=np.array([1], np.int32),
            query_times=np.array([0.5]),
            targets={"grating": made["classes"][b : b + 1].astype(np.int32)},
            weights=np.ones(1, np.float32),
        )
        for b in range(size)
    ]
    own = size // jax.process_count()  # windows of this process
    samples = samples[own * jax.process_index() :][:own]
    given = tokens.collate(samples, omega, heads, tokens=(TOKENS,), queries=(1,))
    given = meshes.shard_batch(given, mesh)

    def loss(params, given, key):
        made = lambda params: nnx.merge(graph, nnx.State(with_leaves(tree, params)))
        network = lambda params, rows, key: encoders.outputs(made(params), rows, key=key)
        with exchange.over(mesh):
            out = exchange.rows(network, params, given, key if dropout else None)
        return encoders.loss(made(params), out, given)[0]

    whole = meshes.replicated(mesh)

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=whole)
    def step(params, state, given, key):
        value, grads = jax.value_and_grad(loss)(params, given, key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    carry = [meshes.replicate(x, mesh) for x in (params, optimizer.init(params))]
    keys = [jax.random.key(i) for i in range(8)]

    def run(n: int) -> float:
        for i in range(n):
            carry[0], carry[1], value = step(*carry, given, keys[i % len(keys)])
        return float(value)

    return run


def peer(dropout: bool, width: int, size: int):
    """A function that makes n training steps of torch_brain."""
    import torch
    from torch_brain.models import CalciumPOYOPlus
    from torch_brain.optim import SparseLamb
    from torch_brain.registry import MODALITY_REGISTRY

    name, made = "drifting_gratings_orientation", batch(size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rank, world = (int(os.environ.get(k, d)) for k, d in (("JAX_PROCESS_ID", 0), (COUNT, 1)))
    if world > 1:
        address = "tcp://" + os.environ["JAX_COORDINATOR_ADDRESS"]
        torch.distributed.init_process_group("gloo", address, rank=rank, world_size=world)
    own = slice(size // world * rank, size // world * (rank + 1))  # windows of this process
    torch.backends.cuda.matmul.allow_tf32 = True
    spec = dataclasses.replace(MODALITY_REGISTRY[name], id=1)
    torch.manual_seed(0)
    model = CalciumPOYOPlus(
        sequence_length=1.0,
        readout_specs={name: spec},
        latent_step=0.125,
        num_latents_per_step=SIZES["latents_per_step"],
        dim=width,
        depth=SIZES["depth"],
        dim_head=64,
        cross_heads=SIZES["cross_heads"],
        self_heads=SIZES["self_heads"],
        ffn_dropout=0.2,
        lin_dropout=0.4,
        atn_dropout=0.2,
    )
    model.unit_emb.initialize_vocab([f"u{i}" for i in range(UNITS)])
    model.session_emb.initialize_vocab(["s"])
    model.train(dropout).to(device)
    tables = {id(p) for p in (*model.unit_emb.parameters(), *model.session_emb.parameters())}
    optimizer = SparseLamb(
        [
            {"params": [p for p in model.parameters() if id(p) in tables], "sparse": True},
            {"params": [p for p in model.parameters() if id(p) not in tables]},
        ],
        lr=2.5e-4,
        weight_decay=1e-4,
    )
    step, per = 0.125, SIZES["latents_per_step"]
    latent_times = np.repeat((np.arange(8) + 0.5) * step, per).astype(np.float32)
    given = {
        "input_unit_index": torch.as_tensor(made["units"]),
        "input_timestamps": torch.as_tensor(made["times"], dtype=torch.float32),
        "input_values": torch.as_tensor(made["values"])[..., None],
        "input_mask": torch.ones(size, TOKENS, dtype=torch.bool),
        "latent_index": torch.arange(per).repeat(8).expand(size, -1),
        "latent_timestamps": torch.as_tensor(latent_times).expand(size, -1),
        "output_session_index": torch.ones(size, 1, dtype=torch.long),
        "output_timestamps": torch.full((size, 1), 0.5),
        "output_decoder_index": torch.full((size, 1), spec.id, dtype=torch.long),
    }
    given = {key: value[own].to(device) for key, value in given.items()}
    classes = torch.as_tensor(made["classes"][own], device=device)

    def exchange() -> None:
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        torch.distributed.all_reduce(flat)
        for g, part in zip(grads, flat.div_(world).split([g.numel() for g in grads])):
            g.copy_(part.view_as(g))

    def run(n: int) -> float:
        for _ in range(n):
            optimizer.zero_grad()
            out = model(**given)
            out = out[name] if isinstance(out, dict) else torch.cat([o[name] for o in out])
            loss = torch.nn.functional.cross_entropy(out.reshape(len(classes), -1), classes)
            loss.backward()
            if world > 1:
                exchange()
            optimizer.step()
        return float(loss.detach())

    return run


def serve(which: str, dropout: bool, width: int, size: int, devices: int) -> None:
    """Steps on demand: a number on standard input, seconds and loss as JSON out."""
    more = {"devices": devices} if which == "ours" else {}
    run = {"ours": ours, "peer": peer}[which](dropout, width, size, **more)
    run(2)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        loss = run(int(line))
        print(json.dumps([time.perf_counter() - start, loss]), flush=True)


class Worker:
    """Processes, joined where they are several, that make steps when asked."""

    def __init__(self, python: str, which: str, dropout: bool, *flags: str, processes: int) -> None:
        command = [python, str(Path(__file__).resolve()), "--serve", which, *flags]
        command += [] if dropout else ["--no-dropout"]
        cores = sorted(os.sched_getaffinity(0))
        shares = [cores[i::processes] for i in range(processes)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = []
        for i, share in enumerate(shares):
            joined = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                COUNT: str(processes),
                "JAX_PROCESS_ID": str(i),
            }
            os.sched_setaffinity(0, share)  # the process inherits it
            self.processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=Path(__file__).resolve().parents[1],
                    env={**os.environ, **(joined if processes > 1 else {})},
                )
            )
        os.sched_setaffinity(0, cores)
        self._read()

    def _read(self) -> list:
        found = []
        for process in self.processes:
            line = process.stdout.readline()
            while line.startswith("[Gloo]"):
                line = process.stdout.readline()
            if not line:
                sys.exit(f"a worker ended with status {process.wait()}")
            found.append(json.loads(line))
        return found

    def seconds(self, steps: int) -> float:
        """Seconds of one step, mean of `steps`, of the slowest process."""
        for process in self.processes:
            print(steps, file=process.stdin, flush=True)
        return max(found[0] for found in self._read()) / steps

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()


def measure(known: argparse.Namespace, dropout: bool) -> None:
    """Prints tokens per second of both and their ratio."""
    python, width, size = known.peer_python, known.width, known.batch
    rounds, steps = known.rounds, known.steps
    flags = ["--width", str(width), "--batch", str(size)]
    own = ["--devices", str(known.devices)]
    start = lambda *what, n: Worker(*what, processes=n)
    workers = {
        "calm_jax": start(sys.executable, "ours", dropout, *flags, *own, n=known.processes)
    }
    if python:
        workers["torch_brain"] = start(python, "peer", dropout, *flags, n=known.peer_processes)
    times = {name: [] for name in workers}
    for turn in range(rounds):
        # Who goes first alternates.
        for name in list(workers) if turn % 2 else list(workers)[::-1]:
            time.sleep(PAUSE)  # OpenMP's threads spin a while after their last product
            times[name].append(workers[name].seconds(steps))
    for worker in workers.values():
        worker.close()
    kind = "with dropout" if dropout else "without dropout"
    print(f"{kind}, width {width}, {size} windows of {TOKENS} tokens")
    for name, t in times.items():
        rate = size * TOKENS / np.median(t)
        print(f"  {name:12s} {rate:8.0f} tokens/s ({np.median(t):.4f} s/step)")
    if python:
        ratio = np.array(times["torch_brain"]) / np.array(times["calm_jax"])
        low, high = np.quantile(ratio, [0.25, 0.75])
        print(f"  ratio        {np.median(ratio):8.2f} (quartiles {low:.2f}-{high:.2f})")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="an interpreter with PyTorch and torch_brain")
    parser.add_argument("--width", type=int, default=64, help="1024: the movie model")
    parser.add_argument("--batch", type=int, default=8, help="windows")
    parser.add_argument("--devices", type=int, default=1, help="that the CPU is divided into")
    parser.add_argument("--processes", type=int, default=1, help="of ours, on cores of their own")
    parser.add_argument("--peer-processes", type=int, default=1, help="of PyTorch, likewise")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--no-dropout", action="store_true", help=argparse.SUPPRESS)
    known = parser.parse_args()
    if known.serve:
        serve(known.serve, not known.no_dropout, known.width, known.batch, known.devices)
        return
    for dropout in (True, False):
        measure(known, dropout)


if __name__ == "__main__":
    main()
