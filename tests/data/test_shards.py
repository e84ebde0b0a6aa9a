"""Shards: what is written is what is read, and no damage goes unnamed."""

from __future__ import annotations

import multiprocessing
import operator
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.data import shard_file
from llm_trainer.data.row_batch import RowBatch
from llm_trainer.data.shard_file import Shard, ShardFile, file_sizes, id_dtype, rows_per_batch
from llm_trainer.data.shard_writer import ShardWriter
from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import DataError, IntegrityError
from llm_trainer.files import read_json, write_json
from tests.data.packed_rows import TOKENIZER, write_packed

REMEDY = "run `dvc repro pack_sequences`"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "packed"
    write_packed(path, documents=120, batch_bytes=500)
    return path


@pytest.fixture
def packed(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "packed"))


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
    with multiprocessing.get_context(method).Pool(1) as pool:
        ids, lengths = pool.apply(operator.methodcaller("rows", indices), (rows,))
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


# --------------------------------------------------------------------------- damage


def open_both(path: Path) -> None:
    for split in ("train", "validation"):
        PackedRows(path, split)


def test_every_flipped_bit_is_named(packed: Path) -> None:
    rng = np.random.default_rng(0)
    files = sorted(packed.iterdir())
    sizes = [path.stat().st_size for path in files]
    for _ in range(1000):
        # Half of them in the manifest, which is small beside the shards.
        path = packed / "manifest.json" if rng.random() < 0.5 else files[rng.integers(len(files))]
        position = int(rng.integers(path.stat().st_size))
        content = bytearray(path.read_bytes())
        content[position] ^= 1 << int(rng.integers(8))
        good, _ = path.read_bytes(), path.write_bytes(content)
        split = "validation" if path.name.startswith("validation") else "train"
        with pytest.raises(IntegrityError) as caught:
            PackedRows(packed, split)
        path.write_bytes(good)
        assert str(packed) in str(caught.value)
        assert REMEDY in str(caught.value)
        if path.suffix == ".arrow":
            assert path.name in str(caught.value)
    assert [path.stat().st_size for path in files] == sizes
    open_both(packed)


def test_every_truncation_is_named(packed: Path) -> None:
    rng = np.random.default_rng(1)
    files = sorted(packed.iterdir())
    for _ in range(200):
        path = files[rng.integers(len(files))]
        good = path.read_bytes()
        path.write_bytes(good[: int(rng.integers(len(good)))])
        for verify in (True, False):  # a wrong size is noticed even without hashing
            with pytest.raises(IntegrityError, match=path.name) as caught:
                PackedRows(packed, "train", verify=verify)
            assert REMEDY in str(caught.value)
        path.write_bytes(good)
    open_both(packed)


def remove(path: Path) -> None:
    (path / "train-00001.arrow").unlink()


def add(path: Path) -> None:
    shutil.copy(path / "train-00000.arrow", path / "train-00099.arrow")


def swap(path: Path) -> None:
    one, other = path / "train-00000.arrow", path / "train-00001.arrow"
    one.rename(path / "x")
    other.rename(one)
    (path / "x").rename(other)


def empty(path: Path) -> None:
    (path / "train-00000.arrow").write_bytes(b"")


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def other_kind(path: Path) -> None:
    write_json(path / "manifest.json", read_json(path / "manifest.json") | {"kind": "raw"})


def edited(path: Path) -> None:
    manifest = read_json(path / "manifest.json")
    manifest["splits"]["train"]["bytes"] += 1
    write_json(path / "manifest.json", manifest)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (remove, "train-00001.arrow: listed in the manifest but missing"),
        (add, "train-00099.arrow: not listed in the manifest"),
        (swap, "train-0000"),
        (empty, "train-00000.arrow"),
        (no_manifest, "manifest.json: missing"),
        (other_kind, "manifest.json: not a manifest of kind 'packed'"),
        (edited, "manifest.json: content differs from its seal"),
    ],
)
def test_faults_of_the_directory(packed: Path, fault: Callable[[Path], None], named: str) -> None:
    fault(packed)
    with pytest.raises(IntegrityError) as caught:
        PackedRows(packed, "train")
    assert named in str(caught.value)
    assert REMEDY in str(caught.value)


def test_a_missing_directory_and_an_unknown_split(tmp_path: Path, original: Path) -> None:
    with pytest.raises(IntegrityError, match=r"nowhere/manifest.json: missing.*pack_sequences"):
        PackedRows(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="has no split 'test'; there are train and validation"):
        PackedRows(original, "test")


def test_another_tokenizer_is_refused(original: Path) -> None:
    PackedRows(original, "train", tokenizer_digest=TOKENIZER)
    with pytest.raises(IntegrityError, match=r"tokenizer aaaaaaaaaaaa.*is cccccccccccc.*dvc repro"):
        PackedRows(original, "train", tokenizer_digest="c" * 64)


