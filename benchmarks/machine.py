"""The speed of a bare matrix product, measured beside each piece of training."""

from __future__ import annotations

import torch

from llm_trainer.utils.timing import time_calls

SIZE = 2048
REPEATS = 12


def matmul_flops(dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of the fastest of a few products of two SIZE x SIZE matrices."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(SIZE, SIZE, dtype=dtype)
    seconds = time_calls(
        lambda: torch.mm(left, right, out=out), repeats=REPEATS, warmup=2,
        device=torch.device("cpu"),
    )  # fmt: skip
    return 2.0 * SIZE**3 / min(seconds)
