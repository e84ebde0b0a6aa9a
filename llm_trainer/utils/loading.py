"""A model and its tokenizer, loaded together and proven to belong together."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from llm_trainer.config.checks import instance, place, refuse
from llm_trainer.exceptions import ConfigurationError, IntegrityError

if TYPE_CHECKING:
    import torch

    from llm_trainer.models.transformer import TransformerLM
    from llm_trainer.tokenizer.bpe import BPETokenizer

logger = logging.getLogger(__name__)


def load_model_and_tokenizer(
    path: str | Path,
    device: torch.device | str = "auto",
    *,
    tokenizer_path: str | Path | None = None,
) -> tuple[TransformerLM, BPETokenizer]:
    """Load a model directory and the tokenizer in it, in evaluation mode.

    Args:
        path: a directory such as `models/final`, with the tokenizer in `tokenizer/` or beside the
            model's own files.
        device: a torch device, or auto for cuda, mps, cpu in this order.
        tokenizer_path: directory of the tokenizer, if it is not in `path`.

    Raises:
        IntegrityError: a file is missing or damaged, or model and tokenizer do not fit.
        TokenizerError: there is no tokenizer.
        ConfigurationError: no such device, or the model's configuration is impossible.
    """
    from llm_trainer.models.transformer import TransformerLM
    from llm_trainer.tokenizer.bpe import BPETokenizer
    from llm_trainer.utils.device import get_device

    refuse(
        ConfigurationError,
        place("path", path),
        place("tokenizer_path", tokenizer_path, none=True),
    )
    target = get_device(device)
    model = TransformerLM.from_pretrained(path, target)
    tokenizer = BPETokenizer.from_pretrained(path if tokenizer_path is None else tokenizer_path)
    check_pair(model, tokenizer)
    return model, tokenizer


def check_pair(model: TransformerLM, tokenizer: BPETokenizer) -> None:
    """Refuse a tokenizer that the model was not trained with.

    A model that does not say which one it was trained with takes any that its vocabulary holds.

    Raises:
        IntegrityError: other digests, both named, or more tokens than the model knows.
        TokenizerNotTrainedException: the tokenizer has no vocabulary yet.
        ConfigurationError: one of them is something else altogether.
    """
    from llm_trainer.models.transformer import TransformerLM
    from llm_trainer.tokenizer.bpe import BPETokenizer

    refuse(
        ConfigurationError,
        instance("model", model, TransformerLM, hint="make one, or use from_pretrained"),
        instance("tokenizer", tokenizer, BPETokenizer, hint="train one, or use from_pretrained"),
    )
    digest = tokenizer.digest
    if model.tokenizer_digest is not None and model.tokenizer_digest != digest:
        raise IntegrityError(
            f"this tokenizer ({digest}) is not the one that the model was trained with "
            f"({model.tokenizer_digest}): its ids mean other texts; use the model's own, which "
            f"lies in its directory"
        )
    known = model.config.vocab_size
    if tokenizer.vocab_size > known:
        raise IntegrityError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the model knows "
            f"{known:,}; use the tokenizer that the model was trained with, or make the model with "
            f"vocab_size={tokenizer.vocab_size}"
        )
    if tokenizer.vocab_size < known:
        _warn_of_spare_tokens(known, tokenizer.vocab_size)


@cache
def _warn_of_spare_tokens(known: int, named: int) -> None:
    """Once for each pair of sizes, however many generators are made."""
    logger.warning(
        "the model knows %s tokens, the tokenizer %s: the others are never generated",
        f"{known:,}", f"{named:,}",
    )  # fmt: skip
