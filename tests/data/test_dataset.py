"""LanguageModelingDataset: the rows of the files, without files."""

from __future__ import annotations

import inspect
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from llm_trainer.config import PackingConfig
from llm_trainer.data import LanguageModelingDataset, PackedRows, pack_corpus
from llm_trainer.exceptions import DataError, TokenizerError, TokenizerNotTrainedException
from llm_trainer.tokenizer import BPETokenizer
from tests.data.naive import naive_concat
from tests.data.raw_corpora import random_texts, write_raw

LENGTH = 24


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    found = BPETokenizer()
    found.train(random_texts(1, 80), 500)
    return found


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = random_texts(2, 60, longest=60)
    found[7] = ""
    found[20] = "short"
    return found


@pytest.fixture(scope="module")
def packed(texts: list[str], tokenizer: BPETokenizer) -> LanguageModelingDataset:
    return LanguageModelingDataset(texts, tokenizer, max_length=LENGTH)


def everything(dataset: LanguageModelingDataset) -> np.ndarray:
    return np.arange(len(dataset))


def test_signature() -> None:
    parameters = inspect.signature(LanguageModelingDataset).parameters
    assert list(parameters)[:4] == ["texts", "tokenizer", "max_length", "pack_sequences"]
    assert (parameters["max_length"].default, parameters["pack_sequences"].default) == (1024, True)


# --------------------------------------------------------------------------- packed


def test_rows_are_those_of_the_naive_stream(
    packed: LanguageModelingDataset, texts: list[str], tokenizer: BPETokenizer
) -> None:
    kept = [number for number, text in enumerate(texts) if text]
    documents = [tokenizer.encode(texts[number], False) for number in kept]
    rows, lengths, pieces = naive_concat(documents, LENGTH, 0, 1)
    ids, found = packed.rows(everything(packed))
    assert ids.tolist() == rows
    assert found.tolist() == lengths
    named = [[(kept[d], start) for d, start in row] for row in pieces]
    assert [packed.pieces(index) for index in range(len(packed))] == named


