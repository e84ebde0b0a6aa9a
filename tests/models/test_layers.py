"""Norm and rotary positions against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_trainer.models.layers import (
    CompiledRMSNorm,
    RMSNorm,
    apply_rope,
    rope_frequencies,
    rope_tables,
)
from tests.needs import needs_compiler

EPS = 1e-5


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """Zhang & Sennrich 2019, equation 4."""
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    shape=st.sampled_from([(1, 8), (3, 5), (4, 64, 16), (2, 3, 32, 6), (1, 7, 1)]),
    spread=st.sampled_from([1e-3, 1.0, 100.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_compiled_norm_has_the_gradients_of_the_formula(
    seed: int, shape: tuple[int, ...], spread: float, dtype: torch.dtype
) -> None:
    """Of x and of the weight, for rows that can be halved and rows that cannot."""
    generator = torch.Generator().manual_seed(seed)
    x = (spread * torch.randn(shape, generator=generator)).to(dtype)
    weight = 1 + 0.1 * torch.randn(shape[-1], generator=generator)
    upstream = torch.randn(shape, generator=generator).to(dtype)
    exact = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = normed(*exact)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    inputs = x.requires_grad_(), weight.requires_grad_()
    found = CompiledRMSNorm.apply(*inputs, EPS)
    gradients = torch.autograd.grad(found, inputs, upstream)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=2 * rounding, atol=1e-5)
    assert [of.dtype for of in gradients] == [dtype, torch.float32]
    # a row's gradient is what is left after its own direction is taken off: as exact as its parts
    smallest = (exact[0].detach().square().mean(-1) + EPS).sqrt().min()
    size = float(upstream.abs().max() / smallest)
    torch.testing.assert_close(
        gradients[0].double(), wanted[0], rtol=2 * rounding, atol=1e-5 * size
    )
    torch.testing.assert_close(gradients[1].double(), wanted[1], rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_and_eager_norms_agree(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(24, EPS)
    x = torch.randn(2, 64, 24, generator=generator).to(dtype).requires_grad_()
    of = (x, norm.weight)
    compiled = torch.compile(norm, dynamic=False, fullgraph=True)
    near = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-5}
    eager, fused = norm(x), compiled(x)
    torch.testing.assert_close(fused, eager, **near)
    for found, expected in zip(
        torch.autograd.grad(fused.float().square().sum(), of),
        torch.autograd.grad(eager.float().square().sum(), of),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=near["rtol"], atol=1e-3)


@pytest.mark.parametrize("rows", [None, 2])
def test_rotation_is_a_product_of_complex_numbers(rows: int | None) -> None:
    """Feature i and feature i + d/2 are real and imaginary part; also where rows of a batch have
    positions of their own."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(100, (rows, 1, 9) if rows else (9,), generator=generator)
    cos, sin = (table[positions] for table in rope_tables(100, 16, 10_000.0))
    x = torch.randn(2, 3, 9, 16, generator=generator, requires_grad=True)
    angle = positions[..., None].double() * rope_frequencies(16, 10_000.0).double()
    turn = torch.polar(torch.ones_like(angle), angle)
    exact = x.detach().double().requires_grad_()
    product = torch.complex(*exact.chunk(2, dim=-1)) * turn
    expected = torch.cat([product.real, product.imag], dim=-1)
    found = apply_rope(x, cos, sin)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn(found.shape, generator=generator)
    (gradient,) = torch.autograd.grad(found, x, upstream)
    (wanted,) = torch.autograd.grad(expected, exact, upstream.double())
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-4)
