"""What a `tokenizer.json` says, checked before any library acts on it.

A file may be damaged, hostile, or of a kind that this project cannot use, so its parsed JSON is
checked field by field first: byte-level BPE, every byte in the vocabulary, contiguous ids, merges
that exist, nothing that alters text. What passes encodes and decodes any text without loss.
Price: a pass over vocabulary and merges, 0.1 s for 100,000 tokens.

The canonical text (sorted keys, vocabulary by id, no padding or truncation) is what is saved; its
sha256 is the tokenizer's identity.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NoReturn

from llm_trainer.digests import sha256_bytes
from llm_trainer.exceptions import TokenizerError
from llm_trainer.tokenizer.patterns import GPT2, byte_of_char, token_to_bytes

MAX_TOKENS = 4_000_000
"""Largest vocabulary that is read; the largest public ones have 300,000 tokens."""
MAX_PATTERN = 4096
"""Longest pre-tokenizer pattern that is read, in characters."""


_ONLY = "only byte-level BPE that keeps all text can be used"


@dataclass(frozen=True)
class Definition:
    """A checked byte-level BPE tokenizer.

    Ids are 0 to `size` - 1. `merges` are in order of priority.
    """

    text: str
    """Canonical JSON, the content of `tokenizer.json`."""
    vocab: dict[str, int]
    """Every token, control tokens included, in order of ids."""
    merges: list[tuple[str, str]]
    """Pairs of tokens, the earlier the sooner merged."""
    control: dict[str, int]
    """Control tokens: no text encodes to them."""
    literal: dict[str, int]
    """Tokens of other makers that are matched in text before anything else."""
    split_pattern: str | None
    """The one pattern that cuts words, if there is just one."""
    ignore_merges: bool
    """Words that are tokens are taken whole, whatever the merges say."""
    digest: str = field(init=False)
    """sha256 of `text`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", sha256_bytes(self.text.encode("utf-8")))

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.vocab)

    def token_values(self) -> list[bytes]:
        """The bytes of text that each id stands for; empty for control tokens."""
        values = []
        for token in self.vocab:
            if token in self.control:
                values.append(b"")
            elif token in self.literal:
                values.append(token.encode("utf-8"))
            else:
                values.append(token_to_bytes(token))
        return values


