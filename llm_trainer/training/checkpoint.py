"""Checkpoints: directories that are whole or absent, verified on load, ordered by step.

`checkpoint-<step>` (or `checkpoint-<step>-<micro>` when stopped within a step) holds `model/`, a
model directory that `TransformerLM.from_pretrained` opens; the optimizer's tensors and, within a
step, the partial gradients, as safetensors; state.json; and a manifest with the sha256 of each
file. No pickle. A sharded training writes tensors in parts, each rank its own rows, with an index
of each group of parts; any number of processes reads either form. Hyper-parameters are never read
back: the configuration is the truth. Price of a save: all bytes written, hashed and synced once;
three times the model for AdamW.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from llm_trainer.config.checks import shown
from llm_trainer.config.model import ModelConfig
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import CheckpointError, IntegrityError
from llm_trainer.json_file import read_json
from llm_trainer.manifests import read_manifest, verify_manifest
from llm_trainer.models.stored_tensors import StoredTensors
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.ranks import ALONE, Ranks
from llm_trainer.training.restoring import REMEDY, restore_tensors
from llm_trainer.training.snapshot import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_KIND,
    take_snapshot,
    write_snapshot,
)
from llm_trainer.training.state import TrainerState

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)(?:-(\d+))?")
_STEPPED_ASIDE = re.compile(r"\.partial-(checkpoint-\d+(?:-\d+)?)-old-\d+")

ALLOWED_CHANGES = frozenset({
    "logging_steps", "report_to", "save_steps", "async_save", "save_total_limit", "checkpoint_dir",
    "strict_resume", "eval_steps", "eval_strategy", "eval_batches", "sample_steps",
    "sample_prompts", "sample_tokens", "dataloader_num_workers", "max_steps", "num_epochs",
})  # fmt: skip
"""Training fields that a resumed run may change: none alters a step that is already done."""
_DEFAULTS = {
    section: {field.name: field.default for field in fields(config)}
    for section, config in (("model", ModelConfig), ("training", TrainingConfig))
}
"""Section of an identity -> field -> default."""


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


def save_checkpoint(
    directory: Path,
    model: TransformerLM,
    optimizer: Optimizer,
    state: TrainerState,
    *,
    identity: dict[str, Any],
    environment: dict[str, Any],
    scaler: dict[str, Any] | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write a checkpoint under `directory` and return its path; nothing half-written can remain.

    Every rank calls it.

    Raises:
        LLMTrainerError: no space or no permission; older checkpoints are untouched.
    """
    snapshot = take_snapshot(
        model, optimizer, state, identity=identity, environment=environment, scaler=scaler,
        ranks=ranks, copy=False,
    )  # fmt: skip
    return write_snapshot(directory, snapshot, ranks)


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
    read_manifest(path, CHECKPOINT_KIND, remedy=REMEDY)


def read_checkpoint(path: Path, ranks: Ranks = ALONE) -> Checkpoint:
    """Verify every byte of a checkpoint and read its description.

    Every rank calls it. Each reads a share of the bytes, and all hear of what one found.

    Raises:
        CheckpointError: there is no such directory.
        IntegrityError: torn, damaged or not a checkpoint; names the file.
    """
    problem = checkpoint = None
    try:
        require_checkpoint(path)
        files = read_manifest(path, CHECKPOINT_KIND, remedy=REMEDY)["files"]
        shares = _shares({name: entry["bytes"] for name, entry in files.items()}, ranks.size)
        mine = shares[ranks.rank]
        verify_manifest(path, CHECKPOINT_KIND, remedy=REMEDY, hashed=mine.__contains__)
        checkpoint = _read_description(path)
    except (CheckpointError, IntegrityError) as error:
        problem = [isinstance(error, IntegrityError), str(error)]
    for told in ranks.exchange(problem):
        if told is not None:
            damaged, message = told
            raise (IntegrityError if damaged else CheckpointError)(message)
    assert checkpoint is not None
    return checkpoint


def _shares(sizes: dict[str, int], count: int) -> list[set[str]]:
    """Deal files out, so that all shares have about as many bytes."""
    shares: list[set[str]] = [set() for _ in range(count)]
    totals = [0] * count
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = totals.index(min(totals))
        shares[least].add(name)
        totals[least] += sizes[name]
    return shares


def _read_description(path: Path) -> Checkpoint:
    description = read_json(path / "state.json")
    try:
        if description["format"] != CHECKPOINT_FORMAT:
            raise IntegrityError(
                f"{path}: checkpoint of format {description['format']}, this version reads "
                f"{CHECKPOINT_FORMAT}; {REMEDY}"
            )
        history = StoredTensors(path, "history", REMEDY)["history"]
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
        raise IntegrityError(f"{path / 'state.json'}: not ours ({error!r}); {REMEDY}") from error


def newest_checkpoint(directory: Path, ranks: Ranks = ALONE) -> Checkpoint | None:
    """The newest checkpoint that is whole; each damaged one on the way is a warning.

    Every rank calls it, and all find the one that rank 0 sees.
    """
    for name in ranks.exchange([path.name for path in list_checkpoints(directory)])[0]:
        try:
            return read_checkpoint(directory / name, ranks)
        except IntegrityError as error:
            logger.warning("falling back to an older checkpoint: %s", error)
    return None


def restore(
    checkpoint: Checkpoint, model: TransformerLM, optimizer: Optimizer
) -> dict[str, Tensor]:
    """Load weights, optimizer tensors and partial gradients into a fresh model and optimizer.

    Returns partial sums of gradients that are not the parameters' own; see `PartialSums`.
    Each rank reads the rows that it has, whoever wrote them. Learning rates and weight decay stay
    those of the optimizer: the configuration is the truth.

    Raises:
        IntegrityError: tensors that do not fit the model.
    """
    within = checkpoint.state.micro_step > 0
    return restore_tensors(checkpoint.path, model, optimizer, gradients=within)


def check_identity(
    checkpoint: Checkpoint, identity: dict[str, Any], *, allow_changes: bool
) -> None:
    """Refuse to continue another run: every differing field is named, old -> new.

    Fields in ALLOWED_CHANGES may differ. A field that is younger than the checkpoint counts there
    as its default, which is what was before. With `allow_changes` all may differ, with one warning,
    as long as the model keeps its shape.

    Raises:
        CheckpointError: something else differs.
    """
    differences = []
    for section in sorted(set(checkpoint.identity) | set(identity)):
        old, new = checkpoint.identity.get(section), identity.get(section)
        if isinstance(old, dict) and isinstance(new, dict):
            old = {key: _DEFAULTS[section][key] for key in new if key in _DEFAULTS[section]} | old
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
