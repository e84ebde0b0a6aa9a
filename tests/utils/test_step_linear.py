"""Layers of compiled steps and layers with bfloat16 weights against the layers they stand for."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache, run_and_get_code

from llm_trainer.exceptions import GenerationError
from llm_trainer.models.layers import RMSNorm
from llm_trainer.utils import half_linear
from llm_trainer.utils.half_linear import HalfLinear, halve_model
from llm_trainer.utils.inference import InferenceEngine
from llm_trainer.utils.packed_layers import PackedOperator
from llm_trainer.utils.quantization import (
    QuantizedLinear,
    codes_and_scale,
    model_bytes,
    quantize_model,
)
from llm_trainer.utils.step_linear import FEW_ROWS, StepLinear, for_compiled_steps, own_bytes
from llm_trainer.utils.twin import twin_with
from tests.needs import needs_compiler
from tests.utils.tiny_text_model import tiny_text_model, tiny_tokenizer

PACKS = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linears() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(48, 24, bias=bias) for bias in (True, False)]


@needs_compiler
@pytest.mark.slow
def test_compiled_layers_are_the_layers() -> None:
    layers = [kind(layer) for layer in linears() for kind in (
        lambda x: x, HalfLinear, lambda x: QuantizedLinear(x, "dynamic"),
    )]  # fmt: skip
    steps = [
        StepLinear(layer, layer.weight, layer.bias, None)
        if isinstance(layer, nn.Linear | HalfLinear)
        else StepLinear(layer, *swapped(layer))
        for layer in layers
    ]

    def run(x: Tensor) -> list[Tensor]:
        return [step(x) for step in steps]

    compiled = torch.compile(run, dynamic=False, fullgraph=True)
    for rows in (1, 3, FEW_ROWS + 1):
        x = torch.randn(rows, 1, 48)
        for layer, step, y in zip(layers, steps, compiled(x), strict=True):
            assert y.shape == (rows, 1, 24)
            # where a layer rounds its inputs and the written-out sum does not
            slack = 0.0 if isinstance(layer, nn.Linear) else 0.03
            torch.testing.assert_close(y, layer(x), atol=1e-5 + slack, rtol=1e-5 + slack)
            assert torch.equal(step(x), layer(x)), "eager, a step is the layer itself"


@needs_compiler
def test_the_row_of_a_compiled_step_is_worked_out_once() -> None:
    """Not within the loop over the weights, for each output; a row that is a piece of a tensor
    stays that piece."""
    layer = QuantizedLinear(linears()[0], "dynamic")
    step = StepLinear(layer, *swapped(layer))
    norm = RMSNorm(48, 1e-5)

    def run(x: Tensor) -> Tensor:
        return step(norm(x)[:, 1:])

    x = torch.randn(1, 2, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), fresh_cache():  # what is found has no code to show
        y, code = run_and_get_code(torch.compile(run, dynamic=False, fullgraph=True), x)
        expected = layer(norm(x)[:, 1:])
    torch.testing.assert_close(y, expected, atol=0.03, rtol=0.03)
    loops = re.split(r"for\(int64_t x0=", "".join(code))
    (product,) = (loop for loop in loops if "int8_t>::loadu" in loop or "in_ptr3[" in loop)
    assert "sqrt" in "".join(code)
    assert "sqrt" not in product


@needs_compiler
def test_a_row_may_lie_anywhere_in_a_tensor() -> None:
    """At an offset, or with its features apart."""
    layer = linears()[0]
    step = StepLinear(layer, layer.weight, layer.bias, None)

    def rows(x: Tensor) -> list[Tensor]:
        apart = x.transpose(1, 2).contiguous().transpose(1, 2)
        return [x[:, 1:], (2 * x)[:, 1:], apart[:, 1:], x.view(2, 48)[1:], x[0, 1]]

    def run(x: Tensor) -> list[Tensor]:
        return [step(row) for row in rows(x)]

    base = torch.randn(3, 2, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = torch.compile(run, dynamic=False, fullgraph=True)(base[1:2])
        expected = [layer(row) for row in rows(base[1:2])]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def swapped(layer: QuantizedLinear) -> tuple[Tensor, Tensor | None, Tensor]:
    codes, scale = codes_and_scale(layer.packed)
    return codes, layer.packed_bias, scale


def test_codes_and_scale_are_those_that_were_packed() -> None:
    layer = linears()[0]
    codes, scale = codes_and_scale(QuantizedLinear(layer, "dynamic").packed)
    assert codes.dtype == torch.int8
    off = (codes * scale[:, None] - layer.weight).abs().amax(1)
    assert (off <= scale / 2 + 1e-7).all()


def test_a_twin_shares_its_tensors_and_leaves_the_model_alone() -> None:
    model = tiny_text_model()
    kernels = [block.attention.kernel for block in model.blocks]
    twin = for_compiled_steps(model, 1)
    assert [block.attention.kernel for block in model.blocks] == kernels
    assert twin.embedding.weight is model.embedding.weight
    assert twin.head.weight.data_ptr() == model.head.weight.data_ptr()
    ids = torch.arange(20).view(1, 20)
    torch.testing.assert_close(twin(ids).logits, model(ids).logits)
    copied = twin_with(model, lambda _: None)
    assert copied is not model
    assert torch.equal(copied(ids).logits, model(ids).logits)


def test_bfloat16_layers_multiply_as_autocast_does() -> None:
    x = torch.randn(3, 5, 48)
    for layer in linears():
        half = HalfLinear(layer)
        expected = x.bfloat16().float() @ layer.weight.bfloat16().float().T
        expected = expected if layer.bias is None else expected + layer.bias
        torch.testing.assert_close(half(x), expected, atol=0.02, rtol=0.01)
        assert half(x).dtype == torch.float32
        assert half.num_bytes == 2 * 48 * 24 + (4 * 24 if layer.bias is not None else 0)


def test_only_a_single_row_needs_packed_weights_as_plain_numbers() -> None:
    model = tiny_text_model()
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    for kind, bytes_each in ((lambda m: m, 0), (halve_model, 2), (quantize_model, 1)):
        made = kind(model)
        assert own_bytes(for_compiled_steps(made, 1)) == bytes_each * weights
        many = for_compiled_steps(made, 2)
        assert own_bytes(many) == 0
        assert made is model or many.head is made.head


def test_packed_weights_give_the_bits_of_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = [HalfLinear(layer) for layer in linears()]
    monkeypatch.setattr(half_linear, "_packing_works", lambda: False)
    plain = [HalfLinear(layer) for layer in linears()]
    rows = torch.randn(6, 5, 48)
    for layer, one, other in zip(linears(), packed, plain, strict=True):
        assert (one.packed is None, other.packed is None) == (not PACKS, True)
        assert torch.equal(one.weight, layer.weight.bfloat16())
        assert torch.equal(other.weight, one.weight)
        assert one.num_bytes == other.num_bytes
        for x in (rows, rows[:1, 0], rows[:, -1], rows.transpose(0, 1), rows[:0]):
            assert torch.equal(one(x), other(x))


def test_numbers_of_layers_that_are_gone_are_given_out_again() -> None:
    operator = PackedOperator("times_for_a_test", lambda x, packed: x * packed)
    first, second, third = (nn.Module() for _ in range(3))
    assert operator.register(first, 2.0) == 0
    assert operator.register(second, 3.0) == 1
    x = torch.ones(2, 4)
    assert torch.equal(operator(x, 1, 4), 3 * x)
    assert operator(x.to("meta"), 1, 7).shape == (2, 7)
    del first
    assert operator.register(third, 5.0) == 0
    assert torch.equal(operator(x, 0, 4), 5 * x)
    assert torch.equal(operator(x, 1, 4), 3 * x)


def test_an_engine_in_bfloat16() -> None:
    model = tiny_text_model()
    engine = InferenceEngine(model, tiny_tokenizer())
    engine.optimize(dtype="bfloat16")
    assert model_bytes(engine.model) < 0.75 * model_bytes(model)
    ids = torch.arange(40).view(2, 20)
    exact, rounded = model(ids).logits, engine.model(ids).logits
    error = (exact - rounded).pow(2).mean().sqrt()
    assert 0 < error < 0.02 * exact.std()
    assert len(engine.infer("def", max_new_tokens=5)) > 3
    assert engine.benchmark(["def"], num_runs=1, max_new_tokens=2)["bfloat16"] == 1
    assert model_bytes(halve_model(model)) == model_bytes(engine.model)


@pytest.mark.parametrize("options", [
    {"dtype": "float16"}, {"dtype": "bfloat16", "quantize": True},
])  # fmt: skip
def test_impossible_types_are_refused(options: dict[str, object]) -> None:
    engine = InferenceEngine(tiny_text_model(), tiny_tokenizer())
    with pytest.raises(GenerationError, match=r"dtype \('b?float16'\)"):
        engine.optimize(**options)
    assert engine.optimizations.dtype is None
