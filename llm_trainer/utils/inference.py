"""`InferenceEngine`: generation for use, with options that each have an effect that can be seen.

| option | effect |
|---|---|
| enable_kv_cache | one token a step instead of the whole row; the results are equal |
| compile_model | the single-token step is one compiled graph; equal up to rounding |
| quantize | 8-bit weights: about a third of the memory, faster on a CPU; slightly other results |
| dtype | bfloat16 weights (compiled: cache too): half the memory, faster; slightly other results |

`benchmark` measures them. The model that was given stays as it is: a quantised one is a copy that
shares what is not quantised.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llm_trainer.config.checks import flags, refuse, text, texts, whole
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.exceptions import GenerationError
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.utils.compiled import CompiledStep
from llm_trainer.utils.device import get_device
from llm_trainer.utils.generation import TextGenerator
from llm_trainer.utils.half_linear import halve_model
from llm_trainer.utils.loading import check_pair
from llm_trainer.utils.machine import peak_memory_bytes, reset_peak_memory
from llm_trainer.utils.quantization import model_bytes, quantize_model
from llm_trainer.utils.timing import synchronize

InferenceDtype = Literal["bfloat16"]
"""Types that linear layers may be multiplied in instead of the model's own."""


@dataclass(frozen=True)
class Optimizations:
    """How an engine runs its model."""

    enable_kv_cache: bool = True
    """Keep keys and values of earlier tokens."""
    compile_model: bool = False
    """Compile the single-token step."""
    quantize: bool = False
    """Store the weights of linear layers in 8 bits."""
    dtype: InferenceDtype | None = None
    """Store the weights of linear layers in this type; None for that of the model."""


