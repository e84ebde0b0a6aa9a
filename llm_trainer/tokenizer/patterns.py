"""How text is cut into words before merging, and how bytes are spelled in `tokenizer.json`.

A merge never crosses a word boundary, so the pattern decides what a token can be. Two engines run
these patterns: Oniguruma (inside `tokenizers`) and fancy-regex (inside `tiktoken`). They disagree
on some syntax and on case-insensitive matching beyond ASCII, so the patterns use only what both
read alike: no `(?i)`, no possessive or atomic groups. Compared over every code point in twelve
neighbourhoods each, and by random strings in the tests, they cut alike.

Together the alternatives of each pattern match any character, so no text is lost between words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Literal

PatternName = Literal["gpt2", "gpt4"]

_REST = r"|\s+(?!\S)|\s+"
# All white space up to the last one before a word, which belongs to the word; or what is left.

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + _REST
"""GPT-2's: contractions; then letters, digits or anything else, each with one space before it."""

GPT4 = (
    r"'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+" + _REST
)
"""GPT-4's, as Llama 3 has it too: letters may have any one character before them that is neither
letter, digit nor line end (a tab, a bracket); digits in groups of three; punctuation with the line
ends after it; indentation in one piece. Suits code better."""

PATTERNS: dict[PatternName, str] = {"gpt2": GPT2, "gpt4": GPT4}

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+" + _REST
)
"""As Llama 3's published tokenizer spells it; only met in tokenizers made elsewhere."""

SAME_IN_BOTH_ENGINES = frozenset({GPT2, GPT4, LLAMA3})
"""Patterns for which the two engines were compared."""

PIECE_CHARS = 2**20
"""Longer texts are cut before they are encoded: the engines take up to 120 bytes of memory a
character."""
# After a line end between two characters that are no white space, and before a space between two
# letters, a word ends in all patterns above; and what is left of the cut is matched alike whether
# the text ends there or goes on, since the only look-ahead is at white space before a word, here
# one character long or part of a word. What Python calls no white space, neither engine does.
_WORD_ENDS = re.compile(r"\S\n(?=\S)|[a-z](?= [a-z])")


def pieces_of(text: str, size: int = PIECE_CHARS) -> Iterator[str]:
    """Cut a text into pieces of about `size` characters that have the same words as the whole.

    A piece is longer where no such place comes.
    """
    start = 0
    while len(text) - start > size:
        end = _WORD_ENDS.search(text, start + size - 1)
        if end is None:
            break
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


@cache
def byte_of_char() -> dict[str, int]:
    """The byte that each of 256 printable characters stands for in a byte-level vocabulary.

    GPT-2's table: printable Latin-1 characters stand for themselves, the other 68 bytes for the
    characters from U+0100 on, so that a vocabulary is readable JSON without white space.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = sorted(set(range(256)) - set(printable))
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def token_to_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for.

    Raises:
        KeyError: a character is not of the byte-level alphabet.
    """
    table = byte_of_char()
    return bytes([table[char] for char in token])
