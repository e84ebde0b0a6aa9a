"""Local files: every format and compression gives its exact text; finding them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.config import SourceConfig
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.local_files import open_local
from llm_trainer.exceptions import DataError
from tests.data.sources import COMPRESS, GOOD, csv_bytes, jsonl, parquet, read, texts

TEXTS = [
    "first\r\nline\n",
    "naïve “x” 🎉\x00\x01",
    "\ufeffmark inside \ufeff",
    " \t padded \n\n",
    '"q",;\n',
]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["txt", "md", "py", "jsonl", "csv"])
def test_each_format_and_compression_gives_the_exact_text(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    path = tmp_path / f"data.{kind}{suffix}"
    if kind == "jsonl":
        path.write_bytes(COMPRESS[suffix](jsonl(TEXTS)))
        assert texts(path) == TEXTS
    elif kind == "csv":
        values = [text.replace("\x00", "") for text in TEXTS]  # NUL is refused in CSV
        path.write_bytes(COMPRESS[suffix](csv_bytes(values)))
        assert texts(path) == values
    else:
        whole = "".join(TEXTS)
        path.write_bytes(COMPRESS[suffix](whole.encode()))
        assert texts(path) == [whole]


def test_parquet_of_each_text_type(tmp_path: Path) -> None:
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        path = tmp_path / "data.parquet"
        path.write_bytes(parquet(TEXTS, kind))
        assert texts(path) == TEXTS


# Any text but lone surrogates, which are no text.
VALID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: not text.isspace()
)


@given(st.lists(VALID, min_size=1, max_size=8))
def test_any_text_survives_every_format(
    tmp_path_factory: pytest.TempPathFactory, values: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.jsonl").write_bytes(jsonl(values))
    (folder / "a.parquet").write_bytes(parquet(values))
    assert texts(folder / "a.jsonl") == texts(folder / "a.parquet") == values
    without_nul = [value.replace("\0", "0") for value in values]
    (folder / "a.csv").write_bytes(csv_bytes(without_nul))
    assert texts(folder / "a.csv") == without_nul
    plain = values[0].removeprefix("\ufeff") or "x"
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + plain.encode())
    if not plain.isspace():
        assert texts(folder / "a.txt") == [plain]


def test_a_mark_at_the_start_of_a_file_goes_and_is_noted(tmp_path: Path) -> None:
    for name, content in (
        ("a.txt", b"one"),
        ("a.jsonl", jsonl(["one"])),
        ("a.csv", b"text\none\n"),
    ):
        ledger = Ledger("test")
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert [d.text for d in read(tmp_path / name, ledger)] == ["one"]
        assert ledger.notes == {"byte_order_marks_removed": 1}


def test_python_sources_are_read_in_the_encoding_they_declare(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_bytes("# -*- coding: latin-1 -*-\ns = 'é'\r\n".encode("latin-1"))
    (tmp_path / "marked.py").write_bytes("\ufeffs = 'é'\n".encode())
    assert texts(tmp_path) == ["s = 'é'\n", "# -*- coding: latin-1 -*-\ns = 'é'\r\n"]
    for content in (
        b"# coding: nonsense\n",
        b"s = '\xe9'\n",
        b"# coding: ascii\n\xe9\n",
        b"# coding: rot13\nx\n",
    ):
        (tmp_path / "bad.py").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.py"):
            read(tmp_path / "bad.py")


# --------------------------------------------------------------------------- finding


def test_directories_globs_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "b/z.txt",
        "b/a.md",
        "a.txt",
        ".hidden.txt",
        ".git/x.txt",
        "b/pic.png",
        "c.txt.gz",
    ):
        path = Path("corpus", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(name.encode()) if name.endswith("gz") else name.encode())

    def names(entry: str | list[str]) -> list[str]:
        return [document.source for document in read(entry)]

    assert names("corpus") == ["corpus/a.txt", "corpus/b/a.md", "corpus/b/z.txt", "corpus/c.txt.gz"]
    assert names("corpus/**/*.txt") == ["corpus/a.txt", "corpus/b/z.txt"]
    assert names(["corpus/b", "corpus/a.txt", "corpus/*.txt"]) == [
        "corpus/b/a.md", "corpus/b/z.txt", "corpus/a.txt",
    ]  # fmt: skip
    # an absolute path does not get into the corpus, which is then the same anywhere
    assert names(str(tmp_path / "corpus")) == ["a.txt", "b/a.md", "b/z.txt", "c.txt.gz"]
    assert names([str(tmp_path / "corpus/b/z.txt"), "corpus/a.txt"]) == ["b/z.txt", "a.txt"]
    Path("corpus/[odd]*.txt").write_text("x")
    assert names("corpus/[odd]*.txt") == ["corpus/[odd]*.txt"]


def test_a_name_that_is_not_utf8_becomes_text(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x")
    assert [document.source for document in read(tmp_path)] == ["\\xff.txt"]


def test_what_cannot_be_found_or_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("a.json").write_text("[]")
    Path("a.zst").write_text("x")
    Path("a.log").write_text("x")
    Path("a.parquet.gz").write_text("x")
    Path("pictures").mkdir()
    Path("pictures/a.png").write_text("x")
    os.mkfifo("pipe.txt")
    for entry, problem in {
        "gone.txt": "gone.txt: no such file or directory",
        "gone/*.txt": "nothing matches 'gone/",
        "empty.txt": "empty.txt is empty",
        "a.json": "one object a line",
        "a.zst": "name it like data.jsonl.gz",
        "a.log": r"unknown kind \(known: \.txt, .*\.parquet",
        "a.parquet.gz": "unknown kind",
        "pictures": "no file of a known kind",
        "pictures/*": "no file of a known kind",
        "pipe.txt": "not a regular file",
    }.items():
        with pytest.raises(DataError, match=f"^data.train_file: .*{problem}"):
            open_local(SourceConfig(train_file=entry))
    Path("a.jsonl").write_bytes(GOOD)
    both = SourceConfig(train_file="*.jsonl", validation_file=str(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match=r"both data\.train_file and data\.validation_file"):
        open_local(both)
