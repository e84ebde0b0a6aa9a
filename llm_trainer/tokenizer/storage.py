"""A tokenizer directory: `tokenizer.json`, `tokenizer_config.json`, `manifest.json`.

`tokenizer.json` is the whole tokenizer. `tokenizer_config.json` names the control tokens, for
`transformers.AutoTokenizer` and for us. The manifest has the sha256 of both; a directory without
one, made by other tools, is read after the same checks of its content.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_trainer.config.checks import place, refuse, shown
from llm_trainer.exceptions import IntegrityError, TokenizerError
from llm_trainer.files import atomic_directory, is_partial, write_json, write_text
from llm_trainer.json_file import read_json
from llm_trainer.manifests import MANIFEST_NAME, verify_manifest, write_manifest
from llm_trainer.tokenizer.definition import Definition, parse_definition

KIND = "tokenizer"
_OTHER_KINDS = ("model", "huggingface")
"""Kinds of directories that may have a tokenizer's files among their own."""
DEFINITION_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
_NAMES = {DEFINITION_NAME, CONFIG_NAME, MANIFEST_NAME}
_REMEDY = "save the tokenizer again, or run `dvc repro train_tokenizer`"

END_TOKEN = "<|endoftext|>"
"""Ends a document, and starts the next; id 0."""
PAD_TOKEN = "<|pad|>"
"""Fills rows that are too short; id 1, unless the vocabulary is too small for it."""
_KNOWN_END_TOKENS = (END_TOKEN, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>")


@dataclass(frozen=True)
class Stored:
    """A tokenizer as it lies on disk."""

    definition: Definition
    end_token: str
    """Control token that ends a document."""
    pad_token: str
    """Control token that fills short rows; may be the end token."""


def save(stored: Stored, directory: str | os.PathLike[str]) -> None:
    """Write a tokenizer directory as a whole; one that is there is replaced.

    Raises:
        TokenizerError: `directory` holds other things, which would be lost or mixed up.
        LLMTrainerError: it cannot be written.
    """
    refuse(TokenizerError, place("save_directory", directory))
    path = Path(directory)
    if path.exists():
        if not path.is_dir():
            raise TokenizerError(f"{path}: is a file; name a directory")
        others = sorted(
            entry.name
            for entry in path.iterdir()
            if entry.name not in _NAMES and not is_partial(entry.name)
        )
        if others:
            raise TokenizerError(
                f"{path}: holds other files ({', '.join(others[:3])}); save the tokenizer into a "
                f"directory of its own, such as {path / 'tokenizer'}"
            )
    with atomic_directory(path) as temporary:
        write_text(temporary / DEFINITION_NAME, stored.definition.text)
        write_json(temporary / CONFIG_NAME, _config(stored))
        write_manifest(temporary, KIND, **_facts(stored))


def load(directory: str | os.PathLike[str]) -> Stored:
    """Read and check a tokenizer directory, or the `tokenizer` directory inside a model's.

    Raises:
        TokenizerError: no such directory, or what it holds is no byte-level BPE tokenizer.
        IntegrityError: a file is damaged or differs from its manifest.
    """
    refuse(TokenizerError, place("load_directory", directory))
    path = Path(directory)
    if not (path / DEFINITION_NAME).is_file() and (path / KIND / DEFINITION_NAME).is_file():
        path = path / KIND
    if not path.is_dir():
        raise TokenizerError(f"{path}: no such directory; name one that save_pretrained wrote")
    manifest: Any = None
    if (path / MANIFEST_NAME).exists():
        manifest = read_json(path / MANIFEST_NAME)
        # One of a model speaks for a model that has a tokenizer.json among its files.
        if not isinstance(manifest, dict) or manifest.get("kind") not in _OTHER_KINDS:
            manifest = verify_manifest(path, KIND, remedy=_REMEDY)
        else:
            manifest = None
    if not (path / DEFINITION_NAME).is_file():
        raise TokenizerError(f"{path}: has no {DEFINITION_NAME}; {_REMEDY}")
    definition = parse_definition(read_json(path / DEFINITION_NAME), str(path / DEFINITION_NAME))
    config: Any = {}
    if (path / CONFIG_NAME).is_file():
        config = read_json(path / CONFIG_NAME)
        if not isinstance(config, dict):
            raise TokenizerError(f"{path / CONFIG_NAME}: must be a JSON object")
    end_token = _named(config, "eos_token", definition, path) or _known_end(definition, path)
    pad_token = _named(config, "pad_token", definition, path) or end_token
    stored = Stored(definition, end_token, pad_token)
    for name, value in _facts(stored).items():
        if manifest is not None and manifest.get(name) != value:
            raise IntegrityError(
                f"{path / MANIFEST_NAME}: {name} is {shown(manifest.get(name))}, but the tokenizer "
                f"has {shown(value)}; {_REMEDY}"
            )
    return stored


def _facts(stored: Stored) -> dict[str, str | int]:
    """What the manifest says beside the files' digests."""
    definition = stored.definition
    return {
        "digest": definition.digest,
        "vocab_size": definition.size,
        "end_id": definition.control[stored.end_token],
        "pad_id": definition.control[stored.pad_token],
    }


def _config(stored: Stored) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": stored.end_token,
        "eos_token": stored.end_token,
        "pad_token": stored.pad_token,
        # Decoded text is the encoded text, and control tokens are never read out of text.
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }


def _named(config: dict[str, Any], key: str, definition: Definition, path: Path) -> str | None:
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is None:
        return None
    if not isinstance(value, str) or value not in definition.control:
        raise TokenizerError(
            f"{path / CONFIG_NAME}: {key} is {value!r}, which is no special token of "
            f"{DEFINITION_NAME} ({', '.join(list(definition.control)[:5]) or 'it has none'})"
        )
    return value


def _known_end(definition: Definition, path: Path) -> str:
    for token in _KNOWN_END_TOKENS:
        if token in definition.control:
            return token
    if len(definition.control) == 1:
        return next(iter(definition.control))
    raise TokenizerError(
        f"{path}: does not say which token ends a document; name it as eos_token in {CONFIG_NAME}"
    )
