"""Import: a directory in the format of Hugging Face as a model of ours, and prove it.

Weights become float32, which holds float16 and bfloat16 exactly. Nothing of the directory is
executed, and nothing in it is believed before it is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_trainer.config.model import ModelConfig
from llm_trainer.digests import sha256_file
from llm_trainer.exceptions import ConfigurationError, IntegrityError, TokenizerError
from llm_trainer.export.huggingface import EXPORT_KIND
from llm_trainer.export.layout import Layout
from llm_trainer.export.layouts import layout_of
from llm_trainer.export.parity import PARITY_NAME, Parity, check_parity, require_transformers
from llm_trainer.export.weights import StoredWeights
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.manifests import MANIFEST_NAME, read_manifest
from llm_trainer.models.outline import outline
from llm_trainer.models.storage import (
    CONFIG_NAME,
    TOKENIZER_FOLDER,
    check_replaceable,
    save_model,
)
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.utils.loading import check_pair

MAX_CONFIG_BYTES = 2**20
"""Largest config.json that is read; they have a few kilobytes."""


@dataclass(frozen=True)
class Imported:
    """What was written."""

    directory: Path
    layout: str
    """The family that it came from."""
    num_parameters: int
    parity: Parity


def import_model(
    source: str | Path,
    out_dir: str | Path,
    *,
    verify: bool = True,
    with_tokenizer: bool = True,
) -> Imported:
    """Read a directory in the format of Hugging Face and write it as a model directory of ours.

    Args:
        source: a local directory with config.json and safetensors.
        out_dir: a new directory, or one with a model, which is replaced.
        verify: compare with `transformers` before the directory gets its name.
        with_tokenizer: False imports the model alone.

    Raises:
        ModelConfigurationError: the model has no exact counterpart here; all reasons at once.
        IntegrityError: files are missing, damaged, or do not fit each other.
        TokenizerError: the tokenizer is none that can be used here.
        ExportError: our model computes something else; nothing is left under `out_dir`.
        MissingDependencyError: transformers is needed to verify, and is not installed.
        LLMTrainerError: `out_dir` holds other things, or cannot be written.
    """
    directory, out = Path(source), Path(out_dir)
    if not directory.is_dir():
        raise ConfigurationError(
            f"{directory}: no such directory; a model of the Hub comes into one with "
            f"`hf download NAME --local-dir {directory.name}`"
        )
    if verify:
        require_transformers()
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out}: is a file; name a directory")
    check_replaceable(out)

    _verify_export(directory)
    layout, model = read_model(directory)
    tokenizer = _read_tokenizer(directory, model) if with_tokenizer else None
    parity = Parity(verified=False)
    if verify:
        parity = check_parity(directory, model, tokenizer, ours=False)

    def extra(temporary: Path) -> None:
        write_json(temporary / PARITY_NAME, parity.to_dict())
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary / TOKENIZER_FOLDER)

    save_model(model, out, extra)
    return Imported(out, layout.name, model.get_num_params(), parity)


def read_model(directory: Path) -> tuple[Layout, TransformerLM]:
    """The model of a directory in the format of Hugging Face, in float32 on the CPU.

    Raises:
        ModelConfigurationError, IntegrityError: see `import_model`.
    """
    path = directory / CONFIG_NAME
    values = read_json(path, max_bytes=MAX_CONFIG_BYTES)
    if not isinstance(values, dict):
        raise IntegrityError(f"{path}: must be a JSON object")
    layout = layout_of(values, str(path))
    config = layout.from_config(values, str(path))
    tensors = _Renamed(StoredWeights(directory), layout)
    _check_tensors(layout, config, values, tensors)
    model = TransformerLM(config)
    own = dict(layout.from_tensors(config, tensors, values))
    if config.tie_embeddings:
        own["head.weight"] = own["embedding.weight"]
    model.load_state_dict(own)
    return layout, model.eval()


def _verify_export(directory: Path) -> None:
    """Check the files of an export of ours; others may lie beside them, from git or the Hub.

    Raises:
        IntegrityError: one is missing or was changed.
    """
    path = directory / MANIFEST_NAME
    manifest = read_json(path) if path.is_file() else None
    if not isinstance(manifest, dict) or manifest.get("kind") != EXPORT_KIND:
        return
    remedy = f"fetch it again; if it was changed on purpose, remove {MANIFEST_NAME}"
    files = read_manifest(directory, EXPORT_KIND, remedy=remedy)["files"]
    for name, entry in files.items():
        if not (directory / name).is_file():
            raise IntegrityError(f"{directory / name}: file is missing; {remedy}")
        if sha256_file(directory / name) != entry["sha256"]:
            raise IntegrityError(f"{directory / name}: differs from {MANIFEST_NAME}; {remedy}")


class _Renamed(Mapping[str, Tensor]):
    """Stored weights under the names of a layout."""

    def __init__(self, stored: StoredWeights, layout: Layout) -> None:
        self.stored = stored
        self.names = layout.canonical(stored)

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _check_tensors(
    layout: Layout, config: ModelConfig, values: Mapping[str, Any], tensors: _Renamed
) -> None:
    """Compare names and shapes with the configuration, before anything of its size is made."""
    where = tensors.stored.directory
    if config.n_layers > len(tensors):
        raise IntegrityError(
            f"{where}: {len(tensors):,} tensors cannot be {config.n_layers:,} layers, as "
            f"{CONFIG_NAME} says"
        )
    ours = outline(TransformerLM, config).state_dict()
    expected = {n: tuple(t.shape) for n, t in layout.to_tensors(config, ours, values)}
    shapes = tensors.stored.shapes()
    found = {name: shapes[stored] for name, stored in tensors.names.items()}
    head = f"{layout.names.head}.weight"
    if config.tie_embeddings and head in found:
        embedding = f"{layout.names.embedding}.weight"
        if embedding in found and not torch.equal(tensors[head], tensors[embedding]):
            raise IntegrityError(
                f"{where}: {head} differs from {embedding}, but tie_word_embeddings is true"
            )
        del found[head]
    problems = [f"lacks {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"has an extra {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} is {found[name]} instead of {shape}"
        for name, shape in sorted(expected.items())
        if found.get(name, shape) != shape
    ]
    if problems:
        raise IntegrityError(
            f"{where}: the weights do not fit {CONFIG_NAME}: {'; '.join(problems[:5])}"
        )


def _read_tokenizer(directory: Path, model: TransformerLM) -> BPETokenizer:
    try:
        tokenizer = BPETokenizer.from_pretrained(directory)
    except TokenizerError as error:
        raise TokenizerError(
            f"{error}. To import the model alone, add --without-tokenizer (with_tokenizer=False)"
        ) from None
    check_pair(model, tokenizer)
    model.tokenizer_digest = tokenizer.digest
    return tokenizer
