"""Twins of models: other parts, the same tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn


def twin_with(module: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The module with other parts all the way down; tensors are shared, not copied.

    Args:
        module: stays as it is.
        replace: gives what stands for a part in the twin, or None to copy it.
    """
    replacement = replace(module)
    if replacement is not None:
        return replacement
    twin = copy.copy(module)
    # a shallow copy shares the dictionaries; the children's must be its own
    twin.__dict__ = dict(module.__dict__)
    twin._modules = {
        name: twin_with(child, replace) if child is not None else None
        for name, child in module._modules.items()
    }
    return twin
