"""The rows of the fault table, in its order; each is imported when it runs."""

from __future__ import annotations

ROWS: dict[str, str] = {
    "P1": "benchmarks.soak.p1_pipeline_kills",
    "P2": "benchmarks.soak.p2_two_repros",
    "P3": "benchmarks.soak.p3_orphans",
    "P4": "benchmarks.soak.p4_cost_of_checks",
}
"""Name of the row -> module that holds it as `ROW`."""
