"""Where a model comes from: `python -m pipeline.lineage [models/final] [--json]`.

Prints the chain model -> params, code, tokenizer, packed rows, raw text -> origin, each compared
with what is on disk now, then the MLflow run and the git revision that have this model.

Exit codes: 0, 1 if something on disk differs from what made the model, 2 wrong input.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llm_trainer.exceptions import ConfigurationError, TrackingError
from llm_trainer.training.lineage import Lineage, read_lineage
from llm_trainer.training.tracking.destination import resolve_destination
from llm_trainer.training.tracking.stages import info_from_lineage
from pipeline.chain import Link, chain
from pipeline.lock import directory_md5, locked_md5, revision_with
from pipeline.params import PARAMS, load_params
from pipeline.paths import MODEL
from pipeline.stage import main_checkout, run_stage

EXIT_DIFFERS = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; ends the process with the exit codes of the header."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.lineage", description="Print where a model comes from."
    )
    parser.add_argument(
        "model", nargs="?", type=Path, default=MODEL, help="model directory (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not options.model.is_dir():
        raise ConfigurationError(
            f"{options.model}: no such model directory; `dvc repro train` makes one, `dvc pull` "
            f"fetches one"
        )
    lineage = read_lineage(options.model)
    links = chain(options.model, lineage)
    tracked, revision = mlflow_run(lineage), git_revision(options.model)
    if options.json:
        values = {
            "model": options.model.as_posix(),
            "fingerprint": lineage.fingerprint,
            "links": [asdict(link) for link in links],
            "mlflow": tracked,
            "git": revision,
        }
        print(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        print(render(options.model, lineage, links, tracked, revision))
    if any(link.state == "differs" and link.counts for link in links):
        raise SystemExit(EXIT_DIFFERS)


def mlflow_run(lineage: Lineage) -> dict[str, str | None]:
    """The model's run: `store`, and `run_id`, `name`, `url`, or `problem`."""
    runtime = load_params().runtime if PARAMS.is_file() else None
    uri, experiment = (
        (runtime.tracking_uri, runtime.experiment_name) if runtime else (None, "llm-trainer")
    )
    destination = resolve_destination(uri, experiment, main_checkout())
    found: dict[str, str | None] = {"store": destination.shown}
    if destination.database is not None and not destination.database.is_file():
        return {**found, "problem": "no database yet"}
    from llm_trainer.training.tracking.mlflow_session import Session
    from llm_trainer.training.tracking.mlflow_store import quiet_environment

    quiet_environment()
    info = info_from_lineage(lineage, experiment)
    try:
        session = Session(destination, info, dry_run=True)
    except (TrackingError, ImportError) as error:
        return {**found, "problem": str(error)}
    if session.run is None:
        return {**found, "problem": "no such run; `python -m pipeline.track` sends it"}
    return {
        **found, "run_id": session.run_id, "name": session.run.info.run_name, "url": session.url
    }  # fmt: skip


def git_revision(model: Path) -> dict[str, str] | None:
    """The commit whose `dvc.lock` has this model, or None."""
    digest = directory_md5(model)
    revision = revision_with(digest)
    if revision is not None:
        return asdict(revision)
    if locked_md5(MODEL) == digest:
        return {"commit": "", "name": "not committed yet", "subject": "", "date": ""}
    return None


def render(
    model: Path,
    lineage: Lineage,
    links: Sequence[Link],
    tracked: dict[str, str | None],
    revision: dict[str, str] | None,
) -> str:
    """The chain as text."""
    lines = [f"{model}: run {lineage.fingerprint[:12]}", ""]
    for link in links:
        detail = f"  {link.detail}" if link.detail else ""
        value = link.value[:12] if len(link.value) == 64 else link.value  # a digest
        lines.append(f"  {link.name:<12} {link.state:<8} {value:<12}{detail}")
    if tracked.get("run_id"):
        run = f"run {tracked['name']} ({tracked['run_id']}) in {tracked['url'] or tracked['store']}"
    else:
        run = f"{tracked['problem']} ({tracked['store']})"
    lines.append(f"  {'mlflow':<12} {run}")
    if revision is None:
        known = "no commit's dvc.lock has this model"
    elif not revision["commit"]:
        known = "in dvc.lock, which is not committed yet"
    else:
        place = f"{revision['commit'][:10]} ({revision['name']}, {revision['date']})"
        known = f"{place}: {revision['subject']}"
    lines.append(f"  {'git':<12} {known}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage("lineage", main)
