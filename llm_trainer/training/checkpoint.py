"""Checkpoints: directories that are whole or absent, verified on load, ordered by step.

`checkpoint-<step>` (or `checkpoint-<step>-<micro>` when stopped within a step) holds `model/`, a
model directory that `TransformerLM.from_pretrained` opens; the optimizer's tensors and, within a
step, the partial gradients, as safetensors; state.json; and a manifest with the sha256 of each
file. No pickle. Hyper-parameters are never read back: the configuration is the truth. Price of a
save: all bytes written, hashed and synced once; three times the model for AdamW.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from llm_trainer.config.checks import shown
from llm_trainer.exceptions import CheckpointError, IntegrityError
from llm_trainer.files import (
    atomic_directory,
    read_json,
    read_manifest,
    verify_manifest,
    write_json,
    write_manifest,
)
from llm_trainer.models.storage import WEIGHTS_NAME, load_weights, write_model_files, write_tensors
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.state import TrainerState

logger = logging.getLogger(__name__)

CHECKPOINT_KIND = "checkpoint"
CHECKPOINT_FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d+)(?:-(\d+))?")
_STEPPED_ASIDE = re.compile(r"\.partial-(checkpoint-\d+(?:-\d+)?)-old-\d+")
_REMEDY = "delete it to continue from an older one, or start again"

ALLOWED_CHANGES = frozenset({
    "logging_steps", "report_to", "save_steps", "save_total_limit", "checkpoint_dir",
    "strict_resume", "eval_steps", "eval_strategy", "eval_batches", "sample_steps",
    "sample_prompts", "sample_tokens", "dataloader_num_workers", "max_steps", "num_epochs",
})  # fmt: skip
"""Training fields that a resumed run may change: none alters a step that is already done."""


@dataclass
class Checkpoint:
    """A verified checkpoint, read but for its tensors."""

    path: Path
    state: TrainerState
    identity: dict[str, Any]
    """What the run is: model and training configuration, digests of data and tokenizer."""
    environment: dict[str, Any]
    """What its bits depend on besides; see `Execution.environment`."""
    scaler: dict[str, Any] | None


def checkpoint_name(state: TrainerState) -> str:
    """Directory name of a checkpoint at this state."""
    within = f"-{state.micro_step}" if state.micro_step else ""
    return f"checkpoint-{state.step}{within}"


def save_checkpoint(
    directory: Path,
    model: TransformerLM,
    optimizer: Optimizer,
    state: TrainerState,
    *,
    identity: dict[str, Any],
    environment: dict[str, Any],
    scaler: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint under `directory` and return its path; nothing half-written can remain.

    Raises:
        LLMTrainerError: no space or no permission; older checkpoints are untouched.
    """
    path = directory / checkpoint_name(state)
    moments = optimizer_tensors(model, optimizer)
    parts = 2 if state.micro_step else 1  # gradients are as large as the weights
    needed = sum(t.nbytes for t in moments.values()) + parts * sum(
        p.nbytes for p in model.parameters()
    )
    with atomic_directory(path, needed=needed) as temporary:
        write_model_files(model, temporary / "model")
        write_tensors(temporary / "optimizer.safetensors", moments)
        write_tensors(temporary / "history.safetensors", {"history": state.history_tensor()})
        if state.micro_step:
            gradients = {
                name: parameter.grad.detach().cpu().contiguous()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
            write_tensors(temporary / "gradients.safetensors", gradients)
        description = {
            "format": CHECKPOINT_FORMAT,
            "state": state.to_json(),
            "identity": identity,
            "environment": environment,
            "scaler": scaler,
        }
        write_json(temporary / "state.json", description)
        write_manifest(temporary, CHECKPOINT_KIND)
    return path


def optimizer_tensors(model: TransformerLM, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `<name>|<key>` -> tensor on the CPU."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{key}": value.detach().cpu().contiguous()
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints in `directory`, newest step first; clocks and file times play no part."""
    found = []
    if directory.is_dir():
        for path in directory.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and path.is_dir():
                found.append(((int(match[1]), int(match[2] or 0)), path))
    return [path for _, path in sorted(found, reverse=True)]


def require_checkpoint(path: Path) -> None:
    """Raise unless `path` is a directory with a checkpoint's manifest; nothing is verified.

    Raises:
        CheckpointError: there is no such directory.
        IntegrityError: it is something else.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such checkpoint directory; name a checkpoint-<step>, or 'auto' for the "
            f"newest"
        )
    read_manifest(path, CHECKPOINT_KIND, remedy=_REMEDY)


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify every byte of a checkpoint and read its description.

    Raises:
        IntegrityError: torn, damaged or not a checkpoint; names the file.
    """
    require_checkpoint(path)
    verify_manifest(path, CHECKPOINT_KIND, remedy=_REMEDY)
    description = read_json(path / "state.json")
    try:
        if description["format"] != CHECKPOINT_FORMAT:
            raise IntegrityError(
                f"{path}: checkpoint of format {description['format']}, this version reads "
                f"{CHECKPOINT_FORMAT}; {_REMEDY}"
            )
        history = _load_tensors(path / "history.safetensors")["history"]
        for name, kinds in (
            ("state", dict), ("identity", dict), ("environment", dict), ("scaler", dict | None),
        ):  # fmt: skip
            if not isinstance(description[name], kinds):
                raise ValueError(f"{name} is {shown(description[name])}")
        return Checkpoint(
            path=path,
            state=TrainerState.from_json(description["state"], history),
            identity=description["identity"],
            environment=description["environment"],
            scaler=description["scaler"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path / 'state.json'}: not ours ({error!r}); {_REMEDY}") from error


def newest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; each damaged one on the way is a warning."""
    for path in list_checkpoints(directory):
        try:
            return read_checkpoint(path)
        except IntegrityError as error:
            logger.warning("falling back to an older checkpoint: %s", error)
    return None


def restore(checkpoint: Checkpoint, model: TransformerLM, optimizer: Optimizer) -> None:
    """Load weights, optimizer tensors and partial gradients into a fresh model and optimizer.

    Learning rates and weight decay stay those of the optimizer: the configuration is the truth.

    Raises:
        IntegrityError: tensors that do not fit the model.
    """
    load_weights(model, checkpoint.path / "model" / WEIGHTS_NAME)
    parameters = dict(model.named_parameters())
    stored = _load_tensors(checkpoint.path / "optimizer.safetensors")
    _check_optimizer_tensors(checkpoint.path, stored, parameters, optimizer)
    optimizer.state.clear()
    for key, tensor in stored.items():
        name, _, entry = key.rpartition("|")
        # Adam counts its steps on the CPU unless it is fused, and then beside the weights
        optimizer.state[parameters[name]][entry] = tensor.to(parameters[name].device)
    gradients = checkpoint.path / "gradients.safetensors"
    if checkpoint.state.micro_step:
        for name, tensor in _load_tensors(gradients).items():
            fits = name in parameters and parameters[name].shape == tensor.shape
            if not fits or parameters[name].dtype != tensor.dtype:
                raise IntegrityError(f"{gradients}: gradient {name} does not fit; {_REMEDY}")
            parameters[name].grad = tensor.to(parameters[name].device)


def _check_optimizer_tensors(
    path: Path, stored: dict[str, Tensor], parameters: dict[str, nn.Parameter], optimizer: Optimizer
) -> None:
    """Each parameter has all that its optimizer keeps of it, in its shape, or nothing."""
    adam, momentum = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}
    wanted = {
        id(parameter): adam if "betas" in group else momentum
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found: dict[str, set[str]] = {}
    for key, tensor in stored.items():
        name, _, entry = key.rpartition("|")
        if name not in parameters:
            raise IntegrityError(
                f"{path}: optimizer state of an unknown parameter {name}; {_REMEDY}"
            )
        shape = torch.Size() if entry == "step" else parameters[name].shape
        if tensor.shape != shape or not tensor.is_floating_point():
            raise IntegrityError(
                f"{path}: optimizer state {key} is {tuple(tensor.shape)} {tensor.dtype} instead of "
                f"{tuple(shape)}; {_REMEDY}"
            )
        found.setdefault(name, set()).add(entry)
    for name, entries in found.items():
        if entries != wanted.get(id(parameters[name])):
            raise IntegrityError(
                f"{path}: optimizer state of {name} has {', '.join(sorted(entries))}, which is not "
                f"what this optimizer keeps; {_REMEDY}"
            )


def check_identity(
    checkpoint: Checkpoint, identity: dict[str, Any], *, allow_changes: bool
) -> None:
    """Refuse to continue another run: every differing field is named, old -> new.

    Fields in ALLOWED_CHANGES may differ. With `allow_changes` all may, with one warning, as long
    as the model keeps its shape.

    Raises:
        CheckpointError: something else differs.
    """
    differences = []
    for section in sorted(set(checkpoint.identity) | set(identity)):
        old, new = checkpoint.identity.get(section), identity.get(section)
        if isinstance(old, dict) and isinstance(new, dict):
            for key in sorted(set(old) | set(new)):
                allowed = section == "training" and key in ALLOWED_CHANGES
                if old.get(key) != new.get(key) and not allowed:
                    differences.append(f"{section}.{key}: {old.get(key)!r} -> {new.get(key)!r}")
        elif old != new:
            differences.append(f"{section}: {old!r} -> {new!r}")
    if not differences:
        return
    listed = "; ".join(differences)
    if allow_changes:
        logger.warning("continuing %s with changes: %s", checkpoint.path, listed)
        return
    raise CheckpointError(
        f"{checkpoint.path}: made by another run ({listed}); give the same configuration, use "
        f"another checkpoint_dir, or pass allow_changes=True"
    )


def check_environment(checkpoint: Checkpoint, environment: dict[str, Any], *, strict: bool) -> None:
    """Say, or refuse if `strict`, when a resumed run cannot be bitwise equal.

    Raises:
        CheckpointError: `strict`, and something that bits depend on differs.
    """
    old = checkpoint.environment
    differences = [
        f"{key} {old.get(key)!r} -> {environment.get(key)!r}"
        for key in sorted(set(old) | set(environment))
        if old.get(key) != environment.get(key)
    ]
    if not differences:
        return
    message = f"{checkpoint.path}: resuming will not be bitwise equal ({'; '.join(differences)})"
    if strict:
        raise CheckpointError(f"{message}, and strict_resume is on; restore these or turn it off")
    logger.warning("%s", message)


def recover_checkpoints(directory: Path) -> None:
    """Clear away what killed savers left; hold the lock of `directory`.

    A checkpoint that had stepped aside to be replaced by one of the same name comes back if the
    saver was killed before the new one had the name.
    """
    for path in directory.glob(".partial-checkpoint-*"):
        aside = _STEPPED_ASIDE.fullmatch(path.name)
        if aside and not (directory / aside[1]).exists():
            path.rename(directory / aside[1])
        else:
            shutil.rmtree(path, ignore_errors=True)


def prune_checkpoints(directory: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints; call it after a newer one is committed."""
    if keep is not None:
        for path in list_checkpoints(directory)[keep:]:
            shutil.rmtree(path, ignore_errors=True)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: not readable as safetensors ({error}); {_REMEDY}") from error


def move_aside(directory: Path) -> Path:
    """Move all checkpoints into a fresh `previous-<n>` beside them and return it."""
    number = 1
    while (directory / f"previous-{number}").exists():
        number += 1
    aside = directory / f"previous-{number}"
    aside.mkdir()
    for path in list_checkpoints(directory):
        path.rename(aside / path.name)
    return aside
