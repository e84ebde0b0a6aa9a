"""The summary that a newcomer reads at the end of `make repro`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.exceptions import IntegrityError
from pipeline.summary import duration, main
from tests.pipeline.repo import ROOT, Repo

DOWNLOAD: dict[str, Any] = {
    "dataset_name": "python-stdlib", "python_version": "3.11.7", "raw_digest": "aaa",
    "train_bytes": 9_400_000,
}  # fmt: skip
TRAIN = {"parameters": 3_342_336, "tokens": 2_662_400, "steps": 1300, "seconds": 242.0}
EVALUATE = {
    "bits_per_byte": 1.2345, "bits_per_byte_low": 1.2, "bits_per_byte_high": 1.27,
    "confidence": 0.95, "documents": 24, "leak_bytes_share": 0.0,
}  # fmt: skip


def change(**keys: Any) -> None:
    """Edit params.yaml here, `section__key=value`."""
    Repo(Path()).set(**keys)


def write(name: str, values: Any) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with figures, committed."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    change(training__seed=1)
    write("metrics/download.json", DOWNLOAD)
    write("metrics/train.json", TRAIN)
    write("metrics/evaluate.json", EVALUATE)
    text = "f(x):\n" + "    return x\n" * 20
    write("plots/samples/samples.json", [{"prompt": "def ", "text": text}])
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "reference"]):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    main([])
    return capsys.readouterr().out


def test_it_says_what_where_and_what_next(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys)
    for part in (
        "3.3 million parameters", "9.4 MB of text", "(python-stdlib): 2,662,400 tokens in 1,300",
        "4 min 2 s", "1.234 bits per byte (95% interval 1.200 to 1.270)", "8 is knowing nothing",
        "  | def f(x):\n  |     return x\n", "  | ...\n", "plots/samples/samples.md",
        "plots/loss.png", "dvc exp run -S training.learning_rate", "make ui",
        "The last commit has the same figure (1.234 bits per byte).",
    ):  # fmt: skip
        assert part in text, text
    assert text.count("  |     return x\n") == 11
    assert "flatters" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_changed_params_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(training__seed=43, runtime__logging_steps=11)
    write("metrics/evaluate.json", {**EVALUATE, "bits_per_byte": 1.3})
    text = printed(capsys)
    assert "The last commit has 1.234 bits per byte. What differs:\n" in text
    assert "  params.yaml: training.seed 1 -> 43\n" in text
    assert "logging_steps" not in text
    assert "torch rounds" not in text


def test_many_changed_params_are_counted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(
        **{f"training__{key}": 0.123 for key in ("eps", "beta1", "beta2", "momentum", "lr_power")}
    )
    write("metrics/evaluate.json", {**EVALUATE, "bits_per_byte": 1.3})
    assert "  params.yaml: and 1 more\n" in printed(capsys)


def test_another_python_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("metrics/download.json", {**DOWNLOAD, "python_version": "3.13.0", "raw_digest": "b"})
    write("metrics/evaluate.json", {**EVALUATE, "bits_per_byte": 1.3})
    text = printed(capsys)
    assert "standard library of Python 3.13.0, and that one of Python 3.11.7" in text


def test_another_machine(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("metrics/evaluate.json", {**EVALUATE, "bits_per_byte": 1.2346})
    assert "another processor, number of threads" in printed(capsys)


def test_leaks_are_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("metrics/evaluate.json", {**EVALUATE, "leak_bytes_share": 0.042})
    assert "Of that text 4.2% is in the training text too" in printed(capsys)


def test_without_git_or_interval(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(".git")
    write("metrics/evaluate.json", {"bits_per_byte": 1.5, "documents": 1})
    text = printed(capsys)
    assert "validation: 1.500 bits per byte\n" in text
    assert "last commit" not in text
    assert "\n\n\n" not in text


def test_before_a_run_it_says_what_is_missing(project: Path) -> None:
    Path("metrics/train.json").unlink()
    with pytest.raises(IntegrityError, match=r"metrics/train\.json: missing; `dvc repro` makes"):
        main([])


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (242, "4 min 2 s"), (9000, "2 h 30 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_after_a_real_run(repo: Repo) -> None:
    text = repo.run("python", "-m", "pipeline.summary")
    assert "bits per byte" in text
    assert "The last commit has the same figure" in text
