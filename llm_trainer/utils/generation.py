"""`TextGenerator`: text in, text out, over the one decoding loop.

Prompts are encoded without the end token; an empty prompt starts a document, from the end token.
Text comes out of the same stream whether it is shown as it comes or at the end, so both are equal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TextIO

import torch
from torch import Tensor

from llm_trainer.config.checks import function, instance, refuse, shown, text, texts
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.exceptions import GenerationError
from llm_trainer.models.decoding import (
    Continuation,
    FinishReason,
    Streamer,
    continue_prompts,
)
from llm_trainer.models.runner import CachedRunner, Runner, RunnerFactory, UncachedRunner
from llm_trainer.models.sampling import (
    apply_repetition_penalty,
    apply_temperature,
    create_causal_mask,
    sample_top_k,
    sample_top_p,
)
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.tokenizer.text import check_text
from llm_trainer.utils.device import get_device
from llm_trainer.utils.interactive import run_session
from llm_trainer.utils.loading import check_pair
from llm_trainer.utils.streaming import TextStream

__all__ = [
    "Completion",
    "GenerationConfig",
    "TextGenerator",
    "apply_repetition_penalty",
    "apply_temperature",
    "create_causal_mask",
    "sample_top_k",
    "sample_top_p",
]

OnText = Callable[[int, str], None]
"""Called with the number of a prompt and the next piece of its continuation."""


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt."""

    prompt: str
    text: str
    """The continuation, without prompt, end token and stop text."""
    token_ids: list[int]
    """The new tokens, those of an end or a stop text included."""
    reason: FinishReason
    """end: the model ended the document; stop: a stop text came up; length: no room or allowance
    was left."""


