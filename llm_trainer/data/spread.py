"""An even, deterministic sample of a corpus that is too large to use whole.

How: texts are cut into blocks, and a block is taken whenever the bytes taken so far lag behind the
bytes passed, scaled down: as even as blocks allow, in one pass, without randomness.
Price: a block that is not taken is cut out of its text all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_BLOCK_CHARS = 2**16


def spread(texts: Iterable[str], total_bytes: int, max_bytes: int | None) -> Iterator[str]:
    """Take at most `max_bytes` bytes of text, spread evenly over all texts.

    Args:
        texts: the corpus.
        total_bytes: its size in bytes of UTF-8.
        max_bytes: size of the sample; None, or no less than the corpus, takes all texts unchanged.

    Yields:
        Texts, or blocks of texts; the same ones for the same arguments.
    """
    if max_bytes is None or total_bytes <= max_bytes:
        yield from texts
        return
    # At least 16 blocks (of up to 4 bytes a character), however small the sample.
    size = max(1, min(_BLOCK_CHARS, max_bytes // 64))
    passed = taken = 0
    for text in texts:
        for start in range(0, len(text), size):
            block = text[start : start + size]
            num_bytes = len(block.encode("utf-8"))
            passed += num_bytes
            # taken / passed <= max_bytes / total_bytes, in whole numbers
            if (taken + num_bytes) * total_bytes <= passed * max_bytes:
                taken += num_bytes
                yield block
