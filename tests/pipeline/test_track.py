"""`python -m pipeline.track`: replay of what a server missed, backfill in a clone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.training.tracking import RunTracking, run_directory
from pipeline.backfill import curve
from tests.mlflow_store import (
    black_hole,
    empty_database_fixture,  # noqa: F401
    free_port,
    steps_of,
)
from tests.pipeline.workspace import FINGERPRINT, command, make_workspace


@pytest.fixture(name="place")
def place_fixture(empty_database: Path, tmp_path: Path) -> Path:
    place = tmp_path / "clone"
    make_workspace(place)
    shutil.copyfile(empty_database, place / "mlflow.db")
    return place


def uri(place: Path) -> str:
    return f"sqlite:///{place / 'mlflow.db'}"


def runs(place: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri(place))
    experiment = client.get_experiment_by_name("llm-trainer")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def record_run(place: Path, fingerprint: str, last: int) -> None:
    tracking = RunTracking.open(
        [], run_directory(place / ".checkpoints", fingerprint), run_name=f"run-{fingerprint}",
        experiment="llm-trainer", tracking_uri=None, root=place, params={"training": {"seed": 1}},
        tags={"fingerprint": fingerprint}, datasets={},
    )  # fmt: skip
    for step in range(1, last + 1):
        tracking.log(step, {"train/loss": 1 / step})
    tracking.finish("FINISHED")


def test_a_clone_is_backfilled_and_every_record_replayed_once(place: Path) -> None:
    record_run(place, "aaaa", 30)
    record_run(place, "bbbb", 20)
    dry = command(place, "pipeline.track", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "would send to sqlite:///" in dry.stdout
    assert runs(place) == []
    assert not run_directory(place / ".checkpoints", FINGERPRINT).exists()

    sent = command(place, "pipeline.track")
    assert sent.returncode == 0, sent.stderr
    lines = sent.stdout.splitlines()
    assert lines[0] == "5eed5eed: no record here, put together from metrics, plots and params"
    names = [line.split(":")[0] for line in lines[2:]]
    assert names == ["run-aaaa (aaaa)", "run-bbbb (bbbb)", "5eed5eed"]
    assert all("new run" in line for line in lines[2:])
    assert "the model" in lines[4]
    assert lines[2:] == dry.stdout.splitlines()[2:]
    found = {run.data.tags["fingerprint"]: run for run in runs(place)}
    assert set(found) == {"aaaa", "bbbb", FINGERPRINT}
    for fingerprint, last in (("aaaa", 30), ("bbbb", 20)):
        run = found[fingerprint]
        assert steps_of(uri(place), run.info.run_id, "train/loss") == list(range(1, last + 1))
    run = found[FINGERPRINT]
    assert run.info.status == "FINISHED"
    assert run.data.tags["source"] == "backfill"
    assert run.data.params["evaluation.seed"] == "0"
    assert run.data.params["training.learning_rate"] == "0.0001"
    expected = {
        "train/loss": 4.0, "train/lr": 0.0005, "eval/best_bits_per_byte": 1.75, "run/steps": 4.0,
        "eval/final_bits_per_byte": 1.75, "benchmark/tokens_per_second": 9000.0,
    }  # fmt: skip
    assert expected.items() <= run.data.metrics.items()
    assert steps_of(uri(place), run.info.run_id, "eval/loss") == [2, 4]
    assert len(run.outputs.model_outputs) == 1

    again = command(place, "pipeline.track")
    assert again.returncode == 0
    assert [line.split(": ")[1] for line in again.stdout.splitlines()[1:]] == [
        "nothing missing"
    ] * 3
    assert len(runs(place)) == 3


def test_an_unreachable_server_is_one_clear_error_and_exit_code_1(place: Path) -> None:
    closed = command(place, "pipeline.track", "--uri", f"http://127.0.0.1:{free_port()}")
    assert closed.returncode == 1
    assert "nobody listens there (connection refused)\n" in closed.stderr
    assert "nothing is lost" in closed.stderr
    assert "Traceback" not in closed.stderr
    with black_hole() as address:
        started = time.monotonic()
        silent = command(place, "pipeline.track", "--uri", address)
        assert time.monotonic() - started < 45
    assert silent.returncode == 1
    assert f"error: track: {address}: no answer in time\n" in silent.stderr


def test_wrong_input_is_exit_code_2(place: Path) -> None:
    wrong = command(place, "pipeline.track", "--uri", "./mlruns")
    assert wrong.returncode == 2
    assert "plain folders are no longer a store" in wrong.stderr
    (place / "metrics" / "evaluate.json").write_text("{")
    damaged = command(place, "pipeline.track")
    assert damaged.returncode == 2
    assert "metrics/evaluate.json: not readable as JSON" in damaged.stderr
    assert not (run_directory(place / ".checkpoints", FINGERPRINT) / "run.json").exists()


def test_without_runs_it_says_so(place: Path) -> None:
    shutil.rmtree(place / "models")
    empty = command(place, "pipeline.track")
    assert empty.returncode == 0
    assert empty.stdout.startswith("nothing to send: no runs in ")


def test_without_the_model_dvc_lock_names_the_run(place: Path) -> None:
    shutil.rmtree(place / "models")
    md5 = "0123456789abcdef0123456789abcdef.dir"
    (place / "dvc.lock").write_text(
        f"stages:\n  train:\n    outs:\n    - path: models/final\n      md5: {md5}\n"
    )
    sent = command(place, "pipeline.track")
    assert sent.returncode == 0, sent.stderr
    (run,) = runs(place)
    assert run.data.tags["fingerprint"] == "lock-0123456789abcdef0123456789abcdef"
    assert run.data.metrics["train/loss"] == 4.0


def test_a_damaged_curve_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("step,train_loss,own\n1,2.5,7\n2,,\n3,x,\n")
    rows = curve(path)
    assert next(rows) == (1, {"train/loss": 2.5, "train/own": 7.0})
    assert next(rows) == (2, {})
    with pytest.raises(Exception, match=r"train\.csv:4: not a row of numbers"):
        next(rows)
    assert list(curve(tmp_path / "absent.csv")) == []
