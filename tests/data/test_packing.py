"""pack_corpus: real tokenizer, real processes, real files."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.config.data import PackingConfig
from llm_trainer.data import shard_file
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus
from llm_trainer.data.row_sources import documents_in_row
from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import DataError, IntegrityError, LLMTrainerError
from llm_trainer.files import is_partial
from llm_trainer.tokenizer.bpe import BPETokenizer
from tests.data.naive import naive_concat
from tests.data.raw_corpora import random_text, random_texts, write_raw
from tests.test_layers import ROOT


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    made = BPETokenizer()
    made.train(random_texts(0, 200), vocab_size=400)
    return made


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawCorpus:
    """A few hundred documents in a few dozen row groups: one huge, some empty, some tiny."""
    texts = random_texts(1, 300)
    texts[7] = random_text(random.Random(2), 20_000)
    texts[0] = texts[150] = texts[-1] = ""
    texts[8] = texts[9] = "a"
    return write_raw(tmp_path_factory.mktemp("raw") / "raw", texts, [*random_texts(3, 40), "", "b"])


def leftovers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if is_partial(entry.name)]


def content(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}


# --------------------------------------------------------------------------- the rows


@settings(max_examples=10)
@given(
    train=st.lists(st.text(max_size=60), min_size=1, max_size=30),
    validation=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=20),
    row_length=st.integers(2, 20),
)
def test_concat_is_the_naive_stream_of_the_encoded_documents(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: BPETokenizer,
    train: list[str],
    validation: list[str],
    row_length: int,
) -> None:
    path = tmp_path_factory.mktemp("pack")
    train = [*train, "some text, so that there is a full row of it"]
    raw = write_raw(path / "raw", train, validation, group_bytes=100)
    config = PackingConfig(max_length=row_length, min_length=3)
    pack_corpus(raw, tokenizer, config, path / "packed", num_workers=1)
    for split, texts, least in (("train", train, 3), ("validation", validation, 1)):
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        kept = [number for number, ids in enumerate(encoded) if len(ids) >= least]
        expected, lengths, pieces = naive_concat(
            [encoded[number] for number in kept], row_length, tokenizer.end_id, tokenizer.pad_id
        )
        rows = PackedRows(path / "packed", split, tokenizer_digest=tokenizer.digest)
        ids, found_lengths = rows.rows(np.arange(len(rows)))
        assert ids.tolist() == expected
        assert found_lengths.tolist() == lengths
        for index, wanted in enumerate(pieces):
            assert rows.pieces(index) == [(kept[number], start) for number, start in wanted]
        assert rows.num_documents == len(kept)
        assert rows.num_tokens == sum(len(encoded[number]) + 1 for number in kept)
        assert rows.num_bytes == sum(len(texts[number].encode()) for number in kept)
        assert rows.max_id == max(itertools.chain.from_iterable(expected))


@pytest.mark.parametrize(("strategy", "numbers"), [("concat", [1, 2, 3]), ("best_fit", [1, 3])])
def test_any_number_of_processes_gives_the_same_bytes(
    tmp_path: Path, raw: RawCorpus, tokenizer: BPETokenizer, strategy: str, numbers: list[int]
) -> None:
    config = PackingConfig(max_length=64, strategy=strategy, shard_bytes=2**14)
    packed, metrics = [], []
    for num_workers in numbers:
        out = tmp_path / f"with {num_workers}"
        metrics.append(pack_corpus(raw, tokenizer, config, out, num_workers=num_workers))
        packed.append(content(out))
    assert len(packed[0]) > 10
    assert all(other == packed[0] for other in packed)
    assert [found["num_workers"] for found in metrics] == numbers
    assert metrics[0]["peak_worker_memory_mb"] == 0
    assert metrics[1]["peak_worker_memory_mb"] > 10
    assert str(tmp_path).encode() not in packed[0]["manifest.json"]
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("strategy", ["concat", "best_fit"])
def test_every_document_comes_back_as_text(
    tmp_path: Path, raw: RawCorpus, tokenizer: BPETokenizer, strategy: str
) -> None:
    """Pieces joined by document and decoded, special spellings and all."""
    config = PackingConfig(max_length=64, min_length=0, strategy=strategy)
    pack_corpus(raw, tokenizer, config, tmp_path / "packed", num_workers=1)
    rows = PackedRows(tmp_path / "packed", "train")
    ids, lengths = rows.rows(np.arange(len(rows)))
    targets: dict[int, list[list[int]]] = {}
    for index in range(len(rows)):
        pieces = rows.pieces(index)
        ends = [start for _, start in pieces[1:]] + [int(lengths[index]) - 1]
        for (document, start), end in zip(pieces, ends, strict=True):
            targets.setdefault(document, []).append(ids[index, start : end + 1].tolist())
    for number, document in enumerate(raw.iter_documents("train")):
        if not document.text:
            assert number not in targets
            continue
        # Pieces come in their order, but best_fit may put a document's beginning anywhere.
        pieces = sorted(targets[number], key=lambda piece: piece[0] != tokenizer.end_id)
        tokens = pieces[0] + [token for piece in pieces[1:] for token in piece[1:]]
        assert tokens[0] == tokens[-1] == tokenizer.end_id
        assert tokenizer.decode(tokens[1:-1], skip_special_tokens=False) == document.text
    assert sorted(targets) == [
        n for n, document in enumerate(raw.iter_documents("train")) if document.text
    ]


def test_the_books(tmp_path: Path, raw: RawCorpus, tokenizer: BPETokenizer) -> None:
    config = PackingConfig(max_length=64, min_length=10)
    metrics = pack_corpus(raw, tokenizer, config, tmp_path / "packed", num_workers=1)
    rows = PackedRows(tmp_path / "packed", "train")
    books = rows.manifest["ledger"]
    for split in raw_splits():
        ledger, entry = books[split], rows.manifest["splits"][split]
        texts = [document.text for document in raw.iter_documents(split)]
        read = {
            "documents": len(texts),
            "bytes": sum(len(text.encode()) for text in texts),
            "tokens": sum(len(tokenizer.encode(t, add_special_tokens=False)) for t in texts),
        }
        assert ledger["in"] == read
        assert ledger["out"] == {unit: entry[unit] for unit in read}
        assert ledger["added"]["end tokens"]["tokens"] == entry["documents"]
        for unit, number in read.items():
            added = sum(count[unit] for count in ledger["added"].values())
            dropped = sum(count[unit] for count in ledger["dropped"].values())
            assert number + added == entry[unit] + dropped
        assert metrics[f"{split}_rows"] == entry["rows"]
        assert metrics[f"{split}_tokens"] == entry["tokens"]
    assert books["train"]["dropped"]["empty"]["documents"] == 3
    assert books["train"]["dropped"]["min_length"]["documents"] >= 2  # "a", twice, and by chance
    assert metrics["train_dropped_min_length_bytes"] > 0
    # Bits per byte is measured on a fixed set of bytes, whatever the tokenizer makes of them.
    assert set(books["validation"]["dropped"]) == {"empty"}
    split = books["train"]["notes"]["documents split over rows"]
    assert split == metrics["train_documents_split"] > 9


def raw_splits() -> tuple[str, ...]:
    return ("train", "validation")


def test_metrics_are_flat_and_outputs_hold_no_times(
    tmp_path: Path, raw: RawCorpus, tokenizer: BPETokenizer
) -> None:
    metrics = pack_corpus(raw, tokenizer, PackingConfig(), tmp_path / "packed", num_workers=1)
    assert all(isinstance(value, (int, float, str)) for value in metrics.values())
    assert {"seconds", "megabytes_per_second", "peak_memory_mb"} <= metrics.keys()
    manifest = PackedRows(tmp_path / "packed", "train").manifest
    assert not {"seconds", "num_workers"} & manifest.keys()
    assert manifest["raw_digest"] == raw.digest
    assert manifest["tokenizer_digest"] == tokenizer.digest


def test_an_old_directory_is_replaced(
    tmp_path: Path, raw: RawCorpus, tokenizer: BPETokenizer
) -> None:
    out = tmp_path / "packed"
    pack_corpus(raw, tokenizer, PackingConfig(max_length=64), out, num_workers=1)
    first = PackedRows(out, "train").digest
    (tmp_path / ".partial-packed-99999").mkdir()  # what a killed run leaves
    pack_corpus(raw, tokenizer, PackingConfig(max_length=32), out, num_workers=1)
    rows = PackedRows(out, "train")
    assert rows.row_length == 32
    assert rows.digest != first
    assert not leftovers(tmp_path)


def test_from_a_row_to_its_documents(
    tmp_path: Path, raw: RawCorpus, tokenizer: BPETokenizer
) -> None:
    pack_corpus(raw, tokenizer, PackingConfig(max_length=64), tmp_path / "packed", num_workers=1)
    for split in raw_splits():
        rows = PackedRows(tmp_path / "packed", split)
        sources = [document.source for document in raw.iter_documents(split)]
        for index in {0, 1, len(rows) // 2, len(rows) - 1}:
            expected = [sources[number] for number in rows.documents(index)]
            assert documents_in_row(rows, raw, index) == expected
            assert expected
    other = write_raw(tmp_path / "other", random_texts(5, 3))
    with pytest.raises(IntegrityError, match=r"packed from the corpus .*dvc repro pack_sequences"):
        documents_in_row(PackedRows(tmp_path / "packed", "train"), other, 0)


# --------------------------------------------------------------------------- too little


@pytest.mark.parametrize(
    ("train", "validation", "named"),
    [
        (["a few words"], ["more"], r"the train split has \d+ tokens \(1 documents\), too few for "
         r"one row of packing.max_length \(1,024\); use more text or set packing.max_length to "),
        (["a", "b"], ["more"], r"the train split has 0 tokens \(2 documents, 2 dropped: min_length"
         r"\).*or lower packing.min_length \(10\)"),
        ([""], ["more"], "the train split has 0 tokens .1 documents, 1 dropped: empty.*more text$"),
        ([], ["more"], "there are no train documents"),
        (["text"], [], "there are no validation documents; raise data.validation_fraction"),
        (["text " * 2000], [""], "the validation split has 0 tokens"),
    ],
)  # fmt: skip
def test_a_corpus_that_is_too_small(
    tmp_path: Path, tokenizer: BPETokenizer, train: list[str], validation: list[str], named: str
) -> None:
    raw = write_raw(tmp_path / "raw", train, validation)
    with pytest.raises(DataError, match=named):
        pack_corpus(raw, tokenizer, PackingConfig(), tmp_path / "packed", num_workers=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]


def test_the_remedy_for_a_small_corpus_works(tmp_path: Path, tokenizer: BPETokenizer) -> None:
    raw = write_raw(tmp_path / "raw", ["a few words and a few more of them"])
    with pytest.raises(DataError, match=r"set packing\.max_length to") as caught:
        pack_corpus(raw, tokenizer, PackingConfig(), tmp_path / "packed", num_workers=1)
    length = int(str(caught.value).partition("max_length to ")[2].split()[0])
    pack_corpus(
        raw, tokenizer, PackingConfig(max_length=length), tmp_path / "packed", num_workers=1
    )
    assert len(PackedRows(tmp_path / "packed", "train")) == 1


# --------------------------------------------------------------------------- faults


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_damaged_raw_file(
    tmp_path: Path, raw: RawCorpus, tokenizer: BPETokenizer, num_workers: int
) -> None:
    """Damage after the corpus was verified: the page checksum finds it, in whatever process."""
    texts = [document.text for document in raw.iter_documents("train")]
    copy = write_raw(tmp_path / "raw", texts)
    path = copy.files("train")[1]
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError, match=rf"{path.name}: cannot be read.*dvc repro download"):
        pack_corpus(copy, tokenizer, PackingConfig(), tmp_path / "packed", num_workers=num_workers)
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]
    assert not multiprocessing.active_children()


def test_a_raw_file_with_another_number_of_documents(
    tmp_path: Path, tokenizer: BPETokenizer
) -> None:
    raw = write_raw(tmp_path / "raw", random_texts(1, 30))
    raw.manifest["splits"]["train"]["documents"] += 1
    with pytest.raises(IntegrityError, match=r"gave 30 documents of .*manifest says 31 of"):
        pack_corpus(
            raw, tokenizer, PackingConfig(max_length=64), tmp_path / "packed", num_workers=1
        )


@pytest.mark.parametrize("when", ["at its start", "at work"])
def test_a_killed_worker_is_named_at_once(
    tmp_path: Path, tokenizer: BPETokenizer, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_file, "BATCH_BYTES", 2**14)  # the first batch is written early
    text = random_text(random.Random(1), 20_000)
    raw = write_raw(tmp_path / "raw", (text for _ in range(60)), file_bytes=2**24)
    killed: list[tuple[int, float]] = []

    def kill() -> None:
        while not multiprocessing.active_children():
            time.sleep(0.001)
        victim = multiprocessing.active_children()[0]
        while when == "at work" and not any(tmp_path.glob(".partial-*/train-00000.arrow")):
            time.sleep(0.001)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        killed.append((victim.pid, time.monotonic()))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(LLMTrainerError, match="was killed by SIGKILL") as caught:
        pack_corpus(raw, tokenizer, PackingConfig(), tmp_path / "packed", num_workers=2)
    ended = time.monotonic()
    thread.join(60)
    [(pid, at)] = killed
    assert f"worker process {pid} was killed by SIGKILL while encoding" in str(caught.value)
    assert "train-00000.parquet (row group" in str(caught.value)
    assert "runtime.preprocessing_num_workers=1" in str(caught.value)
    assert ended - at < 10
    assert not multiprocessing.active_children()
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]


SCRIPT = """
import resource, signal, sys
from llm_trainer.config.data import PackingConfig
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus
from llm_trainer.tokenizer.bpe import BPETokenizer

