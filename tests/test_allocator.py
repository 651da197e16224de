"""Memory set-up, in a process of its own since it cannot be undone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from calm_jax import allocator

# Faults of small pages while a block of 256 MiB is made, filled and dropped 3 times.
SCRIPT = """
import resource, sys
import numpy as np
from calm_jax.allocator import prefer_large_pages
if sys.argv[1] == "on":
    prefer_large_pages(1 << 30)
def fill(value):
    x = np.empty(1 << 25)
    x.fill(value)
    assert x[0] == x[-1] == value
fill(1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for value in (2.0, 3.0, 4.0):
    fill(value)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is tuned")
def test_memory_is_kept_for_the_next_step():
    run = lambda how: int(
        subprocess.run(
            [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True,
            timeout=60,
        ).stdout
    )
    # With them the block is the same memory each time; without, it is mapped anew.
    assert run("on") < 64 and run("off") > 64


def test_nothing_happens_on_other_systems(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator.prefer_large_pages() is False


BLOCKS = """
import resource, sys
import numpy as np
from calm_jax import allocator
if sys.argv[1] == "on":
    assert allocator.reuse_blocks()
def fill():
    keep = [np.ones(1 << 19) for _ in range(8)]  # 4 MiB each
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
allocator.prefer_large_pages(1 << 30)
assert not allocator.reuse_blocks()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is tuned")
def test_blocks_of_some_megabytes_are_reused():
    run = lambda how: int(
        subprocess.run(
            [sys.executable, "-c", BLOCKS, how], capture_output=True, text=True, check=True,
            timeout=60,
        ).stdout
    )
    assert run("on") < 64
