"""A record and its MLflow run are equal after a sync, read back through MLflow's own client."""

from __future__ import annotations

import json
import math
import multiprocessing
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_trainer.exceptions import ConfigurationError, LockHeldError, TrackingError
from llm_trainer.training.tracking import RunTracking, run_directory
from llm_trainer.training.tracking.destination import resolve_destination
from llm_trainer.training.tracking.mlflow_sync import sync_run
from tests.mlflow_store import (  # noqa: F401
    empty_database_fixture,
    root_fixture,
    steps_of,
)
from tests.test_layers import ROOT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FINGERPRINT = "f00d" * 16
PARAMS = {
    "model": {"d_model": 64},
    "training": {"learning_rate": 3e-4, "prompts": ["a", "b"]},
    "runtime": {"logging_steps": 10},
}
DATASETS = {
    "training": {"digest": "ab" * 32, "source": "data/packed", "context": "training", "rows": 7},
    "validation": {"digest": "ab" * 32, "source": "data/packed", "context": "validation"},
}


def open_run(root: Path, resume_step: int | None = None, **changes: Any) -> RunTracking:
    values: dict[str, Any] = {
        "run_name": "puny-name", "experiment": "tests", "tracking_uri": None, "root": root,
        "params": PARAMS, "tags": {"fingerprint": FINGERPRINT, "tokenizer_digest": "cd" * 32},
        "datasets": DATASETS, "resume_step": resume_step, **changes,
    }  # fmt: skip
    return RunTracking.open([], run_directory(root / "runs", FINGERPRINT), **values)


