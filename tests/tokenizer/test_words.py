"""Words by array operations against the pattern run by a regular expression engine."""

from __future__ import annotations

import random

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.tokenizer import BPETokenizer, FastEncoder, word_cache
from llm_trainer.tokenizer.patterns import GPT4
from llm_trainer.tokenizer.word_cache import WordCache
from llm_trainer.tokenizer.words import ASCII_SEPARATOR, SEPARATOR, word_starts
from tests.tokenizer.texts import HARD, library_files, nasty

ALPHABET = (
    ["'"] * 6 + list("sdmtlvreSDMTLVRExyZ") + [" "] * 8 + ["\n"] * 4
    + ["\r", "\t", "1", "2", "9", "(", ")", "-", "é", "你", "\u00a0", "\u3000", "٣", "\x85",
       "\u0301", "\x1c", "\x0b", "\u017f", "\u212a", "😀"]
)  # fmt: skip


def fast(text: str) -> list[int]:
    return word_starts(np.frombuffer(text.encode("utf-32-le"), np.uint32)).tolist()


def fast_ascii(text: str) -> list[int]:
    return word_starts(np.frombuffer(text.encode("ascii"), np.uint8)).tolist()


def slow(text: str) -> list[int]:
    return [match.start() for match in regex.finditer(GPT4, text)]


@pytest.mark.parametrize("text", [text for text in HARD if SEPARATOR not in text])
def test_hard_texts(text: str) -> None:
    assert fast(text) == slow(text)


@settings(max_examples=1500)
@given(st.text(st.sampled_from(ALPHABET), max_size=16))
def test_random_neighbours(text: str) -> None:
    assert fast(text) == slow(text)


def test_many_random_neighbours_at_once() -> None:
    draw = random.Random(0)
    text = "".join(draw.choices(ALPHABET, k=300_000))
    assert fast(text) == slow(text)


def test_every_code_point() -> None:
    points = [*range(0xD800), *range(0xE000, 0x10FFFF)]
    for start in range(0, len(points), 2**17):
        part = points[start : start + 2**17]
        text = "".join(f"{c}a {c}1\t{c}{c} '{c}\n{c} " for c in map(chr, part))
        assert fast(text) == slow(text), f"from U+{part[0]:04X}"


@settings(max_examples=500)
@given(st.text(st.sampled_from([c for c in ALPHABET if c.isascii()]), max_size=16))
def test_random_neighbours_in_ascii(text: str) -> None:
    assert fast_ascii(text) == slow(text)


def test_every_two_ascii_characters_and_a_third() -> None:
    chars = [chr(point) for point in range(1, 128)]
    for third in "a1 \n\t'(":
        text = "".join(f"{a}{b}{third}" for a in chars for b in chars)
        assert fast_ascii(text) == slow(text)


@settings(max_examples=200)
@given(st.lists(st.text(st.sampled_from("ab1 \n'("), max_size=5), min_size=1, max_size=5))
def test_ascii_texts_side_by_side(texts: list[str]) -> None:
    found = fast_ascii(ASCII_SEPARATOR.join(texts))
    assert found == fast(SEPARATOR.join(texts))


@settings(max_examples=200)
@given(st.lists(nasty, min_size=1, max_size=6))
def test_texts_side_by_side(gpt4: BPETokenizer, texts: list[str]) -> None:
    cut = [fast(text) for text in texts]
    joined = SEPARATOR.join(texts)
    expected, offset = [], 0
    for words, text in zip(cut, texts, strict=True):
        expected += [offset + start for start in words] + [offset + len(text)]
        offset += len(text) + 1
    assert fast(joined) == expected[:-1]


# --------------------------------------------------------------------------- ids


@pytest.fixture(scope="module")
def encoder(gpt4: BPETokenizer) -> FastEncoder:
    found = FastEncoder(gpt4)
    assert found._words is not None
    found.encode("x" * 2**16)  # past the comparison at the start
    return found


@settings(max_examples=300)
@given(st.lists(nasty, max_size=5))
def test_a_batch_has_the_ids_of_each_text(encoder: FastEncoder, texts: list[str]) -> None:
    found = encoder.encode_batch(texts)
    assert len(found) == len(texts)
    for ids, text in zip(found, texts, strict=True):
        assert ids.tolist() == encoder.encode(text).tolist()
        assert ids.dtype == np.uint32


def test_files_whatever_is_kept(
    encoder: FastEncoder, gpt4: BPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that end anywhere, and words that are forgotten all the time."""
    texts = [*library_files(12), "", "\n", *HARD]
    expected = [encoder.encode(text).tolist() for text in texts]
    for chars, words, size in ((2**19, 2**18, 2**25), (1000, 3000, 2**25), (50_000, 2**18, 9000)):
        monkeypatch.setattr(word_cache, "BATCH_CHARS", chars)
        monkeypatch.setattr(word_cache, "MOST_WORDS", words)
        monkeypatch.setattr(word_cache, "MOST_BYTES", size)
        found = FastEncoder(gpt4).encode_batch(texts)
        assert [ids.tolist() for ids in found] == expected


def test_each_word_is_merged_once() -> None:
    asked: list[bytes] = []

    def merge(word: bytes) -> list[int]:
        asked.append(word)
        return [len(word)]

    cache = WordCache(merge)
    first, second = cache.encode_batch(["a bb a", "bb bb"]) or []
    assert (first.tolist(), second.tolist()) == ([1, 3, 2], [2, 3])
    cache.encode_batch([" bb a"] * 9)
    assert sorted(set(asked)) == sorted(asked), "no word twice"
    assert cache.encode_batch([]) == []
    assert [ids.tolist() for ids in cache.encode_batch(["", ""]) or []] == [[], []]


def test_texts_of_one_byte_a_character_and_others_keep_their_order(encoder: FastEncoder) -> None:
    texts = ["def f():", "é = 1", "", "x\0y z", "return 'it''s'\n", "\0", "你好 a", "a b"]
    assert encoder._words is not None
    found = encoder._words.encode_batch(texts)
    assert found is not None
    assert [ids.tolist() for ids in found] == [encoder.encode(text).tolist() for text in texts]


def test_a_text_with_the_separator_goes_the_other_way(encoder: FastEncoder) -> None:
    texts = ["a b", f"x{SEPARATOR}y z"]
    assert encoder._words is not None
    assert encoder._words.encode_batch(texts) is None
    found = encoder.encode_batch(texts)
    assert [ids.tolist() for ids in found] == [encoder.encode(t).tolist() for t in texts]
