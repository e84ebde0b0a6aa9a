"""The loss that is compiled against torch's own, in value and gradient."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._inductor.utils import fresh_cache, run_and_get_code

from llm_trainer.config import ModelConfig
from llm_trainer.models import TransformerLM
from llm_trainer.models.checks import IGNORED
from llm_trainer.models.loss import (
    SummedCrossEntropy,
    SummedLinearCrossEntropy,
    summed_cross_entropy,
)
from tests.needs import needs_compiler


def case(
    seed: int, tokens: int, vocab: int, spread: float, ignored: float
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(tokens, vocab, generator=generator)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    hidden = torch.rand(tokens, generator=generator) < ignored
    return logits, targets.masked_fill(hidden, IGNORED)


def gradient(loss: Tensor, of: Tensor, factor: float) -> Tensor:
    (found,) = torch.autograd.grad(loss * factor, of, retain_graph=True)
    return found


def closed(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of these logits: the output matrix is the identity."""
    identity = torch.eye(logits.shape[-1], dtype=logits.dtype)
    loss: Tensor = SummedLinearCrossEntropy.apply(logits, identity, targets)
    return loss


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20), tokens=st.integers(1, 9), vocab=st.integers(1, 40),
    spread=st.sampled_from([0.0, 1.0, 30.0]), ignored=st.sampled_from([0.0, 0.4, 1.0]),
    factor=st.sampled_from([1.0, -0.25, 1e-4]),
)  # fmt: skip
def test_it_is_the_cross_entropy(
    seed: int, tokens: int, vocab: int, spread: float, ignored: float, factor: float
) -> None:
    """Against torch in float64, for logits from flat to nearly certain, and none that counts."""
    logits, targets = case(seed, tokens, vocab, spread, ignored)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, ignore_index=IGNORED, reduction="sum")
    logits.requires_grad_()
    loss = closed(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient(loss, logits, factor).double(), gradient(expected, exact, factor),
        rtol=1e-4, atol=1e-6 * abs(factor),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    """The gradient is that of the same logits in float64, rounded; nothing is rounded before."""
    logits, targets = case(0, 64, 300, 3.0, 0.2)
    rough = logits.to(dtype).requires_grad_()
    exact = rough.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, targets, ignore_index=IGNORED, reduction="sum")
    found = gradient(closed(rough, targets), rough, 1.0)
    assert found.dtype == dtype
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(
        found.double(), gradient(expected, exact, 1.0), rtol=rounding, atol=torch.finfo(dtype).tiny
    )


def test_a_nearly_certain_target_keeps_its_gradient() -> None:
    """0.999 is 1 in bfloat16, so one is taken off before."""
    logits = torch.tensor([[0.0, math.log(0.001 / 0.999)]], dtype=torch.bfloat16)
    found = gradient(closed(logits.requires_grad_(), torch.tensor([0])), logits, 1.0)
    torch.testing.assert_close(found.float(), torch.tensor([[-1e-3, 1e-3]]), rtol=0.02, atol=0.0)


def test_neither_logits_nor_targets_are_written_to() -> None:
    logits, targets = case(1, 5, 7, 1.0, 0.3)
    before = logits.clone(), targets.clone()
    logits.requires_grad_()
    gradient(closed(logits, targets), logits, 1.0)
    assert torch.equal(logits, before[0])
    assert torch.equal(targets, before[1])


def test_a_target_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(IndexError, match="index 7 is out of bounds"):
        closed(torch.zeros(1, 7), torch.tensor([7]))


@needs_compiler
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_compiled_and_eager_agree(dtype: torch.dtype | None) -> None:
    """The one takes the closed form, the other torch's kernels; with hidden states, an output
    matrix and autocast."""
    _, targets = case(2, 33, 130, 2.0, 0.3)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(33, 24, generator=generator, requires_grad=True)
    weight = torch.randn(130, 24, generator=generator, requires_grad=True)

    def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return summed_cross_entropy(F.linear(hidden, weight), targets)

    compiled = torch.compile(SummedLinearCrossEntropy.apply, dynamic=False)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        expected, found = (f(hidden, weight, targets) for f in (eager, compiled))
    torch.testing.assert_close(found, expected)
    rough = {"rtol": 0.05, "atol": 0.05} if dtype else {"rtol": 1e-4, "atol": 1e-5}
    for of in (hidden, weight):
        assert gradient(found, of, 0.5).dtype == of.dtype
        torch.testing.assert_close(gradient(found, of, 0.5), gradient(expected, of, 0.5), **rough)


@needs_compiler
def test_of_logits_alone_it_is_the_same_loss_and_gradient() -> None:
    logits, targets = case(2, 33, 130, 2.0, 0.3)
    logits.requires_grad_()
    compiled = torch.compile(summed_cross_entropy, dynamic=False)
    eager, fused = summed_cross_entropy(logits, targets), compiled(logits, targets)
    uncompiled = SummedCrossEntropy.apply(logits, targets)
    for found in (fused, uncompiled, closed(logits, targets)):
        torch.testing.assert_close(found, eager)
        torch.testing.assert_close(gradient(found, logits, 0.5), gradient(eager, logits, 0.5))
    assert type(eager.grad_fn).__name__ == "NllLossBackward0"


@needs_compiler
def test_compiled_models_have_it_and_store_the_logits_in_half_precision_only() -> None:
    """The compiler decides what becomes one kernel: no exponentials of all rows are stored."""
    config = ModelConfig(vocab_size=512, d_model=32, n_heads=2, n_layers=1, max_seq_len=64)
    torch.manual_seed(0)
    model = TransformerLM(config)
    ids = torch.randint(512, (2, 64), generator=torch.Generator().manual_seed(0))
    model.eval()  # no dropout
    compiled = torch.compile(model.loss_sum, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16), fresh_cache():  # what is found has no code to show
        loss, code = run_and_get_code(compiled, ids, ids)
        expected = model.loss_sum(ids, ids)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0.0)
    made = re.findall(r"empty_strided_cpu\(\((\d+), 512\), [^)]*\), torch\.(\w+)\)", "".join(code))
    assert ("126", "bfloat16") in made
    assert ("126", "float32") not in made
