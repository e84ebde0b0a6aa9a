"""Manifests: what a directory says of its files, and every kind of damage to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.digests import sha256_bytes
from llm_trainer.exceptions import IntegrityError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.manifests import (
    MANIFEST_NAME,
    manifest_digest,
    read_manifest,
    verify_manifest,
    write_manifest,
)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    directory = tmp_path / "shelf"
    (directory / "sub").mkdir(parents=True)
    (directory / "a.bin").write_bytes(b"aaaa")
    (directory / "sub" / "b.bin").write_bytes(b"bbbb")
    write_manifest(directory, "raw", splits={"train": 1})
    return directory


def verify(directory: Path) -> dict[str, object]:
    return verify_manifest(directory, "raw", remedy="run it again")


def test_a_manifest_lists_all_files_and_carries_fields(shelf: Path) -> None:
    manifest = verify(shelf)
    assert manifest["splits"] == {"train": 1}
    assert manifest["files"] == {
        "a.bin": {"bytes": 4, "sha256": sha256_bytes(b"aaaa")},
        "sub/b.bin": {"bytes": 4, "sha256": sha256_bytes(b"bbbb")},
    }


def test_a_digest_is_of_kind_and_files_not_of_fields(shelf: Path) -> None:
    digest = manifest_digest(verify(shelf))
    assert manifest_digest(write_manifest(shelf, "raw", other=5)) == digest
    assert manifest_digest(write_manifest(shelf, "packed")) != digest
    (shelf / "a.bin").write_bytes(b"aaab")
    assert manifest_digest(write_manifest(shelf, "raw")) != digest


def damage(shelf: Path, how: str) -> None:
    path = shelf / "a.bin"
    if how == "flip":
        path.write_bytes(b"aaac")
    elif how == "truncate":
        path.write_bytes(b"aaa")
    elif how == "missing":
        path.unlink()
    elif how == "extra":
        (shelf / "sub" / "c.bin").write_bytes(b"")
    elif how == "swap":
        other = shelf / "sub" / "b.bin"
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flip", "a.bin: content differs from the manifest's sha256; run it again"),
        ("truncate", "a.bin: 3 bytes, but the manifest says 4; run it again"),
        ("missing", "a.bin: listed in the manifest but missing; run it again"),
        ("extra", "sub/c.bin: not listed in the manifest; run it again"),
        ("swap", "a.bin: content differs"),
    ],
)
def test_any_damage_is_named(shelf: Path, how: str, message: str) -> None:
    damage(shelf, how)
    with pytest.raises(IntegrityError) as caught:
        verify(shelf)
    assert message in str(caught.value)


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_bit_flip_anywhere_passes(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    directory = tmp_path_factory.mktemp("flip")
    (directory / "a.bin").write_bytes(bytes(range(64)))
    write_manifest(directory, "raw", note="x")
    before = verify(directory)
    path = directory / ("a.bin" if position % 2 else MANIFEST_NAME)
    content = bytearray(path.read_bytes())
    content[position // 2 % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        after = verify(directory)
    except IntegrityError:
        return
    # a flip in the manifest's white space or in a field beside the files leaves the files proven
    assert path.name == MANIFEST_NAME
    assert after["files"] == before["files"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"kind": "packed"},
        {"files": []},
        {"files": {"a.bin": 5}},
        {"files": {"a.bin": {"bytes": "4", "sha256": "x"}}},
        {"files": {"../a.bin": {"bytes": 4, "sha256": "x"}}},
        {"files": {"/a.bin": {"bytes": 4, "sha256": "x"}}},
        {"files": {"a//b": {"bytes": 4, "sha256": "x"}}},
    ],
)
def test_a_manifest_of_another_shape_is_refused(shelf: Path, change: dict[str, object]) -> None:
    write_json(shelf / MANIFEST_NAME, read_json(shelf / MANIFEST_NAME) | change)
    with pytest.raises(IntegrityError, match="not a manifest of kind 'raw', format 1; run it"):
        read_manifest(shelf, "raw", remedy="run it again")


def test_a_missing_manifest_says_what_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="not a complete 'raw' directory; run it again"):
        verify(tmp_path)
