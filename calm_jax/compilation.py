"""How programs are compiled: how thoroughly, and once only.

A program compiled once is kept on disk and loaded afterwards.

It lies in `$CALM_JAX_CACHE`, else `$JAX_COMPILATION_CACHE_DIR`, else
`~/.cache/calm_jax`; CALM_JAX_CACHE=off turns it off. Several runs may share it: an
entry that another run is still writing fails to unpack and is compiled instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxlib

_EMITTERS = "xla_cpu_use_fusion_emitters"
_GPU_FLAGS = {"xla_gpu_enable_triton_gemm": "false", "xla_gpu_autotune_level": "0"}


def enable(environ: os._Environ | dict = os.environ) -> Path | None:
    """Turns the cache on and returns its folder; None where it is off or not writable."""
    wanted = environ.get("CALM_JAX_CACHE")
    if wanted is not None and wanted.lower() in ("", "0", "off", "none"):
        return None
    base = wanted or environ.get("JAX_COMPILATION_CACHE_DIR")
    if base is None:
        base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calm_jax"
    # A home folder may be shared by machines with different instruction sets.
    folder = Path(base) / f"jax-{jax.__version__}-{_machine()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    warnings.filterwarnings("ignore", message=".*persistent compilation cache entry.*")
    return folder


def prepare(kind: str, environ: os._Environ | dict = os.environ) -> None:
    """Flags of XLA for `Experiment.compilation`; to be set before JAX starts.

    XLA's newer code generator for CPUs makes faster programs in twice the time; on GPUs the
    search for the fastest matrix products takes most of it. A flag that the user has set
    stays. jaxlib 0.11 has no other generator for CPUs, and a process ends at a flag that its
    jaxlib does not know.
    """
    if kind != "quick":
        return
    flags = environ.get("XLA_FLAGS", "")
    own = dict(_GPU_FLAGS)
    if _has_emitters(jaxlib.__version__):
        own[_EMITTERS] = "false"
    new = [f"--{name}={value}" for name, value in own.items() if name not in flags]
    if new:
        environ["XLA_FLAGS"] = " ".join([flags, *new]).strip()


@contextlib.contextmanager
def effort(kind: str) -> Iterator[None]:
    """Programs compiled inside are optimised as `Experiment.compilation` says.

    CPUs only: on GPUs what takes long is left out by `prepare`.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    less = kind == "quick" and jax.default_backend() == "cpu"
    jax.config.update("jax_disable_most_optimizations", before or less)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def _has_emitters(version: str) -> bool:
    """Whether this jaxlib lets the older code generator for CPUs be chosen."""
    return tuple(int(x) for x in version.split(".")[:2]) < (0, 11)


def _machine() -> str:
    """A short name of the instruction set of this machine."""
    text = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        text += next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        text += platform.processor()
    return hashlib.sha256(text.encode()).hexdigest()[:8]
