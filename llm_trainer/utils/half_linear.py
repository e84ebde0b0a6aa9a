"""Linear layers with bfloat16 weights, for inference: half the memory to read for each token.

Products are of bfloat16 numbers and summed in float32, as in mixed-precision training; what goes
from layer to layer, norms, attention and embeddings stay in the type of the model. On a CPU the
weights are kept in the layout in which oneDNN multiplies by them, instead of being brought into it
at each call: measured here 0.5 instead of 0.8 ms for all layers of a 6 x 256 model and one row, 0.9
instead of 1.2 for 16 rows, with the same bits. Price: a rounding of weights and inputs to 8 bits of
mantissa.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.packed_layers import PackedOperator
from llm_trainer.utils.twin import twin_with

logger = logging.getLogger(__name__)


class HalfLinear(nn.Module):
    """A linear layer made of a float one; see the module."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = None if linear.bias is None else linear.bias.detach()
        self.num_bytes = 2 * linear.weight.numel()
        """Bytes of weight and bias."""
        if bias is not None:
            self.num_bytes += bias.numel() * bias.element_size()
        self.register_buffer("bias", bias, persistent=False)
        weight = linear.weight.detach().bfloat16()
        self.packed: Any = None
        """The weight in oneDNN's layout; None where there is no oneDNN for it."""
        if weight.device.type == "cpu" and _packing_works():
            self.packed = _pack(weight)
            self._number = _OPERATOR.register(self, self.packed)
        else:
            self.register_buffer("_weight", weight, persistent=False)

    @property
    def weight(self) -> Tensor:
        """(out, in) bfloat16; of a packed layer a copy."""
        if self.packed is None:
            return self.get_buffer("_weight")
        unpacked: Tensor = self.packed.to_dense()
        return unpacked

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of x."""
        half = x.bfloat16()
        if self.packed is None:
            y = F.linear(half, self.get_buffer("_weight"))
        elif torch.compiler.is_compiling():
            y = _OPERATOR(half, self._number, self.out_features)
        else:
            y = _multiply(half, self.packed)
        y = y.to(x.dtype)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Shape and type, for printing."""
        return f"{self.in_features}, {self.out_features}, bfloat16"


def halve_model(model: TransformerLM) -> TransformerLM:
    """A twin of `model` with bfloat16 linear layers that shares everything else with it."""
    twin = twin_with(model, lambda m: HalfLinear(m) if isinstance(m, nn.Linear) else None)
    assert isinstance(twin, TransformerLM)
    return twin.eval()


def _pack(weight: Tensor) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _multiply(x: Tensor, packed: Any) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], "")
    return y


_OPERATOR = PackedOperator("bfloat16_linear", _multiply)


@cache
def _packing_works() -> bool:
    """Whether torch has these functions, which it does not document, and this CPU the type."""
    try:
        weight = torch.eye(8, dtype=torch.bfloat16)
        return bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
            and torch.equal(_multiply(weight, _pack(weight)), weight)
        )
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        logger.debug("no packed bfloat16 weights: %s", error)
        return False
