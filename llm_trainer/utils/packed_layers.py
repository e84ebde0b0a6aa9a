"""Operators on packed weights that a compiled graph calls by number.

Libraries multiply fastest by weights that they have packed in their own layout once. The compiler
cannot hold such weights: they are no tensors that it could look into. So layers have numbers, and
the graph knows those. Numbers of layers that are gone are given out again, so that graphs compiled
earlier, in this process or another, are found in the compiler's cache.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# defined by hand: torch.library.custom_op costs 30 microseconds a call, as much as a product
_LIBRARY = torch.library.Library("llm_trainer", "DEF")


class PackedOperator:
    """`torch.ops.llm_trainer.<name>`: inputs times the packed weights of a layer of some number.

    Args:
        name: of the operator.
        multiply: x, (..., in), and packed weights give (..., out), in the dtype of x.
    """

    def __init__(self, name: str, multiply: Callable[[Tensor, Any], Tensor]) -> None:
        packed: dict[int, Any] = {}
        _LIBRARY.define(f"{name}(Tensor x, int number, int out_features) -> Tensor")
        _LIBRARY.impl(name, lambda x, number, _out: multiply(x, packed[number]), "CPU")
        _LIBRARY.impl(name, lambda x, _number, out: x.new_empty((*x.shape[:-1], out)), "Meta")
        self._packed = packed
        self._operator = getattr(torch.ops.llm_trainer, name).default

    def register(self, layer: nn.Module, packed: Any) -> int:
        """The number of `packed` for as long as `layer` lives."""
        number = next(n for n in itertools.count() if n not in self._packed)
        self._packed[number] = packed
        weakref.finalize(layer, self._packed.pop, number)
        return number

    def __call__(self, x: Tensor, number: int, out_features: int) -> Tensor:
        """(..., in) -> (..., out_features) by the weights of that number."""
        y: Tensor = self._operator(x, number, out_features)
        return y
