"""Where MLflow data goes: the address, and what belongs to it. Knows no mlflow.

Without `tracking_uri` and MLFLOW_TRACKING_URI it is `mlflow.db` in the main checkout with
`mlartifacts/` beside it, both by absolute path: DVC runs experiments in copies of the tree that
are deleted afterwards, so nothing may depend on the working directory.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from llm_trainer.exceptions import ConfigurationError
from llm_trainer.training.tracking.record import strip_secrets

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_REMOTE = ("http", "https", "databricks", "uc", "databricks-uc")
_SERVERS = ("postgresql", "mysql", "mssql")


@dataclass(frozen=True)
class Destination:
    """An MLflow store and the experiment in it."""

    uri: str
    experiment: str
    database: Path | None = None
    """The file, if the store is an SQLite database."""

    @property
    def shown(self) -> str:
        """The address without user and password."""
        return strip_secrets(self.uri)

    @property
    def key(self) -> str:
        """Names this store and experiment in `upload.json`."""
        return hashlib.sha256(f"{self.shown}\n{self.experiment}".encode()).hexdigest()[:16]

    @property
    def artifact_root(self) -> Path | None:
        """Where a new experiment keeps files; None leaves it to the server."""
        return self.database.parent / ARTIFACTS if self.database else None


def resolve_destination(tracking_uri: str | None, experiment: str, root: Path) -> Destination:
    """Complete the address; relative SQLite paths are taken from `root`, the main checkout.

    Raises:
        ConfigurationError: an address of a kind that MLflow does not serve.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / DATABASE}"
    scheme = uri.partition(":")[0].partition("+")[0].lower()  # sqlite+pysqlite:// is sqlite
    if scheme == "sqlite":
        name = uri.split(":///", 1)[-1].split("?", 1)[0]
        if not name or "://" in name or name == ":memory:":
            raise ConfigurationError(
                f"tracking_uri ({strip_secrets(uri)}): name a file, as in sqlite:///mlflow.db or "
                f"sqlite:////absolute/path/mlflow.db"
            )
        database = (root / name).resolve()
        return Destination(f"sqlite:///{database}", experiment, database)
    if scheme not in _REMOTE and scheme not in _SERVERS:
        raise ConfigurationError(
            f"tracking_uri ({strip_secrets(uri)}): MLflow needs http(s)://host:port, a database "
            f"such as sqlite:///mlflow.db, or postgresql://...; plain folders are no longer a store"
        )
    return Destination(uri, experiment)
