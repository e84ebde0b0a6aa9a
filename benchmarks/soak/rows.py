"""The rows of the fault table, in its order; each is imported when it runs."""

from __future__ import annotations

ROWS: dict[str, str] = {
    "A1": "benchmarks.soak.random_kills",
    "A2": "benchmarks.soak.save_kills",
    "A2-ranks": "benchmarks.soak.rank_deaths",
    "A3": "benchmarks.soak.stop_signals",
    "A4": "benchmarks.soak.full_disk",
    "A5": "benchmarks.soak.unwritable",
    "A6": "benchmarks.soak.damaged_checkpoints",
    "A7": "benchmarks.soak.other_runs",
    "A8": "benchmarks.soak.changed_rates",
    "A9": "benchmarks.soak.two_trainings",
    "A10": "benchmarks.soak.not_finite",
    "A11": "benchmarks.soak.loader_faults",
    "A13": "benchmarks.soak.clocks",
    "A14": "benchmarks.soak.tracking_server",
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
    "P4-step": "benchmarks.soak.step_cost",
}
"""Name of the row -> module that holds it as `ROW`."""
