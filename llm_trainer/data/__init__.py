"""From raw text to rows of tokens: sources, raw Parquet, packing, data sets, the ledger.

Names are looked up when they are first used: the readers of raw text need neither torch nor
`datasets`, and importing this package imports none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_trainer.data.dataset import LanguageModelingDataset
    from llm_trainer.data.documents import Document
    from llm_trainer.data.ledger import Ledger
    from llm_trainer.data.loader import create_dataloader
    from llm_trainer.data.packing import pack_corpus
    from llm_trainer.data.raw import RawCorpus, build_raw
    from llm_trainer.data.shards import PackedRows
    from llm_trainer.data.sources import iter_documents

_HOMES = {
    "Document": "documents",
    "LanguageModelingDataset": "dataset",
    "Ledger": "ledger",
    "PackedRows": "shards",
    "RawCorpus": "raw",
    "build_raw": "raw",
    "create_dataloader": "loader",
    "iter_documents": "sources",
    "pack_corpus": "packing",
}

__all__ = [
    "Document",
    "LanguageModelingDataset",
    "Ledger",
    "PackedRows",
    "RawCorpus",
    "build_raw",
    "create_dataloader",
    "iter_documents",
    "pack_corpus",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
