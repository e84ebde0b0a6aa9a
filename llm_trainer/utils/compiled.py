"""A runner whose single-token step is compiled: one graph with the same shapes at every step.

The prompts are read eagerly, since they come in all lengths. Then each step runs the compiled
graph over a static KV cache. Its length is rounded up to a power of two, so that few graphs serve
all requests: one for each number of rows and cache length, with padding and without. Price: the
first request of a kind compiles, some 10 to 40 s on a CPU, less with a warm cache. On a CPU
attention spans what is filled, rounded up; elsewhere the whole cache, so that every step is the
same work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llm_trainer.exceptions import GenerationError
from llm_trainer.models.cache import KVCache
from llm_trainer.models.runner import Runner, last_logits
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.compiler import (
    GRAPH_OPTIONS,
    compile_problem,
    do_without_openssl,
    with_own_code,
)
from llm_trainer.utils.step_linear import for_compiled_steps, own_bytes

SMALLEST_CACHE = 64
"""Tokens; shorter requests use a cache of this length too."""

WINDOW = 32
"""Attention on a CPU spans a multiple of as many positions."""

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

    def show(self, filled: int) -> None:
        """Let attention span `filled` positions, rounded up to WINDOW."""
        span = -(-filled // WINDOW) * WINDOW
        assert span <= self.max_length
        if self.window is None or self.window.shape[0] != span:
            self.window = torch.empty(span)
            torch._dynamo.mark_dynamic(self.window, 0)


class CompiledStep:
    """Makes runners that share the compiled graphs; a `RunnerFactory`.

    Args:
        model: whose step is compiled.
        cache_dtype: type that keys and values are kept in; None for that of the embedding.
            Attention of several rows mostly waits for them, and a compiled step widens them as it
            reads.

    Raises:
        GenerationError: nothing can be compiled on this machine.
    """

    def __init__(self, model: TransformerLM, cache_dtype: torch.dtype | None = None) -> None:
        problem = compile_problem(model.device)
        if problem:
            raise GenerationError(f"compile_model (True): {problem}; set it to False")
        do_without_openssl()
        self.model = model
        self._cache_dtype = cache_dtype or model.embedding.weight.dtype
        self._twins: dict[bool, TransformerLM] = {}
        self._steps: dict[bool, Step] = {}

        # a graph for each number of rows and cache length, of every engine of this process
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)

    def __call__(self, model: TransformerLM, max_new: int) -> Runner:
        """A runner for one batch of the model that was compiled."""
        assert model is self.model
        return _CompiledRunner(self, max_new, self._cache_dtype)

    def step(self, rows: int) -> Step:
        """The compiled step of as many rows; one row has layers of its own on a CPU."""
        single = rows == 1
        if single not in self._steps:
            fast = self.model
            if self.model.device.type == "cpu":
                fast = self._twins[single] = for_compiled_steps(self.model, rows)
            self._steps[single] = _compile(fast)
        return self._steps[single]

    @property
    def num_bytes(self) -> int:
        """Bytes of weights that steps so far keep beside those of the model."""
        return sum(own_bytes(twin) for twin in self._twins.values())


def _compile(model: TransformerLM) -> Step:
    def step(tokens: Tensor, attention_mask: Tensor | None, cache: KVCache) -> Tensor:
        return last_logits(model, tokens, attention_mask, cache)

    # Guards on hundreds of weights take a third of a step, and nobody changes the twin. What
    # they would tell apart, two models, is told apart by the code objects.
    compiled: Step = torch.compile(
        with_own_code(step), dynamic=False, fullgraph=True,
        options=GRAPH_OPTIONS
        | {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe},
    )  # fmt: skip
    return compiled


class _CompiledRunner:
    """See `Runner` and the module."""

    def __init__(self, compiled: CompiledStep, max_new: int, cache_dtype: torch.dtype) -> None:
        self.model = compiled.model
        self.max_new = max_new
        self._compiled = compiled
        self._cache_dtype = cache_dtype

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, copies: int) -> Tensor:
        """See `Runner`. The prompts of beams are read `copies` times."""
        input_ids = input_ids.repeat_interleave(copies, dim=0)
        rows, width = input_ids.shape
        self._step = self._compiled.step(rows)
        self._filled = width
        self._windowed = self.model.device.type == "cpu"
        length = cache_length(width + self.max_new - 1, self.model.config.max_seq_len)
        if self._windowed:
            length += WINDOW  # never all of it is spanned, which would be a graph of its own
        self.cache = StepCache(
            self.model.config, rows, length, dtype=self._cache_dtype, device=self.model.device
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
        self._filled += 1
        if self._windowed:
            self.cache.show(self._filled)
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
