"""The model card: README.md of an export, for people and for the Hub. No times, no paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_trainer.config.model import ModelConfig
from llm_trainer.export.layout import Layout
from llm_trainer.json_file import read_json

CARD_NAME = "README.md"
LINEAGE_NAME = "lineage.json"
"""Beside a trained model's weights: what made it (`llm_trainer.training.lineage`)."""


def read_origin(directory: Path) -> dict[str, str]:
    """The digests that say where a model comes from; empty if its directory does not tell.

    Raises:
        IntegrityError: lineage.json is no JSON.
    """
    if not (directory / LINEAGE_NAME).is_file():
        return {}
    lineage = read_json(directory / LINEAGE_NAME)
    if not isinstance(lineage, Mapping):
        return {}
    data = lineage.get("data")
    named = {
        "training run": lineage.get("fingerprint"),
        "tokenizer": lineage.get("tokenizer_digest"),
        **{
            label: data.get(key)
            for label, key in (("packed rows", "packed_digest"), ("raw text", "raw_digest"))
            if isinstance(data, Mapping)
        },
    }
    return {label: digest for label, digest in named.items() if isinstance(digest, str)}


def model_card(
    layout: Layout, config: ModelConfig, facts: Mapping[str, Any], origin: Mapping[str, str]
) -> str:
    """The text of the card.

    Args:
        layout: of the export.
        config: of the model.
        facts: what else to tell, name -> value.
        origin: what the model was made from, name -> digest.
    """
    table = {
        "Architecture": layout.architecture,
        "Layers": config.n_layers,
        "Width": config.d_model,
        "Heads (key and value heads)": f"{config.n_heads} ({config.num_kv_heads})",
        "Feed-forward width": config.d_ff,
        "Context, in tokens": f"{config.max_seq_len:,}",
        "Vocabulary, in tokens": f"{config.vocab_size:,}",
        **facts,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in table.items())
    digests = "\n".join(f"| {name} | `{digest}` |" for name, digest in origin.items())
    source = f"\n## Origin\n\n| sha256 of | |\n| --- | --- |\n{digests}\n" if origin else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- llm-trainer
---

# {layout.name} language model

Trained with LLM Trainer and exported to the format of Hugging Face. `parity.json` says how the
logits and greedy texts of both compare.

| | |
| --- | --- |
{rows}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this directory")
tokenizer = AutoTokenizer.from_pretrained("this directory")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))
```
{source}"""
