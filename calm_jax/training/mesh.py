"""Data parallelism: one mesh axis `data`, batches sharded over it, state on every device.

The same code runs on one device, many, or many processes. A process joins others
when the environment names them: JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES
and JAX_PROCESS_ID.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calm_jax.errors import ConfigError

PyTree = Any


def join_processes(environ: Any = os.environ) -> None:
    """Starts `jax.distributed` when the environment asks for it; call before any use of jax.

    Raises:
      ConfigError: when only some of the three variables are set, or one is no number.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [n for n in names if environ.get(n)]
    if not given or jax.distributed.is_initialized():
        return
    absent = [n for n in names if n not in given]
    if absent:
        raise ConfigError(
            f"{', '.join(absent)} is not set",
            where="environment",
            found=f"only {', '.join(given)}",
            expected="all three for a run over several processes, none for one",
        )
    try:
        count, index = int(environ[names[1]]), int(environ[names[2]])
    except ValueError as e:
        raise ConfigError("not a number", where="environment", found=str(e)) from e
    if not 0 <= index < count:
        raise ConfigError(
            "JAX_PROCESS_ID is out of range",
            where="environment",
            found=index,
            expected=f"0 to {count - 1}",
        )
    jax.distributed.initialize(environ[names[0]], count, index)


def make_mesh() -> Mesh:
    """A mesh of all devices of all processes with the one axis `data`."""
    devices = jax.devices()
    local = {sum(d.process_index == p for d in devices) for p in range(jax.process_count())}
    if len(local) > 1:
        raise ConfigError(
            "processes with different numbers of devices",
            where="devices",
            found=sorted(local),
            remedy="Show each process as many devices (CUDA_VISIBLE_DEVICES).",
        )
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: all of it on every device."""
    return NamedSharding(mesh, P())


def check_batch(rows: int, mesh: Mesh) -> None:
    """Raises a ConfigError when a global batch of `rows` does not divide over the devices."""
    devices = mesh.size
    if rows == 0 or rows % devices:
        above = max(1, -(-rows // devices)) * devices
        raise ConfigError(
            f"a batch of {rows} does not divide over {devices} devices",
            where="batch",
            remedy=f"Set batch to {above}, or use fewer devices (CUDA_VISIBLE_DEVICES).",
        )


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch from the rows of this process; scalars are replicated."""
    out = {}
    for name, rows in batch.items():
        rows = np.asarray(rows)
        if rows.ndim == 0:
            out[name] = replicate(rows, mesh)
            continue
        check_batch(rows.shape[0] * jax.process_count(), mesh)
        sharding = NamedSharding(mesh, P("data"))
        out[name] = jax.make_array_from_process_local_data(sharding, rows)
    return out


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Fresh copies of the arrays of `tree` on every device, safe to donate.

    Every process gives the same values. Python scalars become strongly typed, so
    that a step compiles once.
    """
    leaves, treedef = jax.tree.flatten(tree)
    leaves = tuple(np.asarray(x) for x in leaves)
    return jax.tree.unflatten(treedef, _copier(replicated(mesh))(leaves))


@functools.lru_cache
def _copier(sharding: NamedSharding) -> Callable:
    # A plain device_put may share memory with numpy; a donated buffer must not.
    return jax.jit(lambda xs: tuple(jnp.copy(x) for x in xs), out_shardings=sharding)


def local(tree: PyTree) -> PyTree:
    """Replicated arrays as arrays of one device of this process; no copy."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def agree(value: int) -> int:
    """The largest `value` that any process gives; all processes must call."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def from_first(value: float) -> float:
    """The value of process 0, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


_barriers = itertools.count()
_PATIENCE = 7 * 24 * 3600 * 1000  # ms; what the first process does alone may take hours


def barrier(what: str) -> None:
    """Waits until all processes are here, up to a week; nothing when there is one.

    A process that died ends the wait. A collective would do as well for half an hour, after which
    Gloo gives up.
    """
    if jax.process_count() == 1:
        return
    from jax._src.distributed import global_state  # jax has no public name for it

    global_state.client.wait_at_barrier(f"{next(_barriers)} {what}", _PATIENCE)
