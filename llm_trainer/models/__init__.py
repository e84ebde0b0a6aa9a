"""The model room: `TransformerLM`, its layers and KV cache, sampling and decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_trainer.models.cache import KVCache
    from llm_trainer.models.transformer import LMOutput, TransformerLM

__all__ = ["KVCache", "LMOutput", "TransformerLM"]

_HOMES = {
    "KVCache": "llm_trainer.models.cache",
    "LMOutput": "llm_trainer.models.transformer",
    "TransformerLM": "llm_trainer.models.transformer",
}


def __getattr__(name: str) -> Any:
    # torch is imported with the first name that needs it, not with the package
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
