"""No damage to shards or their manifest goes unnamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm_trainer.data.row_batch import RowBatch
from llm_trainer.data.shard_file import ShardFile
from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import DataError, IntegrityError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from tests.data.packed_rows import TOKENIZER, write_packed

REMEDY = "run `dvc repro pack_sequences`"


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
