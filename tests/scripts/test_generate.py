"""scripts/generate.py as a person types it: real processes on a saved model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_trainer.models.storage import save_model
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.utils.generation import GenerationConfig, TextGenerator
from tests.utils.tiny_text_model import tiny_text_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "final"
    save_model(
        tiny_text_model(), path, lambda made: tiny_tokenizer().save_pretrained(made / "tokenizer")
    )
    return path


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, stdin: str = "") -> Done:
    """In a process of its own, started elsewhere, without the checkout on its path."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate.py", *arguments], input=stdin.encode(),
        capture_output=True, env=environment, cwd="/", timeout=120,
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The same in this process, where torch is loaded already."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "scripts" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def call(*arguments: str | Path) -> Done:
        code = script.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def expected(prompts: list[str], config: GenerationConfig) -> str:
    generator = TextGenerator(tiny_text_model(), tiny_tokenizer())
    return "\n\n".join(generator.batch_generate(prompts, config)) + "\n"


def test_the_references_command(model_path: Path) -> None:
    done = run(
        "--model_path", model_path, "--prompts", "The future", "Once upon", "--max_length", "50",
        "--temperature", "0.8", "--top_p", "0.9", "--top_k", "40", "--seed", "3",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    config = GenerationConfig(max_length=50, temperature=0.8, top_p=0.9, top_k=40, seed=3)
    assert done.stdout == expected(["The future", "Once upon"], config)


def test_streaming_quantising_and_more(model_path: Path, call: Callable[..., Done]) -> None:
    arguments = ["--model_path", model_path, "--prompts", "def", "", "--max_new_tokens", "20"]
    plain = call(*arguments, "--greedy")
    assert plain.returncode == 0, plain.stderr
    assert call(*arguments, "--greedy", "--stream").stdout == plain.stdout
    other = call(
        *arguments, "--temperature", "0", "--no_cache", "--device", "cpu", "--tokenizer_path",
        model_path / "tokenizer", "--log_level", "debug", "--stop", "no such text",
    )  # fmt: skip
    assert other.stdout == plain.stdout
    beams = call(
        *arguments, "--num_beams", "2", "--length_penalty", "0.5", "--repetition_penalty", "1.1"
    )
    config = GenerationConfig(
        max_new_tokens=20, num_beams=2, length_penalty=0.5, repetition_penalty=1.1
    )
    assert beams.stdout == expected(["def", ""], config)
    assert call(*arguments, "--greedy", "--quantize").returncode == 0


def test_interactive_from_a_pipe(model_path: Path) -> None:
    done = run(
        "--model_path", model_path, "--prompts", "def", "--interactive", "--greedy",
        "--max_new_tokens", "8", stdin="for\n/quit\n",
    )  # fmt: skip
    config = GenerationConfig(max_new_tokens=8, temperature=0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected(["def"], config))
    assert expected(["for"], config) in done.stdout


def test_a_prompt_beyond_the_context_is_one_warning(model_path: Path) -> None:
    done = run("--model_path", model_path, "--prompts", "x " * 500, "--max_new_tokens", "5")
    assert done.returncode == 0
    assert done.stderr.startswith("WARNING: the context holds 128 tokens: of a prompt of 1000")
    assert len(done.stderr.splitlines()) == 1


def test_wrong_input_is_one_line_and_exit_code_2(
    model_path: Path, tmp_path: Path, call: Callable[..., Done]
) -> None:
    other = BPETokenizer()
    other.train(["other text altogether " * 9], 280)
    other.save_pretrained(tmp_path / "other")
    start = ["--model_path", model_path, "--prompts", "a"]
    cases: list[tuple[list[str | Path], list[str]]] = [
        (["--model_path", tmp_path / "none", "--prompts", "a"], ["none", "no such model"]),
        ([*start, "--tokenizer_path", tmp_path / "other"], [other.digest, tiny_tokenizer().digest]),
        ([*start, "--device", "quantum"], ["device ('quantum')"]),
        ([*start, "--max_length", "1"], ["max_length (1)", "set max_new_tokens"]),
        ([*start, "--compile", "--no_cache"], ["enable_kv_cache"]),
    ]
    for arguments, words in cases:
        done = call(*arguments)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
        assert all(word in done.stderr for word in words), done.stderr


def test_impossible_settings_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = run(
        "--model_path", tmp_path, "--prompts", "a", "--temperature", "-1", "--top_k", "0",
        "--top_p", "2",
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert all(name in done.stderr for name in ("temperature (-1.0)", "top_k (0)", "top_p (2.0)"))
    for arguments, words in (
        (["--model_path", "x"], "nothing to do: give --prompts, or --interactive"),
        (["--model_path", "x", "--prompts", "a", "--top_k", "many"], "invalid int value: 'many'"),
        (["--model_path", "x", "--prompt", "a", "--temprature", "1"], "--temprature"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert time.monotonic() - begin < 20, "torch was loaded"


def test_a_reader_that_leaves_early_is_no_error(model_path: Path) -> None:
    command = (
        f"'{sys.executable}' '{ROOT / 'scripts' / 'generate.py'}' --model_path '{model_path}' "
        f"--prompts a --max_new_tokens 100 --stream --seed 1 | head -c 3; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120)
    assert done.stderr == b""
    assert done.stdout.endswith(b"0\n")
