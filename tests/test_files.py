"""Files that are whole or absent: writes, manifests and locks, with real kills and full disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.digests import canonical_json, digest_json, sha256_bytes, sha256_file
from llm_trainer.exceptions import IntegrityError, LLMTrainerError
from llm_trainer.files import (
    atomic_directory,
    atomic_path,
    is_partial,
    remove_partial,
    write_json,
    write_text,
)
from llm_trainer.json_file import read_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --------------------------------------------------------------------------- digests and JSON


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "a") == known


@given(JSON)
def test_canonical_json_means_the_same_and_has_one_spelling(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_the_order_of_keys_does_not_change_a_digest() -> None:
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_json(float("nan"))


def test_json_files_are_readable_and_the_same_each_time(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "ä", "a": [1.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (
        b'{\n  "a": [\n    1.5,\n    null\n  ],\n  "b": "\xc3\xa4"\n}\n'
    )
    assert read_json(tmp_path / "a.json") == {"a": [1.5, None], "b": "ä"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"NaN]"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")


def test_missing_and_giant_json(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="file is missing"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b" " * 11)
    with pytest.raises(IntegrityError, match="11 bytes; a JSON file of ours has at most 10"):
        read_json(tmp_path / "a.json", max_bytes=10)


# --------------------------------------------------------------------------- atomic writes


def test_a_written_file_replaces_the_old_one_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one\r\n")
    write_text(path, "two\r\n")
    assert path.read_bytes() == b"two\r\n"
    assert names(path.parent) == ["a.txt"]


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_content(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(error), atomic_path(tmp_path / "a") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_directory_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_directory(tmp_path / "d") as directory:
            (directory / "sub").mkdir()
            (directory / "sub" / content).write_text(content)
            assert is_partial(directory.name)
        assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d" / "sub") == ["two"]


def test_a_failed_directory_keeps_the_old_one(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "d") as directory:
        (directory / "a").write_text("old")
    with pytest.raises(ValueError), atomic_directory(tmp_path / "d") as directory:  # noqa: PT011, PT012
        (directory / "a").write_text("new")
        raise ValueError
    assert (tmp_path / "d" / "a").read_text() == "old"
    assert names(tmp_path) == ["d"]


def test_before_commit_sees_the_finished_directory(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    with atomic_directory(tmp_path / "d", lambda d: seen.append(names(d))) as directory:
        (directory / "a").write_text("x")
    assert seen == [["a"]]


def test_left_overs_of_killed_writers_are_cleared_for_their_own_target_only(tmp_path: Path) -> None:
    (tmp_path / ".partial-d-99999999").mkdir()
    (tmp_path / ".partial-other-1").mkdir()
    remove_partial(tmp_path / "d")
    assert names(tmp_path) == [".partial-other-1"]


WRITER = """
import sys
from pathlib import Path
from llm_trainer.files import atomic_directory, write_json, write_text
target = Path(sys.argv[1])
number = 0
while True:
    number += 1
    write_text(target / "file", str(number) * 20_000)
    with atomic_directory(target / "directory") as directory:
        for name in "abc":
            (directory / name).write_text(str(number) * 2_000)
    if number == 1:
        print("ready", flush=True)
"""


def test_a_killed_writer_leaves_old_or_new_never_a_mix(tmp_path: Path) -> None:
    for round_ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        with writer.stdout as output:
            assert output.readline() == b"ready\n"
            time.sleep(0.004 * round_)
            writer.kill()
            writer.wait()
        text = (tmp_path / "file").read_text()
        assert text == text[: len(text) // 20_000] * 20_000
        directory = tmp_path / "directory"
        if directory.is_dir():  # between its two renames there is none, but never half of one
            contents = {(directory / name).read_text() for name in "abc"}
            assert len(contents) == 1
            assert len(contents.pop()) % 2_000 == 0


FILL = """
import resource, signal, sys
from pathlib import Path
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.files import atomic_directory, write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
target = Path(sys.argv[1])
for write in ("file", "directory"):
    try:
        if write == "file":
            write_text(target / "file", "x" * 10_000)
        else:
            with atomic_directory(target / "directory", needed=10_000) as directory:
                write_text(directory / "a", "x" * 10_000)
    except LLMTrainerError as error:
        print(error)
"""


def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with atomic_directory(tmp_path / "directory") as directory:
        (directory / "a").write_text("old")
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / "file"), str(tmp_path / "directory"),
    ]  # fmt: skip
    assert all("no space left while writing" in x for x in done.stdout.splitlines())
    assert all("bytes free in" in x for x in done.stdout.splitlines())
    assert "about 10,000 bytes needed" in done.stdout
    assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "directory" / "a").read_text() == "old"
    assert names(tmp_path) == ["directory", "file"]


def test_a_file_where_a_directory_is_needed_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(LLMTrainerError, match="cannot be written"):
        write_text(tmp_path / "a" / "b", "x")
    (tmp_path / "d").mkdir()
    with pytest.raises(LLMTrainerError, match="cannot be written"):
        write_text(tmp_path / "d", "x")
