"""The local record of a run: a directory that says everything a server should show.

Everything in it is written by name and atomically, except the log, which is appended. Nothing in
it is a secret: passwords in addresses and values under names like `api_key` are struck out before
they reach the disk, so no backend can leak them.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llm_trainer.config.secrets import strip_secrets as strip_secrets
from llm_trainer.digests import sha256_file
from llm_trainer.exceptions import ConfigurationError, IntegrityError
from llm_trainer.files import atomic_path, is_partial, write_json
from llm_trainer.json_file import read_json
from llm_trainer.manifests import manifest_digest, read_manifest
from llm_trainer.training.tracking.base import Status

logger = logging.getLogger(__name__)

RECORD_FORMAT = 1
MAX_ARTIFACT_BYTES = 64 * 2**20
"""Largest file that is copied into a record; a model is referred to, never copied."""

_SECRET_NAME = re.compile(
    r"(?i)(^|[._/-])(password|passwd|secret|secret_key|api_?key|access_key|token|hf_token|"
    r"auth_token|access_token|credentials?)$"
)


@dataclass
class RunInfo:
    """Content of `run.json`."""

    name: str
    experiment: str
    fingerprint: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> digest, source, context, and any figures as its profile."""
    status: Status = "RUNNING"
    started: float = 0.0
    """Seconds since 1970, of the first attempt."""
    ended: float | None = None
    attempts: int = 1
    """How often training was started or resumed."""


class RunRecord:
    """Paths and files of a record; makes no directory until something is written."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.log_path = self.directory / "log.jsonl"
        self.info_path = self.directory / "run.json"
        self.stages_path = self.directory / "stages"
        self.artifacts_path = self.directory / "artifacts"
        self.lock_path = self.directory / "upload.lock"
        self.upload_path = self.directory / "upload.json"
        self.upload_log_path = self.directory / "upload.log"

    def start(self, info: RunInfo) -> RunInfo:
        """Write `run.json` for a new attempt, keeping when the first one started.

        Raises:
            ConfigurationError: a fingerprint that cannot be searched for.
        """
        if not re.fullmatch(r"[A-Za-z0-9._-]*", info.fingerprint):
            raise ConfigurationError(
                f"fingerprint ({info.fingerprint!r}) may only have letters, digits, . _ and -"
            )
        try:
            previous = self.read_info() if self.info_path.exists() else None
        except IntegrityError as error:
            logger.warning("%s; it is written anew", error)
            previous = None
        info.started = previous.started if previous else round(time.time(), 3)
        info.attempts = previous.attempts + 1 if previous else 1
        if not info.fingerprint:
            # a caller without one still wants its resumed run to be the same run
            info.fingerprint = previous.fingerprint if previous else uuid.uuid4().hex
        info.status, info.ended = "RUNNING", None
        self.write_info(info)
        return info

    def finish(self, status: Status) -> None:
        """Note in `run.json` how the run ended."""
        info = self.read_info()
        info.status = status
        info.ended = None if status == "RUNNING" else round(time.time(), 3)
        self.write_info(info)

    def write_info(self, info: RunInfo) -> None:
        """Write `run.json` atomically."""
        write_json(self.info_path, {"format": RECORD_FORMAT, **asdict(info)})

    def read_info(self) -> RunInfo:
        """Read `run.json`.

        Raises:
            IntegrityError: missing, damaged, or of another format.
        """
        values = read_json(self.info_path)
        known = {f.name for f in fields(RunInfo)}
        if (
            not isinstance(values, dict)
            or values.pop("format", None) != RECORD_FORMAT
            or set(values) != known
            or not all(isinstance(values[n], str) for n in ("name", "experiment", "fingerprint"))
            or not all(isinstance(values[n], dict) for n in ("params", "tags", "datasets"))
        ):
            raise IntegrityError(
                f"{self.info_path}: not a run record of format {RECORD_FORMAT}; delete "
                f"{self.directory} if you do not need its curve"
            )
        return RunInfo(**values)

    def write_stage(self, stage: str, values: Mapping[str, Any]) -> None:
        """Write what a later stage found out about the model of this run; replaces the old."""
        write_json(self.stages_path / f"{stage}.json", dict(values))

    def stages(self) -> dict[str, dict[str, Any]]:
        """Stage -> what `write_stage` was given."""
        return {path.stem: read_json(path) for path in sorted(self.stages_path.glob("*.json"))}

    def add_artifact(self, path: Path, folder: str | None = None) -> Path:
        """Copy a file, or the files of a directory, into the record; returns the copy.

        Raises:
            IntegrityError: missing, or above MAX_ARTIFACT_BYTES.
        """
        if path.is_dir():
            inner = f"{folder}/{path.name}" if folder else path.name
            for child in sorted(path.iterdir()):
                self.add_artifact(child, inner)
            return self.artifacts_path / inner
        if not path.is_file():
            raise IntegrityError(f"{path}: no such file to keep with the run")
        if path.stat().st_size > MAX_ARTIFACT_BYTES:
            raise IntegrityError(
                f"{path}: larger than {MAX_ARTIFACT_BYTES:,} bytes, not kept with the run"
            )
        target = self.artifacts_path / (folder or "") / path.name
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
        return target

    def write_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Keep a table as the artifact `name`, in the layout of `mlflow.log_table`."""
        table = {"columns": columns, "data": rows}
        path = self.artifacts_path / name
        if not path.exists() or read_json(path) != table:
            write_json(path, table)

    def artifact_stamp(self) -> list[tuple[str, int, int]]:
        """Names, sizes and times of the kept files: another one means that something changed."""
        found = [(path, path.stat()) for path in sorted(self.artifacts_path.rglob("*"))]
        return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]

    def artifacts(self) -> dict[str, str]:
        """Relative POSIX path -> sha256 of each kept file."""
        return {
            path.relative_to(self.artifacts_path).as_posix(): sha256_file(path)
            for path in sorted(self.artifacts_path.rglob("*"))
            if path.is_file() and not is_partial(path.name)
        }


def run_directory(checkpoint_root: str | Path, fingerprint: str) -> Path:
    """Where the record of the run with this fingerprint is."""
    return Path(checkpoint_root) / fingerprint / "run"


def is_table(value: Any) -> bool:
    """Whether the content of a JSON file is a table as `RunRecord.write_table` writes it."""
    return isinstance(value, dict) and set(value) == {"columns", "data"}


def model_entry(model_dir: Path) -> dict[str, str]:
    """How a record refers to a model: where it was made and what it is."""
    manifest = read_manifest(model_dir, "model", remedy="train it again (`dvc repro train`)")
    return {"path": str(model_dir.resolve()), "digest": manifest_digest(manifest)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as `training.learning_rate` -> text, secrets struck out.

    Numbers keep Python's shortest spelling, lists become JSON, None becomes `null`.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif _SECRET_NAME.search(name) and value not in (None, ""):
            flat[name] = "***"
        elif isinstance(value, str):
            flat[name] = strip_secrets(value)
        elif value is None or isinstance(value, bool | list | tuple):
            flat[name] = strip_secrets(json.dumps(value, ensure_ascii=False, default=str))
        else:
            flat[name] = strip_secrets(str(value))
    return flat


def clean(value: Any) -> Any:
    """`strip_secrets` on every text inside mappings and lists."""
    if isinstance(value, str):
        return strip_secrets(value)
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value