def entry_of(rows: RowBatch) -> dict[str, object]:
    return {
        "rows": len(rows),
        "tokens": int((rows.lengths - 1).sum()),
        "documents": 60,
        "bytes": 9,
        "max_id": int(rows.ids.max()),
        "files": ["train-00000.arrow"],
    }


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"vocab_size": 400}, r"holds the token id 49\d, but the vocabulary has 400 ids"),
        ({"vocab_size": 70_000}, "dtype .uint16. is not that of 70,000 ids .uint32."),
        ({"dtype": "uint32"}, "dtype .uint32. is not that of 500 ids"),
        ({"dtype": "int16"}, "dtype .int16. is not that"),
        ({"row_length": 8}, r"train-00000.arrow: has the columns .*\[16\].*manifest says.*\[8\]"),
        ({"row_length": 1}, "row_length .1. is below 2"),
        ({"row_length": "16"}, "field 'row_length' is missing or no int"),
        ({"end_id": 500}, "end_id .500. is outside the vocabulary"),
        ({"pad_id": -1}, "pad_id .-1. is outside the vocabulary"),
        ({"splits": {}}, "split 'train' is missing"),
    ],
)
def test_a_consistent_directory_with_wrong_fields(
    tmp_path: Path, changed: dict[str, object], named: str
) -> None:
    """The manifest is sealed and all digests are right: a writer with a bug, or of another day."""
    write_packed(tmp_path, changed=changed)
    with pytest.raises(IntegrityError, match=named) as caught:
        PackedRows(tmp_path, "train")
    assert REMEDY in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        (
            "max_id",
            3,
            r"train-00000.arrow: holds the token id 49\d, but the manifest allows at most 3",
        ),
        ("rows", 5, r"split 'train' has \d+ rows, but the manifest says 5"),
        ("tokens", 5, r"split 'train' has [\d,]+ targets, but the manifest says 5"),
        ("rows", 0, "no rows"),
        ("files", [], "the files of its splits are not the files that it lists"),
        ("bytes", "9", "field 'bytes' of split 'train' is missing or no int"),
    ],
)
def test_a_consistent_directory_with_wrong_totals(
    tmp_path: Path, field: str, value: object, named: str
) -> None:
    rows = write_packed(tmp_path, shard_bytes=2**20)
    entries = read_json(tmp_path / "manifest.json")["splits"]
    entries["train"] = entry_of(rows["train"]) | {field: value}
    write_packed(tmp_path, shard_bytes=2**20, changed={"splits": entries})
    with pytest.raises(IntegrityError, match=named) as caught:
        PackedRows(tmp_path, "train")
    assert REMEDY in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lengths": 1}, "rows of 1 to 16 valid tokens, outside 2 to 16"),
        ({"lengths": 99}, "rows of 16 to 99 valid tokens, outside 2 to 16"),
        ({"starts": 16}, "a piece that lies outside its row"),
        ({"piece_counts": 0}, "no document"),
        ({"documents": -1}, "a piece that lies outside its row"),
    ],
)
def test_rows_that_make_no_sense(tmp_path: Path, change: dict[str, int], named: str) -> None:
    rows = write_packed(tmp_path, shard_bytes=2**20)["train"]
    for name, value in change.items():
        column = getattr(rows, name)
        column[np.flatnonzero(rows.starts)[-1] if name == "starts" else -1] = value
    file = ShardFile(tmp_path / "train-00000.arrow", 16, rows.ids.dtype)
    file.write(rows)
    file.close()
    reseal(tmp_path)
    with pytest.raises(IntegrityError, match=named):
        PackedRows(tmp_path, "train")


def test_files_that_are_no_shards(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.arrow"
    write_packed(tmp_path, shard_bytes=2**20)
    path.write_bytes(b"not arrow" * 9)
    reseal(tmp_path)
    with pytest.raises(IntegrityError, match=r"train-00000.arrow: not a readable Arrow file"):
        PackedRows(tmp_path, "train")
    schema = pa.schema([("input_ids", pa.list_(pa.uint16(), 16))])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema):
        pass
    reseal(tmp_path)
    with pytest.raises(IntegrityError, match=r"train-00000.arrow: has the columns \(input_ids"):
        PackedRows(tmp_path, "train")


def test_batches_of_unequal_size(tmp_path: Path) -> None:
    """Rows are found by arithmetic, which a short batch before the last would mislead."""
    rows = write_packed(tmp_path, shard_bytes=2**20)["train"]
    file = ShardFile(tmp_path / "train-00000.arrow", 16, rows.ids.dtype)
    file.write(rows.slice(0, 3))
    file.write(rows.slice(3, len(rows)))
    file.close()
    reseal(tmp_path)
    with pytest.raises(IntegrityError, match=r"train-00000.arrow: record batches of unequal size"):
        PackedRows(tmp_path, "train")


def reseal(directory: Path) -> None:
    """Make the manifest agree with files that were changed on purpose."""
    from llm_trainer.data.packed_manifest import write_packed_manifest

    manifest = read_json(directory / "manifest.json")
    keep = {k: v for k, v in manifest.items() if k not in ("format", "kind", "files", "seal")}
    write_packed_manifest(directory, **keep)
