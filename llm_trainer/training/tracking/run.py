"""One object that a training loop reports to: the local record first, then every backend.

After `open` nothing raises into the loop. A backend that fails is named once and dropped; the log
itself is kept on trying (a full disk may get space again). A (step, key) pair is written once, so
that a resumed run, which repeats the steps after its checkpoint, shows no step twice anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_trainer.files import remove_partial
from llm_trainer.training.tracking.base import Status, Tracker
from llm_trainer.training.tracking.factory import check_backends, create_trackers
from llm_trainer.training.tracking.log import RESERVED, JsonlTracker, best_of
from llm_trainer.training.tracking.record import RunInfo, RunRecord, clean, flatten
from llm_trainer.training.tracking.system import SystemSampler
from llm_trainer.training.tracking.tags import environment_tags

logger = logging.getLogger(__name__)


class RunTracking:
    """Tracking of one run. Made by `open`; see the package's header for the calls."""

    def __init__(
        self, record: RunRecord, info: RunInfo, log: JsonlTracker, trackers: list[Tracker]
    ) -> None:
        self.record = record
        self.info = info
        self.log_path = record.log_path
        self._log = log
        self._trackers = trackers
        self._system = SystemSampler()
        self._log_failed = False
        self._finished = False
        self._named: set[str] = set()

    @classmethod
    def open(
        cls,
        report_to: Sequence[str],
        record_dir: str | Path,
        *,
        run_name: str,
        experiment: str,
        tracking_uri: str | None,
        root: str | Path,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        datasets: Mapping[str, Mapping[str, Any]],
        resume_step: int | None = None,
        tensorboard_dir: str | Path | None = None,
    ) -> RunTracking:
        """Open the record in `record_dir` and the backends in `report_to`.

        `params` is nested by section; `tags["fingerprint"]` identifies the run on a server (left
        out, the record makes one up and keeps it). `resume_step` is the step of the checkpoint
        that training continues from, None for a fresh start: later records are dropped.

        Raises:
            ConfigurationError: unknown backend or impossible tracking address.
            MissingDependencyError: a backend's package is not installed; names the remedy.
            LLMTrainerError: the record cannot be written.
        """
        check_backends(report_to)
        root = Path(root).resolve()
        record = RunRecord(record_dir)
        for path in (record.log_path, record.info_path):
            remove_partial(path)
        text_tags = flatten({k: v for k, v in tags.items() if v is not None})
        info = record.start(
            RunInfo(
                name=run_name,
                experiment=experiment,
                fingerprint=str(tags.get("fingerprint") or ""),
                params=flatten(params),
                tags={**environment_tags(Path.cwd()), **text_tags},
                datasets=clean(datasets),
            )
        )
        log = JsonlTracker(record.log_path, resume_step=resume_step)
        if log.dropped:
            logger.debug("%s: %d records after step %s dropped", log.path, log.dropped, resume_step)
        trackers = create_trackers(
            report_to,
            record=record,
            info=info,
            tracking_uri=tracking_uri,
            root=root,
            resume_step=resume_step,
            tensorboard_dir=Path(tensorboard_dir) if tensorboard_dir is not None else None,
        )
        return cls(record, info, log, trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record scalars at an optimizer step; a key that has come as far already is left out."""
        fresh = self._fresh(step, metrics)
        fresh |= best_of(fresh, self._log.state.lowest)
        self._write(step, fresh)
        self._write(step, self._fresh(step, self._system.sample()))

    def log_text(self, step: int, name: str, text: str) -> None:
        """Record a text, such as a sample of the model, at an optimizer step."""
        key = f"text:{name}"
        if step <= self._log.state.last_step.get(key, -1):
            return
        self._log.state.last_step[key] = step
        self._to_log(lambda: self._log.log_text(step, name, text))
        self._to_backends(lambda tracker: tracker.log_text(step, name, text))

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a copy of a small file (or a directory of them) with the run."""
        kept: list[Path] = []
        self._to_log(lambda: kept.append(self.record.add_artifact(Path(path), folder)))
        if kept:
            self._to_backends(lambda tracker: tracker.log_artifact(kept[0], folder))

    def flush(self, durable: bool = False) -> None:
        """Hand over what is buffered; with `durable`, sync what can be."""
        self._to_log(lambda: self._log.flush(durable=durable))
        self._to_backends(lambda tracker: tracker.flush(durable=durable))

    def sync(self) -> None:
        """Make what was flushed to the log durable; may be called from another thread."""
        self._to_log(self._log.sync)

    def finish(self, status: Status) -> None:
        """End the run: FINISHED, FAILED or KILLED. Takes seconds at most; a second call is none."""
        if self._finished:
            return
        self._finished = True
        self._to_log(lambda: self._log.finish(status))
        self._to_log(lambda: self.record.finish(status))
        self._to_backends(lambda tracker: tracker.finish(status))

    def _fresh(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        last = self._log.state.last_step
        fresh: dict[str, float] = {}
        for key, value in metrics.items():
            try:
                number = float(value)
            except (TypeError, ValueError):
                self._warn_once(f"metric {key}: {value!r} is no number and was left out")
                continue
            if key in RESERVED:
                self._warn_once(f"metric {key}: the name is taken, use a prefix like train/{key}")
            elif step > last.get(key, -1):
                fresh[key] = number
        return fresh

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        if not metrics:
            return
        self._log.state.last_step |= dict.fromkeys(metrics, step)
        self._to_log(lambda: self._log.log(step, metrics))
        self._to_backends(lambda tracker: tracker.log(step, metrics))

    def _to_log(self, action: Callable[[], object]) -> None:
        # Broad on purpose, here and below: whatever is wrong with tracking, training goes on.
        try:
            action()
        except Exception as error:  # noqa: BLE001
            if not self._log_failed:
                logger.warning(
                    "%s: cannot be written (%s); training goes on and later records try again",
                    self.record.directory, error,
                )  # fmt: skip
            self._log_failed = True

    def _to_backends(self, action: Callable[[Tracker], object]) -> None:
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as error:  # noqa: BLE001
                self._trackers.remove(tracker)
                logger.warning(
                    "tracking: %s failed (%s: %s) and is left out from now on; everything is in %s",
                    tracker.name, type(error).__name__, error, self.log_path,
                )  # fmt: skip

    def _warn_once(self, message: str) -> None:
        if message.split(":")[0] not in self._named:
            self._named.add(message.split(":")[0])
            logger.warning("tracking: %s", message)
