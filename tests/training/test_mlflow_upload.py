"""The upload beside training: live, through a server's death, into a black hole, after a kill."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_trainer.config import RuntimeConfig
from llm_trainer.manifests import write_manifest
from llm_trainer.training.lineage import write_lineage
from llm_trainer.training.tracking import RunTracking, log_stage, run_directory
from llm_trainer.training.tracking.mlflow_sync import sync_run
from tests.mlflow_store import (
    Server,
    black_hole,
    empty_database_fixture,  # noqa: F401
    free_port,
    root_fixture,  # noqa: F401
    steps_of,
    wait_for,
)


@pytest.fixture(name="server")
def server_fixture(empty_database: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server", empty_database)
    server.start()
    yield server
    server.stop()


def open_run(root: Path, uri: str | None, fingerprint: str = "f00d", **changes: Any) -> RunTracking:
    values: dict[str, Any] = {
        "run_name": "puny-name", "experiment": "tests", "tracking_uri": uri, "root": root,
        "params": {"training": {"seed": 1}}, "tags": {"fingerprint": fingerprint},
        "datasets": {"training": {"digest": "ab"}}, **changes,
    }  # fmt: skip
    return RunTracking.open(["mlflow"], run_directory(root / "runs", fingerprint), **values)


def find_run(uri: str, fingerprint: str = "f00d") -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id], f"tags.fingerprint = '{fingerprint}'")
    assert len(found) <= 1
    return found[0] if found else None


def last_loss(uri: str) -> float | None:
    run = find_run(uri)
    return run.data.metrics.get("train/loss") if run is not None else None


def worker_of(tracking: RunTracking) -> psutil.Process:
    (tracker,) = tracking._trackers
    return psutil.Process(tracker._uploader._process.pid)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_curve_is_live_and_a_dead_server_loses_nothing(
    root: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tracking = open_run(root, server.uri)
    for step in range(1, 11):
        tracking.log(step, {"train/loss": float(step)})
    wait_for(lambda: last_loss(server.uri) == 10.0)
    run = find_run(server.uri)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"training.seed": "1"}
    os.killpg(worker_of(tracking).pid, signal.SIGINT)  # as Ctrl-C on a terminal may
    server.stop()
    for step in range(11, 21):
        tracking.log(step, {"train/loss": float(step)})
    wait_for(lambda: "tried again" in caplog.text)
    assert "nobody listens there" in caplog.text
    server.start()
    for step in range(21, 31):
        tracking.log(step, {"train/loss": float(step)})
    tracking.finish("FINISHED")
    run = find_run(server.uri)
    assert run.info.status == "FINISHED"
    assert steps_of(server.uri, run.info.run_id, "train/loss") == list(range(1, 31))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"run puny-name in {server.uri}/#/experiments/" in caplog.text
    (root / "note.txt").write_text("later")
    tracking.record.add_artifact(root / "note.txt")
    assert sync_run(tracking.record.directory, server.uri, root=root).files == 1
    assert sync_run(tracking.record.directory, server.uri, root=root).is_empty


def test_a_black_hole_delays_neither_the_start_nor_the_loop_nor_the_end_by_much(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with black_hole() as address:
        uri = address.replace("http://", "http://me:password@")
        started = time.monotonic()
        tracking = open_run(root, uri)
        opened = time.monotonic() - started
        assert "password" not in " ".join(worker_of(tracking).cmdline())
        started = time.monotonic()
        for step in range(1, 501):
            tracking.log(step, {"train/loss": 1.0})
        logged = time.monotonic() - started
        wait_for(lambda: "tried again" in caplog.text)
        started = time.monotonic()
        tracking.finish("FINISHED")
        finished = time.monotonic() - started
    print(f"opened {opened:.2f} s, 500 records {logged:.2f} s, finished {finished:.2f} s")
    assert opened < 2.0
    assert logged < 2.0
    assert finished < 10.0
    assert "500 records pending, run `python -m pipeline.track` to replay" in " ".join(
        r.getMessage().replace("501", "500").replace("502", "500") for r in caplog.records
    )
    assert "password" not in caplog.text
    assert "no answer in time" in caplog.text
    assert sum("tried again" in r.getMessage() for r in caplog.records) == 1
    assert sync_run(tracking.record.directory, None, root=root).metrics >= 500
    run = find_run(f"sqlite:///{root / 'mlflow.db'}")
    assert steps_of(f"sqlite:///{root / 'mlflow.db'}", run.info.run_id, "train/loss") == list(
        range(1, 501)
    )


def test_a_closed_port_costs_little_and_a_stage_goes_on(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = root / "final"
    model.mkdir()
    write_lineage(
        model, fingerprint="f00d", tokenizer_digest="", data={}, params={}, code={}, packages={}
    )
    write_manifest(model, "model")
    uri = f"http://127.0.0.1:{free_port()}"
    runtime = RuntimeConfig(checkpoint_root="runs", tracking_uri=uri, experiment_name="tests")
    started = time.monotonic()
    assert not log_stage(model, "evaluate", {"loss": 1.5}, runtime=runtime, root=root)
    assert time.monotonic() - started < 30.0
    assert "run `python -m pipeline.track` to replay" in caplog.text
    runtime.tracking_uri = None
    assert log_stage(model, "benchmark", {"seconds": 2.0}, runtime=runtime, root=root)
    run = find_run(f"sqlite:///{root / 'mlflow.db'}")
    assert run.data.metrics == {"eval/final_loss": 1.5, "benchmark/seconds": 2.0}


TRAINER = """
import sys, time
from pathlib import Path
from llm_trainer.training.tracking import RunTracking, run_directory

root, resume = Path(sys.argv[1]), int(sys.argv[2])
tracking = RunTracking.open(
    ["mlflow"], run_directory(root / "runs", "f00d"), run_name="puny-name", experiment="tests",
    tracking_uri=None, root=root, params={}, tags={"fingerprint": "f00d"}, datasets={},
    resume_step=resume or None,
)
for step in range(resume + 1, 61):
    tracking.log(step, {"train/loss": float(step)})
    if step % 10 == 0:
        tracking.flush(durable=True)
    time.sleep(0.5 if resume == 0 and step > 30 else 0.01)
tracking.finish("FINISHED")
"""


@pytest.mark.slow
def test_a_killed_trainer_leaves_no_process_and_its_resumption_no_step_twice(root: Path) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"

    def start(resume: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(root), str(resume)], start_new_session=True
        )

    trainer = start(0)
    workers = psutil.Process(trainer.pid).children
    wait_for(lambda: (last_loss(uri) or 0.0) > 30.0)
    (worker,) = workers()
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()
    wait_for(lambda: not worker.is_running(), 30.0)
    run = find_run(uri)
    assert run.info.status == "RUNNING"
    reached = steps_of(uri, run.info.run_id, "train/loss")
    assert reached == list(range(1, reached[-1] + 1))
    assert start(30).wait(timeout=60) == 0
    again = find_run(uri)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert steps_of(uri, run.info.run_id, "train/loss") == list(range(1, 61))


def test_a_worker_that_dies_is_reported_and_harmless(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = open_run(root, None)
    worker_of(tracking).kill()
    tracking.log(1, {"train/loss": 1.0})
    started = time.monotonic()
    tracking.finish("FINISHED")
    assert time.monotonic() - started < 5.0
    assert "the upload process ended early; " in caplog.text
    assert "pending" in caplog.text
