"""Byte-level BPE: training, encoding, decoding, files.

Names are looked up when they are first used, so that importing the package stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_trainer.tokenizer.bpe import BPETokenizer
    from llm_trainer.tokenizer.encoder import FastEncoder

_HOMES = {"BPETokenizer": "bpe", "FastEncoder": "encoder"}

__all__ = ["BPETokenizer", "FastEncoder"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
