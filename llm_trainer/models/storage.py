"""Model directories: config.json, model.safetensors and a manifest; no pickle anywhere.

A tied output matrix is stored once, as the embedding. Same weights, same bytes. Checkpoints of a
sharded training have the weights in parts with an index (`stored_tensors`); both forms are read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from llm_trainer.config.checks import shown
from llm_trainer.config.loader import build_config
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import IntegrityError, LLMTrainerError
from llm_trainer.files import atomic_directory, is_partial, write_json
from llm_trainer.json_file import read_json
from llm_trainer.manifests import MANIFEST_NAME, read_manifest, verify_manifest, write_manifest
from llm_trainer.models.outline import outline
from llm_trainer.models.stored_tensors import StoredTensors
from llm_trainer.models.tensor_file import write_tensors

if TYPE_CHECKING:
    from llm_trainer.models.transformer import TransformerLM

M = TypeVar("M", bound="TransformerLM")

MODEL_KIND = "model"
MODEL_FORMAT = 1
MODEL_STEM = "model"
"""Of the names of weight files; see `stored_tensors`."""
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"
"""Where a model's directory has its tokenizer, if it has one."""
REMEDY = "point to a directory written by save_pretrained, or run `dvc repro train`"


def model_tensors(model: TransformerLM) -> dict[str, Tensor]:
    """`model_state`, contiguous, on the CPU."""
    state = model_state(model)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def save_model(
    model: TransformerLM, directory: Path, extra: Callable[[Path], None] | None = None
) -> None:
    """Write a model directory atomically; `extra` may add files before the manifest is made.

    A model that is there is replaced, with all its files; a tokenizer that was saved into its
    directory stays unless `extra` brings one.

    Raises:
        LLMTrainerError: `directory` holds other things, which would be lost, or cannot be written.
    """
    check_replaceable(directory)

    with atomic_directory(directory) as temporary:
        if extra is None and (directory / TOKENIZER_FOLDER).is_dir():
            shutil.copytree(directory / TOKENIZER_FOLDER, temporary / TOKENIZER_FOLDER)
        write_model_files(model, temporary, extra)


def check_replaceable(directory: Path, kind: str = MODEL_KIND) -> None:
    """Check that `directory` is free, or holds a model and nothing else.

    `kind` is that of its manifest.

    Raises:
        LLMTrainerError: it holds other things, which saving a model there would delete.
    """
    if not directory.is_dir():
        return
    listed: set[str] = set()
    if (directory / MANIFEST_NAME).is_file():
        files = read_manifest(directory, kind, remedy="save the model elsewhere")["files"]
        listed = {name.partition("/")[0] for name in files}
    known = {MANIFEST_NAME, *listed}
    if kind == MODEL_KIND:
        known.add(TOKENIZER_FOLDER)
    others = sorted(
        path.name
        for path in directory.iterdir()
        if path.name not in known and not is_partial(path.name)
    )
    if others:
        raise LLMTrainerError(
            f"{directory}: holds other files ({', '.join(others[:3])}), which saving a model would "
            f"delete; save it into a directory of its own, such as {directory / 'model'}"
        )


def write_model_files(
    model: TransformerLM, directory: Path, extra: Callable[[Path], None] | None = None
) -> None:
    """Write the files of a model directory into one that its caller makes atomic."""
    directory.mkdir(exist_ok=True)
    write_json(directory / CONFIG_NAME, model_description(model))
    written = write_tensors(directory / WEIGHTS_NAME, model_tensors(model))
    if extra is not None:
        extra(directory)
    write_manifest(directory, MODEL_KIND, {WEIGHTS_NAME: written})


def model_description(model: TransformerLM) -> dict[str, Any]:
    """What config.json says of a model."""
    return {
        "format": MODEL_FORMAT,
        "model": model.config.to_dict(),
        "tokenizer_digest": model.tokenizer_digest,
    }


def load_model(cls: type[M], directory: Path, device: torch.device | str) -> M:
    """Read a model directory, verifying every byte and every shape."""
    if not directory.is_dir():
        raise IntegrityError(f"{directory}: no such model directory; {REMEDY}")
    verify_manifest(directory, MODEL_KIND, remedy=REMEDY)
    description = read_json(directory / CONFIG_NAME)
    if not isinstance(description, dict) or description.get("format") != MODEL_FORMAT:
        raise IntegrityError(
            f"{directory / CONFIG_NAME}: not a model of format {MODEL_FORMAT}; {REMEDY}"
        )
    values = description.get("model")
    if not isinstance(values, dict):
        raise IntegrityError(f"{directory / CONFIG_NAME}: has no section 'model'; {REMEDY}")
    config = build_config(ModelConfig, values, f"{directory / CONFIG_NAME}: model")
    digest = description.get("tokenizer_digest")
    if digest is not None and not isinstance(digest, str):
        raise IntegrityError(
            f"{directory / CONFIG_NAME}: tokenizer_digest is {shown(digest)}; {REMEDY}"
        )
    stored = StoredTensors(directory, MODEL_STEM, REMEDY)
    _check_weights(cls, config, stored)
    model = cls(config)
    model.tokenizer_digest = digest
    load_weights(model, stored)
    return model.to(device).eval()


def _check_weights(cls: type[M], config: ModelConfig, stored: StoredTensors) -> None:
    """Compare names and shapes with `config` before memory of its size is taken: a few bytes of
    configuration may ask for terabytes.

    Raises:
        IntegrityError: tensors missing, extra or of another shape.
    """
    if config.n_layers > len(stored):
        raise IntegrityError(
            f"{stored.path}: does not fit the configuration: {len(stored):,} tensors cannot be "
            f"{config.n_layers:,} layers"
        )
    refuse_misfits(outline(cls, config), stored)


def load_weights(model: TransformerLM, stored: StoredTensors) -> None:
    """Copy stored tensors into `model`, one after the other; every name and shape must fit.

    Raises:
        IntegrityError: tensors missing, extra or of another shape, or a file that is damaged.
    """
    refuse_misfits(model, stored)
    with torch.no_grad():
        for name, tensor in model_state(model).items():
            tensor.copy_(stored[name])


def model_state(model: TransformerLM) -> dict[str, Tensor]:
    """Name -> tensor of what defines the model, tied tensors once, as the model has them."""
    tensors: dict[str, Tensor] = model.state_dict()
    if model.config.tie_embeddings:
        del tensors["head.weight"]
    return tensors


def refuse_misfits(model: TransformerLM, stored: StoredTensors) -> None:
    """Refuse stored tensors that are not those of `model`, each problem by name.

    Raises:
        IntegrityError: tensors missing, extra or of another shape.
    """
    found = {name: tensor.shape for name, tensor in stored.stored.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings and "head.weight" not in found:
        del expected["head.weight"]
    problems = [f"lacks {name}" for name in sorted(set(expected) - set(found))]
    problems += [f"has an extra {name}" for name in sorted(set(found) - set(expected))]
    problems += [
        f"{name} is {found[name]} instead of {expected[name]}"
        for name in sorted(set(expected) & set(found))
        if found[name] != expected[name]
    ]
    if problems:
        raise IntegrityError(
            f"{stored.path}: does not fit the configuration: {'; '.join(problems[:5])}"
        )
