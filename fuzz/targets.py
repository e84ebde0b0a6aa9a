"""The targets, by name; each is imported when it runs."""

from __future__ import annotations

TARGETS: dict[str, str] = {
    "config": "fuzz.config_file",
    "manifest": "fuzz.manifest",
    "checkpoint": "fuzz.checkpoint",
    "shard": "fuzz.shard",
    "jsonl": "fuzz.jsonl",
    "tokenizer": "fuzz.tokenizer_file",
}
"""Name -> module that holds it as `TARGET`."""
