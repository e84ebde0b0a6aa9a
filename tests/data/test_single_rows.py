"""The strategy `single`: the rows of an unpacked `LanguageModelingDataset`, made in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_trainer.config import DataConfig, PackingConfig
from llm_trainer.data import LanguageModelingDataset, PackedRows, pack_corpus, single_rows
from llm_trainer.tokenizer import BPETokenizer
from tests.data.raw_corpora import random_texts, write_raw

TEXTS = [*random_texts(1, 60), "", "a", *random_texts(2, 3, longest=900)]


@pytest.mark.parametrize("block", [1, 40, 2**22])
def test_each_document_has_rows_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(single_rows, "_BLOCK_TOKENS", block)
    tokenizer = BPETokenizer()
    tokenizer.train(TEXTS, vocab_size=400)
    config = DataConfig(max_length=24, min_length=2, pack_sequences=False).packing()
    assert config == PackingConfig(max_length=24, min_length=2, strategy="single")
    metrics = pack_corpus(
        write_raw(tmp_path / "raw", TEXTS), tokenizer, config, tmp_path / "packed", num_workers=1
    )
    packed = PackedRows(tmp_path / "packed", "train")
    in_memory = LanguageModelingDataset(
        TEXTS, tokenizer, max_length=24, pack_sequences=False, min_length=2
    )
    everything = np.arange(len(in_memory))
    assert len(packed) == len(in_memory) == metrics["train_rows"]
    for made, expected in zip(packed.rows(everything), in_memory.rows(everything), strict=True):
        np.testing.assert_array_equal(made, expected)
    for row in everything:
        assert packed.pieces(row) == in_memory.pieces(row)
        assert len(packed.pieces(row)) == 1
    assert packed.num_tokens == in_memory.num_tokens
    assert metrics["train_documents_split"] == in_memory.get_stats()["num_split_documents"] > 0
