"""`python -m benchmarks.soak [--only A1] [--scale 0.1]`: inject the faults, write the figures."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.soak.row import Row
from benchmarks.soak.rows import ROWS
from llm_trainer.files import write_text
from llm_trainer.json_file import read_json
from llm_trainer.utils.machine import describe_machine

RESULTS = Path(__file__).parent.parent / "soak.json"


def main() -> int:
    """Run the chosen rows and return 1 if one fell short."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), help="rows to run; all by default")
    parser.add_argument(
        "--scale", type=float, default=1.0,
        help="share of the table's numbers of injections; below 1 nothing is written",
    )  # fmt: skip
    options = parser.parse_args()
    failed = False
    for name in options.only or ROWS:
        row: Row = importlib.import_module(ROWS[name]).ROW
        print(f"{name}: {row.fault}", flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            report = row.run(Path(folder), options.scale)
        counters = report.counters | {"seconds": round(time.monotonic() - started)}
        for counter, value in counters.items():
            print(f"    {counter}: {value}")
        for sentence in report.shortfalls:
            print(f"    FELL SHORT: {sentence}")
        failed |= bool(report.shortfalls)
        if options.scale == 1:
            _record(name, row, counters, report.shortfalls)
    return int(failed)


def _record(name: str, row: Row, counters: dict[str, int | float], shortfalls: list[str]) -> None:
    """Put one row into the results; the other rows stay as they are."""
    results: dict[str, Any] = read_json(RESULTS) if RESULTS.exists() else {}
    rows = results.get("rows", {})
    rows[name] = {"fault": row.fault, "counters": counters, "shortfalls": shortfalls}
    ordered = {known: rows[known] for known in ROWS if known in rows}
    results = {"machine": describe_machine(), "rows": ordered}
    write_text(RESULTS, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
