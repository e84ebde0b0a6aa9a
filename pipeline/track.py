"""Send to MLflow what it lacks: `python -m pipeline.track [--uri URI] [--dry-run]`.

Every run of this checkout has a local record, which is compared with the server; whatever a dead
server or a stopped machine missed is sent, and nothing twice. In a clone the run that the
workspace shows is first put together from its metrics, curve, params and model.

Exit codes: 0 all there, 1 the server cannot be reached or a run could not be sent, 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llm_trainer.exceptions import IntegrityError, LockHeldError, TrackingError
from llm_trainer.training.tracking.destination import resolve_destination
from llm_trainer.training.tracking.factory import check_backends
from llm_trainer.training.tracking.record import RunRecord, run_directory
from pipeline.backfill import backfill, workspace_fingerprint
from pipeline.params import load_params
from pipeline.paths import MODEL
from pipeline.stage import main_checkout, run_stage

EXIT_NOT_SENT = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; ends the process with the exit codes of the header."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.track",
        description="Send to MLflow what it lacks of the runs of this checkout.",
    )
    parser.add_argument(
        "--uri",
        help="MLflow server or database; default: runtime.tracking_uri of params.yaml, "
        "MLFLOW_TRACKING_URI, or mlflow.db in the main checkout",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be sent, send nothing"
    )
    options = parser.parse_args(arguments)
    check_backends(["mlflow"])
    runtime, root = load_params().runtime, main_checkout()
    uri = options.uri or runtime.tracking_uri
    destination = resolve_destination(uri, runtime.experiment_name, root)
    checkpoints = root / runtime.checkpoint_root
    with tempfile.TemporaryDirectory() as scratch:
        records = sorted(path.parent for path in checkpoints.glob("*/run/run.json"))
        fingerprint = workspace_fingerprint()
        if fingerprint and run_directory(checkpoints, fingerprint) not in records:
            # kept beside the others, so that the next call finds it; a dry run leaves nothing
            place = Path(scratch) if options.dry_run else checkpoints
            record = RunRecord(run_directory(place, fingerprint))
            backfill(record, runtime.experiment_name)
            print(f"{_title(record)}: no record here, put together from metrics, plots and params")
            records.append(record.directory)
        if not records:
            print(
                f"nothing to send: no runs in {checkpoints}, and no model or metrics in the "
                f"workspace; `dvc repro` makes one, `dvc pull` fetches one"
            )
            return
        print(f"{'would send' if options.dry_run else 'sending'} to {destination.shown}")
        complete = _send(records, uri, root, dry_run=options.dry_run)
    if not complete:
        raise SystemExit(EXIT_NOT_SENT)


def _send(records: Sequence[Path], uri: str | None, root: Path, *, dry_run: bool) -> bool:
    from llm_trainer.training.tracking.mlflow_store import quiet_environment
    from llm_trainer.training.tracking.mlflow_sync import sync_run

    quiet_environment()
    complete = True
    for directory in records:
        record = RunRecord(directory)
        try:
            report = sync_run(
                directory, uri, root=root, dry_run=dry_run, model_places=(MODEL, root / MODEL)
            )
        except LockHeldError:
            print(f"{_title(record)}: is being sent by another process, which is left to it")
        except IntegrityError as error:
            print(f"error: track: {error}", file=sys.stderr)
            complete = False
        except TrackingError as error:
            print(
                f"error: track: {error}\nerror: track: nothing is lost; start the server, or name "
                f"another with --uri, and give the same command again",
                file=sys.stderr,
            )
            return False
        else:
            print(f"{_title(record)}: {report}")
    return complete


def _title(record: RunRecord) -> str:
    try:
        info = record.read_info()
    except IntegrityError:
        return str(record.directory)
    return info.name if info.name in info.fingerprint else f"{info.name} ({info.fingerprint[:8]})"


if __name__ == "__main__":
    run_stage("track", main)
