"""The benchmark stage as a process: every figure is there, and follows from the others."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch

from llm_trainer.config import TrainingConfig
from llm_trainer.tokenizer.bpe import BPETokenizer
from tests.pipeline.small_project import (
    ROW_LENGTH,
    make_project,
    run_here,
    run_stage,
    save_untrained,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return make_project(tmp_path_factory.mktemp("benchmark") / "project")


@pytest.fixture(scope="module")
def done(project):
    return run_stage(project, "benchmark")


@pytest.fixture(scope="module")
def metrics(project, done):
    assert done.returncode == 0, done.stderr
    return json.loads((project / "metrics/benchmark.json").read_text())


def test_metrics_are_flat_numbers_and_strings(metrics):
    assert all(isinstance(value, int | float | str) for value in metrics.values())
    figures = {name: v for name, v in metrics.items() if not isinstance(v, str)}
    assert all(math.isfinite(value) for value in figures.values())
    assert all(v >= 0 for name, v in figures.items() if not name.endswith("_added"))


def test_training_figures_follow_from_each_other(metrics):
    tokens = 2 * ROW_LENGTH
    assert metrics["training_tokens_per_step"] == tokens
    speed = metrics["training_tokens_per_second"]
    assert speed == pytest.approx(1e3 * tokens / metrics["training_step_ms"], rel=1e-2)
    gflops = speed * metrics["training_flops_per_token"] / 1e9
    assert metrics["training_gflops_per_second"] == pytest.approx(gflops, rel=1e-2, abs=1e-3)
    share = gflops / metrics["matmul_peak_gflops"]
    assert metrics["training_peak_share"] == pytest.approx(share, rel=1e-2, abs=1e-3)
    assert metrics["training_step_ms_min"] <= metrics["training_step_ms"]
    assert metrics["training_step_ms"] <= metrics["training_step_ms_max"]
    assert metrics["training_compiled"] == "no"


def test_generation_is_timed_for_each_batch_size_with_and_without_cache(metrics):
    for size in (1, 2):
        for kind in ("", "uncached_"):
            prefix = f"generate_batch_{size}_{kind}"
            first, following = metrics[prefix + "first_token_ms"], metrics[prefix + "token_ms"]
            total = 1e3 * size * 6 / metrics[prefix + "tokens_per_second"]
            assert first > 0
            # the first token is timed in runs of its own, so noise may hide the rest
            assert following == 0 or total == pytest.approx(first + 5 * following, rel=1e-2)
        assert metrics[f"generate_batch_{size}_cache_speedup"] > 0


def test_each_option_of_the_engine_has_its_figures_and_ratios(metrics):
    for way in ("cache_off", "quantize", "bfloat16"):
        for figure in ("tokens_per_second", "first_token_ms", "model_bytes", "peak_memory_bytes"):
            plain = metrics[f"optimize_plain_{figure}"]
            value = metrics[f"optimize_{way}_{figure}"]
            assert metrics[f"optimize_{way}_{figure}_ratio"] == pytest.approx(
                value / plain, rel=1e-2
            )
    assert metrics["optimize_plain_model_bytes"] == 4 * metrics["parameters"]
    # a head of zeros predicts all tokens alike, whatever the other weights are rounded to
    expected = metrics["optimize_plain_bits_per_byte"]
    for way in ("quantize", "bfloat16"):
        assert metrics[f"optimize_{way}_bits_per_byte"] == pytest.approx(expected, abs=1e-3)
        assert metrics[f"optimize_{way}_bits_per_byte_added"] == pytest.approx(0, abs=1e-3)
    assert 1000 < metrics["optimize_quality_bytes"] < 4000
    assert not any("compile" in name for name in metrics if name.startswith("optimize"))


def test_without_a_compiler_the_stage_says_so_and_goes_on(tmp_path, caplog, monkeypatch, capsys):
    project = make_project(tmp_path / "project")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    benchmark = {"optimizations": ["compile", "compile_quantize"], "generation_batch_sizes": [1]}
    with caplog.at_level(logging.WARNING):
        run_here(project, "benchmark", benchmark=benchmark)
    metrics = json.loads((project / "metrics/benchmark.json").read_text())
    for way in benchmark["optimizations"]:
        assert "not possible: there is no C++ compiler" in metrics[f"optimize_{way}"]
    assert caplog.text.count("C++ compiler") == 1
    assert "compile: not possible" in capsys.readouterr().out


def test_size_memory_and_machine(project, metrics):
    files = [file for file in (project / "models/final").rglob("*") if file.is_file()]
    assert metrics["model_directory_bytes"] == sum(file.stat().st_size for file in files)
    assert metrics["parameters"] > 10_000
    assert metrics["training_peak_memory_bytes"] > 50e6
    assert metrics["generate_peak_memory_bytes"] > 50e6
    assert metrics["machine_torch"] == torch.__version__
    assert metrics["machine_threads"] == 1
    assert str(project) not in json.dumps(metrics)


def test_what_it_prints(done):
    assert "generation, batch 2, no cache" in done.stdout
    assert "GFLOP/s" in done.stdout
    assert re.search(r"quantize: [\d.]+ times as fast, 0\.\d\d of the weights' memory", done.stdout)


def test_the_models_directory_is_left_alone(project, metrics):
    from llm_trainer.models.transformer import TransformerLM

    assert not TransformerLM.from_pretrained(project / "models/final").head.weight.any()


def test_a_tokenizer_that_does_not_match_is_one_line_and_exit_code_2(tmp_path, capsys):
    project = make_project(tmp_path / "project")
    other = BPETokenizer()
    other.train(["another text altogether " * 30], 270)
    other.save_pretrained(project / "models/tokenizer")
    with pytest.raises(SystemExit) as stopped:
        run_here(project, "benchmark")
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(printed.splitlines()) == 1
    assert "not the one that the model was trained with" in printed
    assert not (project / "metrics/benchmark.json").exists()


def test_settings_that_do_not_fit_the_context_are_lowered_with_a_warning(tmp_path, caplog):
    project = make_project(tmp_path / "project")
    tokenizer = BPETokenizer.from_pretrained(project / "models/tokenizer")
    save_untrained(project, tokenizer, training=TrainingConfig(optimizer="muon", max_steps=3))
    benchmark = {"prompt_tokens": 30, "new_tokens": 30, "generation_batch_sizes": [1]}
    with caplog.at_level(logging.WARNING):
        run_here(project, "benchmark", benchmark=benchmark)
    assert "exceed the model's max_seq_len (32); timing 16 and 16 instead" in caplog.text
