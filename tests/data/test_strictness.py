"""What is wrong in a file is named by line and value, or skipped and counted, never overlooked."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_trainer.data.ledger import Ledger
from llm_trainer.exceptions import DataError
from tests.data.sources import COMPRESS, GOOD, jsonl, parquet, read, texts

BAD_JSONL = {
    "no json": (b"not json\n", "json", "not valid JSON"),
    "torn last line": (b'{"text": "cut o', "json", "cut off"),
    "NUL bytes": (b"\x00" * 64 + b"\n", "json", "NUL byte"),
    "raw NUL in a string": (b'{"text": "a\x00b"}\n', "json", "NUL byte at column 12"),
    "invalid UTF-8": (b'{"text": "\xff"}\n', "encoding", "0xff"),
    "missing key": (b'{"txt": "a", "n": 1}\n', "key", "'txt', 'n'.*data.text_column"),
    "no keys": (b"{}\n", "key", "keys: none"),
    "null": (b'{"text": null}\n', "type", "null, not text"),
    "number": (b'{"text": 12}\n', "type", "a number, not text: 12"),
    "boolean": (b'{"text": true}\n', "type", "a boolean, not text"),
    "list": (b'{"text": ["a"]}\n', "type", "a list, not text"),
    "bare text": (b'"text"\n', "json", "expected an object, found text"),
    "array": (b'["text"]\n', "json", "expected an object, found a list"),
    "deep nesting": (b'{"a": ' + b"[" * 200_000 + b"\n", "json", "nested too deep"),
    "huge number": (b'{"n": ' + b"1" * 5000 + b', "text": "a"}\n', "json", "not valid JSON"),
    "lone surrogate": (b'{"text": "a\\ud800b"}\n', "surrogate", r"U\+D800"),
    "mark inside": (b'\xef\xbb\xbf{"text": "a"}\n', "json", "not valid JSON"),
    "two records": (b'{"text": "a"}{"text": "b"}\n', "json", "Extra data"),
}


@pytest.mark.parametrize("case", BAD_JSONL)
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path: Path, case: str) -> None:
    line, reason, problem = BAD_JSONL[case]
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n" + line + (GOOD if line.endswith(b"\n") else b""))
    with pytest.raises(DataError, match=f"data.jsonl:3: .*{problem}.*on_bad_line: skip"):
        read(path)
    ledger = Ledger("test")
    documents = read(path, ledger, on_bad_line="skip")
    assert {document.text for document in documents} == {"good"}
    assert ledger.dropped[f"bad_{reason}"].documents == 1
    assert ledger.into.documents == len(documents) + 1
    assert ledger.notes == {"blank_lines": 1}


def test_json_that_looks_odd_but_is_right_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b'  {"text": "spaces"}  \r\n{"text": "pair \\ud83c\\udf89"}\n\n \n'
        b'{"n": NaN, "text": "no end"}'
    )
    assert texts(path) == ["spaces", "pair 🎉", "no end"]
    assert [d.source.rpartition("/")[2] for d in read(path)] == [
        f"data.jsonl:{n}" for n in (1, 2, 5)
    ]


BAD_CSV = {
    "too few fields": (b"1\n", "csv", "1 fields, but the header has 2"),
    "too many fields": (b"1,a,b\n", "csv", "3 fields"),
    "text after a quote": (b'1,"a"b\n', "csv", "not valid CSV"),
    "NUL": (b"1,a\x00b\n", "csv", "NUL byte"),
    "invalid UTF-8": (b"1,\xff\n", "encoding", "0xff at column 3 of line 3"),
    "open quote at the end": (b'1,"never closed\n', "csv", "not valid CSV"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path: Path, case: str) -> None:
    row, reason, problem = BAD_CSV[case]
    path = tmp_path / "data.csv"
    path.write_bytes(b"id,text\n0,good\n" + row)
    with pytest.raises(DataError, match=f"data.csv:3: .*{problem}"):
        read(path)
    ledger = Ledger("test")
    assert [d.text for d in read(path, ledger, on_bad_line="skip")] == ["good"]
    assert ledger.dropped[f"bad_{reason}"].documents == 1


def test_a_csv_row_is_named_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b'id,text\r\n0,"a\r\n\r\nb"\r\n\r\n1,c\r\n')
    assert [(d.text, d.source.rpartition("/")[2]) for d in read(path)] == [
        ("a\r\n\r\nb", "data.csv:2"), ("c", "data.csv:6"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"id;text\n1;a\n", "separated by semicolons"),
        (b"id\ttext\n", "separated by tabs"),
        (b"id,body\n1,a\n", "'id', 'body'.*data.text_column"),
        (b"text,text\na,b\n", "more than once"),
        (b"\n", "empty"),
        (b"id,te\xffxt\n", "header cannot be read"),
        (b"id,text\n", "no rows"),
    ],
)
def test_a_csv_header_must_name_the_text(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "data.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"data.csv.*{problem}"):
        read(tmp_path / "data.csv")


def test_parquet_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    cases: list[tuple[bytes, str]] = [
        (b"PAR1 this is none", "not a readable Parquet"),
        (parquet(["a"] * 1000)[:-50], "not a readable Parquet"),
        (parquet([]), "no rows"),
        (parquet([1, 2], pa.int64()), "int64, not text"),  # type: ignore[list-item]
        (parquet(["a", None]), "parquet:2: 'text' is null"),
    ]
    for content, problem in cases:
        path.write_bytes(content)
        with pytest.raises(DataError, match=problem):
            read(path)
    assert texts(path, on_bad_line="skip") == ["a"]
    with pytest.raises(DataError, match=r"no column 'body'.*'id', 'text'"):
        read(path, text_column="body")
    bad = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), path)
    with pytest.raises(DataError, match=r"parquet:2: byte 0 .*not UTF-8"):
        read(path)


@pytest.mark.parametrize("kind", ["txt", "py", "jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_unicode_encodings_are_recognised(tmp_path: Path, kind: str, encoding: str) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes('{"text": "some words"}\n'.encode(encoding))
    with pytest.raises(DataError, match=r"UTF-(16|32), not UTF-8 .*iconv"):
        read(path)
    assert texts(path, on_bad_line="skip") == []


def test_text_that_is_not_utf8_is_named_by_line_and_offset(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(DataError, match=r"a\.txt:3: byte 0xe9 at offset 11 .*iconv"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(b"fine\n")
    assert texts(tmp_path, on_bad_line="skip") == ["fine\n"]


def test_too_many_bad_lines_are_an_error_after_all(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"bad\n" * 3)
    assert texts(path, on_bad_line="skip", max_bad_lines=3) == ["good"]
    with pytest.raises(DataError, match=r"data\.jsonl:4: .*number 3 and .*max_bad_lines is 2"):
        read(path, on_bad_line="skip", max_bad_lines=2)


@pytest.mark.parametrize("text", ["", " ", "\n\r\n\t", "\u3000\xa0"])
def test_documents_without_text_are_dropped_and_counted(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([text, "x", text]))
    (tmp_path / "b.txt").write_bytes(text.encode())
    ledger = Ledger("test")
    assert [d.text for d in read(tmp_path, ledger)] == ["x"]
    assert ledger.dropped["empty"].documents == 3
    assert ledger.dropped["empty"].bytes == 3 * len(text.encode())


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_or_mislabelled_archive_is_an_error(tmp_path: Path, suffix: str) -> None:
    """`zstandard` itself takes a file that was cut off for a shorter one."""
    whole = COMPRESS[suffix](
        jsonl([f"{n} {n * 0x9E3779B97F4A7C15 % 2**64:x}" for n in range(5000)])
    )
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(whole + whole)
    assert len(read(path)) == 10_000  # several members or frames are one stream
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole + whole[:9],
        bytes(flipped),
        jsonl(["a"]),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"data\.jsonl"):
            read(path, on_bad_line="skip")
