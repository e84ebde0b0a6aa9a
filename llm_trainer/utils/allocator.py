"""Memory of the processor that training frees and asks for again at every step, kept meanwhile,
or given back at once where that costs too much.

glibc gives large blocks back to the system when they are freed, and asks for them anew: the pages
are then mapped and zeroed again at every step, which took a tenth of a training step. Price: the
process keeps its high-water mark until it ends. What the heap still grows by is in huge pages where
the system has them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from functools import cache

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Names and values of mallopt(3)."""
LARGEST_KEPT = 2**30
"""Bytes of the largest block that is kept; a larger one is rare, and worth giving back."""
LARGEST_FREE_END = 2**31 - 1
"""Bytes that may lie free at the end of the heap: the most that mallopt can be told."""

HUGE_PAGE = 2**21
"""Bytes of a huge page, on x86-64 and mostly elsewhere."""
RESERVED = (2**30 - 2**20, 2**29)
"""Bytes of the blocks by which the heap grows at once, to be in huge pages: each small enough to
come from the heap, all together small enough to lie free at its end."""

SMALLEST_GIVEN_BACK = 2**20
"""Bytes from which `give_back_freed_memory` has blocks of their own from the system."""

_given_back = False


def keep_freed_memory() -> bool:
    """Let this process keep large blocks that it frees, for the next time it needs them.

    Returns:
        Whether the C library took it; only glibc knows how. False too after
        `give_back_freed_memory`.
    """
    kept = not _given_back and _set(M_MMAP_THRESHOLD, LARGEST_KEPT) and _set(
        M_TRIM_THRESHOLD, LARGEST_FREE_END
    )  # fmt: skip
    if kept:
        _ask_for_huge_pages()
    return kept


def give_back_freed_memory() -> bool:
    """Have this process give large blocks back when it frees them, for good.

    For weights that are gathered and dropped again and again: in blocks of many sizes that come
    and go, the heap of a rank under fsdp grew to twice what was in use.

    Returns:
        Whether the C library took it; only glibc knows how.
    """
    global _given_back
    _given_back = True
    taken = _set(M_MMAP_THRESHOLD, SMALLEST_GIVEN_BACK) and _set(
        M_TRIM_THRESHOLD, SMALLEST_GIVEN_BACK
    )  # fmt: skip
    if taken:  # what lies free already would serve for such blocks first
        ctypes.CDLL(None).malloc_trim(0)
    return taken


@cache
def _set(name: int, value: int) -> bool:
    """Whether mallopt took a value; it is told once."""
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(name, value))


@cache
def _ask_for_huge_pages() -> None:
    """Have what the heap grows by next in huge pages; it is asked for once.

    Addresses alone are reserved, and memory is taken when it is first written, as ever. A request
    that the system refuses changes nothing, and a machine with little memory is not asked.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # on Linux alone
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory < 4 * sum(RESERVED):
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes = libc.sbrk.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    blocks = [libc.malloc(size) for size in RESERVED]
    end = libc.sbrk(0)
    # blocks that the heap had no room for lie elsewhere, mostly above it
    if all(block and block + size <= end for block, size in zip(blocks, RESERVED, strict=True)):
        first = -(-min(blocks) // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(first, end - first, mmap.MADV_HUGEPAGE)
    for block in blocks:
        libc.free(block)
