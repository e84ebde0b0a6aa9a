"""Encode one row group of raw text: what a worker of `encode_pool` does.

How: a row group is read, and its documents are encoded and returned in chunks of at most
CHUNK_BYTES of text (a longer document is a chunk of its own), ids as arrays of their stored type.
Byte counts are those of the UTF-8 text as it lies in the file, so they are the same whatever the
tokenizer.
Price: one row group of text in memory, and about 8 bytes a byte of the chunk at hand.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from llm_trainer.data.packed_manifest import Split
from llm_trainer.data.raw_groups import group_sizes, read_group

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_BYTES = 2**20
"""Text that is encoded at once, in bytes."""
_CHUNK_DOCUMENTS = 2**14


class Encoder(Protocol):
    """What encodes: a FastEncoder."""

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, without special tokens."""
        ...


class EncodeTask(NamedTuple):
    """One unit of work: a row group of a raw file."""

    path: str
    row_group: int
    split: Split
    min_length: int
    """Documents with fewer tokens are dropped."""

    def __str__(self) -> str:
        return f"{self.path} (row group {self.row_group})"


class Dropped(NamedTuple):
    """Documents left out for one reason."""

    documents: int
    num_bytes: int
    tokens: int


@dataclass(frozen=True)
class EncodedChunk:
    """Some consecutive documents of a split, encoded."""

    ids: np.ndarray
    """(targets,): the tokens of each kept document and an end token after each."""
    sizes: np.ndarray
    """(kept,) int64: targets of each kept document."""
    kept: np.ndarray
    """(kept,) int64: which of the chunk's documents were kept, from 0."""
    num_documents: int
    """Documents of the chunk, kept or not."""
    num_bytes: int
    """UTF-8 bytes of these."""
    dropped: dict[str, Dropped] = field(default_factory=dict)
    """By reason; only reasons that occurred."""

    @property
    def kept_bytes(self) -> int:
        """UTF-8 bytes of the kept documents."""
        return self.num_bytes - sum(dropped.num_bytes for dropped in self.dropped.values())


def list_tasks(files: list[Path], split: Split, min_length: int) -> list[EncodeTask]:
    """The row groups of a split's files, in the order of its documents."""
    return [
        EncodeTask(str(path), group, split, min_length)
        for path in files
        for group in range(len(group_sizes(path)))
    ]


def encode_task(
    encoder: Encoder, task: EncodeTask, end_id: int, dtype: np.dtype[np.unsignedinteger]
) -> Iterator[EncodedChunk]:
    """Encode a row group, chunk by chunk, in order.

    Raises:
        IntegrityError: the raw file is damaged.
    """
    column = read_group(Path(task.path), task.row_group, "text")
    for texts in column.chunks:
        lengths = _byte_lengths(texts)
        start = 0
        for stop in _cuts(lengths):
            part = texts.slice(start, stop - start).to_pylist()
            yield _encode(encoder, part, lengths[start:stop], task.min_length, end_id, dtype)
            start = stop


def _byte_lengths(texts: pa.Array) -> np.ndarray:
    """UTF-8 bytes of each text, (texts,) int64, from the offsets of an Arrow string array.

    Arrow's own function would look for pandas, a third of a second in each process.
    """
    import pyarrow as pa

    wide = texts.type in (pa.large_string(), pa.large_binary())
    offsets = np.frombuffer(texts.buffers()[1], np.int64 if wide else np.int32)
    lengths: np.ndarray = np.diff(offsets[texts.offset : texts.offset + len(texts) + 1])
    return lengths.astype(np.int64)


def _cuts(lengths: np.ndarray) -> Iterator[int]:
    """Ends of chunks that have at least one document and, if more, at most CHUNK_BYTES."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + CHUNK_BYTES, side="right"))
        start = max(start + 1, min(stop, start + _CHUNK_DOCUMENTS))
        yield start


def _encode(
    encoder: Encoder,
    texts: list[str],
    num_bytes: np.ndarray,
    min_length: int,
    end_id: int,
    dtype: np.dtype[np.unsignedinteger],
) -> EncodedChunk:
    arrays = encoder.encode_batch(texts)
    counts = np.array([len(array) for array in arrays], np.int64)
    empty = num_bytes == 0
    short = ~empty & (counts < min_length)
    kept = np.flatnonzero(~empty & ~short)
    sizes = counts[kept] + 1
    ids = np.full(int(sizes.sum()), end_id, dtype)
    ends = np.cumsum(sizes)
    for k, start, end in zip(kept.tolist(), (ends - sizes).tolist(), ends.tolist(), strict=True):
        ids[start : end - 1] = arrays[k]
    assert np.count_nonzero(ids == end_id) == len(kept), "no text encodes to a control id"
    dropped = {
        reason: Dropped(int(mask.sum()), int(num_bytes[mask].sum()), int(counts[mask].sum()))
        for reason, mask in (("empty", empty), ("min_length", short))
        if mask.any()
    }
    return EncodedChunk(ids, sizes, kept, len(texts), int(num_bytes.sum()), dropped)


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    # Linux's ru_maxrss survives exec: a child would report its parent's peak.
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    if match:
        return int(match[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