def train(tracking: RunTracking, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracking.log(step, {"train/loss": 10 / step, "train/lr": 1e-3})
        if step % 10 == 0:
            tracking.log(step, {"eval/loss": 20 / step})
            tracking.log_text(step, "sample-0", f"def f{step}():")


def client(root: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def only_run(root: Path, experiment: str = "tests") -> Run:
    found = client(root)
    identifier = found.get_experiment_by_name(experiment).experiment_id
    (run,) = found.search_runs([identifier])
    return run


def sync(root: Path, **options: Any) -> Any:
    return sync_run(run_directory(root / "runs", FINGERPRINT), None, root=root, **options)


def test_a_run_arrives_whole_and_once(root: Path) -> None:
    tracking = open_run(root)
    train(tracking, 1, 25)
    (root / "loss.png").write_bytes(b"png")
    tracking.log_artifact(root / "loss.png")
    tracking.log(26, {"bad": math.nan, "worse": math.inf, "odd name, really (é)!": 1.0})
    tracking.finish("FINISHED")

    dry = sync(root, dry_run=True)
    assert client(root).get_experiment_by_name("tests") is None
    report = sync(root)
    assert report.created
    assert report.status == "FINISHED"
    assert (dry.params, dry.metrics, dry.tags) == (report.params, report.metrics, report.tags)
    assert sync(root).is_empty
    assert str(sync(root)) == "nothing missing"

    run = only_run(root)
    assert run.info.run_name == "puny-name"
    assert run.info.status == "FINISHED"
    info = tracking.record.read_info()
    assert run.info.start_time == int(info.started * 1000)
    assert run.info.end_time == int((info.ended or 0) * 1000)
    assert run.data.params == {
        "model.d_model": "64", "training.learning_rate": "0.0003",
        "training.prompts": '["a", "b"]', "runtime.logging_steps": "10",
    }  # fmt: skip
    assert run.data.tags["fingerprint"] == FINGERPRINT
    assert run.data.tags["tokenizer_digest"] == "cd" * 32
    assert run.data.tags["attempts"] == "1"
    assert steps_of(run_uri(root), run.info.run_id, "train/loss") == list(range(1, 26))
    history = client(root).get_metric_history(run.info.run_id, "train/loss")
    assert {m.step: m.value for m in history} == {s: 10 / s for s in range(1, 26)}
    assert run.data.metrics["eval/best_loss"] == 1.0
    assert math.isnan(run.data.metrics["bad"])
    assert run.data.metrics["worse"] > 1e308
    assert run.data.metrics["odd name_ really _é__"] == 1.0
    inputs = {
        (i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs
    }
    assert inputs == {
        ("training", ("ab" * 32)[:36], "training"), ("validation", ("ab" * 32)[:36], "validation"),
    }  # fmt: skip
    profile = json.loads(run.inputs.dataset_inputs[0].dataset.profile)
    assert profile["digest"] == "ab" * 32
    files = {f.path for f in client(root).list_artifacts(run.info.run_id)}
    assert files == {"loss.png", "samples"}
    assert run.info.artifact_uri.startswith((root / "mlartifacts").as_uri())
    assert (root / "mlartifacts").is_dir()


def run_uri(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def test_samples_are_a_table_that_mlflow_reads(root: Path) -> None:
    import mlflow

    tracking = open_run(root)
    train(tracking, 1, 20)
    tracking.finish("FINISHED")
    sync(root)
    run = only_run(root)
    mlflow.set_tracking_uri(run_uri(root))  # the search within load_table knows no other
    try:
        table = client(root).load_table(
            run.info.experiment_id, "samples/training.json", run_ids=[run.info.run_id]
        )
    finally:
        mlflow.set_tracking_uri(None)
    assert table.values.tolist() == [
        [10, "sample-0", "def f10():"], [20, "sample-0", "def f20():"],
    ]  # fmt: skip
    assert "samples/training.json" in only_run(root).data.tags["mlflow.loggedArtifacts"]


def test_a_resumed_run_is_the_same_run_without_doubled_steps(root: Path) -> None:
    train(open_run(root), 1, 25)  # killed without notice
    first = sync(root)
    assert only_run(root).info.status == "RUNNING"
    changed = {**PARAMS, "runtime": {"logging_steps": 5}}
    second = open_run(root, resume_step=20, params=changed)
    train(second, 21, 40)
    second.finish("KILLED")
    assert sync(root).run_id == first.run_id
    assert only_run(root).info.status == "KILLED"
    third = open_run(root, resume_step=40, params=changed)
    assert sync(root).status == "RUNNING"
    train(third, 41, 50)
    third.finish("FINISHED")
    sync(root)
    run = only_run(root)
    assert run.info.status == "FINISHED"
    assert steps_of(run_uri(root), run.info.run_id, "train/loss") == list(range(1, 51))
    assert steps_of(run_uri(root), run.info.run_id, "eval/loss") == [10, 20, 30, 40, 50]
    assert run.data.params["runtime.logging_steps"] == "10"
    assert run.data.tags["changed.runtime.logging_steps"] == "5"
    assert run.data.tags["attempts"] == "3"


def test_what_arrived_before_an_error_is_not_sent_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may fail after the server has done its work: the answer is what got lost."""
    from mlflow import MlflowClient

    from llm_trainer.training.tracking import mlflow_curve

    monkeypatch.setattr(mlflow_curve, "BATCH", 7)
    tracking = open_run(root)
    train(tracking, 1, 25)
    tracking.finish("FINISHED")
    real, calls = MlflowClient.log_batch, []

    def answer_lost(self: MlflowClient, *arguments: Any, **keywords: Any) -> Any:
        real(self, *arguments, **keywords)
        calls.append(keywords)
        if len(calls) % 3 == 0:
            raise ConnectionError("connection reset by peer, password http://u:secret@h")

    monkeypatch.setattr(MlflowClient, "log_batch", answer_lost)
    with pytest.raises(TrackingError, match=r"connection reset by peer, password http://h$"):
        sync(root)
    with pytest.raises(TrackingError):
        sync(root)
    while len(calls) % 3 != 0 or len(calls) < 9:
        with suppress(TrackingError):
            sync(root)
    run = only_run(root)
    assert steps_of(run_uri(root), run.info.run_id, "train/loss") == list(range(1, 26))
    assert steps_of(run_uri(root), run.info.run_id, "train/lr") == list(range(1, 26))


def test_a_failing_store_of_files_leaves_the_curve_and_the_end(root: Path) -> None:
    tracking = open_run(root)
    train(tracking, 1, 12)
    tracking.finish("FINISHED")
    (root / "mlartifacts").write_text("a file where the folder should be")
    with pytest.raises(TrackingError, match="mlartifacts"):
        sync(root)
    run = only_run(root)
    assert run.info.status == "FINISHED"
    assert steps_of(run_uri(root), run.info.run_id, "train/loss") == list(range(1, 13))
    (root / "mlartifacts").unlink()
    assert sync(root).files == 1


def test_a_run_deleted_on_the_server_is_made_anew(root: Path) -> None:
    tracking = open_run(root)
    train(tracking, 1, 12)
    tracking.finish("FINISHED")
    first = sync(root)
    client(root).delete_run(first.run_id)
    second = sync(root)
    assert second.created
    assert second.run_id != first.run_id
    assert second.files == first.files
    assert steps_of(run_uri(root), second.run_id, "train/loss") == list(range(1, 13))


def test_a_deleted_experiment_is_named_with_the_remedy(root: Path) -> None:
    open_run(root).finish("FINISHED")
    found = client(root)
    found.delete_experiment(found.create_experiment("tests"))
    with pytest.raises(
        TrackingError, match=r"experiment 'tests' is deleted.*mlflow experiments restore"
    ):
        sync(root)


def test_a_run_that_is_being_uploaded_is_left_alone(root: Path) -> None:
    tracking = open_run(root)
    command = [sys.executable, "-c", HOLDER, str(tracking.record.lock_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockHeldError, match=f"process {holder.pid}"):
            sync(root)
        holder.kill()


HOLDER = """
import sys
from llm_trainer.locks import hold_lock
with hold_lock(sys.argv[1], "uploading the run"):
    print("held", flush=True)
    sys.stdin.read()
"""
"""A process of its own: a fork of this one, in which MLflow has threads, may stand still for ever
at a lock that one of them held."""


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:///other.db", "sqlite:////main/other.db"),
        ("sqlite:////abs/mlflow.db", "sqlite:////abs/mlflow.db"),
        ("https://me:pass@host/ml", "https://host/ml"),
        ("postgresql+psycopg2://me:pass@db/ml", "postgresql+psycopg2://db/ml"),
        ("databricks", "databricks"),
    ],
)
def test_addresses_are_completed_and_shown_without_secrets(uri: str, shown: str) -> None:
    assert resolve_destination(uri, "tests", Path("/main")).shown == shown


def test_the_default_store_is_in_the_main_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    destination = resolve_destination(None, "tests", Path("/main"))
    assert destination.uri == "sqlite:////main/mlflow.db"
    assert destination.artifact_root == Path("/main/mlartifacts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    destination = resolve_destination(None, "tests", Path("/main"))
    assert (destination.uri, destination.artifact_root) == ("http://127.0.0.1:1", None)


@pytest.mark.parametrize(
    "uri", ["./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:"]
)
def test_addresses_that_mlflow_does_not_serve_are_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="tracking_uri"):
        resolve_destination(uri, "tests", Path("/main"))


def race(root: Path, number: int, results: Any) -> None:
    record = run_directory(root / "runs", f"racer-{number}")
    tracking = RunTracking.open(
        [], record, run_name=f"racer-{number}", experiment="tests", tracking_uri=None, root=root,
        params=PARAMS, tags={"fingerprint": f"racer-{number}"}, datasets=DATASETS,
    )  # fmt: skip
    train(tracking, 1, 30)
    tracking.finish("FINISHED")
    results.put(str(sync_run(record, None, root=root)))


@pytest.mark.slow
def test_processes_that_race_for_a_fresh_database_all_arrive(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    racers = [context.Process(target=race, args=(tmp_path, n, results)) for n in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(200)
    assert [racer.exitcode for racer in racers] == [0, 0]
    found = client(tmp_path)
    identifier = found.get_experiment_by_name("tests").experiment_id
    runs = found.search_runs([identifier])
    assert sorted(run.info.run_name for run in runs) == ["racer-0", "racer-1"]
    for run in runs:
        assert steps_of(run_uri(tmp_path), run.info.run_id, "train/loss") == list(range(1, 31))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
