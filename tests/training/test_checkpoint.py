"""Checkpoints: whole or absent, verified, ordered by step, of one run only."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.soak.trainings import fork, wait
from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import CheckpointError, IntegrityError, LLMTrainerError
from llm_trainer.models import TransformerLM
from llm_trainer.training.checkpoint import (
    check_environment,
    check_identity,
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from llm_trainer.training.optimizer import create_optimizer
from llm_trainer.training.state import TrainerState
from llm_trainer.training.utils import load_checkpoint
from llm_trainer.training.utils import save_checkpoint as save_plain

IDENTITY = {"model": {"d_model": 16}, "training": {"seed": 1, "logging_steps": 5}, "data": "d1"}
ENVIRONMENT = {"threads": 1, "torch": "2"}


def make(seed: int = 0) -> tuple[TransformerLM, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = TransformerLM(
        ModelConfig(vocab_size=20, d_model=16, n_heads=2, n_layers=1, d_ff=32, max_seq_len=8)
    )
    optimizer = create_optimizer(model, "muon", 0.01)
    ids = torch.randint(0, 20, (2, 8))
    model.loss_sum(ids, ids).backward()
    optimizer.step()
    return model, optimizer


def save(directory: Path, step: int, micro: int = 0, seed: int = 0) -> Path:
    model, optimizer = make(seed)
    state = TrainerState(step=step, micro_step=micro, partial_loss=0.1 + 0.2, tokens=7)
    state.history = [(3.0, 1e-3, 0.5)] * step
    return save_checkpoint(
        directory, model, optimizer, state, identity=IDENTITY, environment=ENVIRONMENT
    )


def test_round_trip_is_bitwise(tmp_path: Path) -> None:
    model, optimizer = make()
    state = TrainerState(
        step=3, micro_step=2, partial_loss=0.1 + 0.2, history=[(1 / 3, 0.1, 2.0)] * 3
    )
    path = save_checkpoint(
        tmp_path, model, optimizer, state, identity=IDENTITY, environment=ENVIRONMENT
    )
    other, theirs = make(seed=9)
    found = read_checkpoint(path)
    assert found.state == state
    restore(found, other, theirs)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
        for key, value in optimizer.state[a].items():
            assert torch.equal(theirs.state[b][key], value)
    again = save_checkpoint(
        tmp_path / "again", other, theirs, state, identity=IDENTITY, environment=ENVIRONMENT
    )
    for name in ("optimizer.safetensors", "gradients.safetensors", "model/model.safetensors"):
        assert (again / name).read_bytes() == (path / name).read_bytes()


def test_ordered_by_step_never_by_time(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    save(tmp_path, 100, micro=3)
    os.utime(tmp_path / "checkpoint-9", (2e9, 2e9))
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["checkpoint-100-3", "checkpoint-100", "checkpoint-20", "checkpoint-9"]
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == names[:2]


def test_flips_and_truncations_are_named_and_fallen_back_from(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    draw = random.Random(0)
    for trial in range(240):
        file = draw.choice(files)
        original = file.read_bytes()
        damaged = bytearray(original)
        if trial % 6:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        else:
            damaged = damaged[: len(damaged) * draw.randrange(64) // 64]
        file.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=str(path)):
            read_checkpoint(path)
        file.write_bytes(original)
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    fallback = newest_checkpoint(tmp_path)
    assert fallback is not None
    assert fallback.state.step == 1


def test_another_run_is_refused_field_by_field(tmp_path: Path) -> None:
    found = read_checkpoint(save(tmp_path, 1))
    changed: dict[str, Any] = {
        "model": {"d_model": 32}, "training": {"seed": 2, "logging_steps": 9}, "data": "d2",
    }  # fmt: skip
    with pytest.raises(CheckpointError) as error:
        check_identity(found, changed, allow_changes=False)
    for text in ("model.d_model: 16 -> 32", "training.seed: 1 -> 2", "data: 'd1' -> 'd2'"):
        assert text in str(error.value)
    assert "logging_steps" not in str(error.value)
    check_identity(found, changed, allow_changes=True)
    check_identity(found, IDENTITY, allow_changes=False)


def test_a_field_younger_than_the_checkpoint_was_at_its_default(tmp_path: Path) -> None:
    found = read_checkpoint(save(tmp_path, 1))
    younger = IDENTITY | {"model": {"d_model": 16, "previous_token_heads": 0, "rope_theta": 1e4}}
    check_identity(found, younger, allow_changes=False)
    younger["model"] = {"d_model": 16, "previous_token_heads": 2}
    with pytest.raises(CheckpointError, match=r"previous_token_heads: 0 -> 2\)") as error:
        check_identity(found, younger, allow_changes=False)
    assert "d_model" not in str(error.value)


def test_another_environment_warns_or_refuses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_checkpoint(save(tmp_path, 1))
    check_environment(found, ENVIRONMENT, strict=True)
    assert not caplog.records
    check_environment(found, ENVIRONMENT | {"threads": 2}, strict=False)
    assert "threads 1 -> 2" in caplog.text
    with pytest.raises(CheckpointError, match="threads 1 -> 2"):
        check_environment(found, ENVIRONMENT | {"threads": 2}, strict=True)


def test_kill_at_every_file_operation_of_a_save(tmp_path: Path) -> None:
    """After SIGKILL at the k-th operation the newest whole checkpoint is the old or the new."""
    save(tmp_path, 1)
    model, optimizer = make(seed=4)
    state = TrainerState(step=2, micro_step=1)
    outcomes = []
    for operation in range(1, 200):

        def body(operation: int = operation) -> None:
            _die_at(operation)
            save_checkpoint(
                tmp_path, model, optimizer, state, identity=IDENTITY, environment=ENVIRONMENT
            )

        code = wait(fork(body))
        found = newest_checkpoint(tmp_path)
        assert found is not None
        outcomes.append(found.state.step)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    else:
        pytest.fail("a save has no end of operations")
    assert len(outcomes) > 15, "the kills hit nothing"
    assert set(outcomes) == {1, 2}
    assert outcomes[-1] == 2


def _die_at(operation: int) -> None:
    """Make this process kill itself before its `operation`-th change to the file system."""
    count = 0

    def counted(function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "chmod"):
        setattr(os, name, counted(getattr(os, name)))


def test_full_disk_keeps_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def body() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            save(tmp_path, 2)
        except LLMTrainerError as error:
            told = ("checkpoint-2", "no space", "bytes needed", "bytes free")
            raise SystemExit(3 if all(part in str(error) for part in told) else 4) from error

    assert wait(fork(body)) == 3
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1"]
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.state.step == 1


def test_plain_helpers_keep_the_configured_rate(tmp_path: Path) -> None:
    model, optimizer = make()
    path = save_plain(model, optimizer, 12, tmp_path)
    other, theirs = make(seed=3)
    for group in theirs.param_groups:
        group["lr"] = 0.123
    assert load_checkpoint(path, other, theirs) == 12
    assert all(group["lr"] == 0.123 for group in theirs.param_groups)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
