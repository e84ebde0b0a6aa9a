"""Encode row groups in several processes, results in order.

How: spawned workers take one row group at a time from the parent over a pipe of their own and send
the encoded chunks back; the parent hands on the chunks of the oldest unfinished row group and keeps
those of later ones. Row groups handed out are at most 2 a worker ahead, so memory is bounded
whatever the corpus. A worker that dies closes its pipe, which the parent notices at once; one whose
parent dies reads the end of its own and leaves. Workers ignore Ctrl-C: the parent ends them.
Price: a third of a second to start a worker, and a copy of the ids through a pipe.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

import numpy as np

from llm_trainer.data.encode import EncodedChunk, EncodeTask, encode_task, peak_rss_bytes
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.tokenizer.encoder import FastEncoder

_TASKS_AHEAD = 2
"""Row groups a worker may hold: one that it encodes and one that waits."""


@dataclass
class PoolStats:
    """What is known after a run."""

    num_workers: int = 1
    """Processes that encoded; 1 is this one."""
    peak_worker_bytes: int = 0
    """Largest resident set of any worker process; 0 without."""


def encode_tasks(
    tasks: Sequence[EncodeTask],
    tokenizer: BPETokenizer,
    *,
    dtype: np.dtype[np.unsignedinteger],
    num_workers: int,
    stats: PoolStats,
) -> Generator[tuple[EncodeTask, EncodedChunk], None, None]:
    """Yield each task's chunks, in the order of `tasks`, whatever `num_workers`.

    With one worker or one task all is done in this process. Close the iterator to end the workers.

    Raises:
        LLMTrainerError: a worker process died; names it, the signal or exit code, and its task.
    """
    stats.num_workers = max(1, min(num_workers, len(tasks)))
    if stats.num_workers == 1:
        encoder = FastEncoder(tokenizer)
        for task in tasks:
            for chunk in encode_task(encoder, task, tokenizer.end_id, dtype):
                yield task, chunk
        return
    pool = _Pool(tokenizer, dtype, stats)
    try:
        pool.start()
        yield from pool.run(tasks)
    finally:
        pool.stop()


# --------------------------------------------------------------------------- parent


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    tasks: deque[int] = field(default_factory=deque)
    """Numbers of the tasks it holds; it works on the first."""
    has_arguments: bool = False
    """Whether it was sent what all tasks need."""


class _Pool:
    def __init__(
        self,
        tokenizer: BPETokenizer,
        dtype: np.dtype[np.unsignedinteger],
        stats: PoolStats,
    ) -> None:
        self._arguments = (tokenizer, dtype)
        self._stats = stats
        self._workers: list[_Worker] = []

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        # The mask is inherited: a Ctrl-C while they start up cannot reach the workers either. The
        # tracker that the first of them needs unblocks SIGINT when it starts, so it comes first.
        resource_tracker.ensure_running()
        with _blocked(signal.SIGINT):
            for number in range(self._stats.num_workers):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs,), name=f"encoder-{number}", daemon=True
                )
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))

    def stop(self) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()

    def run(self, tasks: Sequence[EncodeTask]) -> Iterator[tuple[EncodeTask, EncodedChunk]]:
        ahead = _TASKS_AHEAD * len(self._workers)
        given = 0
        waiting: dict[int, deque[EncodedChunk]] = {}
        finished: set[int] = set()
        for number, task in enumerate(tasks):
            while True:
                while given < min(len(tasks), number + ahead):
                    self._give(given, tasks)
                    given += 1
                chunks = waiting.get(number, deque())
                while chunks:
                    yield task, chunks.popleft()
                if number in finished:
                    break
                for worker in self._ready():
                    held, result = self._receive(worker, tasks)
                    if isinstance(result, EncodedChunk):
                        waiting.setdefault(held, deque()).append(result)
                    else:
                        worker.tasks.popleft()
                        finished.add(held)
                        peak = max(self._stats.peak_worker_bytes, result)
                        self._stats.peak_worker_bytes = peak
            waiting.pop(number, None)
            finished.remove(number)

    def _give(self, number: int, tasks: Sequence[EncodeTask]) -> None:
        worker = min(self._workers, key=lambda one: len(one.tasks))
        worker.tasks.append(number)
        try:
            if not worker.has_arguments:
                # Not given to the process itself: multiprocessing writes that to a pipe whose other
                # end it holds, so where it is full and the child dies early, it waits for ever.
                worker.pipe.send(self._arguments)
                worker.has_arguments = True
            worker.pipe.send((number, tasks[number]))
        except OSError:
            self._raise_dead(worker, tasks)

    def _ready(self) -> list[_Worker]:
        ready = wait([worker.pipe for worker in self._workers])
        return [worker for worker in self._workers if worker.pipe in ready]

    def _receive(
        self, worker: _Worker, tasks: Sequence[EncodeTask]
    ) -> tuple[int, EncodedChunk | int]:
        try:
            number, result = worker.pipe.recv()
        except (EOFError, OSError):
            self._raise_dead(worker, tasks)
        if isinstance(result, LLMTrainerError):
            raise result
        if isinstance(result, str):
            raise RuntimeError(
                f"worker process {worker.process.pid} failed at {tasks[worker.tasks[0]]}:\n{result}"
            )
        return number, result

    def _raise_dead(self, worker: _Worker, tasks: Sequence[EncodeTask]) -> NoReturn:
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        where = f"while encoding {tasks[worker.tasks[0]]}" if worker.tasks else "while it was idle"
        if code is not None and code < 0:
            raise LLMTrainerError(
                f"worker process {worker.process.pid} was killed by {_signal_name(-code)} {where}; "
                f"nothing was written. The kernel does this when memory runs out: use fewer "
                f"processes (runtime.preprocessing_num_workers=1) or free some memory"
            )
        raise LLMTrainerError(
            f"worker process {worker.process.pid} ended with exit code {code} {where}; nothing was "
            f"written. Its own message is above; a script of yours that packs in several processes "
            f"needs `if __name__ == '__main__':` around its code"
        )


@contextmanager
def _blocked(signal_number: int) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal_number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --------------------------------------------------------------------------- worker


def _work(pipe: Connection) -> None:
    """Main function of a worker: (tokenizer, dtype), then (number, task) in; (number, chunk)... and
    (number, peak) out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number = -1
    try:
        tokenizer, dtype = pipe.recv()
        encoder = FastEncoder(tokenizer)
        while True:
            number, task = pipe.recv()
            for chunk in encode_task(encoder, task, tokenizer.end_id, dtype):
                pipe.send((number, chunk))
            pipe.send((number, peak_rss_bytes()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone, or needs no more
    except LLMTrainerError as error:
        pipe.send((number, error))
    except Exception:  # noqa: BLE001 - not swallowed: the parent raises it
        pipe.send((number, traceback.format_exc()))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
