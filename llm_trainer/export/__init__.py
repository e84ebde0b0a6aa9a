"""The export room: models in the formats of others, and theirs in ours, each with a proof.

Names are looked up when they are first used, so that importing the package stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_trainer.export.huggingface import Exported, export_model, export_tensors
    from llm_trainer.export.importing import Imported, import_model
    from llm_trainer.export.layouts import Layout, layout_for, layout_of

_HOMES = {
    "Exported": "huggingface",
    "Imported": "importing",
    "Layout": "layouts",
    "export_model": "huggingface",
    "export_tensors": "huggingface",
    "import_model": "importing",
    "layout_for": "layouts",
    "layout_of": "layouts",
}

__all__ = [
    "Exported",
    "Imported",
    "Layout",
    "export_model",
    "export_tensors",
    "import_model",
    "layout_for",
    "layout_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
