"""Tensors of a checkpoint back into a model and an optimizer, each rank the rows that it has."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm_trainer.exceptions import IntegrityError
from llm_trainer.models.storage import MODEL_STEM, model_state, refuse_misfits
from llm_trainer.models.stored_tensors import StoredTensor, StoredTensors
from llm_trainer.models.tensor_file import DTYPES
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.slices import fill
from llm_trainer.training.snapshot import GRADIENTS_STEM, MODEL_FOLDER, OPTIMIZER_STEM

REMEDY = "delete it to continue from an older one, or start again"


@torch.no_grad()
def restore_tensors(
    path: Path, model: TransformerLM, optimizer: Optimizer, *, gradients: bool
) -> dict[str, Tensor]:
    """Fill a fresh model and optimizer from the checkpoint `path`, which is verified.

    Returns the partial sums that `take_snapshot` was given.

    Args:
        path: the checkpoint's directory.
        model: takes the weights, and the partial gradients if there are any.
        optimizer: takes the state; of its settings nothing changes.
        gradients: whether there are partial gradients.

    Raises:
        IntegrityError: tensors that do not fit the model.
    """
    weights = StoredTensors(path / MODEL_FOLDER, MODEL_STEM, REMEDY)
    refuse_misfits(model, weights)
    for name, tensor in model_state(model).items():
        fill(tensor, weights, name)
    parameters = dict(model.named_parameters())
    moments = StoredTensors(path, OPTIMIZER_STEM, REMEDY)
    _check_moments(path, moments, parameters, optimizer)
    optimizer.state.clear()
    for key, stored in moments.stored.items():
        name, _, entry = key.rpartition("|")
        like = parameters[name]
        tensor = _empty(like, stored)
        fill(tensor, moments, key)
        optimizer.state[like][entry] = tensor
    sums: dict[str, Tensor] = {}
    if gradients:
        partial = StoredTensors(path, GRADIENTS_STEM, REMEDY)
        for key, stored in partial.stored.items():
            name, level = key.partition("|")[::2]
            owner = parameters.get(name)
            fits = owner is not None and stored.shape == tuple(owner.shape)
            if owner is None or not fits or _dtype(stored) != owner.dtype:
                raise IntegrityError(f"{partial.path}: gradient {key} does not fit; {REMEDY}")
            tensor = torch.empty_like(owner, requires_grad=False)
            fill(tensor, partial, key)
            if level:
                if not level.isdecimal():
                    raise IntegrityError(f"{partial.path}: {key} is no sum of ours; {REMEDY}")
                sums[key] = tensor
            else:
                owner.grad = tensor
    return sums


def _empty(like: nn.Parameter, stored: StoredTensor) -> Tensor:
    """Room for a tensor of the optimizer: sharded as its parameter is, if it is as large."""
    if stored.shape == tuple(like.shape):
        return torch.empty_like(like, dtype=_dtype(stored), requires_grad=False)
    # Adam counts its steps on the CPU unless it is fused, and then beside the weights
    return torch.empty(stored.shape, dtype=_dtype(stored), device=like.device)


def _dtype(stored: StoredTensor) -> torch.dtype:
    return DTYPES[stored.dtype]


def _check_moments(
    path: Path, moments: StoredTensors, parameters: dict[str, nn.Parameter], optimizer: Optimizer
) -> None:
    """Each parameter has all that its optimizer keeps of it, in its shape, or nothing."""
    adam, momentum = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}
    wanted = {
        id(parameter): adam if "betas" in group else momentum
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found: dict[str, set[str]] = {}
    for key, stored in moments.stored.items():
        name, _, entry = key.rpartition("|")
        if name not in parameters:
            raise IntegrityError(
                f"{path}: optimizer state of an unknown parameter {name}; {REMEDY}"
            )
        shape = () if entry == "step" else tuple(parameters[name].shape)
        if stored.shape != shape or not _dtype(stored).is_floating_point:
            raise IntegrityError(
                f"{path}: optimizer state {key} is {stored.shape} {stored.dtype} instead of "
                f"{shape}; {REMEDY}"
            )
        found.setdefault(name, set()).add(entry)
    for name, entries in found.items():
        if entries != wanted.get(id(parameters[name])):
            raise IntegrityError(
                f"{path}: optimizer state of {name} has {', '.join(sorted(entries))}, which is not "
                f"what this optimizer keeps; {REMEDY}"
            )
