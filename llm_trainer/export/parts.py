"""Which module of ours holds the numbers of which modules of theirs, and in which order.

A `Part` is one such pair with its way there and back; both ways only split, join, transpose or
reorder, so a round trip gives the same bits. A bias that one side has and the other has not is
zeros where it is added, and must be zeros where it is left out: the sums stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llm_trainer.exceptions import IntegrityError

Form = Literal["rows", "transposed", "by_head"]
"""rows: ours are theirs below each other; transposed: (in, out) instead of (out, in), as GPT-2's
Conv1D; by_head: query, key and value of a head side by side, as GPT-NeoX."""


@dataclass(frozen=True)
class Part:
    """One module of ours, and those of theirs that together are the same."""

    ours: str
    """Name of the module, such as blocks.0.attention.qkv."""
    theirs: tuple[str, ...]
    """Names of the modules, in the order of our rows."""
    rows: tuple[int, ...] = ()
    """Rows of each of theirs, if there are several."""
    form: Form = "rows"
    heads: int = 1
    """Attention heads, for by_head."""
    our_bias: bool = False
    their_bias: bool = False

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Ours as theirs: a weight (out, in) or (out,), or a bias (out,)."""
        if self.rows:
            return list(tensor.split(list(self.rows)))
        if self.form == "transposed":
            return [tensor.T if tensor.ndim == 2 else tensor]
        if self.form == "by_head":
            return [_swapped(tensor, 3, self.heads)]
        return [tensor]

    def join(self, tensors: list[Tensor]) -> Tensor:
        """Theirs as ours: undoes `split`."""
        if self.rows:
            return torch.cat(tensors)
        (tensor,) = tensors
        if self.form == "transposed":
            return tensor.T if tensor.ndim == 2 else tensor
        if self.form == "by_head":
            return _swapped(tensor, self.heads, 3)
        return tensor


def _swapped(tensor: Tensor, outer: int, inner: int) -> Tensor:
    """Rows counted as (outer, inner, rest), in the order (inner, outer, rest)."""
    blocks = tensor.reshape(outer, inner, -1, *tensor.shape[1:])
    return blocks.transpose(0, 1).reshape(tensor.shape)


def to_theirs(parts: Iterable[Part], ours: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Their names and tensors, one after the other, so that a caller need not hold all.

    The tensors may be views of ours. On the meta device the result has shapes only.
    """
    for part in parts:
        weight = ours[f"{part.ours}.weight"]
        for name, tensor in zip(part.theirs, part.split(weight), strict=True):
            yield f"{name}.weight", tensor
        if part.their_bias:
            bias = ours[f"{part.ours}.bias"] if part.our_bias else _zeros(weight)
            for name, tensor in zip(part.theirs, part.split(bias), strict=True):
                yield f"{name}.bias", tensor


def to_ours(parts: Iterable[Part], theirs: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors, one after the other.

    Raises:
        IntegrityError: a bias that we leave out is not zero.
    """
    for part in parts:
        weight = part.join([theirs[f"{name}.weight"] for name in part.theirs])
        yield f"{part.ours}.weight", weight
        biases = [theirs[f"{name}.bias"] for name in part.theirs] if part.their_bias else []
        if part.our_bias:
            yield f"{part.ours}.bias", part.join(biases) if biases else _zeros(weight)
        elif any(bool(bias.count_nonzero()) for bias in biases):
            raise IntegrityError(
                f"{part.theirs[0]}.bias is not zero, but config.json says that the model has no "
                f"biases there (llm_trainer: bias or attention_bias is false); remove that entry "
                f"if the weights are right"
            )


def _zeros(weight: Tensor) -> Tensor:
    """The bias that a module with this weight, (out, in) or (out,), does not have."""
    return weight.new_zeros(weight.shape[0])
