"""Model directories: config.json, model.safetensors and a manifest; no pickle anywhere.

A tied output matrix is stored once, as the embedding. Same weights, same bytes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_trainer.config.checks import shown
from llm_trainer.config.loader import build_config
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import IntegrityError, LLMTrainerError
from llm_trainer.files import (
    MANIFEST_NAME,
    atomic_directory,
    is_partial,
    read_json,
    read_manifest,
    usual_mode,
    verify_manifest,
    write_json,
    write_manifest,
)
from llm_trainer.models.outline import outline

if TYPE_CHECKING:
    from llm_trainer.models.transformer import TransformerLM

M = TypeVar("M", bound="TransformerLM")

MODEL_KIND = "model"
MODEL_FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"
"""Where a model's directory has its tokenizer, if it has one."""
REMEDY = "point to a directory written by save_pretrained, or run `dvc repro train`"


def model_tensors(model: TransformerLM) -> dict[str, Tensor]:
    """Name -> tensor of what defines the model, tied tensors once, contiguous, on the CPU."""
    tensors = model.state_dict()
    if model.config.tie_embeddings:
        del tensors["head.weight"]
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


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
    description = {
        "format": MODEL_FORMAT,
        "model": model.config.to_dict(),
        "tokenizer_digest": model.tokenizer_digest,
    }
    write_json(directory / CONFIG_NAME, description)
    write_tensors(directory / WEIGHTS_NAME, model_tensors(model))
    if extra is not None:
        extra(directory)
    write_manifest(directory, MODEL_KIND)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; a full disk is the OSError that it is.

    Raises:
        OSError: with the number that the system gave, which safetensors only tells as text.
    """
    try:
        save_file(tensors, path, metadata)
        path.chmod(usual_mode())  # safetensors lets nobody but the owner read
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


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
    _check_weights(cls, config, directory / WEIGHTS_NAME)
    model = cls(config)
    model.tokenizer_digest = digest
    load_weights(model, directory / WEIGHTS_NAME)
    return model.to(device).eval()


def _check_weights(cls: type[M], config: ModelConfig, path: Path) -> None:
    """Compare names and shapes with `config` before memory of its size is taken: a few bytes of
    configuration may ask for terabytes.

    Raises:
        IntegrityError: see `load_weights`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: not readable as safetensors ({error})") from error
    if config.n_layers > len(shapes):
        raise IntegrityError(
            f"{path}: does not fit the configuration: {len(shapes):,} tensors cannot be "
            f"{config.n_layers:,} layers"
        )
    stored = {name: tuple(shape) for name, shape in shapes.items()}
    _refuse_misfits(outline(cls, config), stored, path)


def load_weights(model: TransformerLM, path: Path) -> None:
    """Copy the tensors of a safetensors file into `model`; every name and shape must fit.

    Raises:
        IntegrityError: not safetensors, or tensors missing, extra or of another shape.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: not readable as safetensors ({error})") from error
    _refuse_misfits(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, path)
    if model.config.tie_embeddings:
        tensors["head.weight"] = tensors["embedding.weight"]
    model.load_state_dict(tensors)


def _refuse_misfits(model: TransformerLM, found: dict[str, tuple[int, ...]], path: Path) -> None:
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
        raise IntegrityError(f"{path}: does not fit the configuration: {'; '.join(problems[:5])}")
