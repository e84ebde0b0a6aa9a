"""SwiGLU against its formula in float64, and where its sigmoid may be a ratio of polynomials."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_trainer.models.activations import CompiledSwiGLU, sigmoid_ratio, swiglu
from tests.needs import needs_compiler


def formula(hidden: Tensor) -> Tensor:
    gate, up = hidden.double().chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up


def test_the_ratio_is_the_sigmoid_as_exactly_as_float32_near_one() -> None:
    x = torch.linspace(-40, 40, 400_001)
    found = sigmoid_ratio(x)
    assert float((found.double() - x.double().sigmoid()).abs().max()) < 2.5e-7
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0
    ends = sigmoid_ratio(torch.tensor([-torch.inf, 0.0, torch.inf]))
    torch.testing.assert_close(ends, torch.tensor([0.0, 0.5, 1.0]), rtol=0.0, atol=2e-7)
    assert sigmoid_ratio(torch.tensor(torch.nan)).isnan()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20), rows=st.integers(1, 5), width=st.integers(1, 40),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_values_and_gradients_are_rounded_once(
    seed: int, rows: int, width: int, spread: float, dtype: torch.dtype
) -> None:
    """The closed form against what autograd derives from the formula in float64."""
    generator = torch.Generator().manual_seed(seed)
    hidden = (spread * torch.randn(rows, 2 * width, generator=generator)).to(dtype)
    weights = torch.randn(rows, width, generator=generator).to(dtype)
    exact = hidden.double().requires_grad_()
    expected = formula(exact)
    (wanted,) = torch.autograd.grad(expected, exact, weights.double())
    found = CompiledSwiGLU.apply(hidden.requires_grad_())
    (gradient,) = torch.autograd.grad(found, hidden, weights)
    assert found.dtype == gradient.dtype == dtype
    near = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6 * max(1.0, spread**2)}
    torch.testing.assert_close(found.double(), expected, **near)
    torch.testing.assert_close(gradient.double(), wanted, **near)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_differs_from_eager_by_rounding(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = (4 * torch.randn(7, 96, generator=generator)).to(dtype).requires_grad_()
    compiled = torch.compile(swiglu, dynamic=False, fullgraph=True)
    near = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-5}
    found, expected = compiled(hidden), swiglu(hidden)
    torch.testing.assert_close(found, expected, **near)
    of = [torch.autograd.grad(out.float().sum(), hidden)[0] for out in (found, expected)]
    torch.testing.assert_close(*of, **near)


@needs_compiler
def test_float32_keeps_the_exact_sigmoid() -> None:
    """Far out the ratio stops falling."""
    hidden = torch.tensor([[-20.0, 1.0]])
    compiled = torch.compile(swiglu, dynamic=False, fullgraph=True)
    torch.testing.assert_close(compiled(hidden).double(), formula(hidden), rtol=1e-5, atol=0.0)
    assert float(sigmoid_ratio(hidden[0, 0])) > 50 * float(hidden[0, 0].sigmoid())
