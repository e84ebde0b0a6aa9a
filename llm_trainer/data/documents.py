"""What a document is, and on which side of the train and validation split it falls.

The side is decided by a hash of what identifies a document, never by its position: the same
document lands on the same side in any order, on any machine, however many others there are.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

DIGEST_BYTES = 16
"""Bytes of a document's content hash: two different ones among 2**40 documents have the same with
a probability of about 2**-49."""


class Document(NamedTuple):
    """One text and where it came from."""

    text: str
    """Valid Unicode, newlines as in the source."""
    source: str
    """Unique, stable name: `json/decoder.py`, `a/b.jsonl:17`, `big.txt#2` (its second piece)."""


def content_hash(data: bytes) -> bytes:
    """The first `DIGEST_BYTES` bytes of the sha256 of a document's UTF-8 bytes."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def hash_fraction(digest: bytes) -> float:
    """Map a digest onto [0, 1): its first 8 bytes as a number with 53 bits of precision."""
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def is_validation(digest: bytes, validation_fraction: float) -> bool:
    """Whether the document with this digest validates; the rest trains."""
    return hash_fraction(digest) < validation_fraction
