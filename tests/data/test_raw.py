"""data/raw: the same bytes each time, bounded files, and damage noticed before it is used."""

from __future__ import annotations

import os
import pty
import random
import re
import shutil
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.config import SourceConfig
from llm_trainer.data import raw_file
from llm_trainer.data.documents import content_hash
from llm_trainer.data.duplicates import DuplicateCounter
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.exceptions import ConfigurationError, DataError, IntegrityError, LLMTrainerError
from llm_trainer.manifests import manifest_digest
from tests.data.sources import jsonl
from tests.test_layers import ROOT


def texts_of(number: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    words = ["word", "naïve", "🎉", "\r\n", "  ", "x" * 40, "\x00", '"quoted"']
    return [
        f"{n}: " + " ".join(chance.choices(words, k=chance.randint(1, 60))) for n in range(number)
    ]


@pytest.fixture
def source(tmp_path: Path) -> SourceConfig:
    (tmp_path / "texts.jsonl").write_bytes(jsonl([*texts_of(2000), "", "copy", "copy", "copy"]))
    return SourceConfig(train_file=str(tmp_path / "texts.jsonl"), validation_fraction=0.1)


def test_what_is_written_is_read_again(tmp_path: Path, source: SourceConfig) -> None:
    metrics = build_raw(source, tmp_path / "raw", progress=False)
    corpus = RawCorpus(tmp_path / "raw")
    expected = [*texts_of(2000), "copy", "copy", "copy"]
    read = {split: list(corpus.iter_documents(split)) for split in ("train", "validation")}
    assert Counter(d.text for side in read.values() for d in side) == Counter(expected)
    for split, documents in read.items():
        assert corpus.num_documents(split) == len(documents) == metrics[f"{split}_documents"]
        num_bytes = sum(len(d.text.encode()) for d in documents)
        assert corpus.num_bytes(split) == num_bytes == metrics[f"{split}_bytes"]
        numbers = [int(d.source.removeprefix("texts.jsonl:")) for d in documents]
        assert numbers == sorted(set(numbers))  # source order, each its own name
    assert metrics["raw_digest"] == corpus.digest == manifest_digest(corpus.manifest)
    assert (metrics["dropped_empty_documents"], metrics["train_duplicate_documents"]) == (1, 2)
    ledger = corpus.manifest["ledger"]
    assert ledger["in"]["documents"] == 2004
    assert ledger["out"]["documents"] == 2003
    assert corpus.manifest["origin"]["files"] == 1
    assert all(isinstance(value, int | float | str) for value in metrics.values())
    with pytest.raises(DataError, match="no split 'test'"):
        corpus.num_documents("test")  # type: ignore[arg-type]


def test_the_same_documents_give_the_same_bytes(tmp_path: Path, source: SourceConfig) -> None:
    """Also from another place, at another time, in another process with other hash seeds."""
    build_raw(source, tmp_path / "one", progress=False)
    shutil.copytree(tmp_path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("one"))
    code = (
        "import sys; from pathlib import Path; from llm_trainer.config import SourceConfig\n"
        "from llm_trainer.data.raw import build_raw\n"
        "config = SourceConfig(train_file=sys.argv[1], validation_fraction=0.1)\n"
        "build_raw(config, Path(sys.argv[2]))"
    )
    elsewhere = tmp_path / "elsewhere"
    subprocess.run(
        [sys.executable, "-c", code, elsewhere / "texts.jsonl", elsewhere / "two"],
        cwd=ROOT, check=True, env={**os.environ, "PYTHONHASHSEED": "7", "ARROW_NUM_THREADS": "3"},
    )  # fmt: skip
    one, two = tmp_path / "one", elsewhere / "two"
    assert [path.name for path in sorted(one.iterdir())] == [p.name for p in sorted(two.iterdir())]
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_files_and_row_groups_are_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: SourceConfig
) -> None:
    monkeypatch.setattr(raw_file, "FILE_BYTES", 60_000)
    monkeypatch.setattr(raw_file, "GROUP_BYTES", 10_000)
    build_raw(source, tmp_path / "raw", progress=False)
    corpus = RawCorpus(tmp_path / "raw")
    files = corpus.files("train")
    assert len(files) > 5
    assert [path.name for path in files] == [f"train-{n:05d}.parquet" for n in range(len(files))]
    for path in files:
        file = pq.ParquetFile(path)
        assert file.schema_arrow.names == ["text", "source"]
        sizes = [
            sum(len(text.encode()) for text in file.read_row_group(group)["text"].to_pylist())
            for group in range(file.num_row_groups)
        ]
        assert max(sizes) < 11_000
        assert sum(sizes) < 70_000
        assert all(size >= 10_000 for size in sizes[:-1])
    assert len(list(corpus.iter_documents("train"))) == corpus.num_documents("train")
    monkeypatch.setattr(raw_file, "GROUP_ROWS", 3)
    build_raw(source, tmp_path / "raw", progress=False)
    assert pq.ParquetFile(corpus.files("train")[0]).metadata.row_group(0).num_rows == 3


