"""The comparisons of the proof: what `transformers` makes of a directory against our model.

Each returns what it found and the problems, one line each, in float32 on the CPU.

Two ways to round the same sums differ by a few 1e-6 of the largest logit, so 1e-4 of it (or of 1,
if that is more) is allowed; a wrong weight moves the logits by about their own size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_trainer.exceptions import ExportError
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.utils.generation import GenerationConfig, TextGenerator

TOLERANCE = 1e-4
"""Largest difference between logits, as a share of the largest logit (at least of 1)."""
NEW_TOKENS = 24
PROMPTS = ("", "The ", "def main(", "1 + 1 =")
TEXTS = (
    "Hello, world! It's 12345.678 o'clock.",
    "def f(x):\n\treturn {'a': x**2}  # two  spaces\r\n\n\n",
    "naïve café, Ελλάδα, 你好, עברית, 🙂🚀, e\u0301",
    "    \t \n leading and trailing \u00a0 ",
    "\x00\x1f\u200b\ufeff\U0010fffd",
)


# --------------------------------------------------------------------------- the other side


def load_their_model(directory: Path) -> Any:
    """AutoModelForCausalLM of a directory, in evaluation mode; nothing in it is executed.

    Raises:
        ExportError: it cannot be loaded, or lacks tensors, or has others than it should.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
            use_safetensors=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # of many kinds without a base of their own
        raise ExportError(f"transformers cannot load the model: {error}") from error
    model, info = loaded
    # a tensor that was not found would be random, one that was not expected is lost
    wrong = [f"{kind} {sorted(names)[:3]}" for kind, names in info.items() if names]
    if wrong:
        raise ExportError(f"transformers finds other tensors than it expects: {', '.join(wrong)}")
    return model.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and advice; errors still come as exceptions."""
    from transformers.utils import logging as theirs

    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()


# --------------------------------------------------------------------------- logits


def _rows(model: TransformerLM) -> list[Tensor]:
    """Fixed token ids: four short rows, and one that reaches far positions; (rows, time) each."""
    generator = torch.Generator().manual_seed(0)
    longest, vocab = model.config.max_seq_len, model.config.vocab_size
    sizes = [(4, min(longest, 48)), (1, min(longest, 512))]
    return [torch.randint(0, vocab, size, generator=generator) for size in sizes]


@torch.no_grad()
def compare_logits(model: TransformerLM, theirs: Any) -> tuple[dict[str, float], list[str]]:
    """Figures as in `Parity.logits`, and problems.

    Raises:
        ExportError: the model's own logits are not finite.
    """
    positions = agreeing = 0
    difference = largest = 0.0
    for rows in _rows(model):
        own, other = model(rows).logits, theirs(rows).logits.float()
        if own.shape != other.shape:
            return {"tolerance": TOLERANCE}, [
                f"logits are {tuple(other.shape)} instead of {tuple(own.shape)}"
            ]
        positions += rows.numel()
        agreeing += int((own.argmax(-1) == other.argmax(-1)).sum())
        # NaN must not pass as equal, so it counts as the largest difference there is
        difference = max(difference, _as_number((own - other).abs().max()))
        largest = max(largest, _as_number(own.abs().max()))
    tolerance = TOLERANCE * max(1.0, largest)
    figures = {
        "positions": positions,
        "max_abs_difference": difference,
        "tolerance": tolerance,
        "largest": largest,
        "argmax_agreement": agreeing / positions,
    }
    if largest == float("inf"):
        raise ExportError(
            "the model's logits are not finite: its weights are damaged or its training diverged; "
            "use an earlier checkpoint"
        )
    if not difference <= tolerance:
        return figures, [f"logits differ by {difference:.3g}, {tolerance:.1e} is allowed"]
    return figures, []


@torch.no_grad()
def largest_difference(model: TransformerLM, other: TransformerLM) -> float:
    """Between the logits of two models of ours, on the same rows."""
    pairs = ((model(rows).logits, other(rows).logits) for rows in _rows(model))
    return max(_as_number((a - b).abs().max()) for a, b in pairs)


def _as_number(value: Tensor) -> float:
    number = value.item()
    return float("inf") if number != number else float(number)


# --------------------------------------------------------------------------- generation


def generation_problems(
    theirs: Any, model: TransformerLM, tokenizer: BPETokenizer | None
) -> list[str]:
    """Whether the settings that come with the files stop and pad as ours."""
    found = theirs.generation_config
    wanted = generation_settings(model.config.vocab_size, tokenizer)
    return [
        f"generation_config.{key} is {getattr(found, key)!r:.60} instead of {value!r:.60}"
        for key, value in wanted.items()
        if getattr(found, key) != value
    ]


def generation_settings(vocab_size: int, tokenizer: BPETokenizer | None) -> dict[str, Any]:
    """What a generation needs to know beside the weights, under the names of Hugging Face.

    Ids that the tokenizer does not have are never generated, as in `TextGenerator`.
    """
    if tokenizer is None:  # said, or each family would have defaults of its own
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    spare = list(range(tokenizer.vocab_size, vocab_size))
    return {
        "bos_token_id": tokenizer.end_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
        **({"suppress_tokens": spare} if spare else {}),
    }


def compare_greedy(
    model: TransformerLM, theirs: Any, tokenizer: BPETokenizer | None, tolerance: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Entries as in `Parity.greedy`, and problems; without a tokenizer with ids for texts."""
    found: list[dict[str, Any]] = []
    problems = []
    for prompt, ids in _prompts(model, tokenizer):
        room = min(NEW_TOKENS, model.config.max_seq_len - len(ids))
        if room < 1:
            continue
        own = _continue_ours(model, tokenizer, prompt, ids, room)
        other = _continue_theirs(theirs, model, tokenizer, ids, room)
        entry: dict[str, Any] = {"prompt": prompt, "equal": own == other}
        if tokenizer is None:
            entry["token_ids"] = own
        else:
            entry["text"] = tokenizer.decode(own)
        if own != other:
            at = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
            if at is None or not _is_tie(model, ids + own[:at], own[at], other[at], tolerance):
                problems.append(f"the greedy continuation of {prompt!r} differs")
            entry["up_to_tie"] = at
        found.append(entry)
    return found, problems