@pytest.mark.parametrize("min_length", [1, 10])
def test_rows_are_those_of_the_files(
    texts: list[str], tokenizer: BPETokenizer, tmp_path: Path, min_length: int
) -> None:
    raw = write_raw(tmp_path / "raw", texts, texts)
    config = PackingConfig(max_length=LENGTH, min_length=min_length, shard_bytes=4096)
    pack_corpus(raw, tokenizer, config, tmp_path / "packed", num_workers=1, progress=False)
    files = PackedRows(tmp_path / "packed", "train")
    memory = LanguageModelingDataset(texts, tokenizer, LENGTH, min_length=min_length)
    indices = everything(memory)
    assert len(files) == len(memory)
    for ours, theirs in zip(memory.rows(indices), files.rows(indices), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()
    assert (memory.segments(indices) == files.segments(indices)).all()
    for index in indices.tolist():
        assert memory.pieces(index) == files.pieces(index)
        assert memory.documents(index) == files.documents(index)
    for name in (
        "row_length", "num_tokens", "num_bytes", "num_documents", "end_id", "pad_id", "max_id",
        "vocab_size", "tokenizer_digest",
    ):  # fmt: skip
        assert getattr(memory, name) == getattr(files, name), name


def test_items(packed: LanguageModelingDataset) -> None:
    ids, lengths = packed.rows(everything(packed))
    for index in (0, len(packed) - 1, -1):
        item = packed[index]
        assert set(item) == {"input_ids", "attention_mask", "labels"}
        assert {(tensor.dtype, tensor.shape) for tensor in item.values()} == {
            (torch.int64, torch.Size([LENGTH]))
        }
        length = int(lengths[index])
        assert item["input_ids"].tolist() == ids[index].tolist()
        assert item["attention_mask"].tolist() == [1] * length + [0] * (LENGTH - length)
        assert item["labels"][:length].tolist() == ids[index][:length].tolist()
        assert set(item["labels"][length:].tolist()) <= {-100}
    with pytest.raises(IndexError):
        packed[len(packed)]


def test_in_a_torch_loader(packed: LanguageModelingDataset) -> None:
    batches = list(DataLoader(packed, batch_size=4, shuffle=True, num_workers=2))
    found = sorted(tuple(row) for batch in batches for row in batch["input_ids"].tolist())
    assert found == sorted(map(tuple, packed.rows(everything(packed))[0].tolist()))


def test_segments_number_the_pieces(packed: LanguageModelingDataset) -> None:
    segments = packed.segments(everything(packed))
    assert segments.dtype == np.int32
    _, lengths = packed.rows(everything(packed))
    for index, row in enumerate(segments.tolist()):
        starts = [start for _, start in packed.pieces(index)]
        length = int(lengths[index])
        wanted = [sum(p >= s for s in starts) - 1 for p in range(length)]
        assert row == wanted + [len(starts)] * (LENGTH - length)


def test_statistics(packed: LanguageModelingDataset, texts: list[str]) -> None:
    stats = packed.get_stats()
    _, lengths = packed.rows(everything(packed))
    assert stats["num_rows"] == len(packed)
    assert stats["packed"] is True
    assert stats["num_documents"] == len(texts) - 1
    assert stats["num_empty_documents"] == 1
    assert stats["num_short_documents"] == 0
    assert stats["num_tokens"] == int((lengths - 1).sum())
    assert stats["num_bytes"] == sum(len(text.encode()) for text in texts)
    assert stats["padding_share"] == pytest.approx(
        1 - lengths.sum() / (len(packed) * LENGTH), abs=1e-6
    )
    covered = [set(packed.documents(index)) for index in range(len(packed))]
    split = [sum(d in row for row in covered) > 1 for d in range(len(texts))]
    assert stats["num_split_documents"] == sum(split)


# --------------------------------------------------------------------------- not packed


def test_a_row_for_each_document(texts: list[str], tokenizer: BPETokenizer) -> None:
    dataset = LanguageModelingDataset(texts, tokenizer, LENGTH, pack_sequences=False)
    ids, lengths = dataset.rows(everything(dataset))
    position = 0
    for number, text in enumerate(texts):
        if not text:
            continue
        stream = [0, *tokenizer.encode(text)]
        for start in range(0, len(stream) - 1, LENGTH - 1):
            piece = stream[start : start + LENGTH]
            assert ids[position].tolist() == piece + [1] * (LENGTH - len(piece))
            assert lengths[position] == len(piece)
            assert dataset.pieces(position) == [(number, 0)]
            position += 1
    assert position == len(dataset)
    assert (dataset.segments(everything(dataset)) == (np.arange(LENGTH) >= lengths[:, None])).all()
    assert dataset.get_stats()["packed"] is False


def test_packing_later_is_packing_at_once(
    texts: list[str], tokenizer: BPETokenizer, packed: LanguageModelingDataset
) -> None:
    dataset = LanguageModelingDataset(texts, tokenizer, LENGTH, pack_sequences=False)
    before = dataset.digest, dataset.num_tokens, dataset.num_bytes
    dataset.pack_sequences()
    assert dataset.digest == packed.digest != before[0]
    assert (dataset.num_tokens, dataset.num_bytes) == before[1:]
    assert dataset.get_stats() == packed.get_stats()
    dataset.pack_sequences()
    assert dataset.digest == packed.digest


def test_every_token_is_a_target_once(texts: list[str], tokenizer: BPETokenizer) -> None:
    wanted = sorted(i for text in texts if text for i in tokenizer.encode(text))
    for pack in (True, False):
        dataset = LanguageModelingDataset(texts, tokenizer, LENGTH, pack_sequences=pack)
        rows = [dataset[index]["labels"][1:] for index in range(len(dataset))]
        assert sorted(i for row in rows for i in row.tolist() if i != -100) == wanted


# --------------------------------------------------------------------------- settings and input


def test_short_documents_are_left_out_and_counted(tokenizer: BPETokenizer) -> None:
    texts = ["a b c d e f g h", "x", "", "1 2 3 4 5 6 7 8 9"]
    dataset = LanguageModelingDataset(iter(texts), tokenizer, 8, min_length=5)
    stats = dataset.get_stats()
    assert (stats["num_documents"], stats["num_short_documents"]) == (2, 1)
    assert stats["num_empty_documents"] == 1
    assert sorted({d for row in range(len(dataset)) for d in dataset.documents(row)}) == [0, 3]


def test_one_padded_row(tokenizer: BPETokenizer) -> None:
    dataset = LanguageModelingDataset(["ab"], tokenizer, 100)
    assert len(dataset) == 1
    labels = dataset[0]["labels"]
    assert int((labels != -100).sum()) == len(tokenizer.encode("ab")) + 1


def test_pad_token_that_is_the_end_token() -> None:
    tokenizer = BPETokenizer()
    tokenizer.train(["aa bb"], 257)
    dataset = LanguageModelingDataset(["aa"], tokenizer, 6)
    assert dataset[0]["input_ids"].tolist()[3:] == [0, 0, 0]
    assert dataset[0]["labels"].tolist()[3:] == [0, -100, -100]


@pytest.mark.parametrize(
    ("texts", "settings", "error", "message"),
    [
        ([], {}, DataError, "0 texts, 0 empty"),
        (["", ""], {}, DataError, "2 texts, 2 empty"),
        (["a b"], {"min_length": 50}, DataError, r"1 with fewer than min_length \(50\)"),
        ("a string", {}, DataError, "single string"),
        (["a"], {"max_length": 1}, DataError, r"max_length \(1\)"),
        (["a", "b\ud800"], {}, TokenizerError, "text 1: lone surrogate"),
        (["a", 5], {}, TokenizerError, "text 1: must be a string, found int"),
    ],
)
def test_what_cannot_be(tokenizer, texts, settings, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        LanguageModelingDataset(texts, tokenizer, **settings)


def test_untrained_tokenizer() -> None:
    with pytest.raises(TokenizerNotTrainedException):
        LanguageModelingDataset(["a"], BPETokenizer())


def test_rows_outside(packed: LanguageModelingDataset) -> None:
    for index in (-1, len(packed)):
        with pytest.raises(IndexError, match="outside"):
            packed.rows(np.array([index]))
    assert packed.rows(np.array([], np.int64))[0].shape == (0, LENGTH)


def test_digest_tells_data_apart(texts: list[str], tokenizer: BPETokenizer) -> None:
    other = list(texts)
    random.Random(0).shuffle(other)
    datasets = [
        LanguageModelingDataset(texts, tokenizer, LENGTH),
        LanguageModelingDataset(texts, tokenizer, LENGTH + 1),
        LanguageModelingDataset(texts, tokenizer, LENGTH, pack_sequences=False),
        LanguageModelingDataset(other, tokenizer, LENGTH),
        LanguageModelingDataset(texts[:-1], tokenizer, LENGTH),
    ]
    assert len({dataset.digest for dataset in datasets}) == 5
    copy = pickle.loads(pickle.dumps(datasets[0]))
    assert copy.digest == LanguageModelingDataset(texts, tokenizer, LENGTH).digest
