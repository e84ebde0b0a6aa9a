"""Cut text into the words of the pattern GPT4, a whole batch at once, with array operations.

How: each character has one of six kinds (letter, digit, line end, other white space, the rest, and
a separator between texts). Within a run of one kind, and from the two runs beside it, the pattern
leaves no choice, so all words begin where a handful of comparisons over the runs say:

- letters: a word, together with one character before it that is neither letter, digit nor line end
  (a space before it, or a single other character that begins a word);
- digits: words of three from the start of the run;
- the rest: a word, together with one space before it and all line ends right after it;
- what is then left of white space: up to its last line end one word; of what follows, all but the
  last character one word, and the last belongs to what comes next or is a word of its own; at the
  end of a text there is no such last character;
- after an apostrophe that begins a word, s, d, m, t, ll, ve and re end the word.

A regular expression engine finds the same words one by one; the tests compare the two on every code
point and on random texts. Price: arrays of tens of bytes a character of the batch.
"""

from __future__ import annotations

from functools import cache

import numpy as np

LETTER, DIGIT, LINE_END, SPACE, OTHER, SEPARATOR_KIND = range(6)
SEPARATOR = "\U0010ffff"
"""Between texts: a code point that Unicode reserves for such uses. A word of its own."""

_WHITE_SPACE = (
    *range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F,
    0x205F, 0x3000,
)  # fmt: skip
"""Unicode's property White_Space, which is stable."""
_WHITE = 6
"""Line ends and other white space as one kind of run."""


def word_starts(codes: np.ndarray) -> np.ndarray:
    """Where words begin.

    Args:
        codes: (characters,) uint32 code points, without surrogates; SEPARATOR between texts.

    Returns:
        (words,) int64, ascending; the first is 0. The separators are words.
    """
    if len(codes) == 0:
        return np.zeros(0, np.int64)
    kinds = _kinds(codes)
    is_start = np.zeros(len(codes) + 1, np.bool_)  # one more, so that an end may be marked
    white = np.where((kinds == LINE_END) | (kinds == SPACE), _WHITE, kinds).astype(np.uint8)
    edge = np.empty(len(codes), np.bool_)
    edge[0] = True
    np.not_equal(white[1:], white[:-1], out=edge[1:])
    edge |= kinds == SEPARATOR_KIND  # two in a row are an empty text
    start = np.flatnonzero(edge)
    end = np.append(start[1:], len(codes))
    kind = white[start]
    before = np.concatenate(([SEPARATOR_KIND], kind[:-1]))
    after = np.append(kind[1:], SEPARATOR_KIND)

    # white space: what its neighbours leave of it
    is_white = kind == _WHITE
    left, tail = _white_space(kinds, start, end, is_white & (before == OTHER), is_white)
    has_tail = is_white & (tail < end)
    is_start[left[is_white & (tail > left)]] = True  # up to the last line end
    is_start[tail[has_tail]] = True
    is_start[end[has_tail & (after != SEPARATOR_KIND)] - 1] = True

    # what takes the last white space along does not begin where its own run does
    follows_tail = np.concatenate(([False], has_tail[:-1]))
    last_is_blank = codes[np.maximum(start - 1, 0)] == 0x20
    is_other = kind == OTHER
    fresh = is_other & ~(follows_tail & last_is_blank)
    is_start[start[fresh]] = True
    joins = fresh & (end - start == 1) & (after == LETTER)
    follows_join = np.concatenate(([False], joins[:-1]))
    is_start[start[(kind == LETTER) & ~follows_tail & ~follows_join]] = True
    is_start[start[kind == SEPARATOR_KIND]] = True

    # an apostrophe and what is contracted, cut off from the letters that follow
    quotes = np.flatnonzero(joins & (codes[start] == 0x27))
    length = _contraction(codes, start[quotes] + 1)
    cut = start[quotes] + 1 + length
    is_start[cut[(length > 0) & (cut < end[np.minimum(quotes + 1, len(end) - 1)])]] = True

    # digits in threes
    digits = np.flatnonzero(kind == DIGIT)
    sizes = end[digits] - start[digits]
    offset = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    third = offset % 3 == 0
    is_start[(np.repeat(start[digits], sizes) + offset)[third]] = True
    return np.flatnonzero(is_start[:-1])


def _white_space(
    kinds: np.ndarray, start: np.ndarray, end: np.ndarray, after_other: np.ndarray,
    is_white: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """For each run: where what is left of it begins, and where its part without line ends does.

    Line ends right after a run of other characters belong to that word.
    """
    line_ends = np.flatnonzero(kinds == LINE_END)
    left = start.copy()
    if len(line_ends):
        others = np.append(np.flatnonzero(kinds != LINE_END), len(kinds))
        begins = np.flatnonzero(after_other & (kinds[start] == LINE_END))
        first_other = others[np.searchsorted(others, start[begins])]
        left[begins] = np.minimum(first_other, end[begins])
    tail = left.copy()
    if len(line_ends):
        runs = np.flatnonzero(is_white)
        last = line_ends[np.maximum(np.searchsorted(line_ends, end[runs]) - 1, 0)]
        inside = (last >= left[runs]) & (last < end[runs])
        tail[runs[inside]] = last[inside] + 1
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
    table = _ascii_table() if int(codes.max()) < 0x80 else _full_table()
    kinds: np.ndarray = table[codes]
    return kinds


@cache
def _ascii_table() -> np.ndarray:
    return _table(0x80)


@cache
def _full_table() -> np.ndarray:
    return _table(0x110000)


def _table(size: int) -> np.ndarray:
    import regex  # knows the properties; tiktoken needs it anyway

    chars = "".join(map(chr, (*range(min(size, 0xD800)), *range(0xE000, size))))
    table = np.full(size, OTHER, np.uint8)
    for kind, pattern in ((LETTER, r"\p{L}+"), (DIGIT, r"\p{N}+")):
        for match in regex.finditer(pattern, chars):
            # runs do not cross the surrogates, which lie between two private areas
            table[ord(chars[match.start()]) : ord(chars[match.end() - 1]) + 1] = kind
    for point in _WHITE_SPACE:
        if point < size:
            table[point] = SPACE
    table[[0x0A, 0x0D]] = LINE_END
    if size > ord(SEPARATOR):
        table[ord(SEPARATOR)] = SEPARATOR_KIND
    return table
