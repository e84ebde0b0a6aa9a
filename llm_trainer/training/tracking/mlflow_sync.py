"""Make an MLflow run equal to a local record: `RunSync`, and `sync_run` for a single pass.

Idempotent: what the server has is not sent again. Params cannot change in MLflow, so one that did
(a logging interval on resume, say) becomes the tag `changed.<name>`. Price: a request a metric
key on connecting, and one for each 1,000 values.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from llm_trainer.training.tracking import mlflow_files
from llm_trainer.training.tracking.destination import Destination, resolve_destination
from llm_trainer.training.tracking.log import scan
from llm_trainer.training.tracking.mlflow_curve import Curve, key_name, same_value, storable
from llm_trainer.training.tracking.mlflow_session import Progress, Session
from llm_trainer.training.tracking.mlflow_store import wait_for_lock
from llm_trainer.training.tracking.record import RunInfo, RunRecord

MAX_PARAM = 6000
MAX_TAG = 5000
MAX_ENTRIES = 100
"""Params and tags in one request: MLflow's limit."""
MAX_DATASET_DIGEST = 36


@dataclass
class SyncReport:
    """What was sent, or with `dry_run` would have been."""

    run_id: str | None = None
    run_name: str = ""
    url: str | None = None
    created: bool = False
    params: int = 0
    tags: int = 0
    datasets: int = 0
    metrics: int = 0
    files: int = 0
    model: str = ""
    """"sent", why the model could not be, or "" if there was nothing to do."""
    status: str = ""
    """The new status, if it changed."""

    @property
    def is_empty(self) -> bool:
        """Whether server and record were equal already."""
        counts = self.params + self.tags + self.datasets + self.metrics + self.files
        return not (self.created or counts or self.model == "sent" or self.status)

    def __str__(self) -> str:
        counts = {
            "params": self.params,
            "tags": self.tags,
            "data sets": self.datasets,
            "metric values": self.metrics,
            "files": self.files,
        }
        parts = [f"{count:,} {name}" for name, count in counts.items() if count]
        parts += ["the model"] if self.model == "sent" else [self.model] if self.model else []
        parts += [f"status {self.status}"] if self.status else []
        return ("new run: " if self.created else "") + (", ".join(parts) or "nothing missing")


