"""Encode row groups on Ray's workers, results in order: `encode_pool` for many machines.

Each worker reads the row group from data/raw itself, so on a cluster of several machines the
project must lie on a file system that all of them have under the same path.
Price: the tokenizer is sent once to each machine, and its encoder is made once in each worker.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import numpy as np

from llm_trainer.data.encode import EncodedChunk, EncodeTask, encode_task, peak_rss_bytes
from llm_trainer.data.encode_pool import PoolStats
from llm_trainer.data.engine import Engine
from llm_trainer.data.ray_engine import connect
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.tokenizer.encoder import FastEncoder

_AHEAD = 64
"""Chunks of one row group that may wait: all, unless it is one huge document."""


def encode_on_ray(
    tasks: Sequence[EncodeTask],
    tokenizer: BPETokenizer,
    *,
    dtype: np.dtype[np.unsignedinteger],
    engine: Engine,
    stats: PoolStats,
) -> Generator[tuple[EncodeTask, EncodedChunk], None, None]:
    """Yield each task's chunks, in the order of `tasks`; see `encode_pool.encode_tasks`.

    Raises:
        MissingDependencyError: `ray` is not installed.
        LLMTrainerError: Ray cannot be started or reached, or loses a part again and again.
    """
    absolute = [task._replace(path=str(Path(task.path).absolute())) for task in tasks]
    with connect(engine) as cluster:
        stats.num_workers = cluster.num_workers
        shared = cluster.share(tokenizer)
        results = cluster.ordered(_encode, absolute, shared=(shared, dtype), ahead=_AHEAD)
        with closing(results) as streams:
            for task, stream in streams:
                for result in stream:
                    if isinstance(result, EncodedChunk):
                        yield task, result
                    else:
                        stats.peak_worker_bytes = max(stats.peak_worker_bytes, result)


def _encode(
    task: EncodeTask, tokenizer: BPETokenizer, dtype: np.dtype[np.unsignedinteger]
) -> Iterator[EncodedChunk | int]:
    """A row group's chunks, then the worker's peak memory in bytes."""
    yield from encode_task(_encoder(tokenizer), task, tokenizer.end_id, dtype)
    yield peak_rss_bytes()


class _Kept:
    """A tokenizer as a key: two of the same digest are one."""

    def __init__(self, tokenizer: BPETokenizer) -> None:
        self.tokenizer = tokenizer

    def __hash__(self) -> int:
        return hash(self.tokenizer.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and other.tokenizer.digest == self.tokenizer.digest


@lru_cache(maxsize=1)
def _encoder_of(kept: _Kept) -> FastEncoder:
    return FastEncoder(kept.tokenizer)


def _encoder(tokenizer: BPETokenizer) -> FastEncoder:
    return _encoder_of(_Kept(tokenizer))
