"""Weights & Biases, offline with the real package, where that optional extra is installed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llm_trainer.training.tracking import RunTracking, run_directory

pytest.importorskip("wandb")


def test_runs_are_written_offline_under_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    record = run_directory(tmp_path, "f00d")
    (tmp_path / "loss.png").write_bytes(b"png")
    for resume in (None, 5):
        tracking = RunTracking.open(
            ["wandb"], record, run_name="run", experiment="tests", tracking_uri=None,
            root=tmp_path, params={"training": {"seed": 1}}, tags={"fingerprint": "f00d"},
            datasets={}, resume_step=resume,
        )  # fmt: skip
        for step in range((resume or 0) + 1, 9):
            tracking.log(step, {"train/loss": 1 / step})
        tracking.log_text(8, "sample-0", "def f")
        tracking.log_artifact(tmp_path / "loss.png")
        tracking.finish("FINISHED")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    runs = sorted(path for path in (record / "wandb").glob("offline-run-*") if path.is_dir())
    assert len(runs) == 2
    assert all(path.name.endswith("-f00d") and list(path.glob("*.wandb")) for path in runs)
