"""Shards: what is written is what is read, and no damage goes unnamed."""

from __future__ import annotations

import multiprocessing
import operator
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.data import shard_file
from llm_trainer.data.row_batch import RowBatch
from llm_trainer.data.shard_file import Shard, file_sizes, id_dtype, rows_per_batch
from llm_trainer.data.shard_writer import ShardWriter
from llm_trainer.data.shards import PackedRows
from pipeline.worker import die_with_parent
from tests.data.packed_rows import write_packed

REMEDY = "run `dvc repro pack_sequences`"


# --------------------------------------------------------------------------- reading


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    row_length=st.integers(2, 40),
    vocab_size=st.sampled_from([300, 2**16, 2**16 + 1]),
    shard_bytes=st.sampled_from([4096, 6000, 2**20]),
    strategy=st.sampled_from(["concat", "best_fit"]),
    batch_bytes=st.sampled_from([1, 400, 2**20]),
)
def test_rows_segments_and_pieces_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    row_length: int,
    vocab_size: int,
    shard_bytes: int,
    strategy: str,
    batch_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("packed")
    written = write_packed(
        path,
        row_length=row_length,
        vocab_size=vocab_size,
        shard_bytes=shard_bytes,
        strategy=strategy,
        batch_bytes=batch_bytes,
    )
    rng = np.random.default_rng(seed)
    for split, expected in written.items():
        rows = PackedRows(path, split)
        assert len(rows) == len(expected)
        assert rows.row_length == row_length
        assert rows.num_tokens == int((expected.lengths - 1).sum())
        chosen = rng.integers(0, len(rows), 30)
        ids, lengths = rows.rows(chosen)
        assert ids.dtype == id_dtype(vocab_size)
        assert lengths.dtype == np.int64
        assert np.array_equal(ids, expected.ids[chosen])
        assert np.array_equal(lengths, expected.lengths[chosen])
        segments = rows.segments(chosen)
        assert segments.dtype == np.int32
        first = np.cumsum(expected.piece_counts) - expected.piece_counts
        for k, index in enumerate(chosen.tolist()):
            mine = slice(first[index], first[index] + expected.piece_counts[index])
            pieces = list(zip(expected.documents[mine], expected.starts[mine], strict=True))
            assert rows.pieces(index) == pieces
            assert rows.documents(index) == [document for document, _ in pieces]
            wanted = [
                len(pieces) if p >= lengths[k] else sum(start <= p for _, start in pieces) - 1
                for p in range(row_length)
            ]
            assert segments[k].tolist() == wanted


def test_whole_split_in_order_and_single_rows(original: Path) -> None:
    rows = PackedRows(original, "train")
    assert len(rows.manifest["splits"]["train"]["files"]) > 3
    everything, lengths = rows.rows(np.arange(len(rows)))
    for index in (0, 1, len(rows) - 1):
        one, length = rows.rows(np.array([index]))
        assert np.array_equal(one[0], everything[index])
        assert length[0] == lengths[index]
    none, no_lengths = rows.rows(np.array([], dtype=np.int64))
    assert none.shape == (0, rows.row_length)
    assert no_lengths.shape == (0,)
    assert rows.segments(np.array([], dtype=np.int64)).shape == (0, rows.row_length)
    for outside in (-1, len(rows)):
        with pytest.raises(IndexError, match=str(outside)):
            rows.rows(np.array([0, outside]))


def test_a_copy_is_independent_of_the_file(original: Path) -> None:
    rows = PackedRows(original, "train")
    ids, _ = rows.rows(np.array([0, 1]))
    ids[:] = 0  # writable, and the mapped file is untouched
    assert rows.rows(np.array([0, 1]))[0].any()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes_read_the_same_rows(original: Path, method: str) -> None:
    rows = PackedRows(original, "validation")
    indices = np.arange(len(rows))[::-3]
    assert len(pickle.dumps(rows)) < 20_000, "a copy takes the manifest along, not the rows"
    with multiprocessing.get_context(method).Pool(1, die_with_parent) as pool:
        read = operator.methodcaller("rows", indices)
        ids, lengths = pool.apply_async(read, (rows,)).get(timeout=60)
    expected, expected_lengths = rows.rows(indices)
    assert np.array_equal(ids, expected)
    assert np.array_equal(lengths, expected_lengths)


def test_open_shards_hold_no_file_descriptors(original: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    rows = PackedRows(original, "train")
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(rows) > 0


# --------------------------------------------------------------------------- writing


@settings(max_examples=40, deadline=None)
@given(
    row_length=st.integers(2, 200),
    shard_bytes=st.integers(4096, 30_000),
    batch_bytes=st.sampled_from([1, 1000, 2**20]),
    wide=st.booleans(),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_shards_are_bounded_aligned_and_cut_by_content_alone(
    tmp_path_factory: pytest.TempPathFactory,
    row_length: int,
    shard_bytes: int,
    batch_bytes: int,
    wide: bool,
    cuts: list[int],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    dtype = np.dtype(np.uint32 if wide else np.uint16)
    total = sum(cuts)
    counts = rng.integers(1, row_length, total)
    pieces = int(counts.sum())
    rows = RowBatch(
        rng.integers(0, 2**16, (total, row_length)).astype(dtype),
        np.full(total, row_length),
        counts,
        rng.integers(0, 2**40, pieces),
        rng.integers(0, row_length, pieces).astype(np.uint32),
    )
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    arguments = {"row_length": row_length, "dtype": dtype, "shard_bytes": shard_bytes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_file, "BATCH_BYTES", batch_bytes)
        whole, piecewise = (ShardWriter(path, "train", **arguments) for path in (one, other))
        batch_rows = rows_per_batch(row_length, dtype)
    whole.write(rows)
    summary = whole.close()
    start = 0
    for size in cuts:
        piecewise.write(rows.slice(start, start + size))
        start += size
    assert piecewise.close() == summary
    read = []
    for name in summary.files:
        content = (one / name).read_bytes()
        assert content == (other / name).read_bytes()
        shard = Shard(one / name, row_length, dtype)
        assert len(content) <= shard_bytes or len(shard) == 1
        batches = list(shard.batches())
        assert all(batch.ids.ctypes.data % 64 == 0 for batch in batches)
        assert all(len(batch) == batch_rows for batch in batches[:-1])
        read += batches
    found = RowBatch.concatenate(read)
    for name in ("ids", "lengths", "piece_counts", "documents", "starts"):
        assert np.array_equal(getattr(found, name), getattr(rows, name)), name


def test_overhead_leaves_room_in_the_smallest_shard() -> None:
    sizes = file_sizes(256, np.dtype(np.uint16))
    assert sizes.fixed + sizes.per_batch + 2 * sizes.per_row < 4096


def test_anyone_can_read_a_shard(original: Path) -> None:
    """Plain pyarrow, no code of ours."""
    name = PackedRows(original, "train").manifest["splits"]["train"]["files"][0]
    table = pa.ipc.open_file(str(original / name)).read_all()
    assert table.column_names == ["input_ids", "length", "documents", "starts"]
    assert table.schema.field("input_ids").type.value_type == pa.uint16()
    ids, _ = PackedRows(original, "train").rows(np.array([2]))
    assert table["input_ids"][2].as_py() == ids[0].tolist()
