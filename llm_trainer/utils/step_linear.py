"""Linear layers for a compiled step over few rows.

A step of generation multiplies one row a prompt. Libraries for matrix products pack their operands
first, which for so few rows costs more than the product, and `torch.compile` cannot look into them.
One row is therefore written out as a sum, which is compiled with what is around it and reads each
weight once: measured here 0.8 ms a step of a 6 x 256 model instead of 3.1 ms, and less with smaller
weights. A few rows of float32 are multiplied from the other side, which saves the packing of the
weights; int8 and bfloat16 weights are packed beforehand. Price: none in memory for float32; the
others are kept a second time, unpacked, for the sum of a single row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.half_linear import HalfLinear
from llm_trainer.utils.quantization import QuantizedLinear, codes_and_scale
from llm_trainer.utils.twin import twin_with

FEW_ROWS = 32
"""Rows up to which float32 weights times the transposed rows are faster than the rows times the
transposed weights, as measured: 2.1 instead of 3.4 ms for all layers and 16 rows."""


def for_compiled_steps(model: TransformerLM, rows: int) -> TransformerLM:
    """A twin of `model` that shares its weights, to compile steps of `rows` tokens of on a CPU.

    The attention is the written-out one, which the compiler fuses; the model stays as it is.
    """
    twin = twin_with(model, lambda module: _step_layer(module, rows))
    assert isinstance(twin, TransformerLM)
    twin.set_attention_kernel("masked")
    return twin.eval()


def own_bytes(twin: TransformerLM) -> int:
    """Bytes of weights that a twin does not share with the model that it was made of."""
    return sum(m.own_bytes for m in twin.modules() if isinstance(m, StepLinear))


def _step_layer(module: nn.Module, rows: int) -> nn.Module | None:
    if isinstance(module, nn.Linear):
        return StepLinear(module, module.weight, module.bias, None)
    if isinstance(module, HalfLinear):
        return module if rows > 1 else StepLinear(module, module.weight, module.bias, None)
    if isinstance(module, QuantizedLinear) and module.method == "dynamic":
        if rows > 1:
            return module
        codes, scale = codes_and_scale(module.packed)
        return StepLinear(module, codes, module.packed_bias, scale)
    return None


class StepLinear(nn.Module):
    """A layer that computes few rows by itself, and more of them by the layer it stands for.

    Args:
        layer: what it stands for.
        weight: (out, in), of any type.
        bias: (out,) or None.
        scale: (out,), factors of int8 weights; None for other types.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        layer: Callable[[Tensor], Tensor],
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self._most_rows = FEW_ROWS if weight.dtype == torch.float32 else 1
        self.own_bytes = 0
        """Bytes of a weight that is not that of the layer itself."""
        if not isinstance(layer, nn.Linear):
            self.own_bytes = weight.numel() * weight.element_size()
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of x."""
        rows = x.numel() // x.shape[-1]
        if rows > self._most_rows or not torch.compiler.is_compiling():
            return self.layer(x)
        if rows == 1:
            # as_strided has the compiler store the row, instead of working out the norm that it
            # comes from anew for every output
            row = x.reshape(-1).clone().as_strided((x.shape[-1],), (1,))
            y = (row * self.weight.to(x.dtype)).sum(-1).view(*x.shape[:-1], -1)
        else:
            y = (self.weight @ x.reshape(rows, -1).T).T.reshape(*x.shape[:-1], -1)
        if self.scale is not None:
            y = y * self.scale
        return y if self.bias is None else y + self.bias
