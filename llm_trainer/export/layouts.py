"""The layouts of Hugging Face that hold our models exactly, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import ModelConfigurationError
from llm_trainer.export.gpt import GPT2, GPTNeoX
from llm_trainer.export.layout import Layout
from llm_trainer.export.llama import Llama, Qwen3

__all__ = ["LAYOUTS", "Layout", "layout_for", "layout_of"]

LAYOUTS: tuple[Layout, ...] = (Llama(), Qwen3(), GPTNeoX(), GPT2())
"""All of them, in the order in which they are tried; no two hold the same configuration."""


def layout_for(config: ModelConfig) -> Layout:
    """The layout that holds `config` exactly.

    Raises:
        ModelConfigurationError: none does; says what would have to change for the nearest.
    """
    config.validate()
    reasons: dict[str, list[str]] = {}
    for layout in LAYOUTS:
        problems = layout.problems(config)
        if not problems:
            return layout
        reasons[layout.name] = problems
    fewest = min(len(problems) for problems in reasons.values())
    raise ModelConfigurationError(
        "\n".join(
            ["no Hugging Face layout holds this configuration exactly"]
            + [f"for {name}: {', '.join(p)}" for name, p in reasons.items() if len(p) == fewest]
        )
    )


def layout_of(values: Mapping[str, Any], where: str = "config.json") -> Layout:
    """The layout that a config.json of theirs names; `where` names the file in messages.

    Raises:
        ModelConfigurationError: it is none that we know.
    """
    known = {layout.model_type: layout for layout in LAYOUTS}
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise ModelConfigurationError(
            f"{where}: model_type ({kind!r}) is not one that can be imported; these can: "
            f"{', '.join(known)}"
        )
    return known[kind]
