"""The evaluate stage as a process: closed forms, planted leaks, wrong inputs in one line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from llm_trainer.config import SourceConfig, TrainingConfig
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.tokenizer.bpe import BPETokenizer
from tests.pipeline.small_project import (
    make_project,
    run_here,
    run_stage,
    save_untrained,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return make_project(tmp_path_factory.mktemp("evaluate") / "project")


@pytest.fixture(scope="module")
def done(project):
    return run_stage(project, "evaluate")


@pytest.fixture(scope="module")
def metrics(project, done):
    assert done.returncode == 0, done.stderr
    return json.loads((project / "metrics/evaluate.json").read_text())


@pytest.fixture
def copy(project, done, tmp_path) -> Path:
    shutil.copytree(project, tmp_path / "project")
    return tmp_path / "project"


def test_a_uniform_model_has_the_loss_log_v_and_known_bits_per_byte(project, metrics):
    tokenizer = BPETokenizer.from_pretrained(project / "models/tokenizer")
    texts = [d.text for d in RawCorpus(project / "data/raw").iter_documents("validation")]
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert metrics["tokens"] == tokens + len(texts)
    assert metrics["bytes"] == num_bytes
    assert metrics["documents"] == len(texts) == 4
    assert metrics["loss"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-5)
    expected = tokens * math.log2(tokenizer.vocab_size) / num_bytes
    assert metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    assert metrics["bits_per_byte_low"] < expected < metrics["bits_per_byte_high"]


def test_the_planted_copy_is_the_only_leak(project, metrics):
    leaks = json.loads((project / "plots/samples/leaks.json").read_text())
    assert [(p["validation"], p["train"], p["equal"]) for p in leaks] == [
        ("validation/copy.py", "train/t5.py", True)
    ]
    assert metrics["leak_equal_documents"] == 1
    assert metrics["leak_near_documents"] == 0
    assert metrics["leak_documents_checked"] == 4
    assert metrics["leak_bytes_share"] == pytest.approx(leaks[0]["bytes"] / metrics["bytes"])


def test_metrics_are_flat_numbers_and_strings(metrics):
    assert all(isinstance(value, int | float | str) for value in metrics.values())
    assert metrics["sample_python_lines"] >= 0  # every document's name ends in .py
    assert metrics["seconds"] >= metrics["loss_seconds"]


def test_samples_and_documents_are_written(project, metrics):
    folder = project / "plots/samples"
    assert sorted(path.name for path in folder.iterdir()) == [
        "documents.json", "leaks.json", "samples.json", "samples.md",
    ]  # fmt: skip
    samples = json.loads((folder / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples] == ["def ", "def ", "", ""]
    assert '## "def "' in (folder / "samples.md").read_text()
    documents = json.loads((folder / "documents.json").read_text())
    best, worst = documents["best"], documents["worst"]
    assert len(best) == len(worst) == 2
    assert best[0]["bits_per_byte"] <= best[1]["bits_per_byte"] <= worst[0]["bits_per_byte"]
    names = {entry["source"] for entry in best + worst}
    assert names == {f"validation/{name}.py" for name in ("v0", "v1", "v2", "copy")}


def test_what_it_prints(done):
    assert "bits per byte" in done.stdout
    assert "1 equal and 0 nearly equal documents of 4" in done.stdout


def test_again_gives_the_same_bytes(copy, project):
    run_here(copy, "evaluate")
    for path in (project / "plots/samples").iterdir():
        assert (copy / "plots/samples" / path.name).read_bytes() == path.read_bytes(), path.name


def test_another_batch_size_gives_the_same_figures(copy, metrics):
    run_here(copy, "evaluate", evaluation={"batch_size": 7})
    again = json.loads((copy / "metrics/evaluate.json").read_text())
    for name in ("loss", "bits_per_byte", "bits_per_byte_low", "bits_per_byte_high"):
        assert again[name] == pytest.approx(metrics[name], rel=2e-6)


def test_a_model_trained_within_documents_is_evaluated_so(copy, metrics):
    tokenizer = BPETokenizer.from_pretrained(copy / "models/tokenizer")
    save_untrained(copy, tokenizer, training=TrainingConfig(document_mask=True, max_steps=1))
    run_here(copy, "evaluate")
    again = json.loads((copy / "metrics/evaluate.json").read_text())
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-6)  # uniform either way


# --------------------------------------------------------------------------- wrong inputs


def swap_tokenizer(project: Path) -> None:
    other = BPETokenizer()
    other.train(["another text altogether " * 30], 270)
    other.save_pretrained(project / "models/tokenizer")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_documents(project: Path) -> None:
    (project / "train" / "more.py").write_text("x = 1\n" * 50)
    config = SourceConfig(
        train_file=str(project / "train"), validation_file=str(project / "validation")
    )
    build_raw(config, project / "data/raw", progress=False)


def short_model(project: Path) -> None:
    tokenizer = BPETokenizer.from_pretrained(project / "models/tokenizer")
    save_untrained(project, tokenizer, max_seq_len=16)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap_tokenizer, "packed with tokenizer"),
        (
            lambda p: flip_a_byte(p / "data/packed/validation-00000.arrow"),
            "validation-00000.arrow: content differs",
        ),
        (lambda p: flip_a_byte(p / "models/final/model.safetensors"), "model.safetensors: content"),
        (lambda p: (p / "data/packed/manifest.json").unlink(), "manifest.json: missing"),
        (other_documents, "packed from other documents"),
        (short_model, "rows of 32 tokens"),
        (lambda p: shutil.rmtree(p / "models/final"), "no such model directory"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(copy, capsys, damage, message):
    before = (copy / "metrics/evaluate.json").read_bytes()
    damage(copy)
    with pytest.raises(SystemExit) as stopped:
        run_here(copy, "evaluate")
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(printed.splitlines()) == 1, printed
    assert message in printed
    assert "dvc repro" in printed
    assert (copy / "metrics/evaluate.json").read_bytes() == before