# --------------------------------------------------------------------------- damage


def damaged(path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"run `dvc repro download`"):
        read_all(path)


def read_all(path: Path) -> None:
    for split in ("train", "validation"):
        list(RawCorpus(path).iter_documents(split))


def test_every_flip_and_truncation_is_noticed(tmp_path: Path, source: SourceConfig) -> None:
    build_raw(source, tmp_path / "raw", progress=False)
    file = tmp_path / "raw" / "train-00000.parquet"
    whole = file.read_bytes()
    chance = random.Random(1)
    for _ in range(150):
        content = bytearray(whole)
        content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
        damaged(tmp_path / "raw")
    for _ in range(50):
        file.write_bytes(whole[: chance.randrange(len(whole))])
        damaged(tmp_path / "raw")
    file.write_bytes(whole)
    RawCorpus(tmp_path / "raw")


def test_page_checksums_notice_damage_where_hashes_were_not_checked(
    tmp_path: Path, source: SourceConfig
) -> None:
    build_raw(source, tmp_path / "raw", progress=False)
    file = tmp_path / "raw" / "train-00000.parquet"
    whole = file.read_bytes()
    intact = list(RawCorpus(tmp_path / "raw").iter_documents("train"))
    chance = random.Random(2)
    for _ in range(100):
        content = bytearray(whole)
        content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
        try:
            read = list(RawCorpus(tmp_path / "raw", verify=False).iter_documents("train"))
        except IntegrityError:
            continue
        assert read == intact  # the flip was in a part that no one reads


def test_missing_extra_and_swapped_files_and_foreign_manifests(
    tmp_path: Path, source: SourceConfig
) -> None:
    raw = tmp_path / "raw"
    build_raw(source, raw, progress=False)
    train, validation = raw / "train-00000.parquet", raw / "validation-00000.parquet"
    (raw / "train-00001.parquet").write_bytes(train.read_bytes())
    damaged(raw)
    (raw / "train-00001.parquet").unlink()
    one, two = train.read_bytes(), validation.read_bytes()
    train.write_bytes(two)
    validation.write_bytes(one)
    damaged(raw)
    train.unlink()
    validation.write_bytes(two)
    damaged(raw)
    train.write_bytes(one)
    manifest = (raw / "manifest.json").read_text()
    for old, new in (
        ('"kind": "raw"', '"kind": "packed"'),
        ('"splits"', '"parts"'),
        ('"validation-00000.parquet"\n      ]', '"gone.parquet"\n      ]'),
        ('"documents": ', '"number": '),
    ):
        assert old in manifest
        (raw / "manifest.json").write_text(manifest.replace(old, new))
        damaged(raw)
    (raw / "manifest.json").write_text(re.sub(r'("documents": )\d+', r"\g<1>5", manifest))
    damaged(raw)
    (raw / "manifest.json").unlink()
    damaged(raw)
    damaged(tmp_path / "gone")


# --------------------------------------------------------------------------- failing


