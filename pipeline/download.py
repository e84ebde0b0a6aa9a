"""Stage `download`: the corpus as documents in Parquet, split into train and validation."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from llm_trainer.data.engine import Engine
from llm_trainer.data.raw import build_raw
from llm_trainer.files import write_json
from pipeline.params import load_params
from pipeline.paths import DOWNLOAD_METRICS, RAW
from pipeline.stage import stage_program


def main() -> None:
    """Read the source that `data` names; write data/raw and its metrics."""
    params = load_params()
    runtime = params.runtime
    engine = Engine(runtime.engine, runtime.ray_address, runtime.preprocessing_num_workers)
    metrics = build_raw(params.data, RAW, engine=engine)
    write_json(DOWNLOAD_METRICS, metrics)
    print(
        f"{metrics['dataset_name']}: {metrics['train_documents']:,} documents "
        f"({metrics['train_bytes'] / 1e6:,.1f} MB) to train on, "
        f"{metrics['validation_documents']:,} ({metrics['validation_bytes'] / 1e6:,.1f} MB) to "
        f"validate on"
    )
    difference = compare(metrics, _committed_metrics())
    if difference:
        print(difference)


def compare(metrics: dict[str, Any], committed: dict[str, Any]) -> str | None:
    """One line if this corpus is another than the committed one of the same name, and why.

    Only the standard library's corpus is compared: any other is what the user made it.
    """
    if not {"dataset_name", "python_version", "raw_digest"} <= metrics.keys() & committed.keys():
        return None
    if metrics["dataset_name"] != committed["dataset_name"]:
        return None
    if metrics["raw_digest"] == committed["raw_digest"]:
        return None
    here, there = metrics["python_version"], committed["python_version"]
    if here == there:
        return (
            f"note: the corpus differs from the committed one, although both are of Python {here} "
            f"(other settings, another pyarrow, or a distributor's changes); figures may differ"
        )
    return (
        f"note: the corpus differs from the committed one, because it is the standard library of "
        f"Python {here}, and that one of Python {there}; figures will differ a little"
    )


def _committed_metrics() -> dict[str, Any]:
    """The metrics of the last commit; empty without git, a commit, or such a file in it."""
    command = ["git", "show", f"HEAD:./{DOWNLOAD_METRICS.as_posix()}"]
    try:
        shown = subprocess.run(command, capture_output=True, timeout=10, check=True).stdout
        values = json.loads(shown)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


if __name__ == "__main__":
    stage_program("download", main, __doc__)
