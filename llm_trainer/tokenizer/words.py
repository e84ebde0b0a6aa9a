"""Cut text into the words of the pattern GPT4, a whole batch at once, with array operations.

How: each character has one of five kinds (letter, digit, white space, the rest, and a separator
between texts). Within a run of one kind, and from the two runs beside it, the pattern leaves no
choice, so all words begin where a handful of comparisons over the runs say:

- letters: a word, together with one character before it that is neither letter, digit nor line end
  (a space before it, or a single other character that begins a word);
- digits: words of three from the start of the run;
- the rest: a word, together with one space before it and all line ends right after it;
- what is then left of white space: up to its last line end one word; of what follows, all but the
  last character one word, and the last belongs to what comes next or is a word of its own; at the
  end of a text there is no such last character;
- after an apostrophe that begins a word, s, d, m, t, ll, ve and re end the word.

A regular expression engine finds the same words one by one; the tests compare the two on every code
point and on random texts. Price: arrays of about 20 bytes a character of the batch.
"""

from __future__ import annotations

from functools import cache

import numpy as np

LETTER, DIGIT, WHITE, OTHER, SEPARATOR_KIND = range(5)
SEPARATOR = "\U0010ffff"
"""Between texts: a code point that Unicode reserves for such uses. A word of its own."""
ASCII_SEPARATOR = "\0"
"""The same between texts that are ASCII throughout."""

_WHITE_SPACE = (
    *range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F,
    0x205F, 0x3000,
)  # fmt: skip
"""Unicode's property White_Space, which is stable."""


def word_starts(codes: np.ndarray) -> np.ndarray:
    """Where words begin.

    Args:
        codes: (characters,) code points: uint32, without surrogates and with SEPARATOR between
            texts, or faster uint8, with ASCII only and ASCII_SEPARATOR between texts.

    Returns:
        (words,) int64, ascending; the first is 0. The separators are words.
    """
    if len(codes) == 0:
        return np.zeros(0, np.int64)
    kinds = _kinds(codes)
    edge = np.empty(len(codes), np.bool_)
    edge[0] = True
    np.not_equal(kinds[1:], kinds[:-1], out=edge[1:])
    edge |= kinds == SEPARATOR_KIND  # two in a row are an empty text
    bounds = np.append(np.flatnonzero(edge), len(codes))
    start, end = bounds[:-1], bounds[1:]  # of runs of one kind
    beside = np.full(len(start) + 2, SEPARATOR_KIND, np.uint8)
    kind = beside[1:-1]
    kind[:] = kinds[start]
    after = beside[2:]
    is_start = np.zeros(len(codes) + 1, np.bool_)  # one more, so that an end may be marked

    # white space: what its neighbours leave of it
    white = np.flatnonzero(kind == WHITE)
    left, tail = _white_space(codes, start[white], beside[white] == OTHER)
    is_start[left[tail > left]] = True  # up to the last line end
    has_tail = tail < end[white]
    is_start[tail[has_tail]] = True
    is_start[end[white[has_tail & (after[white] != SEPARATOR_KIND)]] - 1] = True

    # what takes the last white space along does not begin where its own run does
    after_tail = white[has_tail] + 1
    if len(after_tail) and after_tail[-1] == len(start):
        after_tail = after_tail[:-1]
    fresh = kind == OTHER
    others = after_tail[fresh[after_tail]]
    fresh[others[codes[start[others] - 1] == 0x20]] = False
    is_start[start[fresh]] = True
    joins = np.flatnonzero(fresh & (after == LETTER))
    joins = joins[end[joins] - start[joins] == 1]
    letters = kind == LETTER
    letters[after_tail] = False
    letters[joins + 1] = False
    is_start[start[letters]] = True
    is_start[start[kind == SEPARATOR_KIND]] = True

    # an apostrophe and what is contracted, cut off from the letters that follow
    quotes = joins[codes[start[joins]] == 0x27]
    length = _contraction(codes, start[quotes] + 1)
    cut = start[quotes] + 1 + length
    is_start[cut[(length > 0) & (cut < end[quotes + 1])]] = True

    # digits in threes
    digits = np.flatnonzero(kind == DIGIT)
    sizes = end[digits] - start[digits]
    offset = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    third = offset % 3 == 0
    is_start[(np.repeat(start[digits], sizes) + offset)[third]] = True
    return np.flatnonzero(is_start[:-1])


def _white_space(
    codes: np.ndarray, start: np.ndarray, after_other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each run of white space: where what is left of it begins, and where its part without
    line ends does.

    Line ends right after a run of other characters belong to that word.
    """
    left = start.copy()
    line_ends = np.flatnonzero((codes == 0x0A) | (codes == 0x0D))
    if not len(line_ends):
        return left, left
    # line ends that follow each other, and the places after the last of them
    row_begins = np.flatnonzero(np.diff(line_ends, prepend=-2) != 1)
    row_ends = line_ends[np.append(row_begins[1:], len(line_ends)) - 1] + 1
    row_run = np.searchsorted(start, line_ends[row_begins], side="right") - 1
    taken = after_other[row_run] & (line_ends[row_begins] == start[row_run])
    left[row_run[taken]] = row_ends[taken]
    tail = left.copy()
    last = np.append(row_run[1:] != row_run[:-1], True)  # the last row of its run
    tail[row_run[last]] = row_ends[last]
    return left, tail


def _contraction(codes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Letters that are contracted at each place: 1 (s, d, m, t), 2 (ll, ve, re) or 0."""
    padded = np.append(codes, [0, 0])
    first, second = padded[at] | 0x20, padded[at + 1] | 0x20  # lower case, of ASCII letters
    # only ASCII letters become others by that bit
    is_ascii = padded[at] < 0x80
    both_ascii = is_ascii & (padded[at + 1] < 0x80)
    one = is_ascii & np.isin(first, [ord(c) for c in "sdmt"])
    two = np.zeros(len(at), np.bool_)
    for a, b in ("ll", "ve", "re"):
        two |= (first == ord(a)) & (second == ord(b))
    return np.where(one, 1, np.where(two & both_ascii, 2, 0))


def _kinds(codes: np.ndarray) -> np.ndarray:
    """The kind of each character, (characters,) uint8."""
    if codes.dtype == np.uint8:
        return np.frombuffer(codes.tobytes().translate(_ascii_table()), np.uint8)
    kinds: np.ndarray = _full_table()[codes]
    return kinds


@cache
def _ascii_table() -> bytes:
    table = _table(0x80)
    table[ord(ASCII_SEPARATOR)] = SEPARATOR_KIND
    return table.tobytes().ljust(0x100, b"\xff")


@cache
def _full_table() -> np.ndarray:
    table = _table(0x110000)
    table[ord(SEPARATOR)] = SEPARATOR_KIND
    return table


def _table(size: int) -> np.ndarray:
    import regex  # knows the properties; tiktoken needs it anyway

    points = np.arange(size, dtype=np.uint32)
    # through an array: joining a million characters would take most of an encoder's start
    chars = points[(points < 0xD800) | (points >= 0xE000)].tobytes().decode("utf-32-le")
    table = np.full(size, OTHER, np.uint8)
    for kind, pattern in ((LETTER, r"\p{L}+"), (DIGIT, r"\p{N}+")):
        for match in regex.finditer(pattern, chars):
            # runs do not cross the surrogates, which lie between two private areas
            table[ord(chars[match.start()]) : ord(chars[match.end() - 1]) + 1] = kind
    table[[point for point in _WHITE_SPACE if point < size]] = WHITE
    return table
