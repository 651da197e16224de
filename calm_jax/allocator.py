"""Memory of the process: large temporaries are kept and reused, on large pages.

XLA on CPUs allocates the temporaries of a step afresh each time. By default glibc maps
every large block anew and gives it back afterwards, so that each step touches hundreds
of thousands of fresh pages, which the kernel has to clear one by one.
"""

from __future__ import annotations

import ctypes
import os
import platform

# malloc.h of glibc, and sys/mman.h of Linux.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
_MADV_HUGEPAGE = 14
_HUGE = 2 << 20  # bytes, a large page


_large = False  # prefer_large_pages was called


def reuse_blocks() -> bool:
    """Keeps blocks of up to 32 MiB for reuse, at most 256 MiB of them; True where it took effect.

    For work that makes and drops blocks of some MB all the time, such as the records of a
    store: writing 1 GB took a quarter of the processor time (1.1 for 4.5 s). Larger blocks,
    such as whole recordings, are given back as before. Takes effect on Linux with glibc, and
    does nothing after `prefer_large_pages`, which keeps more.
    """
    if _large or platform.libc_ver()[0] != "glibc" or platform.system() != "Linux":
        return False
    libc = ctypes.CDLL(None)
    options = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 256 << 20}
    took = [libc.mallopt(k, v) for k, v in options.items()]
    return all(took)


def prefer_large_pages(reserve: int = 4 << 30) -> bool:
    """Keeps freed memory in the process, on large pages; True where it took effect.

    Takes effect on Linux with glibc, elsewhere nothing happens. Call it once at the
    start of a long computation, before jax makes its threads: each thread would have
    an arena of its own, which cannot hold large blocks. Speed alone changes, and
    resident memory, which stays near its largest value and is less compact (half as
    much again was seen). Clearing large pages costs some seconds once, so short
    commands are better off without.

    Args:
      reserve: bytes of address space for which large pages are asked, at most half of
        the memory of the machine. None of it is in use before it is touched.
    """
    if platform.libc_ver()[0] != "glibc" or platform.system() != "Linux":
        return False
    global _large
    _large = True
    libc = ctypes.CDLL(None, use_errno=True)
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20, _ARENA_MAX: 1}
    took = [libc.mallopt(k, v) for k, v in options.items()]
    if not all(took):
        return False
    # A block that is never touched, and given back at once, has stretched the heap:
    # what is allocated later lies within the advised range.
    size = min(reserve, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if not block:
        return False
    first = -(-block // _HUGE) * _HUGE
    length = max(block + size - first, 0) // _HUGE * _HUGE
    advised = libc.madvise(first, length, _MADV_HUGEPAGE) == 0
    libc.free(block)
    return advised
