"""Find what would stop the pipeline before it starts: `python -m pipeline.check`.

Checks params.yaml as a whole, the text that it names, trackers, compiler, git and disk, in well
under a second and without a network: `make repro` runs it first. What cannot work is an error
(exit code 2, all of them at once); what merely surprises is a note.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_trainer.config import Experiment
from llm_trainer.config.data import STDLIB_DATASET
from llm_trainer.config.loader import read_config_file
from llm_trainer.exceptions import ConfigurationError, IntegrityError, LLMTrainerError
from llm_trainer.json_file import read_json
from llm_trainer.utils.compiler import compiler_problem
from pipeline.lock import LOCK
from pipeline.params import PARAMS, load_params
from pipeline.paths import DOWNLOAD_METRICS, RAW
from pipeline.stage import main_checkout, run_stage

MIN_FREE_BYTES = 512 * 2**20
"""What the smallest run needs for data, model, checkpoints and DVC's copies of them."""
DISK_PER_TEXT_BYTE = 2
"""Raw text compressed and packed rows, each once in the workspace and once in DVC's cache."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.check",
        description="Check params.yaml and this machine before the pipeline runs.",
    )
    parser.parse_args(arguments)
    errors, notes = problems(load_params())
    for note in notes:
        print(f"note: {note}")
    if errors:
        raise ConfigurationError("\n".join(errors))


def problems(params: Experiment) -> tuple[list[str], list[str]]:
    """What cannot work, and what merely surprises; one line each, in the current directory."""
    errors: list[str] = []
    notes: list[str] = []
    _check_git(errors, notes)
    text_bytes = _check_text(params, errors, notes)
    _check_disk(text_bytes, errors)
    _check_compiler(params, errors, notes)
    _check_tracking(params, errors)
    return errors, notes


def _check_git(errors: list[str], notes: list[str]) -> None:
    if shutil.which("git") is None:
        errors.append("git is not installed; DVC needs it (Debian: apt install git)")
    elif _git("rev-parse", "--is-inside-work-tree") is None:
        if not _without_git():
            errors.append(
                "this folder is no git repository (a downloaded archive?), which DVC expects. For "
                "everything: git init && git add . && git commit -m start. To run the pipeline "
                "only, without experiments: dvc config --local core.no_scm true"
            )
    elif _git("rev-parse", "--verify", "--quiet", "HEAD") is None:
        notes.append("this repository has no commit yet; `dvc exp run` needs one")


def _without_git() -> bool:
    """Whether DVC was told to do without."""
    import configparser

    config = configparser.ConfigParser()
    config.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    return config.getboolean("core", "no_scm", fallback=False)


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _check_text(params: Experiment, errors: list[str], notes: list[str]) -> int:
    """Check that the text is there and is what data/raw was made from; returns its bytes."""
    data = params.data
    if data.train_file is None and data.dataset_name != STDLIB_DATASET:
        return 0  # the hub is asked by the stage
    from llm_trainer.data.sources import open_source

    try:
        origin = open_source(data).origin
    except LLMTrainerError as error:
        errors.extend(str(error).splitlines())
        return 0
    before = _locked_origin()
    if data.train_file is not None:
        figures = ("files", "file_bytes", "remote_digest")
        if before and any(before.get(key) != origin.get(key) for key in figures):
            errors.append(
                f"the files of data.train_file changed since {RAW} was made from them, which DVC "
                f"cannot see; type `dvc repro --force download`, then this command again"
            )
    elif before and RAW.exists() and before.get("python_version") != platform.python_version():
        notes.append(
            f"{RAW} is the library of Python {before.get('python_version')} and stays so; for that "
            f"of this Python ({platform.python_version()}) type `dvc repro --force download`"
        )
    return int(origin.get("file_bytes") or 0)


def _locked_origin() -> dict[str, Any]:
    """Metrics of stage download if DVC will not run it again, since its params are the same."""
    try:
        lock = yaml.safe_load(LOCK.read_text(encoding="utf-8"))
        locked = lock["stages"]["download"]["params"][PARAMS.name]["data"]
        metrics = read_json(DOWNLOAD_METRICS)
    except (OSError, yaml.YAMLError, KeyError, TypeError, IntegrityError):
        return {}
    same = locked == read_config_file(PARAMS).get("data")
    return metrics if same and isinstance(metrics, dict) else {}


def _check_disk(text_bytes: int, errors: list[str]) -> None:
    free = shutil.disk_usage(Path.cwd()).free
    needed = MIN_FREE_BYTES + DISK_PER_TEXT_BYTE * text_bytes
    if free < needed:
        errors.append(
            f"{free / 2**30:.1f} GiB free in {Path.cwd()}, at least {needed / 2**30:.1f} GiB are "
            f"needed; `python -m pipeline.gc` and `dvc gc --workspace` free some"
        )


def _check_compiler(params: Experiment, errors: list[str], notes: list[str]) -> None:
    wanted, device = params.training.compile_model, params.runtime.device
    problem = compiler_problem()
    if not wanted or not problem or device.startswith(("cuda", "mps")):
        return
    if wanted is True:
        errors.append(f"training.compile_model: true, but {problem}; or set it to auto or false")
    else:
        notes.append(f"training will not be compiled, and take longer on a CPU: {problem}")


def _check_tracking(params: Experiment, errors: list[str]) -> None:
    from llm_trainer.training.tracking.destination import resolve_destination
    from llm_trainer.training.tracking.factory import check_backends

    runtime = params.runtime

    def destination() -> None:
        if "mlflow" in runtime.report_to:
            resolve_destination(runtime.tracking_uri, runtime.experiment_name, main_checkout())

    checks: list[Callable[[], None]] = [lambda: check_backends(runtime.report_to), destination]
    for check in checks:
        try:
            check()
        except LLMTrainerError as error:
            errors.append(f"runtime: {error}")


if __name__ == "__main__":
    run_stage("check", main)
