"""What a model is given, checked before torch computes with it.

Out of its kernels an id beyond the vocabulary is "index out of range in self", or on a CUDA device
an assertion that ends the process. Price: on a CPU two passes over the ids; on a CUDA device one
wait for it, so only the calls of users come through here, and training and decoding steps do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_trainer.config.checks import instance, refuse, shown
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import ConfigurationError, DataError

if TYPE_CHECKING:
    from llm_trainer.models.cache import KVCache

WHOLE_TYPES = (torch.long, torch.int)
IGNORED = -100
"""Label of a position that is no target."""


def usable_device(device: torch.device | str, name: str = "device") -> torch.device:
    """The device, if it is one and is here.

    Raises:
        ConfigurationError: names parameter and value, and devices that there are.
    """
    try:
        if not isinstance(device, torch.device | str):
            raise TypeError
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigurationError(
            f"{name} ({shown(device)}) is not a torch device; use auto, cpu, cuda, cuda:1 or mps"
        ) from None
    if found.type == "cpu":
        return found
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(found.type, False):
        raise ConfigurationError(f"{name} ({device!r}) is not available here; use auto or cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"{name} ({device!r}): there are only {torch.cuda.device_count()} CUDA devices"
        )
    return found


def language_model(name: str, model: Any, *needs: str) -> list[str]:
    """A problem line unless `model` is a module on a device that has what is needed of it.

    That may be ours, a compiled one, or another library's.
    """
    if isinstance(model, nn.Module) and all(hasattr(model, need) for need in ("device", *needs)):
        return []
    return [f"{name} ({shown(model)}) must be a TransformerLM; make one, or use from_pretrained"]


def check_forward(
    config: ModelConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    segments: Tensor | None,
    cache: KVCache | None,
) -> None:
    """Refuse what `TransformerLM.forward` cannot compute with; the arguments are its own.

    Raises:
        DataError: names argument, value and what would be right.
    """
    if torch.compiler.is_compiling():
        return  # looking at values would break the graph
    refuse(DataError, ids_problems("input_ids", input_ids, config.vocab_size))
    batch, time = input_ids.shape
    past = _check_cache(cache, batch, time)
    if past + time > config.max_seq_len:
        raise DataError(
            f"input_ids of shape {tuple(input_ids.shape)}: {past + time} tokens are more than "
            f"max_seq_len ({config.max_seq_len}); give fewer, or make a model with a larger one"
        )
    lengths = {past + time} | ({cache.max_length} if cache is not None else set())
    refuse(
        DataError,
        _mask_problems(attention_mask, batch, lengths),
        _like("segments", segments, input_ids),
        _label_problems(labels, input_ids, config.vocab_size),
    )
    if segments is not None and (cache is not None or attention_mask is not None):
        other = "cache" if cache is not None else "attention_mask"
        raise DataError(f"segments and {other} cannot be used together; leave one of them out")


def ids_problems(name: str, ids: Any, vocab_size: int) -> list[str]:
    """What is wrong with ids of shape (batch, time)."""
    found = instance(name, ids, Tensor, hint="make one with torch.tensor([[1, 2, 3]])")
    if found:
        return found
    if ids.ndim != 2 or ids.dtype not in WHOLE_TYPES or 0 in ids.shape:
        return [
            f"{name} are {ids.dtype} of shape {tuple(ids.shape)}; give whole numbers of shape "
            f"(batch, time), at least one"
        ]
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        return [
            f"{name} go from {low} to {high}, but the model knows 0 to {vocab_size - 1}; use the "
            f"tokenizer that it was trained with"
        ]
    return []


def _check_cache(cache: KVCache | None, batch: int, time: int) -> int:
    """Tokens that the cache holds; an error if it has no room, or is of another batch."""
    from llm_trainer.models.cache import KVCache

    refuse(DataError, instance("cache", cache, KVCache, none=True))
    if cache is None:
        return 0
    if cache.batch_size != batch or cache.length + time > cache.max_length:
        raise DataError(
            f"cache: made for {cache.batch_size} rows of {cache.max_length} tokens, of which it "
            f"holds {cache.length}, but input_ids have {batch} rows of {time}; make a larger one"
        )
    return cache.length


def _mask_problems(mask: Tensor | None, batch: int, lengths: set[int]) -> list[str]:
    found = instance("attention_mask", mask, Tensor, none=True)
    if mask is None or found:
        return found
    if mask.ndim == 2 and mask.shape[0] == batch and mask.shape[1] in lengths:
        return []
    wanted = " or ".join(f"({batch}, {length})" for length in sorted(lengths))
    return [f"attention_mask has shape {tuple(mask.shape)}; give one of {wanted}"]


def _like(name: str, values: Tensor | None, ids: Tensor) -> list[str]:
    found = instance(name, values, Tensor, none=True)
    if values is None or found or values.shape == ids.shape:
        return found
    return [f"{name} have shape {tuple(values.shape)}; give {tuple(ids.shape)}, as input_ids have"]


def _label_problems(labels: Tensor | None, ids: Tensor, vocab_size: int) -> list[str]:
    found = _like("labels", labels, ids)
    if labels is None or found:
        return found
    if labels.dtype != torch.long:
        return [f"labels are {labels.dtype}; give whole numbers (torch.long)"]
    targets = labels[labels != IGNORED]
    low, high = (int(targets.min()), int(targets.max())) if targets.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        return [
            f"labels go from {low} to {high}, but the model knows 0 to {vocab_size - 1}; set "
            f"them to {IGNORED} where there is no target"
        ]
    return []
