"""What the options of the engine bring: figures that follow from each other, exact losses."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from llm_trainer.data import LanguageModelingDataset
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.models import TransformerLM
from llm_trainer.utils.evaluation import evaluate_rows
from llm_trainer.utils.half_linear import halve_model
from llm_trainer.utils.inference import InferenceEngine, Optimizations
from llm_trainer.utils.optimization_benchmark import (
    WAYS,
    WayTiming,
    benchmark_ways,
    precision_metrics,
    way_metrics,
)
from llm_trainer.utils.quantization import model_bytes, quantize_model
from tests.utils.tiny_text_model import TEXTS, tiny_text_model, tiny_tokenizer

TIMES = {"new_tokens": 4, "repeats": 1, "warmup": 0}


@pytest.fixture(scope="module")
def model() -> TransformerLM:
    return tiny_text_model()


@pytest.fixture
def engine(model: TransformerLM) -> InferenceEngine:
    return InferenceEngine(model, tiny_tokenizer())


@pytest.fixture(scope="module")
def rows() -> LanguageModelingDataset:
    return LanguageModelingDataset(TEXTS * 5, tiny_tokenizer(), max_length=16)


def test_every_way_is_one_of_optimize_and_plain_comes_first(engine: InferenceEngine) -> None:
    ways = ["bfloat16", "cache_off", "quantize"]
    timings = benchmark_ways(engine, "def", ways=ways, **TIMES)
    assert [timing.way for timing in timings] == ["plain", "cache_off", "quantize", "bfloat16"]
    for timing in timings:
        assert timing.figures is not None
        options = Optimizations(**WAYS[timing.way])
        assert timing.figures["enable_kv_cache"] == options.enable_kv_cache
        assert timing.figures["quantize"] == options.quantize
        assert timing.figures["bfloat16"] == (options.dtype == "bfloat16")
        assert timing.figures["new_tokens"] == 4
    assert engine.optimizations == Optimizations()
    metrics = way_metrics(timings)
    assert metrics["optimize_quantize_model_bytes"] == model_bytes(quantize_model(engine.model))
    assert 0.5 < float(metrics["optimize_bfloat16_model_bytes_ratio"]) < 1
    assert metrics["optimize_cache_off_model_bytes_ratio"] == 1


def test_compiled_ways_are_compiled_before_they_are_timed(engine: InferenceEngine) -> None:
    with torch.compiler.set_stance("force_eager"):
        timings = benchmark_ways(engine, "def", ways=["compile", "compile_quantize"], **TIMES)
    assert [t.figures["compile_model"] for t in timings if t.figures] == [0, 1, 1]
    assert [t.figures["quantize"] for t in timings if t.figures] == [0, 0, 1]


def test_without_a_compiler_the_rest_is_timed_with_one_warning(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING):
        timings = benchmark_ways(engine, "def", ways=list(WAYS), **TIMES)
    assert len(caplog.records) == 1
    assert "compile, compile_quantize, compile_bfloat16 cannot be timed" in caplog.text
    metrics = way_metrics(timings)
    for way in ("compile", "compile_quantize", "compile_bfloat16"):
        assert "not possible: there is no C++ compiler" in str(metrics[f"optimize_{way}"])
        assert f"optimize_{way}_tokens_per_second" not in metrics
    assert float(metrics["optimize_quantize_tokens_per_second_ratio"]) > 0


def test_metrics_by_hand() -> None:
    plain = {
        "tokens_per_second": 100.0, "first_token_ms": 8.0, "model_mb": 12.0, "peak_memory_mb": 300.0
    }  # fmt: skip
    small = {
        "tokens_per_second": 150.0, "first_token_ms": 6.0, "model_mb": 3.0, "peak_memory_mb": 330.0
    }  # fmt: skip
    metrics = way_metrics(
        [
            WayTiming("plain", plain), WayTiming("quantize", small),
            WayTiming("compile", None, "no compiler"),
        ]
    )  # fmt: skip
    assert metrics == {
        "optimize_plain_tokens_per_second": 100.0, "optimize_plain_first_token_ms": 8.0,
        "optimize_plain_model_bytes": 12 * 2**20, "optimize_plain_peak_memory_bytes": 300 * 2**20,
        "optimize_quantize_tokens_per_second": 150.0, "optimize_quantize_first_token_ms": 6.0,
        "optimize_quantize_model_bytes": 3 * 2**20,
        "optimize_quantize_peak_memory_bytes": 330 * 2**20,
        "optimize_quantize_tokens_per_second_ratio": 1.5,
        "optimize_quantize_first_token_ms_ratio": 0.75,
        "optimize_quantize_model_bytes_ratio": 0.25,
        "optimize_quantize_peak_memory_bytes_ratio": pytest.approx(1.1),
        "optimize_compile": "not possible: no compiler",
    }  # fmt: skip


def test_the_loss_of_rounded_weights_is_that_of_evaluating_them(
    engine: InferenceEngine, model: TransformerLM, rows: LanguageModelingDataset
) -> None:
    options = {"token_bytes": tiny_tokenizer().token_bytes(), "batch_size": 4}
    metrics = precision_metrics(
        engine, rows, ways=["quantize", "bfloat16", "compile_quantize"], max_bytes=10**9, **options
    )
    whole = evaluate_rows(model, rows, **options)
    assert metrics["optimize_plain_bits_per_byte"] == whole.bits_per_byte
    assert metrics["optimize_quality_bytes"] == whole.num_bytes == rows.num_bytes
    for way, twin in (("quantize", quantize_model(model)), ("bfloat16", halve_model(model))):
        bits = evaluate_rows(twin, rows, **options).bits_per_byte
        assert metrics[f"optimize_{way}_bits_per_byte"] == bits != whole.bits_per_byte
        added = metrics[f"optimize_{way}_bits_per_byte_added"]
        assert added == bits - whole.bits_per_byte
        assert abs(added) < 0.05 * whole.bits_per_byte
    assert not any("compile" in name for name in metrics)
    assert engine.optimizations == Optimizations()


@pytest.mark.parametrize("max_bytes", [1, 300, 600])
def test_about_as_many_bytes_are_scored_as_asked(
    engine: InferenceEngine, rows: LanguageModelingDataset, max_bytes: int
) -> None:
    batch = 2 * rows.num_bytes / len(rows)
    metrics = precision_metrics(
        engine, rows, ways=[], max_bytes=max_bytes, batch_size=2,
        token_bytes=tiny_tokenizer().token_bytes(),
    )  # fmt: skip
    asked = math.ceil(max_bytes / batch) * batch
    assert metrics["optimize_quality_bytes"] == pytest.approx(asked, rel=0.3)


def test_an_unknown_way_is_named(engine: InferenceEngine, rows: LanguageModelingDataset) -> None:
    with pytest.raises(ConfigurationError, match=r"'fast'.*cache_off"):
        benchmark_ways(engine, "def", ways=["fast"], **TIMES)
