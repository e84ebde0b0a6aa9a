"""Linear layers with 8-bit weights, for inference.

Weights are rounded to int8 with one scale for each output feature. On a CPU torch's own kernels
then also round the inputs, with one scale a call, and multiply in integers: measured here 3 to 4
times faster than float32 a layer. Elsewhere, and where those kernels are missing, the weights
alone are stored in 8 bits and widened when used: a quarter of the memory, no faster.
Price: rounding, about 1 % of a layer's output; embeddings and norms stay as they are.

torch's tensor subclasses for this live in torchao, whose eager CPU kernels measured slower than
float32; its compiled ones want bfloat16. torch announces the removal of the functions used here in
some later release, hence the fall-back.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.half_linear import HalfLinear
from llm_trainer.utils.packed_layers import PackedOperator
from llm_trainer.utils.twin import twin_with

logger = logging.getLogger(__name__)

Int8Method = Literal["dynamic", "weight-only"]
"""dynamic: inputs are rounded too and products are integer; weight-only: weights are stored so."""


class QuantizedLinear(nn.Module):
    """A linear layer made of a float one; see the module."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, method: Int8Method) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.method = method
        weight = linear.weight.detach()
        bias = linear.bias.detach() if linear.bias is not None else None
        self.num_bytes = weight.numel() + 4 * self.out_features * (1 if bias is None else 2)
        """Bytes of weights, scales and biases."""
        if method == "dynamic":
            self.packed = _pack(weight, bias)
            self.packed_bias = bias
            self._number = _OPERATOR.register(self, self.packed)
        else:
            codes, scale = _round(weight)
            self.register_buffer("weight", codes)
            self.register_buffer("scale", scale)
            self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of x."""
        if self.method == "dynamic":
            if torch.compiler.is_compiling():
                return _OPERATOR(x.float(), self._number, self.out_features).to(x.dtype)
            return multiply(x.float(), self.packed).to(x.dtype)
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """Shape and method, for printing."""
        return f"{self.in_features}, {self.out_features}, int8 {self.method}"


def quantize_model(model: TransformerLM) -> TransformerLM:
    """A copy of `model` with int8 linear layers that shares everything else with it.

    The model itself stays as it is. Training the copy makes no sense, nor does saving it.
    """
    method: Int8Method = "weight-only"
    if model.device.type == "cpu":
        if _dynamic_kernels_work():
            method = "dynamic"
        else:
            logger.warning(
                "quantize: this build of torch has no dynamic int8 kernels; weights are stored in "
                "8 bits, which saves memory but no time"
            )
    quantized = twin_with(
        model, lambda m: QuantizedLinear(m, method) if isinstance(m, nn.Linear) else None
    )
    assert isinstance(quantized, TransformerLM)
    return quantized.eval()


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights in memory, quantised or not; tied ones count once."""
    tensors: dict[int, Tensor] = {}
    packed = 0
    for module in model.modules():
        if isinstance(module, QuantizedLinear | HalfLinear):
            packed += module.num_bytes
            continue
        tensors |= {id(p): p for p in module.parameters(recurse=False)}
    return packed + sum(t.numel() * t.element_size() for t in tensors.values())


def codes_and_scale(packed: Any) -> tuple[Tensor, Tensor]:
    """The int8 codes (out, in) and float32 scales (out,) of packed weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        weight, _ = torch.ops.quantized.linear_unpack(packed)
    return weight.int_repr(), weight.q_per_channel_scales().float()


def _round(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (out, in) and float32 scales (out,), so that codes * scale is the weight."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (wide / scale[:, None]).round().to(torch.int8), scale


def _pack(weight: Tensor, bias: Tensor | None) -> Any:
    codes, scale = _round(weight)
    zero = torch.zeros_like(scale, dtype=torch.long)
    with warnings.catch_warnings():
        # the announcement of its removal; see the module
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        quantized = torch.quantize_per_channel(
            codes * scale[:, None], scale, zero, axis=0, dtype=torch.qint8
        )
        return torch.ops.quantized.linear_prepack(
            quantized, bias.float() if bias is not None else None
        )


def multiply(x: Tensor, packed: Any) -> Tensor:
    """float32 x, (..., in_features), times packed weights, in integers."""
    y: Tensor = torch.ops.quantized.linear_dynamic(x, packed, _REDUCE_RANGE)
    return y


_OPERATOR = PackedOperator("int8_linear", multiply)


def _dynamic_kernels_work() -> bool:
    """Whether torch has the kernels and this CPU runs them; a few microseconds."""
    try:
        packed = _pack(torch.eye(8), None)
        y = multiply(torch.ones(1, 8), packed)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        logger.debug("no dynamic int8 kernels: %s", error)
        return False
    return bool(torch.allclose(y, torch.ones(1, 8), atol=0.05))


def _needs_reduced_range() -> bool:
    # Without VNNI the products are added in 16 bits, which 8-bit inputs can overflow.
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return supported is None or not supported()


_REDUCE_RANGE = _needs_reduced_range()
