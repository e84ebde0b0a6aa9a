"""Clipping of the whole gradient by its norm (Pascanu et al. 2013)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_NEAR = 1e-4
"""Relative distance from the maximum within which torch decides whether there is something to do:
it divides in the norm's precision, and by the norm plus 1e-6."""


def clip_gradients(parameters: Iterable[Tensor], norm: Tensor, maximum: float) -> float:
    """Scale the gradients down to `maximum`, and return the norm that they had.

    The bits are those of `torch.nn.utils.clip_grads_with_norm_`, which multiplies by 1 where
    nothing is to be clipped; here such gradients are left alone. In a run that is most steps, and
    on a CPU the multiplication takes 1 to 2 % of a small model's.

    Args:
        parameters: whose gradients.
        norm: of all of them together, a scalar; a norm that is not finite spoils them, as torch's.
        maximum: of the norm; 0 for no clipping.
    """
    value = float(norm)
    below = math.isfinite(value) and value + 1e-6 < maximum * (1 - _NEAR)
    if maximum > 0 and not below:
        torch.nn.utils.clip_grads_with_norm_(parameters, maximum, norm)
    return value
