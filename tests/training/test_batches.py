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


class Numbered(Rows):
    """Every token of the corpus is another number."""

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, lengths = super().rows(indices)
        return indices[:, None] * self.row_length + np.arange(self.row_length), lengths


def test_pieces_of_rows_come_once_an_epoch_from_all_over() -> None:
    rows = Numbered(20)  # 40 pieces, 20 batches of two
    stream = BatchStream(rows, 1, seed=5, parts=lambda _number: 2)
    batches = [stream.load(number) for number in range(40)]
    assert all(batch.input_ids.shape == (2, 3) for batch in batches)
    starts = [int(start) for batch in batches for start in batch.input_ids[:, 0]]
    assert sorted(starts[:40]) == sorted(starts[40:]) == list(range(0, 120, 3))
    assert starts[:40] != starts[40:]
    for batch in batches:
        assert torch.equal(batch.input_ids, batch.input_ids[:, :1] + torch.arange(3))
        assert torch.equal(batch.labels == IGNORED, batch.input_ids >= 117), "19 is half empty"
    together = sum({int(start) // 6 for start in batch.input_ids[:, 0]} == {0} for batch in batches)
    assert together < 3, "the pieces of a row are apart"
    for number in (0, 7, 31):  # what the report of a non-finite loss names
        expected = [int(start) // 6 for start in batches[number].input_ids[:, 0]]
        assert stream.row_indices(number).tolist() == expected


def test_rows_may_become_longer_with_the_number_of_the_batch() -> None:
    stream = BatchStream(
        Numbered(12), 2, seed=1, document_mask=True, parts=lambda number: 3 if number < 4 else 1
    )
    whole = BatchStream(Numbered(12), 2, seed=1)
    assert stream.load(3).input_ids.shape == (6, 2)
    segments = stream.load(3).segments
    assert segments is not None
    assert torch.equal(segments > 0, stream.load(3).input_ids % 6 >= 2)
    assert torch.equal(stream.load(4).input_ids, whole.load(4).input_ids), "the order of rows"


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
