"""B6: bits flipped in, and ends cut off, the files of data/raw, data/packed and the tokenizer."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.soak.row import Report, Row
from llm_trainer.config import PackingConfig, SourceConfig
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import IntegrityError, LLMTrainerError
from llm_trainer.tokenizer.bpe import BPETokenizer
from tests.data.sources import jsonl

FLIPS, TRUNCATIONS = 1000, 200


def run(folder: Path, scale: float) -> Report:
    """Each fault alone, then undone; named means: the directory, and the stage to run again."""
    kinds = _make(folder)
    chance = random.Random(0)
    report = Report()
    counters: dict[str, int] = {
        "flips": 0,
        "flips_named": 0,
        "truncations": 0,
        "truncations_named": 0,
    }
    for fault, number in (("flips", FLIPS), ("truncations", TRUNCATIONS)):
        for _ in range(int(number * scale)):
            directory, (read, stage) = chance.choice(list(kinds.items()))
            file = chance.choice(sorted(path for path in directory.iterdir()))
            good = file.read_bytes()
            place = chance.randrange(len(good))
            bad = bytearray(good)
            if fault == "flips":
                bad[place] ^= 1 << chance.randrange(8)
            else:
                del bad[place:]
            file.write_bytes(bad)
            held = _is_named(read, directory, stage)
            if not held and bytes(bad) == good.rstrip(b"\n"):  # JSON without its last line end
                held, counters["without_the_last_line_end"] = True, 1
            file.write_bytes(good)
            counters[fault] += 1
            counters[f"{fault}_named"] += held
            report.require(held, f"{file}: {fault[:-1]} at byte {place} was not named")
    files = named = 0
    for directory, (read, stage) in kinds.items():
        for change in (_missing, _extra, _swapped, _emptied):
            copy = directory.with_name("kept")
            shutil.copytree(directory, copy)
            change(directory)
            held = _is_named(read, directory, stage)
            report.require(held, f"{directory.name}: {change.__name__[1:]} file was not named")
            files, named = files + 1, named + held
            shutil.rmtree(directory)
            copy.rename(directory)
            read(directory)
    report.counters = {**counters, "missing_extra_swapped_empty": files, "those_named": named}
    return report


def _make(folder: Path) -> dict[Path, tuple[Callable[[Path], object], str]]:
    """Directory -> how it is read, and the stage that makes it."""
    texts = [f"text {n} with {n * n} words and naïve “signs”\n" * (1 + n % 9) for n in range(1500)]
    (folder / "texts.jsonl").write_bytes(jsonl(texts))
    source = SourceConfig(train_file=str(folder / "texts.jsonl"), validation_fraction=0.2)
    build_raw(source, folder / "raw", progress=False)
    raw = RawCorpus(folder / "raw")
    tokenizer = BPETokenizer()
    tokenizer.train(texts, 400)
    tokenizer.save_pretrained(folder / "tokenizer")
    packing = PackingConfig(max_length=64)
    pack_corpus(raw, tokenizer, packing, folder / "packed", num_workers=1, progress=False)
    return {
        folder / "raw": (_read_raw, "download"),
        folder / "packed": (_read_packed, "pack_sequences"),
        folder / "tokenizer": (BPETokenizer.from_pretrained, "train_tokenizer"),
    }


def _read_raw(directory: Path) -> None:
    corpus = RawCorpus(directory)
    for split in ("train", "validation"):
        assert sum(1 for _ in corpus.iter_documents(split)) == corpus.num_documents(split)


def _read_packed(directory: Path) -> None:
    PackedRows(directory, "train")
    PackedRows(directory, "validation")


def _is_named(read: Callable[[Path], object], directory: Path, stage: str) -> bool:
    try:
        read(directory)
    except LLMTrainerError as error:
        # JSON that cannot be parsed at all names its file; what to run is said where that is known
        told = f"dvc repro {stage}" in str(error) or "manifest.json: not readable" in str(error)
        return isinstance(error, IntegrityError) and str(directory) in str(error) and told
    return False


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.name != "manifest.json")


def _missing(directory: Path) -> None:
    _files(directory)[-1].unlink()


def _extra(directory: Path) -> None:
    shutil.copy(_files(directory)[0], directory / f"x-{_files(directory)[0].name}")


def _swapped(directory: Path) -> None:
    first, *_, last = _files(directory)
    first.rename(directory / "x")
    last.rename(first)
    (directory / "x").rename(last)


def _emptied(directory: Path) -> None:
    _files(directory)[0].write_bytes(b"")


ROW = Row("B6", "files of data/raw, data/packed and models/tokenizer damaged or exchanged", run)