def main():
    if limit := int(sys.argv[2]):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    tokenizer = BPETokenizer.from_pretrained("tokenizer")
    pack_corpus(
        RawCorpus("raw"), tokenizer, PackingConfig(max_length=64), "packed",
        num_workers=int(sys.argv[1]),
    )

"""
GUARD = "if __name__ == '__main__':\n    "


def run_script(
    folder: Path, raw: RawCorpus, tokenizer: BPETokenizer, guard: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "raw").symlink_to(raw.path.resolve())
    (folder / "script.py").write_text(SCRIPT + guard + "main()\n")
    return subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("vocab_size", [300, 4096])
def test_a_script_without_a_main_guard_is_told_so(
    tmp_path: Path, raw: RawCorpus, vocab_size: int
) -> None:
    """Also where the tokenizer is larger than what a pipe holds, and nobody reads it."""
    tokenizer = BPETokenizer()
    rng = random.Random(0)
    words = ("".join(rng.choices("abcdefghijklmnop", k=9)) for _ in range(4000))
    tokenizer.train(words, vocab_size=vocab_size, min_frequency=1)
    assert (len(pickle.dumps(tokenizer)) > 2**16) == (vocab_size > 300)
    done = run_script(tmp_path, raw, tokenizer, "", "2", "0")
    assert done.returncode == 1
    assert "needs `if __name__ == '__main__':`" in done.stderr
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("limit", [100, 3000, 20_000])
def test_a_full_disk(tmp_path: Path, raw: RawCorpus, tokenizer: BPETokenizer, limit: int) -> None:
    done = run_script(tmp_path, raw, tokenizer, GUARD, "1", str(limit))
    assert done.returncode == 1
    assert "LLMTrainerError: packed: no space left while writing" in done.stderr
    assert "bytes free" in done.stderr
    assert not (tmp_path / "packed").exists()
    assert not leftovers(tmp_path)
