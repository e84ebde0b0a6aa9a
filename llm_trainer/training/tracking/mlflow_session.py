"""One run on one MLflow store: found by its fingerprint or made, and the calls that go to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llm_trainer.training.tracking import mlflow_store
from llm_trainer.training.tracking.destination import Destination
from llm_trainer.training.tracking.record import RunInfo

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Progress = Callable[[float], None]
"""Told, as a sign of life, how many seconds the next one may take (0: as usual)."""


class Session:
    """A connection that stands. Every error of a call is a `TrackingError`."""

    def __init__(
        self,
        destination: Destination,
        info: RunInfo,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Connect, and find or make the run.

        With `dry_run` neither a database nor a run is made, and `run` is None where the run does
        not exist.

        Raises:
            TrackingError: the store does not answer, or refuses.
        """
        self.destination = destination
        self.dry_run = dry_run
        self.created = False
        self.run: Run | None = None
        self.progress: Progress = progress or (lambda _seconds: None)
        self._client: MlflowClient | None = None
        database = destination.database
        if dry_run and database is not None and not database.exists():
            self.created = True
            return
        self._client = mlflow_store.connect(destination)
        with mlflow_store.translated(destination):
            self._find_or_make(self._client, info)

    def _find_or_make(self, client: MlflowClient, info: RunInfo) -> None:
        if self.dry_run:
            experiment = client.get_experiment_by_name(self.destination.experiment)
            identifier = experiment.experiment_id if experiment else None
        else:
            identifier = mlflow_store.experiment_id(client, self.destination)
        if identifier is not None:
            # oldest first, so that every process settles on the same one
            found = client.search_runs(
                [identifier],
                filter_string=f"tags.fingerprint = '{info.fingerprint}'",
                order_by=["attributes.start_time ASC"],
                max_results=1,
            )
            if found:
                self.run = found[0]
                return
        self.created = True
        if identifier is not None and not self.dry_run:
            self.run = client.create_run(
                identifier,
                start_time=int(info.started * 1000),
                tags={"fingerprint": info.fingerprint},
                run_name=info.name,
            )

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run."""
        return self.run.info.run_id if self.run is not None else None

    @property
    def url(self) -> str | None:
        """The run's page, on a server that has pages."""
        if self.run is None or not self.destination.uri.startswith("http"):
            return None
        base = self.destination.shown.rstrip("/")
        return f"{base}/#/experiments/{self.run.info.experiment_id}/runs/{self.run_id}"

    def refresh(self) -> None:
        """Read again what the server knows about the run."""
        if self.run is not None:
            self.run = self.read("get_run")

    def read(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Call a reading method of the client with the run's id first."""
        assert self._client is not None
        assert self.run is not None
        with mlflow_store.translated(self.destination):
            result = getattr(self._client, method)(self.run_id, *arguments, **keywords)
        self.progress(0.0)
        return result

    def write(self, method: str, *arguments: Any, **keywords: Any) -> None:
        """Call a writing method of the client with the run's id first; nothing in a dry run."""
        if self.run is not None and not self.dry_run:
            self.read(method, *arguments, **keywords)

    def logged_model(self, model_id: str) -> Any:
        """A model that the run has produced."""
        assert self._client is not None
        with mlflow_store.translated(self.destination):
            return self._client.get_logged_model(model_id)
