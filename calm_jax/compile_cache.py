"""The persistent compilation cache: a program compiled once is loaded afterwards.

It lies in `$CALM_JAX_CACHE`, else `$JAX_COMPILATION_CACHE_DIR`, else
`~/.cache/calm_jax`; CALM_JAX_CACHE=off turns it off. Several runs may share it: an
entry that another run is still writing fails to unpack and is compiled instead.
"""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax


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


def _machine() -> str:
    """A short name of the instruction set of this machine."""
    text = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        text += next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        text += platform.processor()
    return hashlib.sha256(text.encode()).hexdigest()[:8]
