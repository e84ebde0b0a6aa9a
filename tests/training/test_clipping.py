"""Clipping, bit by bit as torch does it, and no work where there is nothing to clip."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llm_trainer.training.clipping import clip_gradients


def _parameters(scale: float, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (1, 1))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return [*parameters, nn.Parameter(torch.zeros(2))]  # the last one has no gradient


def _gradients(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


@given(st.floats(1e-6, 1e6), st.floats(0.5, 2.0), st.integers(0, 1000))
def test_bits_are_those_of_torch(scale: float, share: float, seed: int) -> None:
    ours, theirs = _parameters(scale, seed), _parameters(scale, seed)
    norm = torch.nn.utils.get_total_norm(_gradients(ours))
    maximum = share * float(norm)

    assert clip_gradients(ours, norm, maximum) == float(norm)
    torch.nn.utils.clip_grads_with_norm_(theirs, maximum, norm)

    for mine, reference in zip(_gradients(ours), _gradients(theirs), strict=True):
        assert torch.equal(mine, reference)


@given(st.integers(-40, 40), st.integers(0, 1000))
def test_bits_are_those_of_torch_around_the_maximum(ulps: int, seed: int) -> None:
    ours, theirs = _parameters(1.0, seed), _parameters(1.0, seed)
    norm = torch.nn.utils.get_total_norm(_gradients(ours))
    maximum = float(norm) + 1e-6 + ulps * 2.0**-26

    clip_gradients(ours, norm, maximum)
    torch.nn.utils.clip_grads_with_norm_(theirs, maximum, norm)

    for mine, reference in zip(_gradients(ours), _gradients(theirs), strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize(("maximum", "touched"), [(1e6, False), (0.0, False), (1e-3, True)])
def test_touches_gradients_only_to_clip_them(maximum: float, touched: bool) -> None:
    parameters = _parameters(1.0)
    before = [gradient._version for gradient in _gradients(parameters)]
    norm = torch.nn.utils.get_total_norm(_gradients(parameters))

    clip_gradients(parameters, norm, maximum)

    after = [gradient._version for gradient in _gradients(parameters)]
    assert all((a > b) == touched for a, b in zip(after, before, strict=True))


def test_clipped_gradients_have_the_maximum_as_their_norm() -> None:
    parameters = _parameters(7.0)
    norm = torch.nn.utils.get_total_norm(_gradients(parameters))
    clip_gradients(parameters, norm, 0.25)
    after = torch.nn.utils.get_total_norm(_gradients(parameters))
    assert float(after) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_returned_and_spoils_the_gradients(value: float) -> None:
    parameters = _parameters(1.0)
    gradients = _gradients(parameters)
    gradients[0][0, 0] = value
    norm = torch.nn.utils.get_total_norm(gradients)
    returned = clip_gradients(parameters, norm, 1.0)
    assert not math.isfinite(returned)
    assert torch.isnan(gradients[0][0, 0])
