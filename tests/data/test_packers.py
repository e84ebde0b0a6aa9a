"""Both packers against naive implementations in plain Python."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.data.best_fit import WINDOW_TARGETS, BestFitPacker, place
from llm_trainer.data.concat import ConcatPacker
from llm_trainer.data.packers import pack_arrays
from llm_trainer.data.row_batch import EncodedDocuments, RowBatch
from tests.data.naive import naive_concat

END, PAD = 0, 1
Documents = list[list[int]]

documents_of = st.lists(
    st.lists(st.integers(2, 70_000), min_size=1, max_size=40), min_size=1, max_size=12
)
row_lengths = st.integers(2, 17)
batch_sizes = st.lists(st.integers(0, 4), max_size=12)


def encode(documents: Documents, first: int) -> EncodedDocuments:
    return EncodedDocuments(
        ids=np.array([i for d in documents for i in [*d, END]], np.uint32),
        sizes=np.array([len(d) + 1 for d in documents], np.int64),
        documents=np.arange(first, first + len(documents)),
    )


def run(packer: ConcatPacker | BestFitPacker, documents: Documents, sizes: list[int]) -> RowBatch:
    """Feed documents in batches of the given sizes, and the rest at once."""
    batches, first = [], 0
    for size in [*sizes, len(documents)]:
        part = documents[first : first + size]
        batches += packer.add(encode(part, first))
        first += len(part)
    return RowBatch.concatenate([*batches, *packer.finish()])


def pieces_of(batch: RowBatch) -> list[list[tuple[int, int]]]:
    pairs = iter(zip(batch.documents.tolist(), batch.starts.tolist(), strict=True))
    return [list(itertools.islice(pairs, count)) for count in batch.piece_counts.tolist()]


def cut(batch: RowBatch) -> dict[int, Documents]:
    """The tokens of each document's pieces, the context token of each first."""
    found = defaultdict(list)
    for ids, length, pieces in zip(
        batch.ids.tolist(), batch.lengths, pieces_of(batch), strict=True
    ):
        ends = [start for _, start in pieces[1:]] + [int(length) - 1]
        for (document, start), end in zip(pieces, ends, strict=True):
            found[document].append(ids[start : end + 1])
        assert ids[length:] == [PAD] * (len(ids) - int(length))
    return found


def chain(pieces: Documents, wanted: list[int]) -> bool:
    """Whether the pieces, in some order, overlap by a token and join to `wanted`."""
    if not pieces:
        return len(wanted) == 1
    return any(
        wanted[: len(piece)] == piece
        and chain(pieces[:k] + pieces[k + 1 :], wanted[len(piece) - 1 :])
        for k, piece in enumerate(pieces)
    )


@settings(max_examples=300, deadline=None)
@given(documents_of, row_lengths, batch_sizes)
def test_concat_equals_the_naive_stream(
    documents: Documents, length: int, sizes: list[int]
) -> None:
    packer = ConcatPacker(length, END, PAD, np.dtype(np.uint32))
    batch = run(packer, documents, sizes)
    rows, lengths, pieces = naive_concat(documents, length, END, PAD)
    assert batch.ids.tolist() == rows
    assert batch.lengths.tolist() == lengths
    assert pieces_of(batch) == pieces
    spread = defaultdict(int)
    for document, _ in itertools.chain.from_iterable(pieces):
        spread[document] += 1
    assert packer.num_split == sum(count > 1 for count in spread.values())


@settings(max_examples=300, deadline=None)
@given(documents_of, row_lengths, batch_sizes, st.integers(1, 200))
def test_best_fit_has_each_target_once_after_its_own_context(
    documents: Documents, length: int, sizes: list[int], window: int
) -> None:
    packer = BestFitPacker(length, END, PAD, np.dtype(np.uint32), window=window)
    batch = run(packer, documents, sizes)
    assert int((batch.lengths - 1).sum()) == sum(len(d) + 1 for d in documents)
    assert batch.lengths.min() >= 2
    found = cut(batch)
    for number, document in enumerate(documents):
        pieces, whole = found.pop(number), [END, *document, END]
        assert chain(pieces, whole)
        assert len(pieces) == -(-(len(document) + 1) // (length - 1)), "cut only where too long"
    assert not found
    assert packer.num_split == sum(len(d) + 1 > length - 1 for d in documents)


@settings(max_examples=150, deadline=None)
@given(documents_of, row_lengths, batch_sizes, st.integers(1, 200))
def test_best_fit_does_not_depend_on_how_documents_arrive(
    documents: Documents, length: int, sizes: list[int], window: int
) -> None:
    packers = [BestFitPacker(length, END, PAD, np.dtype(np.uint32), window=window) for _ in "ab"]
    one, other = run(packers[0], documents, sizes), run(packers[1], documents, [])
    for name in ("ids", "lengths", "piece_counts", "documents", "starts"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 40))
def test_best_fit_rows_are_at_least_half_full_together(sizes: list[int], room: int) -> None:
    """No two rows that take any piece could have been one: the property of any-fit packings."""
    rows = place(sizes, room)
    filled = sorted(sum(end - start for _, start, end in row) for row in rows)
    assert filled[-1] <= room
    assert sum(filled) == sum(sizes)
    if max(sizes) <= room and len(filled) > 1:
        assert filled[0] + filled[1] > room


def test_best_fit_takes_the_tightest_row() -> None:
    # 7 opens a row with 3 left, 6 one with 4; 4 fits the second only, 3 then fills the first.
    assert place([7, 6, 4, 3], 10) == [[(0, 0, 7), (3, 0, 3)], [(1, 0, 6), (2, 0, 4)]]
    # Long documents: one's end and another's beginning share a row with a whole one between.
    rows = place([25, 24, 1], 10)
    assert [(0, 20, 25), (2, 0, 1), (1, 0, 4)] in rows
    assert len(rows) == 5


def test_best_fit_wastes_little() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.exponential(300, WINDOW_TARGETS // 300).astype(int) + 2
    rows = place(sizes.tolist(), 1023)
    assert len(rows) * 1023 < 1.01 * sizes.sum()


@pytest.mark.parametrize("strategy", ["concat", "best_fit"])
def test_pack_arrays(strategy: str) -> None:
    arguments = {"row_length": 8, "end_id": END, "pad_id": PAD, "dtype": np.dtype(np.uint16)}
    assert pack_arrays([], strategy, **arguments) is None
    batch = pack_arrays([np.array([5, 6, 7]), np.array([8])], strategy, **arguments)
    assert batch is not None
    assert batch.ids.dtype == np.uint16
    assert batch.ids.tolist() == [[END, 5, 6, 7, END, 8, END, PAD]]
    assert batch.lengths.tolist() == [7]
    assert pieces_of(batch) == [[(0, 0), (1, 4)]]
