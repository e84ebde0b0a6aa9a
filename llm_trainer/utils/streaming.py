"""Text from tokens as they come: no character in halves, no beginning of a stop text shown.

A token of a byte-level tokenizer may end in the middle of a character, so bytes go through an
incremental decoder and only whole characters come out. Where stop texts are given, what might be
the beginning of one is held back until it is clear. What was fed, one by one, comes out as the same
text as decoding all at once; the tests compare. Price: the bytes of each token, looked up.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one row, from its tokens.

    Args:
        token_values: bytes of text that each id stands for; empty for control tokens.
        stop: texts that end the row; they and what follows are left out.
    """

    def __init__(self, token_values: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self._values = token_values
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [text for text in stop if text]
        self._held = ""
        self._shown: list[str] = []
        self.stopped = False
        """Whether a stop text came up; nothing comes out any more."""

    def feed(self, token: int) -> str:
        """Take one token; return the text that is now certain, often one token's, maybe none."""
        return self._take(self._decoder.decode(self._values[token]))

    def finish(self) -> str:
        """Return what was held back; half a character becomes U+FFFD."""
        shown = self._take(self._decoder.decode(b"", final=True))
        if self.stopped:
            return shown
        rest, self._held = self._held, ""
        return shown + self._show(rest)

    @property
    def text(self) -> str:
        """Everything that came out so far."""
        return "".join(self._shown)

    def _take(self, new: str) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [position for text in self._stop if (position := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            rest, self._held = self._held[: min(found)], ""
            return self._show(rest)
        keep = self._possible_stop()
        certain, self._held = self._held[: len(self._held) - keep], self._held[-keep:] * bool(keep)
        return self._show(certain)

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that is the beginning of a stop text."""
        longest = 0
        for text in self._stop:
            for length in range(min(len(text) - 1, len(self._held)), longest, -1):
                if self._held.endswith(text[:length]):
                    longest = length
                    break
        return longest
