"""The key-value cache: one pre-allocated buffer a layer, written in place.

A cached step computes one token instead of the whole sequence. Memory: 2 x layers x batch x
kv_heads x max_length x d_head elements. In the default mode attention reads only the filled part;
a `static` cache always exposes the whole buffer and keeps its position in a tensor, so that every
step has the same shapes and `torch.compile` sees one graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_trainer.config.checks import flags, instance, refuse, whole
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.models.checks import usable_device


class KVCache:
    """Keys and values of the tokens seen so far.

    Attributes:
        length: tokens written so far, the same for all rows (shorter prompts are left-padded).
        max_length: capacity, in tokens.
        static: whether attention spans the whole buffer at every step.
        window: only with `static`: a tensor whose length is how many positions attention spans,
            so that a compiler can take that number for a variable; None for all.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        static: bool = False,
    ) -> None:
        refuse(
            ConfigurationError,
            instance("config", config, ModelConfig),
            whole("batch_size", batch_size, 1),
            whole("max_length", max_length, 1),
            instance("dtype", dtype, torch.dtype),
            flags(static=static),
        )
        device = usable_device(device)
        shape = (batch_size, config.num_kv_heads, max_length, config.d_head)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.batch_size = batch_size
        self.max_length = max_length
        self.length = 0
        self.static = static
        self.window: Tensor | None = None
        self.offset = torch.zeros((), dtype=torch.long, device=device)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return those that attention may look at.

        Args:
            layer: index of the layer.
            keys, values: (batch, kv_heads, new tokens, d_head).

        Returns:
            Keys and values, (batch, kv_heads, length + new tokens, d_head); with `static` the
            first `span` positions, of which the mask hides those not yet written.
        """
        new = keys.shape[2]
        if self.static:
            index = self.offset + torch.arange(new, device=keys.device)
            self.keys[layer].index_copy_(2, index, keys.to(self.keys[layer].dtype))
            self.values[layer].index_copy_(2, index, values.to(self.values[layer].dtype))
            return self.keys[layer][:, :, : self.span], self.values[layer][:, :, : self.span]
        end = self.length + new
        assert end <= self.max_length, f"{end} tokens in a cache of {self.max_length}"
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    @property
    def span(self) -> int:
        """Positions that attention looks at with `static`."""
        return self.max_length if self.window is None else self.window.shape[0]

    def advance(self, new: int) -> None:
        """Count `new` tokens as written, after all layers wrote them."""
        self.length += new
        self.offset.add_(new)

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of the old row `rows[i]`, (batch,) long: what beam search needs."""
        for layer in range(len(self.keys)):
            for buffer in (self.keys[layer], self.values[layer]):
                filled = buffer[:, :, : self.length]
                filled.copy_(filled.index_select(0, rows))

    def reset(self) -> None:
        """Forget everything; the buffers are kept."""
        self.length = 0
        self.offset.zero_()

    @property
    def num_bytes(self) -> int:
        """Size of all buffers, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.keys + self.values)
