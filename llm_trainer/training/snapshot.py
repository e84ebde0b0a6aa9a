"""What a checkpoint holds, taken from a training at one moment, and how it is written.

A snapshot that is copied does not change when the training goes on, so it can be written by a
thread (`background_save`). Each rank has the rows that are its own; see `slices`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from llm_trainer.exceptions import TrainingError
from llm_trainer.files import fsync_file, write_json
from llm_trainer.manifests import write_manifest
from llm_trainer.models.storage import (
    CONFIG_NAME,
    MODEL_KIND,
    MODEL_STEM,
    model_description,
    model_state,
)
from llm_trainer.models.stored_tensors import (
    Piece,
    StoredTensor,
    index_name,
    index_values,
    join_pieces,
    part_name,
    stored_of,
    whole_name,
)
from llm_trainer.models.tensor_file import FileEntry, dtype_name, write_tensors
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.commit import write_together
from llm_trainer.training.ranks import Ranks
from llm_trainer.training.slices import Part, Slice, is_sharded, part_of, slice_of
from llm_trainer.training.state import TrainerState

CHECKPOINT_KIND = "checkpoint"
CHECKPOINT_FORMAT = 1
MODEL_FOLDER = "model"
OPTIMIZER_STEM = "optimizer"
GRADIENTS_STEM = "gradients"


class PartReport(TypedDict):
    """What a rank tells of the files that it wrote."""

    files: dict[str, FileEntry]
    """By path within the checkpoint."""
    tensors: dict[str, dict[str, Any]]
    """Path of an index, without its ending -> what the index says of this rank's rows."""


@dataclass(frozen=True)
class Snapshot:
    """All that one rank writes of a checkpoint."""

    name: str
    """Of the directory."""
    part: Part
    sharded: bool
    """Whether ranks have rows of their own, so that there are parts and indexes."""
    groups: dict[str, dict[str, Slice]]
    """Path of a file, without its ending -> tensors of this rank in it, on the CPU."""
    model: dict[str, Any]
    """The model's description."""
    history: Tensor
    description: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """About how many bytes this rank writes."""
        return sum(s.local.nbytes for group in self.groups.values() for s in group.values())


def checkpoint_name(state: TrainerState) -> str:
    """Directory name of a checkpoint at this state."""
    within = f"-{state.micro_step}" if state.micro_step else ""
    return f"checkpoint-{state.step}{within}"


