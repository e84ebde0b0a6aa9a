"""Memory of packing does not grow with the corpus, nor with the size of a shard."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.tokenizer.bpe import BPETokenizer
from tests.data.raw_corpora import random_text, write_raw
from tests.test_layers import ROOT

SCRIPT = """
import json, sys
from pathlib import Path
from llm_trainer.config.data import PackingConfig
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus
from llm_trainer.tokenizer.bpe import BPETokenizer

if __name__ == "__main__":
    tokenizer = BPETokenizer.from_pretrained("tokenizer")
    config = PackingConfig(max_length=256)
    metrics = pack_corpus(
        RawCorpus(sys.argv[1]), tokenizer, config, sys.argv[1] + "-packed",
        num_workers=int(sys.argv[2]),
    )
    print(json.dumps(metrics))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large")
    text = random_text(random.Random(0), 8000)
    tokenizer = BPETokenizer()
    tokenizer.train([text], vocab_size=600)
    tokenizer.save_pretrained(path / "tokenizer")
    (path / "script.py").write_text(SCRIPT)
    for name, total in (("small", 3e6), ("large", 18e6)):
        texts = (text for _ in range(int(total / len(text.encode()))))
        write_raw(path / name, texts, group_bytes=2**18, file_bytes=2**24)
    return path


def pack(folder: Path, corpus: str, num_workers: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "script.py", corpus, str(num_workers)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    metrics: dict[str, Any] = json.loads(done.stdout)
    return metrics


@pytest.mark.parametrize("num_workers", [1, 2])
def test_memory_does_not_grow_with_the_corpus(folder: Path, num_workers: int) -> None:
    small, large = pack(folder, "small", num_workers), pack(folder, "large", num_workers)
    assert large["train_tokens"] > 5.5 * small["train_tokens"]
    assert 50 < large["peak_memory_mb"] <= 1.1 * small["peak_memory_mb"]
    assert large["peak_worker_memory_mb"] <= 1.1 * small["peak_worker_memory_mb"]
    assert (large["peak_worker_memory_mb"] > 50) == (num_workers > 1)
