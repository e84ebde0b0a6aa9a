"""create_dataloader: a torch DataLoader with a stateless, reproducible order.

How: the order of an epoch is a keyed permutation of (seed, epoch), computed position by position
(see `order`), so it depends neither on torch's random state nor on the number of workers, and any
epoch can be had at once with `set_epoch`. A worker that dies or hangs is an error within `timeout`
seconds; workers leave Ctrl-C to the main process.
Price: for packed rows workers cost more than they give, since reading a row is one copy.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from llm_trainer.config.checks import flags, map_style, number, refuse, whole
from llm_trainer.data.order import permute
from llm_trainer.exceptions import DataError

TIMEOUT = 120.0
"""Seconds that a batch of a worker may take."""
_BLOCK = 2**14


class EpochSampler(Sampler[int]):
    """Row numbers of one epoch, in the order of (seed, epoch).

    Each pass over the sampler is followed by the next epoch, so a loop that never calls
    `set_epoch` sees a new order each time.

    Args:
        num_rows: length of the data set.
        seed: of the order.
        shuffle: keep the order of the data set if False.
    """

    def __init__(self, num_rows: int, *, seed: int = 0, shuffle: bool = True) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for start in range(0, self.num_rows, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, self.num_rows))
            if self.shuffle:
                rows = permute(rows, self.num_rows, self.seed, epoch)
            yield from rows.tolist()


class EpochLoader(DataLoader[Any]):
    """A DataLoader whose order can be set by epoch."""

    sampler: EpochSampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass goes through."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """One pass.

        Raises:
            DataError: a worker died, or took longer than `timeout` for a batch.
        """
        try:
            yield from super().__iter__()
        except RuntimeError as error:
            # An error of the data set itself comes through as what it was.
            if not str(error).startswith("DataLoader "):
                raise
            raise DataError(
                f"reading rows in {self.num_workers} worker processes failed: {error}; try "
                f"num_workers=0, which shows where, or check the free memory"
            ) from error


def create_dataloader(
    dataset: Dataset[Any],
    batch_size: int = 32,
    shuffle: bool = True,
    num_workers: int = 0,
    pin_memory: bool = True,
    drop_last: bool = True,
    *,
    seed: int = 0,
    timeout: float = TIMEOUT,
) -> EpochLoader:
    """Batches of a map-style data set whose items are dictionaries of equal shapes.

    Args:
        dataset: a `LanguageModelingDataset`, or any other with `__len__` and `__getitem__`.
        batch_size: rows per batch.
        shuffle: a new order each epoch; it depends on `seed` and epoch only.
        num_workers: processes that read; 0 reads in this one. The batches are the same.
        pin_memory: page-locked memory for asynchronous copies; only where CUDA is there.
        drop_last: leave out the last batch if it is not full.
        seed: of the order.
        timeout: seconds that a worker may take for a batch before it is an error.

    Raises:
        DataError: an impossible setting, or a data set that gives no batch.
    """
    refuse(
        DataError,
        map_style("dataset", dataset),
        whole("batch_size", batch_size, 1),
        whole("num_workers", num_workers, 0),
        flags(shuffle=shuffle, pin_memory=pin_memory, drop_last=drop_last),
        whole("seed", seed),
        number("timeout", timeout, above=0),
    )
    num_rows = len(dataset)  # type: ignore[arg-type]
    if num_rows == 0:
        raise DataError("dataset is empty: it has no rows; give it more text or shorter rows")
    if drop_last and num_rows < batch_size:
        raise DataError(
            f"the data set has {num_rows:,} rows, fewer than batch_size ({batch_size:,}), and "
            f"drop_last leaves out what fills no batch; lower batch_size or set drop_last=False"
        )
    return EpochLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(num_rows, seed=seed, shuffle=shuffle),
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        drop_last=drop_last,
        timeout=timeout if num_workers else 0,
        worker_init_fn=_ignore_interrupts,
        # Torch draws a base seed for workers from here: its global random state stays untouched.
        generator=torch.Generator().manual_seed(seed % 2**63),
    )


def _ignore_interrupts(worker: int) -> None:  # noqa: ARG001 (what torch passes)
    # Ctrl-C reaches the whole process group; the main process decides, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
