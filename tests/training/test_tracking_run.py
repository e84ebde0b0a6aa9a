"""`RunTracking` and the local backends: nothing twice, nothing raised, nothing imported early."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.exceptions import ConfigurationError, MissingDependencyError
from llm_trainer.training.tracking import RunTracking, Tracker, check_backends, read_metrics
from llm_trainer.training.tracking.console import format_number, format_record
from llm_trainer.training.tracking.log import iter_records, text_of
from llm_trainer.training.tracking.system import SystemSampler


def open_tracking(
    place: Path, report_to: Sequence[str] = (), resume_step: int | None = None, **changes: Any
) -> RunTracking:
    values: dict[str, Any] = {
        "run_name": "run", "experiment": "tests", "tracking_uri": None, "root": place,
        "params": {"training": {"seed": 1}}, "tags": {"fingerprint": "f00d", "none": None},
        "datasets": {}, "resume_step": resume_step, **changes,
    }  # fmt: skip
    return RunTracking.open(report_to, place / "run", **values)


class Broken(Tracker):
    name = "broken"

    def __init__(self) -> None:
        self.calls = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls += 1
        raise OSError("no route to host")


def without_system(path: Path) -> dict[str, list[tuple[int, float]]]:
    return {k: v for k, v in read_metrics(path).items() if not k.startswith("system/")}


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    first = open_tracking(tmp_path)
    for step in range(1, 8):
        first.log(step, {"train/loss": 10.0 - step})
        if step % 2 == 0:
            first.log(step, {"eval/loss": 10.0 - step})
            first.log_text(step, "sample-0", f"text {step}")
    # killed here: no finish; the checkpoint was at step 4
    second = open_tracking(tmp_path, resume_step=4)
    for step in range(4, 10):  # one step too many on purpose
        second.log(step, {"train/loss": 10.0 - step})
        if step % 2 == 0:
            second.log(step, {"eval/loss": 10.0 - step})
            second.log_text(step, "sample-0", f"text {step}")
    second.finish("FINISHED")
    curves = without_system(second.log_path)
    assert curves["train/loss"] == [(s, 10.0 - s) for s in range(1, 10)]
    assert curves["eval/loss"] == curves["eval/best_loss"] == [(s, 10.0 - s) for s in (2, 4, 6, 8)]
    texts = [text_of(record) for record, _ in iter_records(second.log_path)]
    assert [t for t in texts if t] == [("sample-0", f"text {s}") for s in (2, 4, 6, 8)]
    info = second.record.read_info()
    assert (info.status, info.attempts, info.params) == ("FINISHED", 2, {"training.seed": "1"})
    assert "none" not in info.tags


def test_a_fresh_start_drops_what_an_earlier_one_said(tmp_path: Path) -> None:
    open_tracking(tmp_path).log(1, {"train/loss": 1.0})
    again = open_tracking(tmp_path)
    again.log(1, {"train/loss": 2.0})
    assert without_system(again.log_path) == {"train/loss": [(1, 2.0)]}


def test_the_best_so_far_is_logged_beside_the_last_also_across_a_resume(tmp_path: Path) -> None:
    first = open_tracking(tmp_path)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5)):
        first.log(step, {"eval/loss": loss, "train/loss": loss})
    second = open_tracking(tmp_path, resume_step=3)
    second.log(4, {"eval/loss": 2.2})
    second.log(5, {"eval/loss": float("nan")})
    second.log(6, {"eval/loss": 1.9})
    assert read_metrics(second.log_path)["eval/best_loss"] == [(1, 3.0), (2, 2.0), (6, 1.9)]


def test_a_failing_backend_is_dropped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = open_tracking(tmp_path)
    broken = Broken()
    tracking._trackers.append(broken)
    for step in range(1, 4):
        tracking.log(step, {"train/loss": 1.0})
    tracking.finish("FINISHED")
    assert broken.calls == 1
    assert [r.getMessage().split(" and ")[0] for r in caplog.records] == [
        "tracking: broken failed (OSError: no route to host)"
    ]
    assert len(read_metrics(tracking.log_path)["train/loss"]) == 3


def test_nothing_raises_whatever_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = open_tracking(tmp_path)
    tracking.log(1, {"a": "no number", "step": 3, "ok": 1, "b": None})  # type: ignore[dict-item]
    tracking.log(2, {"a": "again"})  # type: ignore[dict-item]
    tracking.log(3, {})
    tracking.log_text(1, "t", "\ud800 lone surrogate")
    tracking.log_artifact(tmp_path / "absent")
    tracking.flush(durable=True)
    tracking.finish("FAILED")
    tracking.finish("FINISHED")
    tracking.log(9, {"late": 1.0})
    tracking.flush()
    assert without_system(tracking.log_path) == {"ok": [(1, 1.0)]}
    assert tracking.record.read_info().status == "FAILED"
    messages = [r.getMessage() for r in caplog.records]
    assert sum("metric a" in m for m in messages) == 1
    assert sum("the name is taken" in m for m in messages) == 1


def test_unknown_and_missing_backends_are_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"unknown backend 'tensorbord'.*did you mean 'tensorboard'"
    ):
        open_tracking(tmp_path, ["tensorbord"])
    with pytest.raises(ConfigurationError, match="must be a list"):
        check_backends("mlflow")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "wandb" else object()
    )
    with pytest.raises(MissingDependencyError, match=r"pip install 'llm-trainer\[wandb\]'"):
        open_tracking(tmp_path, ["console", "wandb"])
    with pytest.raises(ConfigurationError, match="plain folders are no longer a store"):
        open_tracking(tmp_path, ["mlflow"], tracking_uri="./mlruns")
    assert not (tmp_path / "run" / "artifacts").exists()


def test_tracking_is_imported_without_the_heavy_packages() -> None:
    code = (
        "import sys, llm_trainer.training.tracking, llm_trainer.training.lineage\n"
        "heavy = {'torch', 'mlflow', 'tensorboard', 'pandas', 'pyarrow', 'psutil', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_console_has_one_tidy_line_a_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tracking = open_tracking(tmp_path, ["console", "jsonl", "console"])
    tracking.log(1200, {"train/loss": 2.34567, "train/lr": 3e-4, "train/tokens": 1234567.0})
    tracking.log_text(1200, "sample-0", "def f():\n    pass")
    assert [r.getMessage() for r in caplog.records] == [
        "step 1,200  train: loss 2.346, lr 3.000e-04, tokens 1,234,567",
        "step 1200  sample-0\n    def f():\n        pass",
    ]
    assert format_record(1, {"system/cpu_percent": 3.0}) == ""
    assert format_record(1, {"loss": 1.0}) == "step 1  loss 1"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.5, "1.5"),
        (-0.0001234, "-1.234e-04"),
        (12345.67, "12,346"),
        (1e12, "1,000,000,000,000"),
        (1.5e300, "1.500e+300"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert format_number(value) == text


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = open_tracking(tmp_path, ["tensorboard"], tensorboard_dir=tmp_path / "tb")
    for step in range(1, 7):
        first.log(step, {"train/loss": float(step)})
    first.log_text(6, "sample-0", "def f")
    first.flush()
    second = open_tracking(
        tmp_path, ["tensorboard"], resume_step=4, tensorboard_dir=tmp_path / "tb"
    )
    for step in range(5, 9):
        second.log(step, {"train/loss": float(step) + 0.5})
    second.finish("FINISHED")
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert scalars == [(s, float(s)) for s in range(1, 5)] + [(s, s + 0.5) for s in range(5, 9)]


def test_system_figures_come_at_intervals_and_are_plausible() -> None:
    sampler = SystemSampler(interval=0.0)
    values = sampler.sample()
    assert 0 <= values["system/cpu_percent"] <= 100
    assert 1 < values["system/process_memory_mib"] < 1e6
    assert 0 < values["system/memory_used_percent"] <= 100
    assert SystemSampler(interval=60.0).sample() == {}


def test_a_full_disk_does_not_stop_the_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = open_tracking(tmp_path)
    real = tracking._log._descriptor
    with open("/dev/full", "wb") as full:
        tracking._log._descriptor = full.fileno()
        for step in range(1, 5):
            tracking.log(step, {"train/loss": 1.0})
        tracking.flush(durable=True)
        tracking._log._descriptor = real
    tracking.log(5, {"train/loss": 1.0})
    tracking.finish("FINISHED")
    assert [step for step, _ in read_metrics(tracking.log_path)["train/loss"]] == [1, 2, 3, 4, 5]
    assert sum("cannot be written" in r.getMessage() for r in caplog.records) == 1


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    tracking = open_tracking(
        tmp_path, datasets={"packed": {"digest": "ab", "source": "http://u:p@h/x"}}
    )
    tracking.finish("KILLED")
    values = json.loads((tmp_path / "run" / "run.json").read_text())
    assert values["datasets"] == {"packed": {"digest": "ab", "source": "http://h/x"}}
    assert values["status"] == "KILLED"
