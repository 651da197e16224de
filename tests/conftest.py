"""For every test: strict types in JAX, the compilation cache, hypothesis without a clock."""

from __future__ import annotations

import os

import hypothesis
import jax
import pytest

from calm_jax import compilation

# A float32 that silently becomes float64 or bfloat16 is an error in tests.
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Nor may a GPU multiply float32 as TF32, whose error of 1e-3 is above the tolerances.
jax.config.update("jax_default_matmul_precision", "highest")
compilation.prepare("quick")
compilation.enable()

hypothesis.settings.register_profile("default", deadline=None, max_examples=30)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def no_signals_left():
    """Checks that a test leaves the handlers of signals as it found them."""
    import signal

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles without most optimisations: a third of the time for small models, run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