class RunSync:
    """One record and one store. Hold `record.lock_path` while using it; not for threads."""

    def __init__(
        self,
        record: RunRecord,
        destination: Destination,
        *,
        dry_run: bool = False,
        model_places: tuple[Path, ...] = (),
        progress: Progress | None = None,
    ) -> None:
        """`model_places` are searched for a trained model that is not where it was made."""
        self.record = record
        self.report = SyncReport()
        self.curve = Curve(record.log_path)
        self._destination = destination
        self._dry_run = dry_run
        self._model_places = model_places
        self._progress = progress
        self._session: Session | None = None
        self._texts_written = 0
        self._files_seen: object = None

    def push(self, *, finished: bool) -> None:
        """Send what is missing; connects first if need be. With `finished` also what comes last.

        Raises:
            TrackingError: the server cannot be reached or refuses; call again later.
            IntegrityError: the record is damaged.
        """
        if self._session is None:
            self._session = self._connect()
        elif finished:
            self._session.refresh()
            self._push_info(self._session)
        self.report.metrics += self.curve.push(self._session)
        if self.curve.texts > self._texts_written and not self._dry_run:
            mlflow_files.write_training_samples(self.record)
            self._texts_written = self.curve.texts
        if finished:
            self._push_stages(self._session)
            # before the files: a store for files that fails must not leave the run unended
            self._push_status(self._session)
        stamp = self.record.artifact_stamp()
        if finished or stamp != self._files_seen:
            self.report.files += mlflow_files.push_files(self.record, self._session)
            self._files_seen = stamp
        if finished:
            places = self._model_places
            self.report.model = mlflow_files.push_model(self.record, self._session, places)
            if self.report.model == "sent":  # which opened and ended the run
                self._push_status(self._session)

    def forget(self) -> None:
        """After an error: connect again, and compare with the server again."""
        self._session = None
        self.curve.forget()

    def _connect(self) -> Session:
        info = self.record.read_info()
        session = Session(self._destination, info, dry_run=self._dry_run, progress=self._progress)
        self.report.run_id, self.report.url = session.run_id, session.url
        self.report.run_name = info.name
        self.report.created |= session.created
        self._push_info(session)
        if info.status == "RUNNING":
            self._push_status(session)
        return session

    def _push_info(self, session: Session) -> None:
        from mlflow.entities import Param, RunTag

        info = self.record.read_info()
        params = session.run.data.params if session.run else {}
        wanted = {**info.tags, "fingerprint": info.fingerprint, "attempts": str(info.attempts)}
        new = []
        for name, value in sorted(info.params.items()):
            name, value = key_name(name), value[:MAX_PARAM]
            if name not in params:
                new.append(Param(name, value))
            elif params[name] != value:
                wanted[f"changed.{name}"] = value
        made_with = {"fingerprint": info.fingerprint}
        known = session.run.data.tags if session.run else made_with
        tags = [RunTag(k, v) for k, v in _changed_tags(wanted, known).items()]
        for start in range(0, max(len(new), len(tags)), MAX_ENTRIES):
            part = slice(start, start + MAX_ENTRIES)
            session.write("log_batch", params=new[part], tags=tags[part])
        self.report.params += len(new)
        self.report.tags += len(tags)
        self._push_datasets(session, info)

    def _push_datasets(self, session: Session, info: RunInfo) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        known = set()
        if session.run is not None and session.run.inputs is not None:
            known = {(i.dataset.name, i.dataset.digest) for i in session.run.inputs.dataset_inputs}
        inputs = []
        for name, values in sorted(info.datasets.items()):
            # cut to MLflow's limit; the profile has the whole
            digest = str(values.get("digest", ""))[:MAX_DATASET_DIGEST]
            if (name, digest) in known:
                continue
            profile = {k: v for k, v in values.items() if k not in ("context", "source")}
            dataset = Dataset(
                name=name,
                digest=digest,
                source_type="local",
                source=json.dumps({"uri": str(values.get("source", name))}),
                profile=json.dumps(profile, sort_keys=True),
            )
            context = InputTag("mlflow.data.context", str(values.get("context", "training")))
            inputs.append(DatasetInput(dataset, tags=[context]))
        if inputs:
            session.write("log_inputs", datasets=inputs)
        self.report.datasets += len(inputs)

    def _push_stages(self, session: Session) -> None:
        """Figures of later stages, where the server's last value is another."""
        from mlflow.entities import Metric, RunTag

        step = max(scan(self.record.log_path).last_step.values(), default=0)
        last = session.run.data.metrics if session.run else {}
        metrics: list[Metric] = []
        wanted: dict[str, str] = {}
        for values in self.record.stages().values():
            stamp = int(values.get("time", 0) * 1000)
            for key, value in sorted(values.get("metrics", {}).items()):
                name, number = key_name(key), float(value)
                if name not in last or not same_value(last[name], number):
                    metrics.append(Metric(name, storable(number), stamp, step))
            wanted |= values.get("tags", {})
        known = session.run.data.tags if session.run else {}
        tags = [RunTag(k, v) for k, v in _changed_tags(wanted, known).items()]
        for start in range(0, max(len(metrics), len(tags)), MAX_ENTRIES):
            part = slice(start, start + MAX_ENTRIES)
            session.write("log_batch", metrics=metrics[part], tags=tags[part])
        self.report.metrics += len(metrics)
        self.report.tags += len(tags)

    def _push_status(self, session: Session) -> None:
        info = self.record.read_info()
        if session.run is None or self._dry_run:
            if session.run is None or session.run.info.status != info.status:
                self.report.status = info.status
            return
        current = session.read("get_run").info
        ended = int((info.ended or time.time()) * 1000)
        if info.status == "RUNNING":
            if current.status != "RUNNING":
                session.write("update_run", status="RUNNING")
                self.report.status = "RUNNING"
        elif (current.status, current.end_time) != (info.status, ended):
            session.write("set_terminated", info.status, ended)
            # back to what it was, after logging the model, is no news
            if session.run.info.status != info.status:
                self.report.status = info.status


def sync_run(
    record_dir: str | Path,
    uri: str | None,
    experiment: str | None = None,
    *,
    root: str | Path = ".",
    dry_run: bool = False,
    model_places: tuple[Path, ...] = (),
) -> SyncReport:
    """Send what the server lacks of one record, and say what that was.

    `uri` None means the default store of the checkout `root`; `experiment` None means the
    record's own.

    Raises:
        TrackingError: the server cannot be reached or refuses.
        LockHeldError: the run is being uploaded by another process, as during training.
        IntegrityError: the record is damaged.
    """
    record = RunRecord(record_dir)
    name = experiment or record.read_info().experiment
    destination = resolve_destination(uri, name, Path(root).resolve())
    with wait_for_lock(record.lock_path, "uploading the run", seconds=1.0):
        sync = RunSync(record, destination, dry_run=dry_run, model_places=model_places)
        sync.push(finished=True)
    return sync.report


def _changed_tags(wanted: dict[str, str], known: dict[str, str]) -> dict[str, str]:
    cut = {key_name(key): value[:MAX_TAG] for key, value in sorted(wanted.items())}
    return {key: value for key, value in cut.items() if known.get(key) != value}
