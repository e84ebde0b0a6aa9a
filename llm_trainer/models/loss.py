"""The loss: negative log-likelihood of the targets, summed.

Torch's own is a few fused kernels when eager. Compiled, its gradient is derived operation by
operation: on a CPU each row of the one-hot targets is then summed entry by entry, which took 11 of
the 22 ms that a step of 4,096 tokens spent on the loss. So what is compiled has the gradient in
closed form, softmax minus one-hot.

It is made in the forward pass, while a row of logits is in the cache (as in Liger Kernel, Hsu et
al. 2024): one kernel reads the logits once and takes each exponential once, where a backward pass
would read them and take all exponentials again. That needs the output matrix to be part of it: the
gradient of the logits, made before the gradient of the loss is known, is scaled in the products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_trainer.models.checks import IGNORED


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum of log softmax(logits)[target], a float32 scalar in nats.

    Args:
        logits: (tokens, vocab_size) of any floating type; the sums are float32's.
        targets: (tokens,) long; IGNORED (-100) marks rows that do not count.
    """
    if not torch.compiler.is_compiling():
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    loss: Tensor = SummedCrossEntropy.apply(logits, targets)
    return loss


class SummedCrossEntropy(torch.autograd.Function):
    """`summed_cross_entropy` to be compiled, for who wants the logits as well."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum; arguments as those of `summed_cross_entropy`."""
        loss, logits_gradient = _loss_and_gradient(logits, targets)
        ctx.save_for_backward(logits_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of the logits, in their type."""
        (logits_gradient,) = ctx.saved_tensors
        return (logits_gradient.float() * gradient).to(logits_gradient.dtype), None


class SummedLinearCrossEntropy(torch.autograd.Function):
    """`summed_cross_entropy` of `hidden @ weight.T`, to be compiled.

    Under autocast the product is in its type, and so is the gradient of the logits, which is all
    that is kept of them for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """The sum.

        Args:
            ctx: of autograd.
            hidden: (tokens, d_model).
            weight: (vocab_size, d_model).
            targets: (tokens,) long; IGNORED (-100) marks rows that do not count.
        """
        loss, logits_gradient = _loss_and_gradient(F.linear(hidden, weight), targets)
        ctx.save_for_backward(logits_gradient, hidden, weight)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of `hidden` and `weight`, in their types."""
        logits_gradient, hidden, weight = ctx.saved_tensors
        dtype = logits_gradient.dtype
        of_hidden = (logits_gradient @ weight.to(dtype)).float() * gradient
        of_weight = (logits_gradient.t() @ hidden.to(dtype)).float() * gradient
        return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype), None


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss and its gradient, (tokens, vocab_size), in the type of the logits."""
    wide = logits.float()
    counts = targets != IGNORED
    target = torch.where(counts, targets, 0)
    row = torch.arange(len(target), device=target.device)
    # Written so that the compiler makes one kernel of it on a CPU: the exponentials of a row
    # stay in the cache. With the mask elsewhere it stored those of all rows, in float32.
    highest = wide.amax(dim=-1, keepdim=True)
    exponentials = (wide - highest).exp()
    total = exponentials.sum(dim=-1, keepdim=True)
    log_likelihood = wide[row, target] - (highest + total.log())[:, 0]
    scale = torch.where(counts[:, None], 1 / total, 0.0)
    gradient = (exponentials * scale).to(logits.dtype)
    # one is taken off in float32: where a target is nearly certain, hardly anything remains
    at_target = torch.where(counts, log_likelihood.expm1(), 0.0)
    gradient = gradient.index_put((row, target), at_target.to(logits.dtype))
    return torch.where(counts, -log_likelihood, 0.0).sum(), gradient
