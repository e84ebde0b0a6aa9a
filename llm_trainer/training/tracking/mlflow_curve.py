"""Send the log's scalars: compared with the server once, then followed by byte offset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llm_trainer.training.tracking.log import iter_records, metrics_of, text_of
from llm_trainer.training.tracking.mlflow_session import Session

if TYPE_CHECKING:
    from mlflow.entities import Metric

BATCH = 1000
"""Values in one request: MLflow's limit."""

_LARGEST = 1.7976931348623157e308  # what MLflow's database holds for infinity


class Curve:
    """How far a log has been sent to one run.

    On connecting, and after any error, the steps that the server has are asked for and left out:
    a value that arrived although its request failed is not sent again, and a resumed run, which
    repeats the steps after its checkpoint, adds only what is new.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines_done = 0
        """Records that are on the server."""
        self.texts = 0
        """Texts among them."""
        self._offset = 0
        self._known: dict[str, set[int]] | None = None

    def forget(self) -> None:
        """After an error: what arrived is unknown."""
        self._known = None

    def push(self, session: Session) -> int:
        """Send the records since the last call; returns the number of values.

        Raises:
            TrackingError: a request failed; the next call repeats it.
        """
        if self._known is None:
            self._known = _server_steps(session)
        sent = 0
        for batch, offset, lines, texts in self._batches(self._known):
            if batch:
                session.write("log_batch", metrics=batch)
            self._offset = offset
            self.lines_done += lines
            self.texts += texts
            sent += len(batch)
        self._known = {}  # caught up: from here on nobody else sends
        return sent

    def _batches(self, known: dict[str, set[int]]) -> Iterator[tuple[list[Metric], int, int, int]]:
        """(values, offset after them, records, texts), at most BATCH values each."""
        from mlflow.entities import Metric

        batch: list[Metric] = []
        lines = texts = 0
        offset = self._offset
        for record, end in iter_records(self.path, self._offset):
            step, stamp = record["step"], int(record.get("time", 0) * 1000)
            for key, value in metrics_of(record).items():
                name = key_name(key)
                if step in known.get(name, ()):
                    continue
                if len(batch) == BATCH:
                    yield batch, offset, lines, texts
                    batch, lines, texts = [], 0, 0
                batch.append(Metric(name, storable(value), stamp, step))
            lines, offset = lines + 1, end
            texts += text_of(record) is not None
        if lines:
            yield batch, offset, lines, texts


def key_name(name: str) -> str:
    """`name` with what MLflow does not allow in keys replaced."""
    return "".join(c if c.isalnum() or c in "_-./ :" else "_" for c in name)[:250]


def storable(value: float) -> float:
    """`value` as MLflow's database gives it back."""
    return math.copysign(_LARGEST, value) if math.isinf(value) else value


def same_value(left: float, right: float) -> bool:
    """Whether the server's value is the record's."""
    return left == storable(right) or (math.isnan(left) and math.isnan(right))


def _server_steps(session: Session) -> dict[str, set[int]]:
    if session.run is None:
        return {}
    return {
        key: {metric.step for metric in session.read("get_metric_history", key)}
        for key in session.read("get_run").data.metrics
    }
