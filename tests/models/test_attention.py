"""Written-out attention against torch's fused kernel and against the formula in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_trainer.models import attention
from llm_trainer.models.attention import masked_attention


def tensors(
    seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Vaswani et al. 2017, equation 1, with masked scores left out of the sums, in float64."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(groups, dim=1) for x in (k, v))
    exponentials = (q.double() @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).exp() * mask
    return exponentials / exponentials.sum(dim=-1, keepdim=True) @ v


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20), batch=st.integers(1, 2), heads=st.sampled_from([(1, 1), (4, 2)]),
    time=st.integers(1, 24), blocks=st.sampled_from([(4, 4), (4, 8), (6, 6), (128, 256)]),
)  # fmt: skip
def test_causal_values_and_gradients(
    seed: int, batch: int, heads: tuple[int, int], time: int, blocks: tuple[int, int]
) -> None:
    """Whatever blocks the queries are taken in."""
    shapes = [(batch, n, time, 6) for n in (heads[0], heads[1], heads[1])]
    inputs = tensors(seed, *shapes)
    mask = torch.ones(time, time).tril()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERY_BLOCKS", blocks)
        found = masked_attention(*inputs, mask=None, dropout=0.0)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = formula(*exact, mask)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), want, atol=1e-4, rtol=1e-4)


def test_a_mask_of_documents() -> None:
    """Gradients under a mask that differs from row to row, as that of packed documents."""
    inputs = tensors(0, *[(2, 2, 12, 8)] * 3)
    document = torch.tensor([[0] * 5 + [1] * 7, [0] * 11 + [1]])
    mask = (document[:, :, None] == document[:, None]) & torch.ones(12, 12, dtype=torch.bool).tril()
    found = masked_attention(*inputs, mask=mask[:, None], dropout=0.0)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask[:, None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for gradient, want in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, want, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_as_exact_as_the_fused_kernel() -> None:
    """The backward pass works from weights in bfloat16; that costs no more than the inputs do."""
    inputs = tensors(1, *[(2, 2, 64, 16)] * 3, dtype=torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    mask = torch.ones(64, 64).tril()
    weights = torch.randn(2, 2, 64, 16, generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad((formula(*exact, mask) * weights).sum(), exact)

    def errors(output: Tensor) -> list[float]:
        gradients = torch.autograd.grad((output.float() * weights).sum(), inputs)
        return [
            float((gradient.double() - want).norm() / want.norm())
            for gradient, want in zip(gradients, wanted, strict=True)
        ]

    ours = errors(masked_attention(*inputs, mask=None, dropout=0.0))
    fused = errors(F.scaled_dot_product_attention(*inputs, is_causal=True))
    assert max(ours) < 0.01
    assert all(a < 1.5 * b for a, b in zip(ours, fused, strict=True)), (ours, fused)


def test_dropped_weights_pass_no_gradient_to_their_values() -> None:
    torch.manual_seed(0)
    q, k, v = tensors(3, *[(1, 1, 16, 4)] * 3)
    out = masked_attention(q, k, v, mask=None, dropout=0.999999)
    (gradient,) = torch.autograd.grad(out.sum(), v)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("time", "queries"), [(3, [3]), (12, [6, 6]), (13, [7, 6]), (16, [8, 8]), (19, [8, 8, 3])]
)
def test_queries_go_by_halves_of_a_row_within_the_bounds(
    time: int, queries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def attend(q: Tensor, *rest: object) -> Tensor:
        seen.append(q.shape[2])
        return q

    monkeypatch.setattr(attention, "QUERY_BLOCKS", (4, 8))
    monkeypatch.setattr(attention, "_attend", attend)
    masked_attention(*tensors(0, *[(1, 1, time, 2)] * 3), mask=None, dropout=0.0)
    assert seen == queries