def parse_definition(value: Any, where: str) -> Definition:
    """Check the parsed JSON of a `tokenizer.json`; `where` names it in messages.

    Raises:
        TokenizerError: damaged, or no byte-level BPE; says what was found.
    """
    reader = _Reader(where)
    value = dict(reader.mapping(value, "the file"))
    model = reader.mapping(value.get("model"), "model")
    reader.check_kind(value, model)
    split_pattern = reader.pre_tokenizer(value.get("pre_tokenizer"))
    vocab = reader.vocab(model.get("vocab"))
    control, literal = reader.added(value.get("added_tokens", []), vocab)
    merged = {**vocab, **control, **literal}
    reader.check_ids(merged)
    words = {token for token in vocab if token not in control and token not in literal}
    reader.check_alphabet(words)
    merges = reader.merges(model.get("merges"), words)
    # Rows of this project are never cut or padded by the tokenizer.
    value |= {"truncation": None, "padding": None}
    try:
        text = _canonical(value, merges)
        text.encode("utf-8")
    except (UnicodeEncodeError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{where}: cannot be written back as JSON ({error})") from error
    return Definition(
        text=text,
        vocab=dict(sorted(merged.items(), key=lambda item: item[1])),
        merges=merges,
        control=dict(sorted(control.items(), key=lambda item: item[1])),
        literal=literal,
        split_pattern=split_pattern,
        ignore_merges=bool(model.get("ignore_merges")),
    )


def _canonical(value: dict[str, Any], merges: list[tuple[str, str]]) -> str:
    ordered = json.loads(json.dumps(value, sort_keys=True))
    vocab = ordered["model"]["vocab"]
    ordered["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    # A merge a line; no token has a space in it (a space is spelled U+0120).
    ordered["model"]["merges"] = [" ".join(pair) for pair in merges]
    return json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class _Reader:
    """The checks of one file; every complaint names it."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, problem: str) -> NoReturn:
        raise TokenizerError(f"{self.where}: {problem}")

    def mapping(self, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(f"{name} must be a JSON object, found {_shown(value)}")
        return value

    def check_kind(self, value: dict[str, Any], model: dict[str, Any]) -> None:
        """Refuse other algorithms, and whatever would change the text or the result."""
        kind = model.get("type", "BPE" if "merges" in model else None)
        if kind != "BPE":
            self.fail(f"a {_shown(kind)} model; {_ONLY}")
        normalizer = value.get("normalizer")
        if normalizer is not None:
            name = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
            self.fail(f"normalizes text ({_shown(name)}), so decoding would not give it back")
        decoder = self.mapping(value.get("decoder"), "decoder")
        if decoder.get("type") != "ByteLevel":
            self.fail(f"decoder {_shown(decoder.get('type'))}; {_ONLY}")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            if model.get(key):
                self.fail(f"model.{key} is {_shown(model[key])}; {_ONLY}")
        if not isinstance(model.get("ignore_merges", False), bool):
            self.fail(f"model.ignore_merges is {_shown(model['ignore_merges'])}, no truth value")

    def pre_tokenizer(self, value: Any) -> str | None:
        """Check the word splitting; return its pattern if there is exactly one."""
        value = self.mapping(value, "pre_tokenizer")
        steps = value.get("pretokenizers") if value.get("type") == "Sequence" else [value]
        if not isinstance(steps, list) or not steps:
            self.fail("pre_tokenizer has no steps")
        patterns: list[str | None] = []
        for step in steps[:-1]:
            step = self.mapping(step, "a step of pre_tokenizer")
            if step.get("type") == "Split":
                patterns.append(self._split(step))
            elif step.get("type") == "Digits":
                patterns.append(None)
            else:
                self.fail(f"pre_tokenizer step {_shown(step.get('type'))}; {_ONLY}")
        last = self.mapping(steps[-1], "the last step of pre_tokenizer")
        if last.get("type") != "ByteLevel":
            self.fail(f"pre_tokenizer ends with {_shown(last.get('type'))}; {_ONLY}")
        if last.get("add_prefix_space", True) is not False:
            self.fail("adds a space before the text, so decoding would not give it back")
        if last.get("use_regex", True) is not False:
            patterns.append(GPT2)
        return patterns[0] if len(patterns) == 1 else None

    def _split(self, step: dict[str, Any]) -> str | None:
        pattern = self.mapping(step.get("pattern"), "the pattern of a Split")
        spelled = pattern.get("Regex", pattern.get("String"))
        if not isinstance(spelled, str) or len(spelled) > MAX_PATTERN:
            self.fail(f"a Split without a pattern of at most {MAX_PATTERN} characters")
        behavior = step.get("behavior")
        if behavior not in ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
            self.fail(f"a Split with behavior {_shown(behavior)} loses text")
        plain = behavior == "Isolated" and not step.get("invert") and "Regex" in pattern
        return spelled if plain else None

    def vocab(self, value: Any) -> dict[str, int]:
        """Token to id; ids are whole numbers, each used once."""
        vocab = self.mapping(value, "model.vocab")
        if not 0 < len(vocab) <= MAX_TOKENS:
            self.fail(f"model.vocab has {len(vocab):,} tokens; 1 to {MAX_TOKENS:,} can be read")
        for token, number in vocab.items():
            if type(number) is not int:
                self.fail(f"model.vocab: id {_shown(number)} of token {token!r} is no whole number")
        return vocab

    def added(self, value: Any, vocab: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
        """Control tokens, and tokens matched literally in text."""
        if not isinstance(value, list):
            self.fail(f"added_tokens must be a list, found {_shown(value)}")
        control: dict[str, int] = {}
        literal: dict[str, int] = {}
        for item in value:
            item = self.mapping(item, "an added token")
            content, number, special = item.get("content"), item.get("id"), item.get("special")
            if not isinstance(content, str) or not content or type(number) is not int:
                self.fail(f"an added token needs content and id, found {_shown(item)}")
            if content in control or content in literal or vocab.get(content, number) != number:
                self.fail(f"added token {content!r} has two ids")
            if special is True:
                control[content] = number
            elif item.get("lstrip") or item.get("rstrip"):
                self.fail(f"added token {content!r} strips white space, so text would be lost")
            else:
                literal[content] = number
        return control, literal

    def check_ids(self, tokens: dict[str, int]) -> None:
        """All ids from 0 on, none missing, none twice."""
        ids = sorted(tokens.values())
        if ids != list(range(len(ids))):
            wrong = next(index for index, number in enumerate(ids) if index != number)
            self.fail(
                f"ids are not 0 to {len(ids) - 1:,}: id {wrong:,} is missing or a smaller one is "
                f"there twice"
            )

    def check_alphabet(self, words: set[str]) -> None:
        """Every byte is a token, and tokens are spelled in the byte-level alphabet."""
        alphabet = byte_of_char()
        missing = [byte for char, byte in alphabet.items() if char not in words]
        if missing:
            self.fail(
                f"{len(missing)} of 256 bytes have no token (first: 0x{min(missing):02x}), so "
                f"not every text can be encoded; {_ONLY}"
            )
        known = alphabet.keys()
        for token in words:
            if not token or not known >= set(token):
                self.fail(f"token {token!r} is not spelled in bytes; {_ONLY}")

    def merges(self, value: Any, words: set[str]) -> list[tuple[str, str]]:
        """Pairs of tokens whose concatenation is a token too."""
        if not isinstance(value, list) or len(value) > MAX_TOKENS:
            self.fail(f"model.merges must be a list of pairs, found {_shown(value)}")
        merges = []
        for item in value:
            pair = item.split(" ") if isinstance(item, str) else item
            if (
                not isinstance(pair, list)
                or len(pair) != 2
                or not all(isinstance(part, str) and part in words for part in pair)
                or pair[0] + pair[1] not in words
            ):
                self.fail(f"merge {_shown(item)} is no pair of tokens that makes a token")
            merges.append((pair[0], pair[1]))
        return merges


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
