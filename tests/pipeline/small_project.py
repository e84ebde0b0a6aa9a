"""A project folder with everything that `evaluate` and `benchmark` read, made in a second.

Real parts throughout: text files become data/raw, models/tokenizer and data/packed by the library,
and models/final is a tiny model that was never trained, saved with its lineage.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from llm_trainer.config import ModelConfig, PackingConfig, SourceConfig, TrainingConfig
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.data.shards import PackedRows
from llm_trainer.models.storage import save_model
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.training.fingerprint import result_params
from llm_trainer.training.lineage import write_lineage
from pipeline import stage

ROOT = Path(__file__).parents[2]
ROW_LENGTH = 32
MODEL = {
    "d_model": 32, "n_heads": 2, "n_layers": 1, "d_ff": 64, "max_seq_len": ROW_LENGTH,
    "dropout": 0.0, "attention_dropout": 0.0, "tie_embeddings": False,
}  # fmt: skip
PARAMS = {
    "data": {"train_file": "train", "validation_file": "validation"},
    "tokenizer": {"vocab_size": 300},
    "packing": {"max_length": ROW_LENGTH},
    "model": MODEL,
    "evaluation": {"prompts": ["def ", ""], "max_new_tokens": 12, "batch_size": 4},
    "benchmark": {
        "training_steps": 2, "warmup_steps": 1, "batch_size": 2, "prompt_tokens": 8,
        "generation_batch_sizes": [1, 2], "new_tokens": 6, "repeats": 1,
        "optimizations": ["cache_off", "quantize", "bfloat16"], "quality_bytes": 2000,
    },
    "runtime": {"report_to": ["console"], "num_threads": 1, "device": "cpu"},
}  # fmt: skip


def source(seed: int, suffix: str = ".py") -> str:
    """A short text of its own that looks like code."""
    draw = random.Random(seed)
    names = ["".join(draw.choices("abcdefgh", k=draw.randint(3, 7))) for _ in range(60)]
    lines = [
        f"def {draw.choice(names)}({draw.choice(names)}):\n    return {draw.choice(names)} + {k}\n"
        for k in range(20)
    ]
    return "\n".join(lines)


def make_project(path: Path, *, suffix: str = ".py") -> Path:
    """Make the folder: 12 training and 4 validation documents, of which one is a training one."""
    train = {f"t{k}{suffix}": source(k) for k in range(12)}
    validation = {f"v{k}{suffix}": source(100 + k) for k in range(3)}
    validation[f"copy{suffix}"] = train[f"t5{suffix}"].replace("\n", "\n\n")
    for folder, texts in (("train", train), ("validation", validation)):
        (path / folder).mkdir(parents=True)
        for name, text in texts.items():
            (path / folder / name).write_text(text)
    (path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    config = SourceConfig(train_file=str(path / "train"), validation_file=str(path / "validation"))
    build_raw(config, path / "data/raw", progress=False)
    raw = RawCorpus(path / "data/raw")
    tokenizer = BPETokenizer()
    tokenizer.train((d.text for d in raw.iter_documents("train")), 300)
    tokenizer.save_pretrained(path / "models/tokenizer")
    packing = PackingConfig(max_length=ROW_LENGTH)
    pack_corpus(raw, tokenizer, packing, path / "data/packed", num_workers=1, progress=False)
    save_untrained(path, tokenizer)
    return path


def save_untrained(
    path: Path, tokenizer: BPETokenizer, *, training: TrainingConfig | None = None, **changes: int
) -> None:
    """Write models/final: random weights, head of zeros, lineage."""
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **(MODEL | changes))
    torch.manual_seed(0)
    model = TransformerLM(config)
    torch.nn.init.zeros_(model.head.weight)  # every token equally likely
    model.tokenizer_digest = tokenizer.digest
    rows = PackedRows(path / "data/packed", "train", verify=False)

    def add_lineage(directory: Path) -> None:
        tokenizer.save_pretrained(directory / "tokenizer")
        write_lineage(
            directory, fingerprint="f" * 64, tokenizer_digest=tokenizer.digest,
            data={"packed_digest": rows.digest, "raw_digest": rows.manifest["raw_digest"]},
            params=result_params(config, training or TrainingConfig(max_steps=10)),
            code={}, packages={},
        )  # fmt: skip

    save_model(model, path / "models/final", add_lineage)


def run_stage(
    path: Path, name: str, **changes: dict[str, object]
) -> subprocess.CompletedProcess[str]:
    """Run a stage as DVC does, as a process, with changed sections of params.yaml."""
    set_params(path, changes)
    return subprocess.run(
        [sys.executable, "-m", f"pipeline.{name}"], cwd=path, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(path)}, check=False,
    )  # fmt: skip


def run_here(path: Path, name: str, **changes: dict[str, object]) -> None:
    """The same in this process, which has torch loaded already; exits as the stage does."""
    set_params(path, changes)
    with contextlib.chdir(path):
        stage.run_stage(name, importlib.import_module(f"pipeline.{name}").main)


def set_params(path: Path, changes: dict[str, dict[str, object]]) -> None:
    """Write params.yaml: PARAMS, with changed sections."""
    params = {name: values | changes.get(name, {}) for name, values in PARAMS.items()}
    (path / "params.yaml").write_text(yaml.safe_dump(params))