def _prompts(
    model: TransformerLM, tokenizer: BPETokenizer | None
) -> list[tuple[str | None, list[int]]]:
    if tokenizer is None:
        return [(None, row[:4].tolist()) for row in _rows(model)[0]]
    encoded = ((text, tokenizer.encode(text, add_special_tokens=False)) for text in PROMPTS)
    return [(text, ids or [tokenizer.end_id]) for text, ids in encoded]


def _continue_ours(
    model: TransformerLM,
    tokenizer: BPETokenizer | None,
    prompt: str | None,
    ids: list[int],
    room: int,
) -> list[int]:
    if tokenizer is None or prompt is None:
        made = model.generate(torch.tensor([ids]), max_new_tokens=room, do_sample=False)
        new: list[int] = made[0, len(ids) :].tolist()
        return new
    settings = GenerationConfig(max_new_tokens=room, do_sample=False)
    return TextGenerator(model, tokenizer).complete([prompt], settings)[0].token_ids


def _continue_theirs(
    theirs: Any, model: TransformerLM, tokenizer: BPETokenizer | None, ids: list[int], room: int
) -> list[int]:
    from transformers import GenerationConfig as TheirGenerationConfig

    # said in full: a foreign directory may bring settings of its own, such as penalties
    settings = generation_settings(model.config.vocab_size, tokenizer)
    rows = torch.tensor([ids])
    theirs.generation_config = TheirGenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=room, **settings
    )
    made = theirs.generate(rows, attention_mask=torch.ones_like(rows))
    new: list[int] = made[0, len(ids) :].tolist()
    return new


@torch.no_grad()
def _is_tie(
    model: TransformerLM, ids: list[int], first: int, second: int, tolerance: float
) -> bool:
    """Whether two tokens are so equally likely that rounding decides between them."""
    logits = model(torch.tensor([ids])).logits[0, -1]
    return abs(float(logits[first] - logits[second])) <= 2 * tolerance


# --------------------------------------------------------------------------- text


def compare_texts(directory: Path, tokenizer: BPETokenizer, *, ours: bool) -> tuple[int, list[str]]:
    """Number of texts, and problems; for `ours` see `parity.check_parity`.

    Raises:
        ExportError: AutoTokenizer cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many kinds without a base of their own
        raise ExportError(f"transformers cannot load the tokenizer: {error}") from error
    texts: Sequence[str] = TEXTS
    if ours:
        texts = [*TEXTS, *(f"a {token} b" for token in tokenizer.special_tokens)]
    problems = []
    for text in texts:
        own = tokenizer.encode(text, add_special_tokens=False)
        other = theirs(text, add_special_tokens=ours)["input_ids"]
        if own != other:
            problems.append(f"the ids of {text!r} differ")
        elif theirs.decode(own, clean_up_tokenization_spaces=False) != text:
            problems.append(f"the ids of {text!r} decode to another text")
    return len(texts), problems
