"""Texts that tokenizers stumble over, and a bounded sample of real ones."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from hypothesis import strategies as st

CORPUS = [
    "def add(self, other):\n    return self.value + other.value\n\n\n",
    "class Point:\n    x: int = 0\n    y: int = 12345\n",
    "It's the user's; we'll see, they've said. IT'S HERE, I'D SAY.\n",
    "Überraschung über Größe, naïve café, Ελληνικά, русский текст, עברית, العربية\n",
    "日本語のテキストと中文文本, 한국어 텍스트 🙂👩‍👩‍👧 ﷺ\n",
    "\t\tfor i in range(10):\r\n\t\t\tprint(i)\r\n",
    "import os, sys\nprint('hello world')  # a comment\n" * 3,
    "<|endoftext|> in a text, and <|pad|> too\n" * 2,
]

HARD = [
    "", " ", "\n", "\r\n", "\t", "  ", " \n ", "a", "'", "''s", "'S 's", "\u017f's'\u017f",
    "   x", "x   ", "\n\n\nx", "x\n\n\n", " \n \n x", "x \n", "\r\r\n\n", "\x00\x01\x1c\x85\x7f",
    "\u00a0\u2003\u3000\u2028\u2029\ufeff\u180e\u200b", "1234567890", " 12 345", "a1b2", "½Ⅷ٣४",
    "e\u0301\u0302", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0010ffff\ufffd\uffff",
    "!!!???\n\n---", " --x", "a'b'c", "they're THEY'RE o'clock", "\t\t\tx\t y", "x\u00a0 y",
    "<|endoftext|>", "<|pad|>", "<|endoftext|", "  \n  \n  x", "K \u212a \u0130i\u0131",
]  # fmt: skip

WHITE = " \t\n\r\x0b\x0c\x1c\x85\u00a0\u1680\u2000\u200b\u2028\u3000\ufeff"

nasty = st.text(
    st.one_of(
        st.sampled_from(WHITE + "aZ\u017f\u0301é日'\u2019sStTlLrRvVmMdD019½!-_<|>\"#"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)
"""Text in which classes of characters meet in all ways."""


def library_files(limit: int) -> list[str]:
    """Every n-th source file of the standard library, about `limit` of them."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.rglob("*.py")) if "site-packages" not in p.parts]
    texts = []
    for path in paths[:: max(1, len(paths) // limit)]:
        try:
            texts.append(path.read_bytes().decode("utf-8"))
        except UnicodeDecodeError:
            continue  # some test files are in other encodings on purpose
    return texts
