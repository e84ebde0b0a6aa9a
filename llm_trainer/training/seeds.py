"""One seed, split by name, so that no use of randomness can shift another.

The row order does not change with the model's initialisation, nor dropout with the number of
batches seen before: every draw depends on (seed, name, index) alone. That is also why a checkpoint
holds no generator state.
"""

from __future__ import annotations

import hashlib


def sub_seed(seed: int, name: str, index: int = 0) -> int:
    """A 63-bit seed for one use of randomness."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
