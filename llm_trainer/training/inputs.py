"""What a run from a configuration file trains on: tokenizer and rows, made or found."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from llm_trainer.config import ModelConfig
from llm_trainer.data.prepare import (
    prepare_raw,
    prepare_rows,
    prepare_tokenizer,
    tokenizer_settings_digest,
)
from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import IntegrityError
from llm_trainer.manifests import read_manifest
from llm_trainer.models.storage import MODEL_KIND, TOKENIZER_FOLDER
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.training.lineage import LINEAGE_NAME, read_lineage
from llm_trainer.training.settings import RunSettings

logger = logging.getLogger(__name__)

TOKENIZER_SETTINGS = "tokenizer_settings"
"""Entry of a lineage's `data`: digest of the settings and the text that the tokenizer is of."""


@dataclass(frozen=True)
class RunInputs:
    """What training needs beside its configuration."""

    tokenizer: BPETokenizer
    rows: PackedRows
    """To train on."""
    validation: PackedRows
    model: ModelConfig
    """The configured shape, with the tokenizer's vocab_size."""
    lineage: dict[str, str]
    """What the lineage of the model's data is to say of the tokenizer."""


def prepare_inputs(
    settings: RunSettings, directory: Path, output: Path, *, retrain_tokenizer: bool = False
) -> RunInputs:
    """Text, tokenizer and rows of `settings`, kept in `directory`.

    A model in `output` gives its tokenizer, if that is of the same settings and text.

    Raises:
        LLMTrainerError: as `prepare_data`, `build_tokenizer` and `pack_corpus`.
    """
    raw = prepare_raw(settings.source, directory)
    digest = tokenizer_settings_digest(raw, settings.tokenizer)
    tokenizer = None if retrain_tokenizer else _saved_tokenizer(output, digest)
    if tokenizer is None:
        tokenizer = prepare_tokenizer(raw, settings.tokenizer, directory, retrain=retrain_tokenizer)
    rows, validation = prepare_rows(
        raw, tokenizer, settings.packing, directory, num_workers=settings.num_workers
    )
    model = replace(settings.model, vocab_size=tokenizer.vocab_size)
    if not settings.staged and settings.model.vocab_size != model.vocab_size:
        logger.warning(
            "model.vocab_size: %s, the tokenizer's, instead of %s",
            f"{model.vocab_size:,}", f"{settings.model.vocab_size:,}",
        )  # fmt: skip
    return RunInputs(tokenizer, rows, validation, model, {TOKENIZER_SETTINGS: digest})


def _saved_tokenizer(output: Path, digest: str) -> BPETokenizer | None:
    """The tokenizer of the model in `output`, if its lineage names these settings."""
    if not (output / LINEAGE_NAME).is_file():
        return None
    try:
        read_manifest(output, MODEL_KIND, remedy="a new model is written")
        if read_lineage(output).data.get(TOKENIZER_SETTINGS) != digest:
            logger.info("%s: its tokenizer is of other settings or text", output)
            return None
        tokenizer = BPETokenizer.from_pretrained(output / TOKENIZER_FOLDER)
    except IntegrityError as error:
        logger.warning("%s: its tokenizer is not used: %s", output, error)
        return None
    logger.info("using the tokenizer in %s", output)
    return tokenizer
