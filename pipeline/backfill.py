"""The record of a run that happened elsewhere, from what git and DVC brought along.

A clone has `metrics/`, `plots/` and `params.yaml`, and after `dvc pull` the model: enough to show
the run in this checkout's MLflow. Without the model its fingerprint is unknown, and the digest
that `dvc.lock` has of it stands in.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from llm_trainer.exceptions import IntegrityError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.manifests import MANIFEST_NAME
from llm_trainer.training.lineage import Lineage, read_lineage
from llm_trainer.training.tracking.log import JsonlTracker, best_of
from llm_trainer.training.tracking.record import RunInfo, RunRecord, flatten, model_entry
from llm_trainer.training.tracking.stages import info_from_lineage, merge_ledgers, stage_values
from llm_trainer.training.tracking.tags import environment_tags
from pipeline.lock import locked_md5
from pipeline.params import PARAMS, load_params
from pipeline.paths import (
    BENCHMARK_METRICS,
    EVALUATE_METRICS,
    LOSS_PICTURE,
    MODEL,
    PACKED,
    RAW,
    SAMPLES,
    TRAIN_CURVE,
    TRAIN_METRICS,
)

COLUMNS = {
    "train_loss": "train/loss",
    "learning_rate": "train/lr",
    "grad_norm": "train/grad_norm",
    "eval_loss": "eval/loss",
    "eval_bits_per_byte": "eval/bits_per_byte",
}
"""Columns of the curve's CSV -> names that a live run has; others get `train/` before them."""
STAGES = {"train": TRAIN_METRICS, "evaluate": EVALUATE_METRICS, "benchmark": BENCHMARK_METRICS}


def workspace_fingerprint() -> str | None:
    """Which run the workspace shows: that of its model, or a stand-in from `dvc.lock`."""
    lineage = _lineage()
    if lineage is not None:
        return lineage.fingerprint
    digest = locked_md5(MODEL)
    if digest is not None and TRAIN_METRICS.is_file():
        return f"lock-{digest.removesuffix('.dir')}"
    return None


def backfill(record: RunRecord, experiment: str) -> None:
    """Write the record of the workspace's run; nothing in it says how a live one went on.

    Raises:
        IntegrityError: a metrics file or the curve is damaged; names it.
    """
    fingerprint = workspace_fingerprint()
    assert fingerprint is not None
    lineage = _lineage()
    if lineage is None:
        info = RunInfo(name=fingerprint[:13], experiment=experiment, fingerprint=fingerprint)
    else:
        info = info_from_lineage(lineage, experiment)
    if PARAMS.is_file():
        # what the model itself says wins over a file that may have been edited since
        info.params = {**flatten(load_params().sections()), **info.params}
    info.tags = {**environment_tags(Path.cwd()), **info.tags, "source": "backfill"}
    log = JsonlTracker(record.log_path)
    lowest: dict[str, float] = {}
    for step, metrics in curve(TRAIN_CURVE):
        log.log(step, {**metrics, **best_of(metrics, lowest)})
    log.finish("FINISHED")
    for stage, path in STAGES.items():
        if path.is_file():
            values = stage_values(stage, _metrics(path))
            if stage == "train" and (MODEL / MANIFEST_NAME).is_file():
                values["model"] = model_entry(MODEL)
            record.write_stage(stage, values)
    for file in (LOSS_PICTURE, TRAIN_CURVE):
        if file.is_file():
            record.add_artifact(file)
    if SAMPLES.is_dir():
        record.add_artifact(SAMPLES)
        _add_samples(record, SAMPLES / "samples.json")
    ledgers = {"download": RAW, "pack_sequences": PACKED}
    present = {stage: path for stage, path in ledgers.items() if (path / MANIFEST_NAME).is_file()}
    if present:
        write_json(record.artifacts_path / "ledger.json", merge_ledgers(present))
    # last: a directory without it is no record, so one that is cut off here is made anew
    record.start(info)
    record.finish("FINISHED")


def curve(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, metrics) of each row of a curve's CSV; empty cells are left out.

    Raises:
        IntegrityError: a cell is no number; names file and line.
    """
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                values = {key: float(cell) for key, cell in row.items() if cell}
                step = int(values.pop("step"))
            except (ValueError, TypeError, KeyError) as error:
                raise IntegrityError(
                    f"{path}:{reader.line_num}: not a row of numbers with a step ({error}); "
                    f"`git checkout {path}` restores it"
                ) from error
            yield step, {COLUMNS.get(key, f"train/{key}"): value for key, value in values.items()}


def _add_samples(record: RunRecord, path: Path) -> None:
    rows = read_json(path) if path.is_file() else []
    if rows:
        table = [[row["prompt"], row["text"]] for row in rows]
        record.write_table("samples/evaluate.json", ["prompt", "text"], table)


def _lineage() -> Lineage | None:
    try:
        return read_lineage(MODEL)
    except IntegrityError:
        if MODEL.exists():
            raise
        return None


def _metrics(path: Path) -> dict[str, object]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise IntegrityError(f"{path}: not a mapping of metrics; `git checkout {path}` restores it")
    return values
