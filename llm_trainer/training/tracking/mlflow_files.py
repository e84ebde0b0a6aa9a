"""Send a record's files and the trained model; what was sent is noted in `upload.json`.

The note only saves work: a missing or foreign one means sending again, which replaces like by
like.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_trainer.exceptions import IntegrityError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.training.tracking import mlflow_model
from llm_trainer.training.tracking.log import iter_records, text_of
from llm_trainer.training.tracking.mlflow_session import Session
from llm_trainer.training.tracking.mlflow_store import patience
from llm_trainer.training.tracking.record import RunRecord, is_table

TRAINING_SAMPLES = "samples/training.json"

_TABLES_TAG = "mlflow.loggedArtifacts"  # where MLflow's evaluation view looks for tables


class UploadNote:
    """What one store has of the record's files."""

    def __init__(self, record: RunRecord, session: Session) -> None:
        self._path = record.upload_path
        self._session = session
        self.files: dict[str, str] = {}
        self.model = ""
        note = self._all().get(session.destination.key)
        if isinstance(note, dict) and note.get("run_id") == session.run_id:
            self.files = dict(note.get("files") or {})
            self.model = str(note.get("model") or "")

    def save(self) -> None:
        """Write the note, unless this is a dry run."""
        if not self._session.dry_run:
            note = {"run_id": self._session.run_id, "files": self.files, "model": self.model}
            write_json(self._path, {**self._all(), self._session.destination.key: note})

    def _all(self) -> dict[str, Any]:
        try:
            notes = read_json(self._path)
        except IntegrityError:
            return {}
        return notes if isinstance(notes, dict) else {}


def push_files(record: RunRecord, session: Session) -> int:
    """Send kept files that the store does not have in their present content; returns how many."""
    note = UploadNote(record, session)
    sent = 0
    for name, digest in record.artifacts().items():
        if note.files.get(name) == digest:
            continue
        path = record.artifacts_path / name
        seconds = 10 + path.stat().st_size / 1e6
        session.progress(seconds)
        with patience(seconds):
            session.write("log_artifact", str(path), name.rpartition("/")[0] or None)
        if name.endswith(".json") and is_table(read_json(path)):
            _mark_table(session, name)
        sent += 1
        note.files[name] = digest
        note.save()
    return sent


def push_model(record: RunRecord, session: Session, places: tuple[Path, ...]) -> str:
    """Send the trained model as an MLflow model, if a stage asked for it.

    `places` are searched for it when it is no longer where the stage made it. Returns "sent", why
    it could not be, or "" if there is nothing to do.
    """
    wanted = [values["model"] for values in record.stages().values() if values.get("model")]
    if not wanted:
        return ""
    model = wanted[-1]
    note = UploadNote(record, session)
    if note.model == model["digest"]:
        return ""
    if session.run is not None and mlflow_model.is_logged(session, model["digest"]):
        note.model = model["digest"]
        note.save()
        return ""
    place = mlflow_model.find_model(model, places)
    if place is None:
        return f"model {model['digest'][:12]} is not on this disk"
    if session.run is not None and not session.dry_run:
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        seconds = 30 + size / 5e6
        session.progress(seconds)
        with patience(seconds):
            mlflow_model.log_model(session, place, model)
        note.model = model["digest"]
        note.save()
    return "sent"


def write_training_samples(record: RunRecord) -> None:
    """Collect the log's texts in the record's samples table; none, no table."""
    rows = []
    for entry, _ in iter_records(record.log_path):
        named = text_of(entry)
        if named is not None:
            rows.append([entry["step"], *named])
    if rows:
        record.write_table(TRAINING_SAMPLES, ["step", "name", "text"], rows)


def _mark_table(session: Session, name: str) -> None:
    if session.run is None or session.dry_run:
        return
    known = session.read("get_run").data.tags.get(_TABLES_TAG, "[]")
    tables = json.loads(known)
    entry = {"path": name, "type": "table"}
    if entry not in tables:
        session.write("set_tag", _TABLES_TAG, json.dumps([*tables, entry]))
