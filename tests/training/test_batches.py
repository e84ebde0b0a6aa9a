"""The row stream: every row once an epoch, any micro-batch by its number alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llm_trainer.exceptions import DataError, TrainingError
from llm_trainer.training.batches import IGNORED, BatchStream, collate


class Rows:
    """Rows whose ids tell their number; the last one is half empty."""

    row_length = 6

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.repeat(indices[:, None], self.row_length, 1).astype(np.uint16)
        return ids, np.where(indices == self.count - 1, 3, self.row_length)

    def segments(self, indices: np.ndarray) -> np.ndarray:
        return np.tile((np.arange(self.row_length) >= 2).astype(np.int32), (len(indices), 1))

    def documents(self, index: int) -> list[int]:
        return [2 * index, 2 * index + 1]


def seen(stream: BatchStream, count: int) -> list[int]:
    return [int(i) for n in range(count) for i in stream.load(n).input_ids[:, 0]]


def test_every_row_once_an_epoch_in_another_order() -> None:
    stream = BatchStream(Rows(21), 4, seed=5)
    order = seen(stream, 21)  # 84 rows, four epochs
    epochs = [order[i : i + 21] for i in range(0, 84, 21)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_depends_on_its_number_alone() -> None:
    order = seen(BatchStream(Rows(21), 4, seed=5), 12)
    fresh = BatchStream(Rows(21), 4, seed=5)
    assert [int(i) for i in fresh.load(9).input_ids[:, 0]] == order[36:40]
    other = seen(BatchStream(Rows(21), 4, seed=6), 12)
    assert other != order


def test_the_stream_does_not_depend_on_the_batch_size() -> None:
    assert seen(BatchStream(Rows(21), 4, seed=5), 6) == seen(BatchStream(Rows(21), 2, seed=5), 12)


def test_padding_is_no_target() -> None:
    batch = BatchStream(Rows(3), 3, seed=0, shuffle=False).load(0)
    assert batch.labels[2].tolist() == [2, 2, 2, IGNORED, IGNORED, IGNORED]
    assert batch.num_targets == 5 + 5 + 2


def test_document_mask_yields_segments() -> None:
    batch = BatchStream(Rows(3), 3, seed=0, document_mask=True).load(0)
    assert batch.segments is not None
    assert batch.segments[0].tolist() == [0, 0, 1, 1, 1, 1]


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    """A plain map-style data set."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = [1, 1, 1, 0] if index == 3 else [1] * 4
        return {"input_ids": [index] * 4, "attention_mask": mask}


def test_plain_data_sets_give_the_same_stream_with_and_without_workers() -> None:
    alone = BatchStream(Items(), 3, seed=1)
    workers = BatchStream(Items(), 3, seed=1, num_workers=2)
    for number in (0, 1, 2, 5, 6):  # 5 is a jump, as after a resume
        a, b = alone.load(number), workers.load(number)
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.labels == IGNORED, (a.input_ids == 3) & (torch.arange(4) == 3))


def test_what_cannot_be_a_batch_is_named() -> None:
    with pytest.raises(DataError, match="no rows"):
        BatchStream(Rows(0), 3, seed=0)
    with pytest.raises(TrainingError, match="document_mask"):
        BatchStream(Items(), 3, seed=0, document_mask=True)
    with pytest.raises(DataError, match="input_ids"):
        collate([1, 2])
    with pytest.raises(DataError, match="different lengths"):
        collate([{"input_ids": [1, 2]}, {"input_ids": [1]}])
