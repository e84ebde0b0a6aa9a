"""Models without values: names, shapes and types of all tensors, and no memory for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

from llm_trainer.config.model import ModelConfig

if TYPE_CHECKING:
    from llm_trainer.models.transformer import TransformerLM

M = TypeVar("M", bound="TransformerLM")


DRAWS = frozenset({init.normal_, init.uniform_, init.kaiming_uniform_})
"""What torch's own layers draw their first values with."""


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where torch's layers would draw their first values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in DRAWS:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def outline(cls: type[M], config: ModelConfig) -> M:
    """A model on torch's device "meta", for its names and shapes.

    Nothing is computed: arithmetic on that device loads torch's compiler, a second at each start.
    """
    with torch.device("meta"), _Undrawn():
        return cls(config)
