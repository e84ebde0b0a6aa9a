"""`python -m llm_trainer.export`, in processes of its own and in this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llm_trainer.export.__main__ import main
from llm_trainer.models import TransformerLM
from tests.export.small import save, small_model
from tests.test_layers import ROOT

pytest.importorskip("transformers")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llm_trainer.export", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_model(qk_norm=True), tmp_path_factory.mktemp("source") / "m")


def test_there_and_back(source: Path, tmp_path: Path) -> None:
    done = run(source, tmp_path / "out", "--max-shard-size", "20KB")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Qwen3ForCausalLM, 39,872 parameters in 7 files; logits differ by at most" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    back = run("--from-huggingface", tmp_path / "out", tmp_path / "back")
    assert (back.returncode, back.stderr) == (0, "")
    assert "from Qwen3, 39,872 parameters as float32; logits differ by at most" in back.stdout
    first, second = (TransformerLM.from_pretrained(path) for path in (source, tmp_path / "back"))
    assert first.config == second.config


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    save(small_model(activation="relu2"), tmp_path / "m")
    done = run(tmp_path / "m", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no Hugging Face layout holds this configuration exactly; for Llama: activation "
        "(relu2) must be swiglu or geglu; for GPT-NeoX: norm (rmsnorm) must be layernorm\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["absent", "out"], "no such model directory"),
        (["--from-huggingface", "absent", "out"], "no such directory"),
        (["SOURCE", "out", "--max-shard-size", "big"], "max_shard_size ('big')"),
        (["SOURCE", "SOURCE"], "not a manifest of kind 'huggingface'"),
        (["SOURCE", "out", "--tokenizer", "absent"], "no such directory"),
    ],
)
def test_errors(
    arguments: list[str], reason: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(source) if word == "SOURCE" else word for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert reason in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["a"],
        ["a", "b", "--dtype", "int8"],
        ["--from-huggingface", "a", "b", "--dtype", "bfloat16"],
        ["a", "b", "--tokenizer", "t", "--without-tokenizer"],
    ],
)
def test_impossible_command_lines(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_without_transformers(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main([str(source), str(tmp_path / "out")]) == 2
    assert "pip install 'llm-trainer[hf]'" in capsys.readouterr().err
    options = ["--no-verify", "--dtype", "bfloat16", "--without-tokenizer"]
    assert main([str(source), str(tmp_path / "out"), *options]) == 0
    assert capsys.readouterr().out.endswith("in 1 file; not verified\n")