def optimizer_state(model: TransformerLM, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `<name>|<key>` -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{key}": value
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def take_snapshot(
    model: TransformerLM,
    optimizer: Optimizer,
    state: TrainerState,
    *,
    identity: dict[str, Any],
    environment: dict[str, Any],
    scaler: dict[str, Any] | None,
    ranks: Ranks,
    copy: bool,
    partial: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """What a checkpoint of this moment holds.

    Args:
        model: its weights, and within a step its gradients.
        optimizer: its state.
        state: position and record of the run.
        identity: what the run is.
        environment: what its bits depend on besides.
        scaler: state of the gradient scaler.
        ranks: who saves; each its own rows.
        copy: copy the tensors, so that they may change while the snapshot is written. Without it
            those on the CPU are the training's own.
        partial: sums of gradients within a step that are not with the parameters; see
            `reduction.PartialSums`.
    """
    tensors = {
        f"{MODEL_FOLDER}/{MODEL_STEM}": model_state(model),
        OPTIMIZER_STEM: optimizer_state(model, optimizer),
    }
    if state.micro_step:
        tensors[GRADIENTS_STEM] = {
            name: parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        } | dict(partial or {})
    part = part_of(dict(model.named_parameters()), ranks)
    groups = {
        stem: _on_cpu({n: slice_of(t) for n, t in group.items()}, part, copy=copy)
        for stem, group in tensors.items()
    }
    return Snapshot(
        name=checkpoint_name(state),
        part=part,
        sharded=any(is_sharded(parameter) for parameter in model.parameters()),
        groups=groups,
        model=model_description(model),
        history=state.history_tensor(),
        description={
            "format": CHECKPOINT_FORMAT, "state": state.to_json(), "identity": identity,
            "environment": environment, "scaler": scaler,
        },
    )  # fmt: skip


def _on_cpu(slices: Mapping[str, Slice], part: Part, *, copy: bool) -> dict[str, Slice]:
    """Those of the slices that this rank writes, contiguous, on the CPU."""
    chosen = {
        name: found
        for name, found in slices.items()
        # what is whole everywhere is written with the first part
        if part.speaks and (found.part is not None or part.number == 0)
    }
    devices = {found.local.device for found in chosen.values()}
    held = {
        name: replace(found, local=_copy(found.local) if copy else found.local.cpu().contiguous())
        for name, found in chosen.items()
    }
    for device in devices:
        if copy and device.type == "cuda":
            torch.cuda.synchronize(device)  # copies into pinned memory do not wait by themselves
    return held


def _copy(tensor: Tensor) -> Tensor:
    pinned = tensor.device.type == "cuda"
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
    return held.copy_(tensor, non_blocking=pinned)


def write_snapshot(directory: Path, snapshot: Snapshot, ranks: Ranks) -> Path:
    """Write a checkpoint under `directory` and return its path; every rank calls it.

    Nothing half-written can remain.

    Raises:
        LLMTrainerError: no space or no permission, on any rank; older checkpoints are untouched.
    """
    path = directory / snapshot.name
    write_together(
        path, ranks,
        lambda temporary: _write_part(temporary, snapshot),
        lambda temporary, reports: _write_rest(temporary, snapshot, reports),
        needed=snapshot.num_bytes,
    )  # fmt: skip
    return path


def _write_part(temporary: Path, snapshot: Snapshot) -> PartReport:
    (temporary / MODEL_FOLDER).mkdir(exist_ok=True)
    report = PartReport(files={}, tensors={})
    part = snapshot.part
    if not part.speaks:
        return report
    for stem, slices in snapshot.groups.items():
        name = whole_name(stem)
        if snapshot.sharded:
            name = part_name(stem, part.number + 1, part.count)
            slices = {n: found for n, found in slices.items() if found.rows}
            report["tensors"][stem] = index_values(_pieces(slices, Path(name).name))
            if not slices:
                continue
        tensors = {n: found.local for n, found in slices.items()}
        report["files"][name] = write_tensors(temporary / name, tensors)
        fsync_file(temporary / name)
    return report


def _pieces(slices: Mapping[str, Slice], file: str) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(
            dtype_name(found.local), found.shape, (Piece(file, found.first, found.rows),)
        )
        for name, found in slices.items()
    }


def _write_rest(temporary: Path, snapshot: Snapshot, reports: Iterable[PartReport]) -> None:
    reports = list(reports)
    known = {name: entry for report in reports for name, entry in report["files"].items()}
    for name, entry in known.items():
        size = (temporary / name).stat().st_size
        if size != entry["bytes"]:
            raise TrainingError(
                f"{temporary / name}: {size:,} bytes here, but its rank wrote {entry['bytes']:,}; "
                f"all ranks must save on one file system that they share"
            )
    if snapshot.sharded:
        for stem in snapshot.groups:
            parts = [stored_of(r["tensors"][stem]) for r in reports if stem in r["tensors"]]
            write_json(temporary / index_name(stem), index_values(join_pieces(parts)))
    folder = temporary / MODEL_FOLDER
    write_json(folder / CONFIG_NAME, snapshot.model)
    inner = f"{MODEL_FOLDER}/"
    within = {n.removeprefix(inner): e for n, e in known.items() if n.startswith(inner)}
    write_manifest(folder, MODEL_KIND, within)
    write_tensors(temporary / "history.safetensors", {"history": snapshot.history})
    write_json(temporary / "state.json", snapshot.description)
    write_manifest(temporary, CHECKPOINT_KIND, known)
