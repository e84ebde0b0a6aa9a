"""Documents in chunks of bounded size, with the books of what was read for them.

A chunk is what passes between whoever reads and whoever writes, in one process or in two: texts as
one array of bytes, their hashes, and a ledger of its own. The books of chunks add up to those of
reading without them, and after each chunk they are as if nothing more had been read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from llm_trainer.config import SourceConfig
from llm_trainer.data.documents import DIGEST_BYTES, Document, content_hash
from llm_trainer.data.intake import Intake
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.units import Unit, iter_unit
from llm_trainer.exceptions import LLMTrainerError

CHUNK_BYTES = 4 * 2**20
"""Text after which a chunk is full, in bytes."""
CHUNK_DOCUMENTS = 16_384


@dataclass(frozen=True)
class Chunk:
    """Consecutive documents."""

    text: np.ndarray
    """(bytes,) uint8: their UTF-8, one after the other."""
    ends: np.ndarray
    """(documents,) int64: where each ends in `text`."""
    digests: np.ndarray
    """(documents, DIGEST_BYTES) uint8: their content hashes."""
    sources: list[str]
    """Their names."""
    ledger: Ledger
    """What was read for them, records that became no document included."""
    num_bad: int
    """Bad records among these."""
    num_lines: int
    """Lines of the unit so far, if it is a range of lines."""

    def __len__(self) -> int:
        return len(self.sources)

    def documents(self) -> Iterator[tuple[bytes, bytes, str]]:
        """Text, content hash and name of each document."""
        text, start = self.text.data, 0
        digests = self.digests.tobytes()
        for number, end in enumerate(self.ends.tolist()):
            at = number * DIGEST_BYTES
            data = bytes(text[start:end])
            yield data, digests[at : at + DIGEST_BYTES], self.sources[number]
            start = end


def read_unit(
    unit: Unit,
    config: SourceConfig,
    *,
    lines_before: int = 0,
    num_bad: int = 0,
    skip: int = 0,
    most: Callable[[], int] = lambda: CHUNK_DOCUMENTS,
) -> Iterator[Chunk]:
    """Read a unit.

    Args:
        unit: what to read.
        config: column, limits, and what to do about bad records.
        lines_before: lines of the file before a range of lines, for the names of documents.
        num_bad: bad records before what is not skipped.
        skip: documents to pass over, with what was read for them.
        most: asked at the start of each chunk: documents in it, at most.

    Raises:
        DataError: see `iter_unit`.
    """
    intake = Intake(config, Ledger("download"))
    documents = iter_unit(unit, intake, lines_before)
    yield from chunked(documents, intake, num_bad=num_bad, skip=skip, most=most)


def chunked(
    documents: Iterator[Document],
    intake: Intake,
    *,
    num_bad: int,
    skip: int,
    most: Callable[[], int],
) -> Iterator[Chunk]:
    """Chunks of `documents`, which come from `intake`; at least one, maybe empty, and the last
    has the books of all that came after the last document."""
    for _ in range(skip):
        if next(documents, None) is None:
            raise _shorter(skip)
    intake.num_bad = num_bad
    ended = False
    while not ended:
        intake.ledger = ledger = Ledger("download")
        before = intake.num_bad
        texts: list[bytes] = []
        sources: list[str] = []
        digests: list[bytes] = []
        size, limit = 0, min(CHUNK_DOCUMENTS, most())
        ended = True
        for document in documents:
            data = document.text.encode()
            texts.append(data)
            sources.append(document.source)
            digests.append(content_hash(data))
            size += len(data)
            if size >= CHUNK_BYTES or len(texts) >= limit:
                ended = False
                break
        yield Chunk(
            text=np.frombuffer(b"".join(texts), np.uint8),
            ends=np.cumsum([len(data) for data in texts], dtype=np.int64),
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
            sources=sources,
            ledger=ledger,
            num_bad=intake.num_bad - before,
            num_lines=intake.num_lines,
        )


def _shorter(skip: int) -> LLMTrainerError:
    return LLMTrainerError(
        f"the source gives fewer documents than the {skip:,} that were read of it before; it "
        f"changed: give the command again to start from the beginning"
    )
