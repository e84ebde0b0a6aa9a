"""InferenceEngine: each option has its effect, and only its effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import GenerationError, IntegrityError
from llm_trainer.models import KVCache, TransformerLM
from llm_trainer.models.decoding import GenerationConfig, continue_prompts
from llm_trainer.models.runner import CachedRunner, UncachedRunner, last_logits
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.utils import quantization
from llm_trainer.utils.compiled import CompiledStep, StepCache, cache_length
from llm_trainer.utils.generation import TextGenerator
from llm_trainer.utils.inference import InferenceEngine
from llm_trainer.utils.quantization import QuantizedLinear, model_bytes, quantize_model
from tests.needs import needs_compiler
from tests.utils.tiny_text_model import tiny_text_model, tiny_tokenizer

PROMPTS = ["def add", "", "你好 and"]
GREEDY = {"max_new_tokens": 25, "temperature": 0}


@pytest.fixture
def engine() -> InferenceEngine:
    return InferenceEngine(tiny_text_model(), tiny_tokenizer())


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Columns of each forward pass of any model, as they happen."""
    seen: list[int] = []
    forward = TransformerLM.hidden_states

    def watch(self: TransformerLM, input_ids: Tensor, **rest: Any) -> Tensor:
        seen.append(input_ids.shape[1])
        return forward(self, input_ids, **rest)

    monkeypatch.setattr(TransformerLM, "hidden_states", watch)
    return seen


def test_it_continues_like_a_text_generator(engine: InferenceEngine) -> None:
    generator = TextGenerator(tiny_text_model(), tiny_tokenizer())
    config = GenerationConfig(**GREEDY)
    assert engine.batch_infer(PROMPTS, **GREEDY) == generator.batch_generate(PROMPTS, config)
    assert engine.infer("def", max_length=50, seed=1) == generator.generate(
        "def", GenerationConfig(max_length=50, seed=1)
    )
    assert engine.infer("def", stop="e", **GREEDY).count("e") == 1


def test_the_cache_changes_the_work_but_not_the_text(
    engine: InferenceEngine, widths: list[int]
) -> None:
    engine.optimize(enable_kv_cache=True)
    cached = engine.infer("def add", **GREEDY)
    assert set(widths[1:]) == {1}
    first = widths[0]
    widths.clear()
    engine.optimize(enable_kv_cache=False)
    assert engine.infer("def add", **GREEDY) == cached
    assert widths == list(range(first, first + 25))
    widths.clear()
    assert engine.infer("def add", use_cache=True, **GREEDY) == cached, "a request may differ"
    assert set(widths[1:]) == {1}


# --------------------------------------------------------------------------- quantisation


def test_quantised_weights_are_small_and_close(engine: InferenceEngine) -> None:
    original = engine.model
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    engine.optimize(quantize=True)
    quantized = engine.model
    assert quantized is not original
    linear = sum(isinstance(module, nn.Linear) for module in original.modules())
    assert sum(isinstance(module, QuantizedLinear) for module in quantized.modules()) == linear
    assert not any(isinstance(module, nn.Linear) for module in quantized.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())
    assert model_bytes(original) == 4 * original.get_num_params()
    assert model_bytes(quantized) < 0.55 * model_bytes(original)  # the embedding stays as it is
    assert quantized.embedding.weight is original.embedding.weight

    ids = torch.randint(0, 300, (4, 40), generator=torch.Generator().manual_seed(0))
    a, b = original(ids).logits, quantized(ids).logits
    error = (a - b).pow(2).mean().sqrt() / a.std()
    # random weights pass every error on; what a trained model loses is tested below
    assert 1e-4 < error < 0.15
    assert len(engine.infer("def", **GREEDY)) > 3
    engine.optimize()
    assert engine.model is original


