"""Checkpoints and model directories, their manifests right: state.json and safetensors damaged."""

from __future__ import annotations

import json
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fuzz.target import Draw, Target, damage, dump, folder, mutate
from fuzz.worlds import noise
from llm_trainer.config import ModelConfig
from llm_trainer.digests import sha256_bytes
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.manifests import MANIFEST_NAME
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.checkpoint import (
    check_environment,
    check_identity,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from llm_trainer.training.optimizer import create_optimizer
from llm_trainer.training.state import TrainerState

_IDENTITY: dict[str, Any] = {"model": {"d_model": 8}, "training": {"seed": 1}, "data": "d"}
_ENVIRONMENT = {"threads": 1}
_NAMES = (
    "state.json", "history.safetensors", "optimizer.safetensors", "gradients.safetensors",
    "model/model.safetensors", "model/config.json",
)  # fmt: skip


def _fresh() -> tuple[TransformerLM, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = TransformerLM(
        ModelConfig(vocab_size=11, d_model=8, n_heads=2, n_layers=1, d_ff=16, max_seq_len=4)
    )
    optimizer = create_optimizer(model, "muon", 0.01)
    ids = torch.tensor([[1, 2, 3, 4]])
    model.loss_sum(ids, ids).backward()
    optimizer.step()
    return model, optimizer


@cache
def _place() -> tuple[Path, dict[str, bytes]]:
    model, optimizer = _fresh()
    state = TrainerState(step=2, micro_step=1, history=[(3.0, 1e-3, 0.5)] * 2)
    path = save_checkpoint(
        folder(), model, optimizer, state, identity=_IDENTITY, environment=_ENVIRONMENT
    )
    copy = folder() / path.name
    shutil.copytree(path, copy)
    return copy, {name: (path / name).read_bytes() for name in _NAMES}


def seeds() -> list[bytes]:
    """For each file some decisions about its damage."""
    return [
        bytes([number, how]) + noise(seed, 30)
        for number in range(len(_NAMES))
        for how in range(3)
        for seed in range(2)
    ]


def run(data: bytes) -> None:
    """Two bytes say which file and how it is changed; the rest decides where, or is the file."""
    draw = Draw(data)
    name, how = draw.choice(_NAMES), draw.number(3)
    directory, good = _place()
    if how == 0:
        content = draw.rest()
    elif how == 1:
        content = damage(good[name], draw)
    elif name.endswith(".json"):
        content = dump(mutate(json.loads(good[name]), draw))
    else:
        content = _other_header(good[name], draw)
    for other in _NAMES:
        _write(directory / other, content if other == name else good[other])
    _reseal(directory / "model")
    _reseal(directory)
    _resume(directory)
    _open(directory / "model")


def _resume(directory: Path) -> None:
    try:
        checkpoint = read_checkpoint(directory)
        check_identity(checkpoint, _IDENTITY, allow_changes=False)
        check_environment(checkpoint, _ENVIRONMENT, strict=False)
        model, optimizer = _fresh()
        restore(checkpoint, model, optimizer)
    except LLMTrainerError:
        return
    optimizer.step()  # with the gradients that were restored


def _open(directory: Path) -> None:
    try:
        model = TransformerLM.from_pretrained(directory)
    except LLMTrainerError:
        return
    if model.config.max_seq_len <= 2**16:
        model(torch.tensor([[1, 2]]) % model.config.vocab_size)


def _other_header(content: bytes, draw: Draw) -> bytes:
    """A safetensors file with other JSON in front."""
    size = struct.unpack("<Q", content[:8])[0]
    header = dump(mutate(json.loads(content[8 : 8 + size]), draw))
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def _write(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def _reseal(directory: Path) -> None:
    """Make the manifest vouch for the files that are there; quick, so without a sync."""
    manifest = json.loads((directory / MANIFEST_NAME).read_bytes())
    for name, entry in manifest["files"].items():
        content = (directory / name).read_bytes()
        entry |= {"bytes": len(content), "sha256": sha256_bytes(content)}
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))


TARGET = Target("checkpoints and model directories", seeds, run)