class InferenceEngine:
    """Continues prompts with a model and its tokenizer.

    Args:
        model: the model to use; it stays as it is, but for its device.
        tokenizer: the one that the model was trained with.
        device: where to move the model; None leaves it where it is.

    Raises:
        IntegrityError: the tokenizer is another one than the model's.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: BPETokenizer,
        device: torch.device | str | None = None,
    ) -> None:
        check_pair(model, tokenizer)
        self._source = model if device is None else model.to(get_device(device))
        self.tokenizer = tokenizer
        self._apply(Optimizations())

    def optimize(
        self,
        enable_kv_cache: bool = True,
        compile_model: bool = False,
        quantize: bool = False,
        *,
        dtype: InferenceDtype | None = None,
    ) -> None:
        """Choose how the model is run; each call states all options anew.

        Args:
            enable_kv_cache: keep keys and values of earlier tokens.
            compile_model: compile the single-token step, at the first request of each kind (number
                of prompts, length as a power of two). Needs the cache and, on a CPU, a C++
                compiler.
            quantize: round the weights of linear layers to 8 bits, and on a CPU their inputs too
                (but for compiled steps of a single prompt, which need not).
            dtype: "bfloat16" to multiply in linear layers by bfloat16 weights, and with
                compile_model to keep keys and values in it; None for the model's own type.

        Raises:
            GenerationError: compile_model without the cache, or where nothing can be compiled; an
                unknown dtype, or one together with quantize.
        """
        refuse(
            GenerationError,
            flags(enable_kv_cache=enable_kv_cache, compile_model=compile_model, quantize=quantize),
        )
        if compile_model and not enable_kv_cache:
            raise GenerationError(
                "compile_model (True) compiles the step over the cache, so enable_kv_cache (False) "
                "must be True, or compile_model False"
            )
        if dtype is not None and quantize:
            raise GenerationError(
                f"dtype ({dtype!r}) and quantize (True) both say how weights are stored; choose one"
            )
        if dtype not in (None, "bfloat16"):
            raise GenerationError(f"dtype ({dtype!r}) must be 'bfloat16', or None for the model's")
        self._apply(Optimizations(enable_kv_cache, compile_model, quantize, dtype))

    def infer(self, prompt: str, **kwargs: Any) -> str:
        """The prompt and its continuation; keywords are fields of `GenerationConfig`.

        Raises:
            GenerationError: an unknown keyword, an impossible value or prompt.
        """
        refuse(GenerationError, text("prompt", prompt))
        return self.batch_infer([prompt], **kwargs)[0]

    def batch_infer(self, prompts: Sequence[str], **kwargs: Any) -> list[str]:
        """Each prompt and its continuation, generated side by side; see `infer`."""
        settings = {"use_cache": self.optimizations.enable_kv_cache} | kwargs
        return self.generator.batch_generate(prompts, GenerationConfig.from_kwargs(**settings))

    def benchmark(
        self,
        prompts: Sequence[str],
        num_runs: int = 10,
        *,
        max_new_tokens: int = 64,
        warmup_runs: int = 1,
    ) -> dict[str, float]:
        """Time greedy generation for all `prompts` at once, always to the full length.

        Args:
            prompts: generated side by side in each run.
            num_runs: timed runs.
            max_new_tokens: new tokens of each prompt, less where the context ends.
            warmup_runs: runs before them, in which a compiled step is compiled.

        Returns:
            Medians over the runs unless the name says otherwise: `tokens_per_second` (new tokens of
            all prompts), `first_token_ms` (until the first one of each prompt, in runs of their
            own), `token_ms` (between two tokens of a text), `latency_ms` and `latency_p90_ms`,
            `latency_p99_ms`, `latency_min_ms` of a whole run; `model_mb` of weights in MiB,
            `peak_memory_mb` of the process (CUDA: of the allocator) in MiB; `num_prompts`,
            `new_tokens` a run, `num_runs`; the options as 0 and 1.

        Raises:
            GenerationError: num_runs or another number below its minimum, or impossible prompts.
        """
        refuse(
            GenerationError,
            texts("prompts", prompts),
            whole("num_runs", num_runs, 1),
            whole("max_new_tokens", max_new_tokens, 1),
            whole("warmup_runs", warmup_runs, 0),
        )
        for _ in range(warmup_runs):
            self._timed_run(prompts, max_new_tokens)
        reset_peak_memory(self.model.device)
        runs = [self._timed_run(prompts, max_new_tokens) for _ in range(num_runs)]
        first = statistics.median(self._timed_run(prompts, 1)[0] for _ in range(num_runs))
        seconds = [run[0] for run in runs]
        median, new_tokens = statistics.median(seconds), runs[0][1]
        steps = max(1, round(new_tokens / len(prompts)) - 1)
        options = self.optimizations
        return {
            "tokens_per_second": new_tokens / median,
            "first_token_ms": 1e3 * first,
            "token_ms": 1e3 * max(0.0, median - first) / steps,
            "latency_ms": 1e3 * median,
            "latency_p90_ms": 1e3 * _percentile(seconds, 90),
            "latency_p99_ms": 1e3 * _percentile(seconds, 99),
            "latency_min_ms": 1e3 * min(seconds),
            "model_mb": self._weight_bytes() / 2**20,
            "peak_memory_mb": peak_memory_bytes(self.model.device) / 2**20,
            "num_prompts": len(prompts),
            "new_tokens": new_tokens,
            "num_runs": num_runs,
            "enable_kv_cache": int(options.enable_kv_cache),
            "compile_model": int(options.compile_model),
            "quantize": int(options.quantize),
            "bfloat16": int(options.dtype == "bfloat16"),
        }

    # ------------------------------------------------------------------ inside

    def _apply(self, options: Optimizations) -> None:
        model, cache_dtype = self._source, None
        if options.quantize:
            model = quantize_model(model)
        elif options.dtype is not None:
            model, cache_dtype = halve_model(model), torch.bfloat16
        self._compiled = CompiledStep(model, cache_dtype) if options.compile_model else None
        self.generator = TextGenerator(model, self.tokenizer, make_runner=self._compiled)
        """The text generator that runs the model as optimised, for more than `infer` offers."""
        self.model = model
        """The model that is run: the one that was given, or its quantised copy."""
        self.optimizations = options
        """The options in force."""

    def _weight_bytes(self) -> int:
        """Bytes of all weights, those included that compiled steps keep for themselves."""
        return model_bytes(self.model) + (self._compiled.num_bytes if self._compiled else 0)

    def _timed_run(self, prompts: Sequence[str], max_new_tokens: int) -> tuple[float, int]:
        """Seconds of one generation, and the new tokens of all prompts together."""
        # without an end token nothing ends before its length is reached
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=self.optimizations.enable_kv_cache,
        )
        synchronize(self.model.device)
        start = time.perf_counter()
        made = self.generator.continue_ids(prompts, config)
        synchronize(self.model.device)
        return time.perf_counter() - start, sum(made.lengths)


def _percentile(values: Sequence[float], percent: int) -> float:
    """Interpolated between the nearest values; of one value it is that value."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