@pytest.mark.parametrize("method", ["dynamic", "weight-only"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_quantised_layer_is_the_rounded_one(method: quantization.Int8Method, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 24, bias=bias)
    linear.weight.data[3] *= 100  # each output feature has a scale of its own
    linear.weight.data[4] = 0
    layer = QuantizedLinear(linear, method)
    scale = linear.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    rounded = (linear.weight / scale).round() * scale
    x = torch.randn(2, 5, 48)
    expected = nn.functional.linear(x, rounded, linear.bias)
    if method == "weight-only":
        torch.testing.assert_close(layer(x), expected)
    else:
        span = max(x.max(), 0) - min(x.min(), 0)
        # an input is off by at most a step of its own scale, an output by the sum of these
        bound = span / 127 * rounded.abs().sum(1) + 1e-5
        assert ((layer(x) - expected).abs() <= bound).all()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.num_bytes == 48 * 24 + 4 * 24 * (1 + bias)


def test_without_the_kernels_weights_alone_are_quantised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'quantized' object has no attribute 'linear_prepack'")

    monkeypatch.setattr(quantization, "_pack", missing)
    model = tiny_text_model()
    quantized = quantize_model(model)
    assert "no dynamic int8 kernels" in caplog.text
    methods = {m.method for m in quantized.modules() if isinstance(m, QuantizedLinear)}
    assert methods == {"weight-only"}
    ids = torch.arange(40).view(2, 20)
    error = (model(ids).logits - quantized(ids).logits).pow(2).mean().sqrt()
    assert error < 0.05 * model(ids).logits.std()
    assert model_bytes(quantized) < 0.55 * model_bytes(model)


def test_a_trained_model_keeps_its_loss() -> None:
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(
        vocab_size=64, d_model=32, n_heads=2, n_layers=2, d_ff=64, max_seq_len=64, dropout=0.0,
        attention_dropout=0.0,
    ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 64, (64, 2), generator=generator)  # a random walk over a graph

    def rows(count: int) -> Tensor:
        ids = torch.randint(0, 64, (count, 1), generator=generator)
        for _ in range(47):
            turn = torch.randint(0, 2, (count,), generator=generator)
            ids = torch.cat((ids, table[ids[:, -1], turn][:, None]), dim=1)
        return ids

    for _ in range(150):
        batch = rows(16)
        optimizer.zero_grad()
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
    held_out = rows(64)
    losses = [float(m.token_losses(held_out).mean()) for m in (model, quantize_model(model))]
    assert losses[0] < 1.2, "it learned something: a fair coin costs 0.69, not knowing it 4.16"
    assert abs(losses[1] - losses[0]) < 0.01


# --------------------------------------------------------------------------- compilation


def test_a_static_cache_gives_the_same_logits() -> None:
    """What is compiled, without compiling it: padding, positions and hidden slots."""
    for changes in ({}, {"position": "learned"}, {"position": "sinusoidal"}):
        model = tiny_text_model(**changes)
        ids = torch.randint(1, 300, (3, 9), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[0, :4] = mask[2, :8] = 0
        for padding in (None, mask):
            static = StepCache(model.config, 3, 64)
            plain = KVCache(model.config, 3, 64)
            wide = None if padding is None else nn.functional.pad(padding, (0, 55), value=1)
            with torch.no_grad():
                for cache in (static, plain):
                    last_logits(model, ids, padding, cache)
                static.make_static()
                for step in range(6):
                    token = torch.full((3, 1), 10 + step)
                    narrow = None if wide is None else wide[:, : 10 + step]
                    torch.testing.assert_close(
                        last_logits(model, token, wide, static),
                        last_logits(model, token, narrow, plain),
                        atol=1e-4, rtol=1e-4,
                    )  # fmt: skip


@pytest.mark.parametrize(("needed", "context", "length"), [
    (10, 1024, 64), (64, 1024, 64), (65, 1024, 128), (700, 1024, 1024), (700, 800, 800),
    (20, 32, 32), (31, 31, 31),
])  # fmt: skip
def test_cache_lengths_are_few(needed: int, context: int, length: int) -> None:
    assert cache_length(needed, context) == length


@needs_compiler
@pytest.mark.slow
def test_compiled_text_is_the_same() -> None:
    engine = InferenceEngine(tiny_text_model(n_layers=1), tiny_tokenizer())
    requests: list[dict[str, Any]] = [
        {"prompts": ["def add"], **GREEDY},
        {"prompts": ["for x"], "seed": 1, "max_new_tokens": 40, "top_k": 20},
        {"prompts": PROMPTS, **GREEDY},
        {"prompts": PROMPTS, "use_cache": False, **GREEDY},
    ]
    expected = [engine.batch_infer(**request) for request in requests]
    engine.optimize(compile_model=True)
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    # one graph for one row, one for several padded ones, none where no cache is wanted
    for graphs, request, texts in zip((1, 1, 2, 2), requests, expected, strict=True):
        assert engine.batch_infer(**request) == texts
        assert counters["unique_graphs"] - before == graphs

    engine.optimize(quantize=True)
    quantized = engine.infer("def add", **GREEDY)
    engine.optimize(quantize=True, compile_model=True)
    assert engine.infer("def add", **GREEDY) == quantized
    assert counters["unique_graphs"] - before == 3


@needs_compiler
def test_compiled_beams() -> None:
    """Without compiling: the runner with its step as it was written."""
    model = tiny_text_model()
    ids = torch.randint(1, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    config = GenerationConfig(max_new_tokens=20, num_beams=3)
    with torch.compiler.set_stance("force_eager"):
        compiled = continue_prompts(model, ids, mask, config, make_runner=CompiledStep(model))
    for make_runner in (CachedRunner, UncachedRunner):
        other = continue_prompts(model, ids, mask, config, make_runner=make_runner)
        assert torch.equal(other.ids, compiled.ids)


@needs_compiler
def test_a_compiled_bfloat16_engine_keeps_keys_and_values_in_it(engine: InferenceEngine) -> None:
    """Without compiling: each step's logits are those over a plain cache of that type."""
    ids = torch.randint(1, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    engine.optimize(compile_model=True, dtype="bfloat16")
    model, make_runner = engine.model, engine.generator._make_runner
    assert isinstance(make_runner, CompiledStep)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        runner = make_runner(model, 6)
        cache = KVCache(model.config, 3, 64, dtype=torch.bfloat16)
        exact = KVCache(model.config, 3, 64)
        logits = runner.start(ids, None, 1)
        expected, unrounded = (last_logits(model, ids, None, c) for c in (cache, exact))
        for token in range(10, 15):
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
            tokens = torch.full((3,), token)
            logits = runner.step(tokens)
            expected, unrounded = (
                last_logits(model, tokens[:, None], None, c) for c in (cache, exact)
            )
    assert (logits - unrounded).abs().max() > 1e-4, "the rounding shows"
    assert make_runner.num_bytes == 0, "several rows share the packed weights"
    torch.testing.assert_close(logits, unrounded, atol=0.1, rtol=0.1)


def test_nothing_to_compile_with(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        GenerationError, match=r"compile_model \(True\): there is no C\+\+ compiler"
    ):
        engine.optimize(compile_model=True)
    assert not engine.optimizations.compile_model
    assert engine.infer("def", **GREEDY)


# --------------------------------------------------------------------------- benchmark


@pytest.mark.parametrize("options", [
    {}, {"enable_kv_cache": False}, {"quantize": True},
])  # fmt: skip
def test_benchmark_figures(engine: InferenceEngine, options: dict[str, bool]) -> None:
    engine.optimize(**options)
    figures = engine.benchmark(PROMPTS, num_runs=4, max_new_tokens=12)
    assert figures["num_prompts"] == 3
    assert figures["new_tokens"] == 36, "no end token ends a timed run early"
    assert figures["num_runs"] == 4
    assert 0 < figures["latency_min_ms"] <= figures["latency_ms"] <= figures["latency_p90_ms"]
    assert figures["latency_p90_ms"] <= figures["latency_p99_ms"]
    assert figures["tokens_per_second"] == pytest.approx(36e3 / figures["latency_ms"])
    assert figures["first_token_ms"] > 0
    assert figures["token_ms"] >= 0
    assert figures["model_mb"] == model_bytes(engine.model) / 2**20
    assert figures["peak_memory_mb"] > figures["model_mb"]
    for name in ("enable_kv_cache", "compile_model", "quantize"):
        assert figures[name] == getattr(engine.optimizations, name)


def test_a_benchmark_of_one_run(engine: InferenceEngine) -> None:
    figures = engine.benchmark(["def"], num_runs=1, max_new_tokens=1, warmup_runs=0)
    assert figures["latency_p99_ms"] == figures["latency_ms"]


@pytest.mark.parametrize(("call", "words"), [
    (lambda e: e.benchmark([]), ["prompts", "empty"]),
    (lambda e: e.benchmark(["a"], num_runs=0), ["num_runs (0)", "from 1"]),
    (lambda e: e.benchmark(["a"], num_runs=1.5), ["num_runs (1.5)"]),
    (lambda e: e.benchmark(["a"], max_new_tokens=0), ["max_new_tokens (0)"]),
    (lambda e: e.optimize(enable_kv_cache=False, compile_model=True), ["enable_kv_cache (False)"]),
    (lambda e: e.infer("a", temprature=1), ["temprature", "did you mean 'temperature'"]),
    (lambda e: e.infer("a", top_p=7), ["top_p (7.0)"]),
    (lambda e: e.infer(None), ["prompt (None)", "a text"]),
])  # fmt: skip
def test_nonsense_is_named(engine: InferenceEngine, call: Any, words: list[str]) -> None:
    with pytest.raises(GenerationError) as caught:
        call(engine)
    assert all(word in str(caught.value) for word in words), caught.value


def test_another_tokenizer_is_refused() -> None:
    other = BPETokenizer()
    other.train(["something else altogether " * 9], 280)
    with pytest.raises(IntegrityError, match=other.digest):
        InferenceEngine(tiny_text_model(), other)
