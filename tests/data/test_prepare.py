"""Prepared data: made once, used again while nothing changed, made again when it did."""

from __future__ import annotations

import dataclasses
import logging
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.config import DataConfig, SourceConfig, TokenizerConfig
from llm_trainer.data.prepare import (
    prepare_data,
    prepare_raw,
    prepare_tokenizer,
    source_digest,
)
from llm_trainer.exceptions import DataError, LockHeldError
from llm_trainer.files import is_partial
from llm_trainer.tokenizer import BPETokenizer
from tests.data.raw_corpora import random_texts
from tests.test_layers import ROOT

TEXTS = random_texts(5, 40)


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    made = BPETokenizer()
    made.train(TEXTS, vocab_size=300)
    return made


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02}.txt").write_text(text)
    return folder


def settings(corpus: Path, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "train_file": str(corpus), "validation_fraction": 0.2, "max_length": 32, "min_length": 1,
        "vocab_size": 300, "preprocessing_num_workers": 1,
    }  # fmt: skip
    return DataConfig(**(values | changes))


def made(directory: Path) -> dict[str, int]:
    """Directories and when each was made."""
    return {
        path.name: (path / "manifest.json").stat().st_mtime_ns
        for path in directory.iterdir()
        if path.is_dir() and not is_partial(path.name)
    }


def test_data_is_made_once(tmp_path: Path, corpus: Path, tokenizer: BPETokenizer) -> None:
    kept = tmp_path / "kept"
    train, validation = prepare_data(settings(corpus), tokenizer, kept)
    assert (train.split, validation.split) == ("train", "validation")
    assert train.tokenizer_digest == tokenizer.digest
    assert train.num_documents + validation.num_documents == len(TEXTS)
    before = made(kept)
    assert sorted(name.partition("-")[0] for name in before) == ["packed", "raw"]
    again, _ = prepare_data(settings(corpus, preprocessing_num_workers=2), tokenizer, kept)
    assert again.digest == train.digest
    assert made(kept) == before


@pytest.mark.parametrize(
    ("changes", "fresh"),
    [
        ({"max_length": 16}, {"packed"}),
        ({"pack_sequences": False}, {"packed"}),
        ({"packing_strategy": "best_fit"}, {"packed"}),
        ({"validation_fraction": 0.4}, {"raw", "packed"}),
        ({"max_documents": 20}, {"raw", "packed"}),
        ({"dataset_name": "not/read", "dataset_config": None, "revision": "x"}, set()),
        ({"vocab_size": 400, "dataloader_num_workers": 0}, set()),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_change_makes_what_depends_on_it(
    tmp_path: Path,
    corpus: Path,
    tokenizer: BPETokenizer,
    changes: dict[str, Any],
    fresh: set[str],
) -> None:
    kept = tmp_path / "kept"
    prepare_data(settings(corpus), tokenizer, kept)
    before = made(kept)
    prepare_data(settings(corpus, **changes), tokenizer, kept)
    after = made(kept)
    assert {name.partition("-")[0] for name in set(after) - set(before)} == fresh
    assert {name: after[name] for name in before} == before, "the old one is still there"


def test_unpacked_documents_have_rows_of_their_own(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer
) -> None:
    config = settings(corpus, pack_sequences=False, max_length=128)
    train, _ = prepare_data(config, tokenizer, tmp_path / "kept")
    assert all(len(train.pieces(row)) == 1 for row in range(len(train)))
    assert len(train) >= train.num_documents


def test_another_tokenizer_has_other_rows(tmp_path: Path, corpus: Path) -> None:
    kept = tmp_path / "kept"
    raw = prepare_raw(settings(corpus).source(), kept)
    one = prepare_tokenizer(raw, TokenizerConfig(vocab_size=300), kept)
    other = prepare_tokenizer(raw, TokenizerConfig(vocab_size=310), kept)
    assert (one.vocab_size, other.vocab_size) == (300, 310)
    rows = [prepare_data(settings(corpus), made_one, kept)[0] for made_one in (one, other)]
    assert rows[0].digest != rows[1].digest
    before = made(kept)
    assert prepare_tokenizer(raw, TokenizerConfig(vocab_size=300), kept).digest == one.digest
    assert made(kept) == before
    again = prepare_tokenizer(raw, TokenizerConfig(vocab_size=300), kept, retrain=True)
    assert again.digest == one.digest
    assert len({*made(kept).items()} - {*before.items()}) == 1, "trained, although it was there"


def test_local_files_count_by_content(corpus: Path) -> None:
    config = settings(corpus).source()
    first = source_digest(config)
    (corpus / "00.txt").touch()
    assert source_digest(config) == first
    (corpus / "00.txt").write_text("other text")
    changed = source_digest(config)
    (corpus / "00.txt").rename(corpus / "renamed.txt")
    assert len({first, changed, source_digest(config)}) == 3
    with pytest.raises(DataError, match="no such file"):
        source_digest(dataclasses.replace(config, train_file=str(corpus / "missing.txt")))


def test_the_standard_library_counts_by_python_version(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SourceConfig(dataset_name="python-stdlib")
    here = source_digest(config)
    assert source_digest(config) == here
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    assert source_digest(config) != here


def test_damage_is_noticed_and_mended(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "kept"
    train, _ = prepare_data(settings(corpus), tokenizer, kept)
    digest = train.digest
    for file in (next(kept.glob("raw-*/*.parquet")), next(kept.glob("packed-*/train-*.arrow"))):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    mended, _ = prepare_data(settings(corpus), tokenizer, kept)
    assert mended.digest == digest
    assert caplog.text.count("made again") == 2


def test_an_interrupted_preparation_leaves_nothing_half_made(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer
) -> None:
    """Killed between raw text and rows, and with a temporary directory left over."""
    kept = tmp_path / "kept"
    prepare_raw(settings(corpus).source(), kept)
    (kept / ".partial-packed-123").mkdir()
    before = made(kept).keys()
    train, _ = prepare_data(settings(corpus), tokenizer, kept)
    assert before < made(kept).keys()
    assert len(train) > 0


def test_two_at_once_are_told_apart(tmp_path: Path, corpus: Path, tokenizer: BPETokenizer) -> None:
    code = (
        "import sys\nfrom llm_trainer.locks import hold_lock\n"
        "with hold_lock(sys.argv[1], 'test'):\n    print('held', flush=True)\n    input()\n"
    )
    (tmp_path / "kept").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "kept" / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockHeldError, match=f"process {holder.pid}"):
            prepare_data(settings(corpus), tokenizer, tmp_path / "kept")
        holder.communicate("\n")
    prepare_data(settings(corpus), tokenizer, tmp_path / "kept")


def test_what_is_left_out_is_said_once(
    tmp_path: Path, corpus: Path, tokenizer: BPETokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    (corpus / "picture.png").write_bytes(b"\x89PNG")
    with caplog.at_level(logging.WARNING):
        prepare_data(settings(corpus), tokenizer, tmp_path / "kept")
    assert caplog.text.count(".png") == 1