def test_a_failure_leaves_what_was_there(tmp_path: Path, source: SourceConfig) -> None:
    raw = tmp_path / "raw"
    build_raw(source, raw, progress=False)
    before = {path.name: path.read_bytes() for path in raw.iterdir()}
    (tmp_path / "bad.jsonl").write_bytes(jsonl(texts_of(50)) + b'{"text": "a\\udfffb"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:51: lone surrogate U\+DFFF"):
        build_raw(SourceConfig(train_file=str(tmp_path / "bad.jsonl")), raw, progress=False)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "raw", "texts.jsonl"]


def test_impossible_settings_and_places_are_named(tmp_path: Path, source: SourceConfig) -> None:
    source.max_document_bytes = 0
    with pytest.raises(ConfigurationError, match="max_document_bytes"):
        build_raw(source, tmp_path / "raw", progress=False)
    source.max_document_bytes = 2**20
    (tmp_path / "file").touch()
    with pytest.raises(LLMTrainerError, match="file"):
        build_raw(source, tmp_path / "file" / "raw", progress=False)


FULL = """
import resource, signal, sys
from pathlib import Path
from llm_trainer.config import SourceConfig
from llm_trainer.data.raw import build_raw
from llm_trainer.exceptions import LLMTrainerError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    build_raw(SourceConfig(train_file=sys.argv[1], validation_fraction=0.1), Path(sys.argv[2]))
except LLMTrainerError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 3, 5_000, 60_000])
def test_a_full_disk_is_named_and_leaves_what_was_there(
    tmp_path: Path, source: SourceConfig, limit: int
) -> None:
    raw = tmp_path / "raw"
    build_raw(source, raw, progress=False)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(source.train_file), raw, str(limit)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"raw: no space left while writing .* bytes free", done.stdout), done.stdout
    RawCorpus(raw)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "texts.jsonl"]


BUILD = """
import re, sys
from pathlib import Path
from llm_trainer.config import SourceConfig
from llm_trainer.data.raw import build_raw
config = SourceConfig(train_file=sys.argv[1])
build_raw(config, Path(sys.argv[2]))
# not ru_maxrss: on Linux a process inherits that of the one which started it
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    block = jsonl(texts_of(20_000))
    peaks = []
    for name, repeats in (("small", 2), ("large", 20)):
        with open(tmp_path / f"{name}.jsonl", "wb") as file:
            for _ in range(repeats):
                file.write(block)
        done = subprocess.run(
            [sys.executable, "-c", BUILD, tmp_path / f"{name}.jsonl", tmp_path / name],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # no bar where there is no terminal
        peaks.append(int(done.stdout))
    assert len(block) * 18 > 140e6
    assert peaks[1] - peaks[0] < 40, peaks
    assert peaks[1] < 250, peaks


def test_a_terminal_shows_progress(tmp_path: Path, source: SourceConfig) -> None:
    outside, inside = pty.openpty()
    termios.tcsetwinsize(inside, (24, 100))
    command = [sys.executable, "-c", BUILD, source.train_file, tmp_path / "raw"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=inside)
    os.close(inside)
    shown = b""
    while True:
        try:
            data = os.read(outside, 4096)
        except OSError:  # what Linux says when the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(outside)
    assert process.wait() == 0
    assert b"2,003 documents" in shown
    assert b"download" in shown


# --------------------------------------------------------------------------- copies


@given(st.lists(st.integers(0, 30), max_size=80))
def test_copies_are_counted_exactly_while_they_fit(numbers: list[int]) -> None:
    counter = DuplicateCounter(capacity=64)
    for number in numbers:
        counter.add(content_hash(str(number).encode()))
    assert counter.is_exact
    assert counter.count == len(numbers) - len(set(numbers))


def test_copies_are_estimated_when_they_do_not_fit() -> None:
    counter = DuplicateCounter(capacity=2048)
    numbers = [*range(50_000), *range(0, 50_000, 5)]
    for number in numbers:
        counter.add(content_hash(str(number).encode()))
    assert not counter.is_exact
    assert abs(counter.count - 10_000) < 2_000
    backwards = DuplicateCounter(capacity=2048)
    for number in reversed(numbers):
        backwards.add(content_hash(str(number).encode()))
    assert backwards.count == counter.count
