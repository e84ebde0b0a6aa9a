"""scripts/train.py: from a configuration file to a model that the other scripts open."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_trainer.data.prepare import find_prepared
from llm_trainer.training.lineage import read_lineage
from llm_trainer.training.settings import read_settings
from llm_trainer.utils.loading import load_model_and_tokenizer
from tests.scripts.command import Outcome, call, script, start
from tests.test_layers import ROOT

TEXTS = [f"def add_{n}(left, right):\n    return left + right + {n}\n" * 4 for n in range(60)]
LIBRARY: dict[str, dict[str, Any]] = {
    "model": {
        "vocab_size": 300, "d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 32,
        "max_seq_len": 32,
    },
    "training": {
        "batch_size": 4, "learning_rate": 0.01, "max_steps": 6, "warmup_steps": 1, "use_amp": False,
        "eval_steps": 3, "logging_steps": 1, "save_steps": 2, "report_to": ["jsonl"],
    },
    "data": {
        "train_file": "corpus", "validation_fraction": 0.2, "max_length": 32, "vocab_size": 300,
        "preprocessing_num_workers": 1,
    },
}  # fmt: skip
STAGED: dict[str, dict[str, Any]] = {
    "data": {"train_file": "corpus", "validation_fraction": 0.2},
    "tokenizer": {"vocab_size": 300},
    "packing": {"max_length": 32},
    "model": {k: v for k, v in LIBRARY["model"].items() if k != "vocab_size"},
    "training": {
        "batch_size": 4, "learning_rate": 0.01, "max_steps": 6, "warmup_steps": 1, "use_amp": False,
        "eval_steps": 3,
    },
    "runtime": {"report_to": ["jsonl"], "preprocessing_num_workers": 1, "save_steps": 2},
}  # fmt: skip
USUAL = ["--config", "model.yaml", "--output_dir", "output"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "corpus").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "corpus" / f"{number:02}.txt").write_text(text)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(LIBRARY))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(STAGED))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return tmp_path


def train(capsys: pytest.CaptureFixture[str], *more: str) -> Outcome:
    return call("train", [*USUAL, *more], capsys)


def weights(output: Path) -> bytes:
    return (output / "model.safetensors").read_bytes()


def test_a_model_that_the_other_scripts_open(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(capsys)
    assert done.code == 0, done.err
    assert "bits per byte" in done.out
    assert "scripts/generate.py --model_path output" in done.out
    assert sorted(path.name for path in (folder / "output").iterdir()) == [
        "config.json", "lineage.json", "manifest.json", "model.safetensors", "tokenizer",
    ]  # fmt: skip
    model, tokenizer = load_model_and_tokenizer("output", "cpu")
    assert model.tokenizer_digest == tokenizer.digest
    lineage = read_lineage("output")
    assert lineage.params["training"]["max_steps"] == 6
    assert lineage.code["llm_trainer/training/trainer.py"]
    generated = call(
        "generate", ["--model_path", "output", "--prompts", "def add", "--greedy"], capsys
    )
    assert (generated.code, generated.out[:7]) == (0, "def add")
    record = (folder / "checkpoints" / "run" / "log.jsonl").read_text()
    assert "eval/bits_per_byte" in record


def test_what_did_not_change_is_not_made_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(capsys)
    first, tokenizers = weights(folder / "output"), sorted(folder.rglob("tokenizer.json"))
    stamps = [path.stat().st_mtime_ns for path in folder.glob("checkpoints/data/*/manifest.json")]
    assert len(stamps) == 3
    assert train(capsys).code == 0
    assert weights(folder / "output") == first, "the same command, the same bytes"
    assert (folder / "checkpoints" / "previous-1").is_dir(), "a fresh start"
    again = [path.stat().st_mtime_ns for path in folder.glob("checkpoints/data/*/manifest.json")]
    assert again == stamps
    shutil.rmtree(folder / "checkpoints" / "data")
    assert train(capsys).code == 0
    made = sorted(path.name.partition("-")[0] for path in (folder / "checkpoints/data").iterdir())
    assert made == ["lock", "packed", "raw"], "the tokenizer is the output's"
    assert train(capsys, "--force_retrain_tokenizer").code == 0
    assert len(list(folder.glob("checkpoints/data/tokenizer-*"))) == 1
    assert len(tokenizers) == 2


def test_another_vocabulary_is_another_tokenizer(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    train(capsys)
    assert train(capsys, "--set", "data.vocab_size=280").code == 0
    assert "model.vocab_size: 280, the tokenizer's, instead of 300" in caplog.text
    model, tokenizer = load_model_and_tokenizer("output", "cpu")
    assert model.config.vocab_size == tokenizer.vocab_size == 280


def stop_in_the_middle(
    arguments: list[str], folder: Path, number: signal.Signals, *, processes: int = 1
) -> Outcome:
    """Start training and send a signal once the first steps are done."""
    process = start("train", arguments, folder, processes=processes)
    log = folder / "checkpoints" / "run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and "train/loss" in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    return Outcome(process.returncode, out, err)


LONG = [
    "--set", "training.max_steps=250", "--set", "training.eval_strategy=no",
    "--set", "training.save_steps=0",
]  # fmt: skip


def test_a_stopped_run_goes_on_with_the_command_that_it_prints(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = stop_in_the_middle([*USUAL, *LONG], folder, signal.SIGTERM)
    assert stopped.code == 143
    assert not (folder / "output").exists()
    assert len(list((folder / "checkpoints").glob("checkpoint-*"))) == 1
    command = shlex.split(stopped.err.strip().rpartition("to go on: ")[2])
    assert command[:2] == ["python", str(script("train"))]
    assert command[-2:] == ["--resume_from_checkpoint", "auto"]
    assert call("train", command[2:], capsys).code == 0
    resumed = weights(folder / "output")
    assert train(capsys, *LONG).code == 0
    assert weights(folder / "output") == resumed


@pytest.mark.slow
def test_under_torchrun_in_both_modes_it_is_the_model_of_one_process(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ddp, its launcher told to stop in the middle, then fsdp to the end."""
    arguments = [
        *USUAL, *LONG, "--set", "training.deterministic_reduction=true",
        "--set", "training.gradient_accumulation_steps=2",
    ]  # fmt: skip
    assert train(capsys, *arguments[len(USUAL) :]).code == 0
    expected = weights(folder / "output")
    shutil.rmtree(folder / "output")
    shutil.rmtree(folder / "checkpoints" / "run")
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        shutil.rmtree(path)

    stopped = stop_in_the_middle(
        [*arguments, "--set", "training.parallel=ddp"], folder, signal.SIGTERM, processes=2
    )
    # torchrun's own code for a signal
    assert stopped.code == 1, stopped.err[-4000:]
    assert stopped.err.count("stopped at step") == 1, stopped.err
    assert len(list((folder / "checkpoints").glob("checkpoint-*"))) == 1
    process = start(
        "train",
        [*arguments, "--set", "training.parallel=fsdp", "--resume_from_checkpoint", "auto"],
        folder, processes=2,
    )  # fmt: skip
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert err.count("resuming from") == 1
    assert out.count("bits per byte") == 1
    assert weights(folder / "output") == expected


