"""A runner whose single-token step is compiled: one graph with the same shapes at every step.

The prompts are read eagerly, since they come in all lengths. Then each step runs the compiled
graph over a static KV cache. Its length is rounded up to a power of two, so that few graphs serve
all requests: one for each number of rows and cache length, with padding and without. Price: the
first request of a kind compiles, some 10 to 40 s on a CPU, less with a warm cache; attention spans
the whole cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llm_trainer.exceptions import GenerationError
from llm_trainer.models.cache import KVCache
from llm_trainer.models.runner import Runner, last_logits
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.compiler import compile_problem

SMALLEST_CACHE = 64
"""Tokens; shorter requests use a cache of this length too."""

MOST_GRAPHS = 64
"""Beyond as many kinds of requests torch runs further ones uncompiled, with a warning."""

Step = Callable[[Tensor, Tensor | None, KVCache], Tensor]


class StepCache(KVCache):
    """A cache whose `length` is 0 while it is static: then only the tensor `offset` counts.

    A Python number that changes with every step would be a new graph at every step.
    """

    def advance(self, new: int) -> None:
        """Count `new` tokens as written."""
        if self.static:
            self.offset.add_(new)
        else:
            super().advance(new)

    def make_static(self) -> None:
        """Go on with the same buffers and constant shapes."""
        self.length = 0
        self.static = True


class CompiledStep:
    """Makes runners that share the compiled graphs; a `RunnerFactory`.

    Args:
        model: whose step is compiled.

    Raises:
        GenerationError: nothing can be compiled on this machine.
    """

    def __init__(self, model: TransformerLM) -> None:
        problem = compile_problem(model.device)
        if problem:
            raise GenerationError(f"compile_model (True): {problem}; set it to False")
        self.model = model

        # a graph for each number of rows and cache length, of every engine of this process
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)

        def step(tokens: Tensor, attention_mask: Tensor | None, cache: KVCache) -> Tensor:
            return last_logits(model, tokens, attention_mask, cache)

        self._step: Step = torch.compile(step, dynamic=False, fullgraph=True)

    def __call__(self, model: TransformerLM, max_new: int) -> Runner:
        """A runner for one batch of the model that was compiled."""
        assert model is self.model
        return _CompiledRunner(model, max_new, self._step)


class _CompiledRunner:
    """See `Runner` and the module."""

    def __init__(self, model: TransformerLM, max_new: int, step: Step) -> None:
        self.model = model
        self.max_new = max_new
        self._step = step

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, copies: int) -> Tensor:
        """See `Runner`. The prompts of beams are read `copies` times."""
        input_ids = input_ids.repeat_interleave(copies, dim=0)
        rows, width = input_ids.shape
        length = cache_length(width + self.max_new - 1, self.model.config.max_seq_len)
        weight = self.model.embedding.weight
        self.cache = StepCache(
            self.model.config, rows, length, dtype=weight.dtype, device=weight.device
        )
        self.mask = None
        if attention_mask is not None:
            attention_mask = attention_mask.repeat_interleave(copies, dim=0)
            # over the whole cache: the step has one shape, and hides what is not yet written
            self.mask = torch.nn.functional.pad(attention_mask, (0, length - width), value=1)
        logits = last_logits(self.model, input_ids, attention_mask, self.cache)
        self.cache.make_static()
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """See `Runner`."""
        return self._step(tokens[:, None], self.mask, self.cache)

    def reorder(self, rows: Tensor) -> None:
        """See `Runner`."""
        for buffer in self.cache.keys + self.cache.values:
            buffer.copy_(buffer.index_select(0, rows))


def cache_length(needed: int, max_seq_len: int) -> int:
    """The static cache length that serves a request of `needed` tokens."""
    length = SMALLEST_CACHE
    while length < needed:
        length *= 2
    return max(needed, min(length, max_seq_len))
