"""What stages after the training found is in the MLflow run of their model."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_trainer.config import RuntimeConfig
from llm_trainer.manifests import write_manifest
from llm_trainer.training.lineage import write_lineage
from llm_trainer.training.tracking import begin_upload, log_stage
from tests.mlflow_store import (  # noqa: F401
    empty_database_fixture,
    root_fixture,
    steps_of,
    wait_for,
)
from tests.training.test_mlflow_sync import (
    FINGERPRINT,
    only_run,
    open_run,
    run_uri,
    sync,
    train,
)


def make_model(root: Path) -> Path:
    model = root / "models" / "final"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    write_lineage(
        model, fingerprint=FINGERPRINT, tokenizer_digest="cd" * 32,
        data={"packed_digest": "ab" * 32, "raw_digest": "ef" * 32, "origin": {}},
        params={"model": {"d_model": 64}, "training": {"seed": 1}}, code={},
        packages={"torch": "2.13.0"},
    )  # fmt: skip
    write_manifest(model, "model")
    return model


def test_stages_find_the_run_of_their_model(root: Path) -> None:
    """Without a server in reach: the record takes it all, and a sync sends it."""
    model = make_model(root)
    tracking = open_run(root)
    train(tracking, 1, 20)
    tracking.finish("FINISHED")
    runtime = RuntimeConfig(checkpoint_root="runs", report_to=["jsonl"])
    figures = {"loss": 1.5, "bits_per_byte": 1.25, "machine": "a CPU", "nothing": None}
    samples = [{"prompt": "def", "text": "def f"}, {"prompt": "x", "text": "x = 1"}]
    assert not log_stage(
        model, "evaluate", figures, runtime=runtime, root=root, samples=samples,
        params={"evaluation": {"seed": 3}},
    )  # fmt: skip
    assert not log_stage(model, "benchmark", {"tokens_per_second": 9e4}, runtime=runtime, root=root)
    sync(root)
    run = only_run(root)
    assert run.data.metrics["eval/final_bits_per_byte"] == 1.25
    assert run.data.metrics["benchmark/tokens_per_second"] == 9e4
    assert run.data.metrics["eval/loss"] == 1.0
    assert run.data.tags["evaluate.machine"] == "a CPU"
    assert run.data.params["evaluation.seed"] == "3"
    assert steps_of(run_uri(root), run.info.run_id, "eval/loss") == [10, 20]
    assert steps_of(run_uri(root), run.info.run_id, "eval/final_loss") == [20]
    # the same figures again change nothing; others are the last value
    log_stage(model, "evaluate", figures, runtime=runtime, root=root)
    assert sync(root).metrics == 0
    log_stage(model, "evaluate", {"loss": 1.75}, runtime=runtime, root=root)
    sync(root)
    assert only_run(root).data.metrics["eval/final_loss"] == 1.75


def test_a_stage_whose_model_was_trained_elsewhere_makes_the_run(root: Path) -> None:
    runtime = RuntimeConfig(checkpoint_root="runs", report_to=["console"], experiment_name="tests")
    log_stage(make_model(root), "evaluate", {"loss": 1.5}, runtime=runtime, root=root)
    sync(root)
    run = only_run(root)
    assert run.data.params["training.seed"] == "1"
    assert run.data.tags["fingerprint"] == FINGERPRINT
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/final_loss"] == 1.5


@pytest.mark.slow
def test_an_upload_that_began_with_the_stage_sends_what_it_found(root: Path) -> None:
    """Sent early: what the record had; at the end: what the stage found."""
    runtime = RuntimeConfig(checkpoint_root="runs", report_to=["mlflow"], experiment_name="tests")
    model = make_model(root)
    upload = begin_upload(model, runtime=runtime, root=root)
    assert upload is not None
    wait_for(lambda: upload.outcome.run_id is not None)
    run = only_run(root)
    assert "eval/final_loss" not in run.data.metrics
    assert "evaluation.seed" not in run.data.params
    assert log_stage(
        model, "evaluate", {"loss": 1.5, "machine": "a CPU"}, runtime=runtime, root=root,
        params={"evaluation": {"seed": 3}}, samples=[{"prompt": "def", "text": "def f"}],
        upload=upload,
    )  # fmt: skip
    run = only_run(root)
    assert run.data.metrics["eval/final_loss"] == 1.5
    assert run.data.params["evaluation.seed"] == "3"
    assert run.data.tags["evaluate.machine"] == "a CPU"
    assert run.info.status == "FINISHED"


def test_no_upload_begins_without_a_server_or_a_run(root: Path) -> None:
    console = RuntimeConfig(checkpoint_root="runs", report_to=["console"])
    assert begin_upload(make_model(root), runtime=console, root=root) is None
    mlflow = RuntimeConfig(checkpoint_root="runs", report_to=["mlflow"])
    assert begin_upload(root / "nothing", runtime=mlflow, root=root) is None


def test_a_stage_without_lineage_is_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not log_stage(root, "evaluate", {}, runtime=RuntimeConfig(), root=root)
    assert "lineage.json: file is missing" in caplog.text
