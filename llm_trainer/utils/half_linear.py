"""Linear layers with bfloat16 weights, for inference: half the memory to read for each token.

Products are of bfloat16 numbers and summed in float32, as in mixed-precision training; what goes
from layer to layer, norms, attention and embeddings stay in the type of the model. Price: a
rounding of weights and inputs to 8 bits of mantissa.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.twin import twin_with


class HalfLinear(nn.Module):
    """A linear layer made of a float one; see the module."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = linear.bias
        self.register_buffer("weight", linear.weight.detach().bfloat16(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    @property
    def num_bytes(self) -> int:
        """Bytes of weight and bias."""
        tensors = [self.weight] if self.bias is None else [self.weight, self.bias]
        return sum(t.numel() * t.element_size() for t in tensors)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of x."""
        y = F.linear(x.bfloat16(), self.weight).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Shape and type, for printing."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bfloat16"


def halve_model(model: TransformerLM) -> TransformerLM:
    """A twin of `model` with bfloat16 linear layers that shares everything else with it."""
    twin = twin_with(model, lambda m: HalfLinear(m) if isinstance(m, nn.Linear) else None)
    assert isinstance(twin, TransformerLM)
    return twin.eval()
