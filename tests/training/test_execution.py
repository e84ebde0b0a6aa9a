"""How a training step is executed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

from llm_trainer.config import ModelConfig
from llm_trainer.models import TransformerLM
from llm_trainer.training.execution import Execution
from llm_trainer.utils.compiler import cache_custom_gradients
from tests.needs import needs_compiler


@needs_compiler
def test_models_of_one_process_do_not_use_up_each_others_compilations() -> None:
    """The compiler takes so many graphs of one function, 8 as it comes, and runs what follows
    uncompiled: a ninth model that is trained in one notebook would be."""
    execution = Execution(torch.device("cpu"), None, compiled=True, deterministic=False)
    ids = torch.randint(50, (1, 4), generator=torch.Generator().manual_seed(0))
    counters.clear()
    with dynamo.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for width in (8, 16):
            shape = ModelConfig(
                vocab_size=50, d_model=width, n_heads=1, n_layers=1, max_seq_len=8, dropout=0.0,
                attention_dropout=0.0, norm="rmsnorm", activation="swiglu", qk_norm=True,
            )  # fmt: skip
            model = TransformerLM(shape)
            model.set_attention_kernel("masked")
            loss = execution.loss_function(model)(ids, ids, None)
            torch.testing.assert_close(loss, model.loss_sum(ids, ids), rtol=1e-5, atol=1e-5)
    # nothing in a training step keeps its trace from being cached
    assert counters["aot_autograd"]["total"] == 2
    assert not counters["aot_autograd"]["autograd_cache_bypass"]


@needs_compiler
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_what_is_cached_hangs_on_the_backward_pass(factor: float) -> None:
    """Of one that was changed nothing old is found; see `cache_custom_gradients`."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return gradient * x.cos() * factor

    cache_custom_gradients()
    counters.clear()
    torch.compiler.reset()
    x = torch.ones(8, requires_grad=True)
    (gradient,) = torch.autograd.grad(torch.compile(lambda x: Sine.apply(x).sum())(x), x)
    torch.testing.assert_close(gradient, factor * x.detach().cos())
    assert not counters["aot_autograd"]["autograd_cache_bypass"]
