"""Export: a model as the directory that `AutoModelForCausalLM` and `AutoTokenizer` open.

The directory is whole or absent, and its files are a function of the model and the options; only
parity.json has figures that another processor may round otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llm_trainer.config.loader import coerce
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import ConfigurationError, ExportError
from llm_trainer.export.card import CARD_NAME, model_card, read_origin
from llm_trainer.export.comparing import generation_settings
from llm_trainer.export.layouts import layout_for
from llm_trainer.export.parity import PARITY_NAME, Parity, check_parity, require_transformers
from llm_trainer.export.weights import parse_size, write_weights
from llm_trainer.files import atomic_directory, write_json, write_text
from llm_trainer.json_file import read_json
from llm_trainer.manifests import MANIFEST_NAME, write_manifest
from llm_trainer.models.storage import check_replaceable, model_tensors
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.utils.loading import check_pair, load_model_and_tokenizer
from llm_trainer.utils.parameters import count_parameters

EXPORT_KIND = "huggingface"
"""Kind of an export's manifest."""
CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json")

StoredType = Literal["float32", "bfloat16"]
DTYPES: dict[StoredType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEFAULT_SHARD = "5GB"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    directory: Path
    architecture: str
    """Class that AutoModelForCausalLM makes of it."""
    num_parameters: int
    weight_files: list[str]
    parity: Parity


def export_model(
    source: str | Path | tuple[TransformerLM, BPETokenizer | None],
    out_dir: str | Path,
    *,
    dtype: StoredType = "float32",
    max_shard_size: str | int = DEFAULT_SHARD,
    verify: bool = True,
    tokenizer_path: str | Path | None = None,
    with_tokenizer: bool = True,
) -> Exported:
    """Export a model and its tokenizer to the format of Hugging Face, and prove it.

    Args:
        source: a model directory such as `models/final`, or a model and its tokenizer (or None).
        out_dir: a new directory, or one with an earlier export, which is replaced.
        dtype: type of the stored weights; bfloat16 rounds them.
        max_shard_size: bytes of a weight file at most, as 5GB or a number.
        verify: compare with `transformers` before the directory gets its name.
        tokenizer_path: directory of the tokenizer, if it is not in `source`.
        with_tokenizer: False leaves the tokenizer out.

    Raises:
        ModelConfigurationError: no layout holds the model exactly; says why.
        ExportError: the export computes something else; nothing is left under `out_dir`.
        MissingDependencyError: transformers is needed to verify, and is not installed.
        LLMTrainerError: `out_dir` holds other things, or cannot be written.
        IntegrityError, TokenizerError: the source is damaged or incomplete.
    """
    if isinstance(source, tuple):
        model, tokenizer = source
        if tokenizer is not None:
            check_pair(model, tokenizer)
        origin = {} if tokenizer is None else {"tokenizer": tokenizer.digest}
    elif with_tokenizer:
        model, tokenizer = load_model_and_tokenizer(source, "cpu", tokenizer_path=tokenizer_path)
        origin = read_origin(Path(source))
    else:
        model, tokenizer = TransformerLM.from_pretrained(source), None
        origin = read_origin(Path(source))
    return export_tensors(
        model.config, model_tensors(model), out_dir, tokenizer=tokenizer, origin=origin,
        dtype=dtype, max_shard_size=max_shard_size, verify=verify,
    )  # fmt: skip


def export_tensors(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    out_dir: str | Path,
    *,
    tokenizer: BPETokenizer | None = None,
    origin: Mapping[str, str] | None = None,
    dtype: StoredType = "float32",
    max_shard_size: str | int = DEFAULT_SHARD,
    verify: bool = True,
) -> Exported:
    """Export a model that is given as its configuration and name -> tensor.

    Args:
        config: the architecture.
        tensors: as `model_tensors` names them; each is asked for once (twice, to verify), so they
            may be read from files as they are needed.
        out_dir: see `export_model`.
        tokenizer: the model's own; None leaves it out.
        origin: what the model was made from, name -> digest, for the card.
        dtype: see `export_model`.
        max_shard_size: see `export_model`.
        verify: see `export_model`.

    Raises:
        see `export_model`.
    """
    out = Path(out_dir)
    layout = layout_for(config)
    try:
        stored_type = DTYPES[coerce(dtype, StoredType)]
    except ValueError as error:
        raise ConfigurationError(f"dtype: {error}") from None
    max_bytes = parse_size(max_shard_size)
    if verify:
        require_transformers()
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out}: is a file; name a directory")
    check_replaceable(out, EXPORT_KIND)

    with atomic_directory(out) as directory:
        ids = generation_settings(config.vocab_size, tokenizer)
        values = layout.to_config(config) | {key: ids[key] for key in ids if key.endswith("_id")}
        # transformers 5 reads dtype, older releases and other programs torch_dtype
        write_json(directory / CONFIG_NAME, values | {"dtype": dtype, "torch_dtype": dtype})
        write_json(directory / GENERATION_NAME, ids)
        files = write_weights(directory, layout.to_tensors(config, tensors), stored_type, max_bytes)
        if tokenizer is not None:
            write_tokenizer(tokenizer, directory, config.max_seq_len)
        parity = Parity(verified=False)
        if verify:
            parity = _prove(directory, config, tensors, tokenizer, stored_type)
        write_json(directory / PARITY_NAME, parity.to_dict())
        num_parameters = count_parameters(config).total
        facts = {"Parameters": f"{num_parameters:,}", "Stored as": dtype}
        write_text(directory / CARD_NAME, model_card(layout, config, facts, origin or {}))
        write_manifest(directory, EXPORT_KIND)
    return Exported(out, layout.architecture, num_parameters, files, parity)


def write_tokenizer(tokenizer: BPETokenizer, directory: Path, max_length: int) -> None:
    """Write the tokenizer's files beside a model's, so that both give the same ids.

    The post-processor is left out: ours would put the end token after a prompt, and those of
    other makers one before it, where prompts here have neither. So the file's digest is another.
    """
    own = directory / "tokenizer"
    tokenizer.save_pretrained(own)
    (own / MANIFEST_NAME).unlink()
    for name in TOKENIZER_NAMES:
        (own / name).rename(directory / name)
    own.rmdir()
    definition = directory / TOKENIZER_NAMES[0]
    values = read_json(definition)
    after = values.get("post_processor")
    if isinstance(after, dict) and after.get("type") != "ByteLevel":
        write_json(definition, values | {"post_processor": None})
    settings = directory / TOKENIZER_NAMES[1]
    write_json(settings, read_json(settings) | {"model_max_length": max_length})


def _prove(
    directory: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: BPETokenizer | None,
    stored_type: torch.dtype,
) -> Parity:
    """Compare the directory with a model of the same tensors, rounded as they were stored."""
    unrounded = None
    if stored_type != torch.float32:
        unrounded = _model(config, tensors, torch.float32, tokenizer)
    model = _model(config, tensors, stored_type, tokenizer)
    return check_parity(directory, model, tokenizer, ours=True, unrounded=unrounded)


def _model(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    stored_type: torch.dtype,
    tokenizer: BPETokenizer | None,
) -> TransformerLM:
    """A model on the CPU, in float32, with the tensors rounded to `stored_type`."""
    model = TransformerLM(config)
    own: dict[str, Any] = {
        name: tensor.detach().to("cpu", stored_type).float() for name, tensor in tensors.items()
    }
    if config.tie_embeddings:
        own["head.weight"] = own["embedding.weight"]
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise ExportError(f"the tensors do not fit the configuration: {error}") from None
    model.tokenizer_digest = None if tokenizer is None else tokenizer.digest
    return model.eval()
