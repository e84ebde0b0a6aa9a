"""build_tokenizer: what the stage writes and measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_trainer.config import TokenizerConfig
from llm_trainer.data.raw import RawCorpus
from llm_trainer.data.spread import spread
from llm_trainer.data.vocabulary import build_tokenizer
from llm_trainer.exceptions import ConfigurationError, TokenizerError
from llm_trainer.tokenizer import BPETokenizer
from tests.data.raw_corpora import random_texts, write_raw
from tests.test_layers import ROOT

TRAIN, VALIDATION = random_texts(1, 120), [*random_texts(2, 30), "unseen: ŵ Ω 龍 🦊\x00"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawCorpus:
    return write_raw(tmp_path_factory.mktemp("corpus") / "raw", TRAIN, VALIDATION)


def test_tokenizer_and_metrics(raw: RawCorpus, tmp_path: Path) -> None:
    metrics = build_tokenizer(
        raw, TokenizerConfig(vocab_size=350), tmp_path / "out", progress=False
    )
    tokenizer = BPETokenizer.from_pretrained(tmp_path / "out")
    direct = BPETokenizer()
    direct.train(TRAIN, 350)
    assert tokenizer.digest == direct.digest == metrics["digest"]
    assert metrics["vocab_size"] == tokenizer.vocab_size
    assert metrics["round_trip_rate"] == 1.0
    ids = [i for text in VALIDATION for i in tokenizer.encode(text, False)]
    num_bytes = sum(len(text.encode()) for text in VALIDATION)
    assert metrics["validation_bytes"] == num_bytes
    assert metrics["bytes_per_token"] == pytest.approx(num_bytes / len(ids), abs=1e-4)
    used = {i for text in TRAIN for i in tokenizer.encode(text, False)}
    assert metrics["unused_tokens"] == tokenizer.vocab_size - 2 - len(used)
    assert metrics["unused_share"] == pytest.approx(
        metrics["unused_tokens"] / tokenizer.vocab_size, abs=1e-6
    )
    assert metrics["train_bytes"] == sum(len(text.encode()) for text in TRAIN)
    assert metrics["encoder"] == "tiktoken"
    assert all(isinstance(value, (int, float, str)) for value in metrics.values())
    json.dumps(metrics, allow_nan=False)


def test_a_sample_of_bounded_size(raw: RawCorpus, tmp_path: Path) -> None:
    config = TokenizerConfig(
        vocab_size=320, max_train_bytes=20_000, pattern="gpt2", min_frequency=3
    )
    metrics = build_tokenizer(raw, config, tmp_path / "out", progress=False)
    assert 18_000 < metrics["train_bytes"] <= 20_000
    direct = BPETokenizer()
    sample = list(spread(TRAIN, raw.num_bytes("train"), 20_000))
    direct.train(sample, 320, pattern="gpt2", min_frequency=3)
    assert metrics["digest"] == direct.digest


def test_same_bytes_each_time_and_for_any_number_of_threads(raw: RawCorpus, tmp_path: Path) -> None:
    code = (
        "import sys; from llm_trainer.config import TokenizerConfig as C;"
        "from llm_trainer.data.raw import RawCorpus as R;"
        "from llm_trainer.data.vocabulary import build_tokenizer as b;"
        "b(R(sys.argv[1]), C(vocab_size=400, max_train_bytes=30000), sys.argv[2], progress=False)"
    )
    found = []
    for threads in ("1", "3"):
        place = tmp_path / threads
        subprocess.run(
            [sys.executable, "-c", code, str(raw.path), str(place)],
            check=True, cwd=ROOT, env={**os.environ, "RAYON_NUM_THREADS": threads},
        )  # fmt: skip
        found.append({file.name: file.read_bytes() for file in place.iterdir()})
    assert found[0] == found[1]
    assert set(found[0]) == {"tokenizer.json", "tokenizer_config.json", "manifest.json"}
    assert b"seconds" not in b"".join(found[0].values())


def test_impossible_settings_before_any_work(raw: RawCorpus, tmp_path: Path) -> None:
    config = TokenizerConfig()
    config.vocab_size = 100
    with pytest.raises(ConfigurationError, match="vocab_size"):
        build_tokenizer(raw, config, tmp_path / "out")


def test_no_text_leaves_the_old_tokenizer(raw: RawCorpus, tmp_path: Path) -> None:
    build_tokenizer(raw, TokenizerConfig(vocab_size=300), tmp_path / "out", progress=False)
    before = BPETokenizer.from_pretrained(tmp_path / "out").digest
    empty = write_raw(tmp_path / "empty", ["", ""])
    with pytest.raises(TokenizerError, match="no text"):
        build_tokenizer(empty, TokenizerConfig(vocab_size=300), tmp_path / "out", progress=False)
    assert BPETokenizer.from_pretrained(tmp_path / "out").digest == before


def test_a_document_that_does_not_come_back_stops_the_stage(
    raw: RawCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No real library does that, so one is broken here."""
    whole = BPETokenizer.decode
    monkeypatch.setattr(
        BPETokenizer, "decode", lambda self, ids: whole(self, ids).replace("龍", "竜")
    )
    with pytest.raises(TokenizerError, match="validation text 30 is not the same"):
        build_tokenizer(raw, TokenizerConfig(vocab_size=300), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_measures_of_a_text() -> None:
    from llm_trainer.tokenizer.statistics import Fit

    tokenizer = BPETokenizer()
    tokenizer.train(TRAIN, 300)
    fit = Fit(
        300, lambda text: np.array(tokenizer.encode(text, False), np.uint32), tokenizer.decode
    )
    assert (fit.bytes_per_token, fit.round_trip_rate) == (0, 1)
    fit.add(["", "aé"])
    assert (fit.num_texts, fit.num_bytes, fit.num_round_trips) == (2, 3, 2)
    assert fit.num_tokens == len(tokenizer.encode("aé")) - 1
