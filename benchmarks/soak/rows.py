"""The rows of the fault table, in its order; each is imported when it runs."""

from __future__ import annotations

ROWS: dict[str, str] = {
    "B1": "benchmarks.soak.jsonl",
    "B2": "benchmarks.soak.strings",
    "B3": "benchmarks.soak.empty_text",
    "B4": "benchmarks.soak.big_documents",
    "B5": "benchmarks.soak.control_tokens",
    "B6": "benchmarks.soak.damaged_data",
    "B7": "benchmarks.soak.packed_fields",
    "B8": "benchmarks.soak.dvc_cache",
    "B9": "benchmarks.soak.downloads",
    "C1": "benchmarks.soak.hostile_models",
    "C2": "benchmarks.soak.generation",
    "C3": "benchmarks.soak.command_line",
    "C4": "benchmarks.soak.servers",
    "P1": "benchmarks.soak.p1_pipeline_kills",
    "P2": "benchmarks.soak.p2_two_repros",
    "P3": "benchmarks.soak.p3_orphans",
    "P4": "benchmarks.soak.p4_cost_of_checks",
}
"""Name of the row -> module that holds it as `ROW`."""
