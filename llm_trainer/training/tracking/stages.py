"""What stages after training add to the run of a model: figures, files, the model itself.

The run is found by the model's `lineage.json`. As during training, everything goes into the local
record first; then the upload gets a few seconds, and what it cannot send waits for
`python -m pipeline.track`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_trainer.config import RuntimeConfig
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.manifests import MANIFEST_NAME
from llm_trainer.training.lineage import Lineage, read_lineage
from llm_trainer.training.tracking.destination import resolve_destination
from llm_trainer.training.tracking.factory import check_backends
from llm_trainer.training.tracking.mlflow_upload import Uploader, report
from llm_trainer.training.tracking.record import (
    RunInfo,
    RunRecord,
    flatten,
    model_entry,
    run_directory,
    strip_secrets,
)

logger = logging.getLogger(__name__)

PREFIXES = {"train": "run/", "evaluate": "eval/final_", "benchmark": "benchmark/"}
"""Stage -> prefix of its figures. `eval/loss` itself is the curve during training."""


def log_stage(
    model_dir: str | Path,
    stage: str,
    metrics: Mapping[str, Any],
    *,
    runtime: RuntimeConfig,
    root: str | Path,
    artifacts: Sequence[str | Path] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    ledgers: Mapping[str, str | Path] | None = None,
    params: Mapping[str, Any] | None = None,
    with_model: bool = False,
    upload: Uploader | None = None,
) -> bool:
    """Add what `stage` found out about the model in `model_dir` to its run.

    Numbers in `metrics` become metrics under PREFIXES[stage], other values tags `stage.name`.
    `artifacts` are copied; `samples` become a table; `ledgers` maps a stage to a directory with a
    manifest, or a JSON file, whose `ledger` joins one file. `params` is nested, as in
    `RunTracking.open`. `root` is the main checkout. `upload` is what `begin_upload` started for
    this model, if it was called. Returns whether a server has it all; False
    too if `runtime.report_to` has no mlflow. Raises nothing because of a server or a file.
    """
    root = Path(root).resolve()
    try:
        record = _open_record(model_dir, runtime, root)
        if params:
            info = record.read_info()
            info.params |= flatten(params)
            record.write_info(info)
        for path in artifacts:
            record.add_artifact(Path(path))
        if samples:
            columns = list(samples[0])
            rows = [[row.get(column, "") for column in columns] for row in samples]
            record.write_table(f"samples/{stage}.json", columns, rows)
        if ledgers:
            write_json(record.artifacts_path / "ledger.json", merge_ledgers(ledgers))
        figures = stage_values(stage, metrics)
        if with_model:
            figures["model"] = model_entry(Path(model_dir))
        record.write_stage(stage, figures)
    except (LLMTrainerError, OSError) as error:
        logger.warning("tracking: %s is not recorded for %s (%s)", stage, model_dir, error)
        return False
    added = f"{stage} and the model" if with_model else stage
    return _finish_upload(
        record, upload or _start_upload(record, runtime, root, Path(model_dir)), added
    )


def begin_upload(
    model_dir: str | Path, *, runtime: RuntimeConfig, root: str | Path
) -> Uploader | None:
    """Start the process that sends to the server while the stage still works.

    It takes seconds to get going, which a stage need not wait for at its end. Nothing is sent but
    what the run's record holds already, until `log_stage` is given the result. None where
    `runtime.report_to` has no mlflow or nothing can be sent. Raises nothing because of a server.
    """
    if "mlflow" not in runtime.report_to:
        return None
    root = Path(root).resolve()
    try:
        record = _open_record(model_dir, runtime, root)
    except (LLMTrainerError, OSError) as error:
        logger.debug("nothing to upload yet: %s", error)  # log_stage meets it again, and warns
        return None
    return _start_upload(record, runtime, root, Path(model_dir))


def log_model_artifacts(
    model_dir: str | Path,
    *,
    runtime: RuntimeConfig,
    root: str | Path,
    metrics: Mapping[str, Any] | None = None,
    artifacts: Sequence[str | Path] = (),
    ledgers: Mapping[str, str | Path] | None = None,
) -> bool:
    """Add a trained model to its run, loadable as `runs:/<run id>/model`; see `log_stage`."""
    return log_stage(
        model_dir, "train", metrics or {}, runtime=runtime, root=root, artifacts=artifacts,
        ledgers=ledgers, with_model=True,
    )  # fmt: skip


def stage_values(stage: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a stage as a record keeps them: `metrics`, `tags` and `time`."""
    prefix = PREFIXES.get(stage, f"{stage}/")
    numbers: dict[str, float | str] = {}
    tags: dict[str, str] = {}
    for key, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            # JSON has no NaN; float() reads the word back
            numbers[prefix + key] = value if math.isfinite(value) else str(value)
        elif value is not None:
            tags[f"{stage}.{key}"] = strip_secrets(str(value))
    return {"time": round(time.time(), 3), "metrics": numbers, "tags": tags}


def info_from_lineage(lineage: Lineage, experiment: str) -> RunInfo:
    """What is known about a run of which only the model is here."""
    datasets = {
        name: {
            "digest": lineage.data[f"{name}_digest"],
            "source": f"data/{name}",
            "context": "training",
        }
        for name in ("raw", "packed")
        if lineage.data.get(f"{name}_digest")
    }
    return RunInfo(
        name=lineage.fingerprint[:8],
        experiment=experiment,
        fingerprint=lineage.fingerprint,
        params=flatten(lineage.params),
        tags={
            "source": "lineage",
            "tokenizer_digest": lineage.tokenizer_digest,
            **flatten(lineage.packages, "package."),
        },
        datasets=datasets,
    )


def merge_ledgers(ledgers: Mapping[str, str | Path]) -> dict[str, Any]:
    """One ledger of several stages: stage -> the `ledger` of its manifest or JSON file."""
    merged = {}
    for stage, place in ledgers.items():
        path = Path(place)
        values = read_json(path / MANIFEST_NAME if path.is_dir() else path)
        merged[stage] = values.get("ledger", values)
    return merged


def _open_record(model_dir: str | Path, runtime: RuntimeConfig, root: Path) -> RunRecord:
    """The record of the model's run, begun if the run was made elsewhere."""
    lineage = read_lineage(model_dir)
    record = RunRecord(run_directory(root / runtime.checkpoint_root, lineage.fingerprint))
    if not record.info_path.exists():
        record.start(info_from_lineage(lineage, runtime.experiment_name))
        record.finish("FINISHED")
    return record


def _start_upload(
    record: RunRecord, runtime: RuntimeConfig, root: Path, model_dir: Path
) -> Uploader | None:
    if "mlflow" not in runtime.report_to:
        return None
    try:
        check_backends(["mlflow"])
        # the run's own experiment, should the configuration name another by now
        experiment = record.read_info().experiment
        destination = resolve_destination(runtime.tracking_uri, experiment, root)
        return Uploader(record, destination, model_places=(model_dir,))
    except (LLMTrainerError, OSError) as error:
        logger.warning("mlflow: %s", error)
        return None


def _finish_upload(record: RunRecord, upload: Uploader | None, added: str) -> bool:
    if upload is None:
        return False
    outcome = upload.finish()
    report(outcome, record, f"{added} added to run {outcome.run_name}")
    return outcome.ok
