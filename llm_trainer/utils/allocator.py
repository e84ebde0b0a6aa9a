"""Memory of the processor that training frees and asks for again at every step, kept meanwhile.

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


@cache
def keep_freed_memory() -> bool:
    """Let this process keep large blocks that it frees, for the next time it needs them.

    Returns:
        Whether the C library took it; only glibc knows how.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(
        mallopt(M_TRIM_THRESHOLD, LARGEST_FREE_END)
    )
