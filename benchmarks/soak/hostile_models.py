"""C1: model directories made to run code, to take all memory, or to reach out of their folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak.row import Report, Row
from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.export.importing import read_model
from llm_trainer.manifests import MANIFEST_NAME, write_manifest
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.utils.machine import peak_memory_bytes

MARK = "payload-ran"
_MOST_MIB = 300
"""Of which some 130 are what this module writes into the files itself."""


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def run(folder: Path, scale: float) -> Report:
    """Each directory is refused by name or harmless; nothing is executed, no memory is taken."""
    good = folder / "good"
    tokenizer = BPETokenizer()
    tokenizer.train(["some text to learn from " * 20], 300)
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=300, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_seq_len=8)
    TransformerLM(config).save_pretrained(good)
    tokenizer.save_pretrained(good / "tokenizer")
    mark = folder / MARK
    report = Report()
    refused = harmless = 0
    before = peak_memory_bytes("cpu")
    cases = _cases(mark)
    for name, change in cases.items():
        place = folder / "case"
        shutil.copytree(good, place)
        change(place)
        for read in (TransformerLM.from_pretrained, BPETokenizer.from_pretrained, read_model):
            try:
                read(place)
            except LLMTrainerError as error:
                refused += 1
                if len(str(error)) > 2000:
                    report.require(False, f"{name}: a message of {len(str(error)):,} characters")
            else:
                harmless += 1
        report.require(not mark.exists(), f"{name}: code was run")
        shutil.rmtree(place)
    taken = (peak_memory_bytes("cpu") - before) // 2**20
    report.require(taken < _MOST_MIB, f"{taken} MiB were taken")
    report.counters = {
        "directories": len(cases), "readings": refused + harmless, "refused": refused,
        "harmless": harmless, "executed": int(mark.exists()), "peak_mib": taken,
    }  # fmt: skip
    return report


def _cases(mark: Path) -> dict[str, Callable[[Path], object]]:
    pickled = io.BytesIO()
    torch.save({"weight": Payload(mark)}, pickled)
    code = f"import os\nos.system('touch {mark}')\n".encode()
    auto = {"auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}}
    bombs = {f"model.{name}": {"model": {name: 2**31 - 1}} for name in _SIZES}

    def config(values: dict[str, Any]) -> Callable[[Path], object]:
        def change(place: Path) -> None:
            known = json.loads((place / "config.json").read_bytes())
            known["model"] |= values.pop("model", {})
            (place / "config.json").write_text(json.dumps(known | values))
            write_manifest(place, "model")

        return change

    def file(name: str, content: bytes, *, sealed: bool = True) -> Callable[[Path], object]:
        def change(place: Path) -> None:
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(content)
            if sealed:
                write_manifest(place, "model")

        return change

    def link(name: str, target: str) -> Callable[[Path], object]:
        def change(place: Path) -> None:
            (place / name).unlink()
            (place / name).symlink_to(target)

        return change

    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    listed = {"bytes": 4, "sha256": "0"}
    outside = {"format": 1, "kind": "model", "files": {"../../../etc/passwd": listed}}
    return {
        "pickle instead of safetensors": file("model.safetensors", pickled.getvalue()),
        "pickle beside": file("pytorch_model.bin", pickled.getvalue()),
        "optimizer pickle": file("training_args.bin", pickled.getvalue()),
        "code beside": file("evil.py", code),
        "code as package": file("modeling/__init__.py", code),
        "code asked for": config(auto),
        "tokenizer code": file("tokenizer/tokenization_evil.py", code),
        "sitecustomize": file("sitecustomize.py", code),
        "header of terabytes": file(
            "model.safetensors", struct.pack("<Q", len(header)) + header.encode()
        ),
        "header without end": file("model.safetensors", struct.pack("<Q", 2**62)),
        "huge config": file("config.json", b" " * (65 * 2**20)),
        "deep config": file("config.json", b"[" * 200_000),
        "deep tokenizer": file("tokenizer/tokenizer.json", b'{"a":' * 900 + b"1" + b"}" * 900),
        "huge tokenizer": file("tokenizer/tokenizer.json", b" " * (65 * 2**20)),
        "endless config": link("config.json", "/dev/zero"),
        "endless manifest": link(MANIFEST_NAME, "/dev/zero"),
        "names outside": file(MANIFEST_NAME, json.dumps(outside).encode(), sealed=False),
        **{name: config(values) for name, values in bombs.items()},
    }


_SIZES = ("n_layers", "vocab_size", "d_model", "d_ff", "max_seq_len", "n_heads", "n_kv_heads")

ROW = Row("C1", "model directories with code, pickles, bombs and links", run)
