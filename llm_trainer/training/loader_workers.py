"""Worker processes that read a data set which is no `RowSource`, and failures that name the row.

Each worker notes in shared memory which row it is at, so that a worker that dies or hangs can be
told with its row. Signals to the whole process group are the trainer's to handle: it saves first,
and ends its workers itself. Price: two writes to shared memory a row.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from llm_trainer.exceptions import DataError

TIMEOUT = 120.0
"""Seconds that a batch of a worker may take before it is an error."""
DYING = 5.0
"""Seconds that a worker may take from closing its connections to its end."""


class WorkerBatches:
    """Batches of the rows that `indices` lists, read ahead by worker processes, in its order."""

    def __init__(
        self,
        dataset: Dataset[Any],
        indices: Iterable[list[int]],
        num_workers: int,
        collate: Callable[[Sequence[Any]], Any],
    ) -> None:
        self._at = RawArray("q", [-1] * num_workers)
        before = set(multiprocessing.active_children())
        self._batches = iter(
            DataLoader(
                _Watched(dataset, self._at),
                batch_sampler=indices,
                num_workers=num_workers,
                collate_fn=collate,
                timeout=TIMEOUT,
                worker_init_fn=_leave_signals_to_the_trainer,
            )
        )
        self._workers = [p for p in multiprocessing.active_children() if p not in before]

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except (OSError, EOFError) as error:
            # a worker's connections close before it counts as dead, and torch looks only once
            if str(error).startswith("Caught ") or not self._one_ends():
                raise  # of the data set itself
            raise RuntimeError(f"DataLoader worker went away ({error})") from error

    def _one_ends(self) -> bool:
        """Whether a worker is dead, or about to be; waits until it is.

        Otherwise the signal of its death would come later, and torch raise from wherever we are.
        """
        ended = wait([worker.sentinel for worker in self._workers], DYING)
        for worker in self._workers:
            if worker.sentinel in ended:
                worker.join(DYING)
        return bool(ended)

    def failure(self, error: RuntimeError) -> DataError:
        """The error to raise instead of torch's, which knows processes only."""
        rows = sorted(row for row in self._at if row >= 0)
        place = f"at row {' or '.join(map(str, rows))}" if rows else "between two rows"
        return DataError(
            f"reading the training data in {len(self._workers)} worker processes failed {place}: "
            f"{error}; look at that row and at the free memory, or set dataloader_num_workers: 0 "
            f"to see where it fails"
        )

    def close(self) -> None:
        """End the workers at once, those that hang included."""
        if threading.current_thread() is threading.main_thread():
            with _no_child_handler():
                for worker in self._workers:
                    worker.kill()
                    worker.join()
        del self._batches


class _Watched(Dataset[Any]):
    """A data set whose readers note the row that they are at."""

    def __init__(self, dataset: Dataset[Any], at: Any) -> None:
        self.dataset, self.at = dataset, at

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        assert worker is not None
        self.at[worker.id] = index
        item = self.dataset[index]
        self.at[worker.id] = -1
        return item


def _leave_signals_to_the_trainer(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the first comes with one to the whole group; torch and multiprocessing send more at their end
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))


@contextmanager
def _no_child_handler() -> Iterator[None]:
    """Without torch's handler in the body: to it, a worker that is ended is one that failed."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
