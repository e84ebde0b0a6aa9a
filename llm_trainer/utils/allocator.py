"""Memory of the processor that training frees and asks for again at every step, kept meanwhile,
or given back at once where that costs too much.

glibc gives large blocks back to the system when they are freed, and asks for them anew: the pages
are then mapped and zeroed again at every step, which took a tenth of a training step. Price: the
process keeps its high-water mark until it ends.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Names and values of mallopt(3)."""
LARGEST_KEPT = 2**30
"""Bytes of the largest block that is kept; a larger one is rare, and worth giving back."""
LARGEST_FREE_END = 2**31 - 1
"""Bytes that may lie free at the end of the heap: the most that mallopt can be told."""


SMALLEST_GIVEN_BACK = 2**20
"""Bytes from which `give_back_freed_memory` has blocks of their own from the system."""

_given_back = False


def keep_freed_memory() -> bool:
    """Let this process keep large blocks that it frees, for the next time it needs them.

    Returns:
        Whether the C library took it; only glibc knows how. False too after
        `give_back_freed_memory`.
    """
    return not _given_back and _set(M_MMAP_THRESHOLD, LARGEST_KEPT) and _set(
        M_TRIM_THRESHOLD, LARGEST_FREE_END
    )  # fmt: skip


def give_back_freed_memory() -> bool:
    """Have this process give large blocks back when it frees them, for good.

    For weights that are gathered and dropped again and again: in blocks of many sizes that come
    and go, the heap of a rank under fsdp grew to twice what was in use.

    Returns:
        Whether the C library took it; only glibc knows how.
    """
    global _given_back
    _given_back = True
    return _set(M_MMAP_THRESHOLD, SMALLEST_GIVEN_BACK)


@cache
def _set(name: int, value: int) -> bool:
    """Whether mallopt took a value; it is told once."""
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(name, value))