def test_ctrl_c_with_a_json_file_and_without_a_log(folder: Path) -> None:
    (folder / "model.json").write_text(json.dumps(LIBRARY))
    arguments = ["--config", "model.json", "--output_dir", "output", "--log_level", "error", *LONG]
    stopped = stop_in_the_middle(arguments, folder, signal.SIGINT)
    assert stopped.code == 130
    assert len(list((folder / "checkpoints").glob("checkpoint-*"))) == 1
    assert "to go on: " in stopped.err
    assert "to train on" not in stopped.err, "the log level counts"


def test_a_named_checkpoint_is_gone_on_from(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(capsys)
    whole = weights(folder / "output")
    named = folder / "checkpoints" / "checkpoint-4"
    done = train(capsys, "--resume_from_checkpoint", str(named))
    assert done.code == 0, done.err
    assert weights(folder / "output") == whole
    refused = train(
        capsys, "--resume_from_checkpoint", str(named), "--set", "training.learning_rate=0.5"
    )
    assert refused.code == 2
    assert "training.learning_rate: 0.01 -> 0.5" in refused.err


@pytest.mark.slow
def test_params_yaml_gives_the_model_of_the_pipeline(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("llm_trainer", "pipeline"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignore)
    for stage in ("download", "train_tokenizer", "pack_sequences", "train"):
        subprocess.run(
            [sys.executable, "-m", f"pipeline.{stage}"],
            cwd=folder, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": "."},
        )  # fmt: skip
    runs = list((folder / ".checkpoints").iterdir())
    done = call("train", ["--config", "params.yaml", "--output_dir", "out"], capsys)
    assert done.code == 0, done.err
    assert weights(folder / "out") == weights(folder / "models" / "final")
    ours, theirs = read_lineage("out"), read_lineage("models/final")
    assert ours.fingerprint == theirs.fingerprint, "the very same run"
    assert list((folder / ".checkpoints").iterdir()) == runs
    assert (folder / ".cache" / "data").is_dir()


def test_plan_without_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(capsys, "--plan")
    assert done.code == 0, done.err
    assert "rows not known yet" in done.out
    assert not (folder / "checkpoints").exists()
    assert not (folder / "output").exists()
    for word in ("parameters", "steps", "tokens per parameter", "FLOPs", "memory", "time"):
        assert word in done.out


def test_plan_prepares_data_where_the_steps_depend_on_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = ["--set", "training.max_steps=null", "--set", "training.num_epochs=2"]
    done = train(capsys, "--plan", *epochs)
    assert done.code == 0, done.err
    settings = read_settings("model.yaml")
    size = find_prepared(
        settings.source, settings.tokenizer, settings.packing, Path("checkpoints/data")
    )
    assert size is not None
    steps = -(-2 * size.num_rows // 4)
    assert any(line.split()[:2] == ["steps", str(steps)] for line in done.out.splitlines())
    assert not list((folder / "checkpoints").glob("checkpoint-*"))
    assert train(capsys, "--plan", *epochs).out.splitlines()[1:9] == done.out.splitlines()[1:9]


BAD: dict[str, tuple[list[str], str]] = {
    "no file": (["--config", "none.yaml"], "none.yaml: no such configuration file"),
    "unknown key": (["--set", "training.lerning_rate=1"], "did you mean 'learning_rate'?"),
    "wrong type": (["--set", "model.d_model=wide"], "expected a whole number, found 'wide'"),
    "heads": (["--set", "model.n_heads=3"], "d_model (16) must be divisible by n_heads (3)"),
    "vocabulary": (["--set", "data.vocab_size=100"], "vocab_size (100) must be at least 257"),
    "rows": (["--set", "data.max_length=64"], "(64) is above model.max_seq_len (32)"),
    "override": (["--set", "max_steps=3"], "must be section.key=value"),
    "not a section": (["--set", "data.train_file.x=3"], "unknown key 'train_file.x'"),
    "runtime": (["--set", "runtime.save_steps=3"], "set training.save_steps instead"),
    "root": (["--set", "runtime.checkpoint_root=x"], "set training.checkpoint_dir instead"),
    "device": (["--set", "runtime.device=abacus"], "device ('abacus') is not a torch device"),
    "tracker": (["--set", "training.report_to=[paper]"], "'paper' is not one of"),
    "checkpoint": (["--resume_from_checkpoint", "none"], "none: no such directory"),
    "text": (["--set", "data.train_file=none.txt"], "none.txt: no such file or directory"),
    "output": (["--output_dir", "corpus"], "corpus: holds other files (00.txt, 01.txt, 02.txt)"),
    "checkpoints in output": (
        ["--set", "training.checkpoint_dir=output/checkpoints"],
        "training.checkpoint_dir (output/checkpoints) lies in --output_dir (output)",
    ),
    "too little text": (["--set", "data.train_file=corpus/00.txt"], "one document"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    more, message = BAD[name]
    done = train(capsys, *more)
    assert done.code == 2
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: train: ")
    assert message in lines[0]
    assert not (folder / "output").exists()
    assert (folder / "corpus" / "00.txt").exists()


def test_mistakes_under_optimisation_and_before_torch(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-X", "importtime", str(script("train")), *USUAL,
         "--set", "model.n_heads=5"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: train: model.yaml: model: d_model (16) must be divisible" in done.stderr
    assert "| torch\n" not in done.stderr


def test_plan_for_other_hardware(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(capsys, "--plan-for", "h100:2,price_hour=2")
    assert done.code == 0, done.err
    for word in ("2 x h100", "ddp", "memory of a rank", "network", "price", "fits"):
        assert word in done.out
    assert not (folder / "checkpoints").exists()
    here = train(capsys, "--plan")
    assert "network" not in here.out, "no word of clusters where there is none"
    assert "price" not in here.out
    odd = train(capsys, "--plan-for", "h100:3")
    assert odd.code == 2
    assert "3 ranks cannot share evenly" in odd.err


def test_plan_of_the_configured_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "params.yaml", "--output_dir", "output", "--plan", "--set",
             "runtime.launcher=torchrun", "--set", "runtime.nproc_per_node=2"]  # fmt: skip
    done = call("train", words, capsys)
    assert done.code == 0, done.err
    assert "2 x cpu" in done.out
    assert "memory of a rank" in done.out


def test_plan_refuses_what_cannot_fit(folder: Path) -> None:
    large = ["model.d_model=65536", "model.n_heads=512", "model.n_layers=64", "model.d_ff=262144"]
    words = [word for pair in large for word in ("--set", pair)]
    process = start("train", [*USUAL, "--plan-for", "h100:1", *words], folder)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "impossible" in out
    assert "a rank needs at least" in err
    assert err.count("\n") == 1, "one line"


def test_training_refuses_what_cannot_fit_before_it_makes_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_trainer.utils.present.present_memory", lambda device: 200_000)
    monkeypatch.setattr("llm_trainer.utils.memory_check.present_swap", lambda device: 0)
    done = train(capsys, "--set", "model.d_model=64")
    assert done.code == 2
    assert "needs at least" in done.err
    assert not (folder / "output").exists()
    assert not list((folder / "checkpoints").glob("checkpoint-*"))