class TextGenerator:
    """Continues texts with a model and its tokenizer.

    Args:
        model: left as it is, but for its device.
        tokenizer: the one that the model was trained with.
        device: where to move the model; None leaves it where it is.
        make_runner: another way to run the model, see `models.runner`; None is the usual one. It is
            not used for requests without a cache.

    Raises:
        IntegrityError: the tokenizer is another one than the model's; both digests are named.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: BPETokenizer,
        device: torch.device | str | None = None,
        *,
        make_runner: RunnerFactory | None = None,
    ) -> None:
        check_pair(model, tokenizer)
        refuse(GenerationError, function("make_runner", make_runner))
        self.model = model if device is None else model.to(get_device(device))
        self.tokenizer = tokenizer
        self._make_runner = make_runner

    # ------------------------------------------------------------------ generation

    def generate(
        self,
        prompt: str,
        config: GenerationConfig | None = None,
        *,
        on_text: OnText | None = None,
    ) -> str:
        """The prompt and its continuation; see `complete`."""
        refuse(GenerationError, text("prompt", prompt))
        return self.batch_generate([prompt], config, on_text=on_text)[0]

    def batch_generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig | None = None,
        *,
        on_text: OnText | None = None,
    ) -> list[str]:
        """Each prompt and its continuation, generated side by side; see `complete`."""
        return [made.prompt + made.text for made in self.complete(prompts, config, on_text=on_text)]

    def complete(
        self,
        prompts: Sequence[str],
        config: GenerationConfig | None = None,
        *,
        on_text: OnText | None = None,
    ) -> list[Completion]:
        """Continue each prompt; prompts may differ in length.

        Args:
            prompts: any texts; the memory of the cache grows with their number and the longest.
            config: the settings; None for the defaults.
            on_text: is shown each piece of text as soon as it is certain: whole characters, and
                never a part of a stop text. Beam search shows everything at the end.

        Raises:
            GenerationError: an impossible setting, no prompts, or one that is no text.
            TokenizerError: a prompt with a lone surrogate.
        """
        refuse(GenerationError, texts("prompts", prompts), function("on_text", on_text))
        config = self._resolve(config)
        streams = [TextStream(self._token_values, config.stop) for _ in prompts]
        streaming = (on_text is not None or bool(config.stop)) and config.num_beams == 1

        def streamer(tokens: list[int | None]) -> list[int]:
            for row, token in enumerate(tokens):
                if token is not None:
                    self._show(row, streams[row].feed(token), on_text)
            return [row for row, stream in enumerate(streams) if stream.stopped]

        made = self.continue_ids(
            prompts, config.replace(stop=[]), streamer=streamer if streaming else None
        )
        if not streaming:
            for row, tokens in enumerate(_rows(made)):
                for token in tokens:
                    self._show(row, streams[row].feed(token), on_text)
        for row, stream in enumerate(streams):
            self._show(row, stream.finish(), on_text)
        return [
            Completion(prompt, stream.text, tokens, "stop" if stream.stopped else reason)
            for prompt, stream, tokens, reason in zip(
                prompts, streams, _rows(made), made.reasons, strict=True
            )
        ]

    def continue_ids(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        streamer: Streamer | None = None,
    ) -> Continuation:
        """Continue encoded prompts, with ids as the result; an end token only if `config` has one.

        Raises:
            GenerationError, TokenizerError: see `complete`.
        """
        refuse(
            GenerationError, texts("prompts", prompts), instance("config", config, GenerationConfig)
        )
        rows = [
            self.tokenizer.encode(check_text(prompt, f"prompt {number}"), add_special_tokens=False)
            or [self.tokenizer.end_id]
            for number, prompt in enumerate(prompts)
        ]
        input_ids, mask = left_pad(rows, config.pad_id or 0)
        return continue_prompts(
            self.model, input_ids, mask, config, streamer=streamer,
            make_runner=lambda model, max_new: self._runner(model, max_new, config.use_cache),
        )  # fmt: skip

    def interactive_generate(
        self,
        config: GenerationConfig | None = None,
        *,
        read: Callable[[str], str] | None = None,
        output: TextIO | None = None,
    ) -> None:
        """Read prompts and show their continuations as they come, until the end of the input.

        `/help` lists the commands. Ctrl-C stops a generation, Ctrl-D leaves.

        Args:
            config: the settings to start with; None is 200 new tokens, otherwise the defaults.
            read: takes a prompt sign, returns a line, raises EOFError at the end; None is `input`
                with a history that is kept between sessions.
            output: where to write; None is stdout.
        """
        output = sys.stdout if output is None else output
        refuse(
            GenerationError,
            instance("config", config, GenerationConfig, none=True),
            function("read", read),
            []
            if hasattr(output, "write")
            else [f"output ({shown(output)}) must be a text file to write to, such as sys.stdout"],
        )
        run_session(
            lambda prompt, settings, show: self.complete(
                [prompt], settings, on_text=lambda _, text: show(text)
            )[0],
            config or GenerationConfig(max_new_tokens=200),
            read=read,
            output=output,
        )

    # ------------------------------------------------------------------ inside

    @cached_property
    def _token_values(self) -> list[bytes]:
        return self.tokenizer.definition.token_values()

    def _resolve(self, config: GenerationConfig | None) -> GenerationConfig:
        refuse(GenerationError, instance("config", config, GenerationConfig, none=True))
        config = config or GenerationConfig()
        config.validate()
        return config.replace(
            end_id=self.tokenizer.end_id if config.end_id is None else config.end_id,
            pad_id=self.tokenizer.pad_id if config.pad_id is None else config.pad_id,
        )

    def _runner(self, model: TransformerLM, max_new: int, use_cache: bool) -> Runner:
        make_runner = (self._make_runner or CachedRunner) if use_cache else UncachedRunner
        runner = make_runner(model, max_new)
        if self.tokenizer.vocab_size < model.config.vocab_size:
            return _KnownTokens(runner, self.tokenizer.vocab_size)
        return runner

    @staticmethod
    def _show(row: int, text: str, on_text: OnText | None) -> None:
        if text and on_text is not None:
            on_text(row, text)


class _KnownTokens:
    """A runner without the logits of ids that the tokenizer does not have."""

    def __init__(self, runner: Runner, vocab_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, copies: int) -> Tensor:
        """See `Runner`."""
        return self._runner.start(input_ids, attention_mask, copies)[:, : self._vocab_size]

    def step(self, tokens: Tensor) -> Tensor:
        """See `Runner`."""
        return self._runner.step(tokens)[:, : self._vocab_size]

    def reorder(self, rows: Tensor) -> None:
        """See `Runner`."""
        self._runner.reorder(rows)


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as (rows, longest) long, and the mask that is 0 on the padding at their left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _rows(made: Continuation) -> list[list[int]]:
    """The new tokens of each row."""
    return [row[:length] for row, length in zip(made.ids.tolist(), made.lengths, strict=True)]
