"""The split: by hash, never by position, and no document on both sides; the default corpus."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.config import SourceConfig
from llm_trainer.config.data import STDLIB_DATASET
from llm_trainer.data.intake import Intake
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.sources import iter_documents, iter_placed, open_source
from llm_trainer.data.stdlib import open_stdlib, stdlib_names
from llm_trainer.exceptions import DataError
from tests.data.sources import jsonl
from tests.test_layers import ROOT

STDLIB = SourceConfig(dataset_name=STDLIB_DATASET)


def place(config: SourceConfig) -> dict[str, list[str]]:
    """The texts of each split; the ledger balances."""
    ledger = Ledger("test")
    sides: dict[str, list[str]] = {"train": [], "validation": []}
    for placed in iter_placed(open_source(config), config, ledger):
        assert placed.data == placed.document.text.encode()
        sides[placed.split].append(placed.document.text)
        ledger.give_out(1, len(placed.data))
    ledger.check()
    return sides


def corpus(folder: Path, texts: list[str], name: str = "train.jsonl") -> str:
    (folder / name).write_bytes(jsonl(texts))
    return str(folder / name)


def falls_to_validation(text: str, fraction: float) -> bool:
    """The documented rule, written out once more."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64 < fraction


# --------------------------------------------------------------------------- cut by hash


@pytest.mark.parametrize("fraction", [0.03, 0.25])
def test_a_hash_of_the_text_decides_the_side(tmp_path: Path, fraction: float) -> None:
    texts = [f"document {n % 900}" for n in range(1000)]  # a hundred of them twice
    config = SourceConfig(train_file=corpus(tmp_path, texts), validation_fraction=fraction)
    sides = place(config)
    assert sides["validation"] == [t for t in texts if falls_to_validation(t, fraction)]
    assert sides["train"] == [t for t in texts if not falls_to_validation(t, fraction)]
    assert not set(sides["train"]) & set(sides["validation"])
    assert len(sides["train"]) > len(set(sides["train"]))  # copies within train are kept
    share = len(sides["validation"]) / len(texts)
    assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / 900) ** 0.5


@given(st.permutations(range(40)), st.integers(0, 39))
def test_neither_order_nor_company_changes_a_side(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], count: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    names = [f"document {n}" for n in range(40)]
    some = {side: next(n for n in names if falls_to_validation(n, 0.4) == side) for side in (0, 1)}
    kept = {f"document {n}" for n in order[: count + 1]} | set(some.values())
    texts = [f"document {n}" for n in order if f"document {n}" in kept]
    sides = place(SourceConfig(train_file=corpus(folder, texts), validation_fraction=0.4))
    for text in texts:
        assert text in sides["validation" if falls_to_validation(text, 0.4) else "train"]


@pytest.mark.parametrize("fraction", [1e-6, 0.999999])
def test_an_empty_side_is_an_error_whose_remedy_works(tmp_path: Path, fraction: float) -> None:
    path = corpus(tmp_path, [f"document {n}" for n in range(12)])
    with pytest.raises(DataError, match="of 12 documents none fell to") as caught:
        place(SourceConfig(train_file=path, validation_fraction=fraction))
    advised = float(str(caught.value).split("; ")[1].split()[0])
    sides = place(SourceConfig(train_file=path, validation_fraction=advised))
    assert sides["train"]
    assert sides["validation"]


def test_one_long_text_can_be_cut_into_both(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"This is line {n} of the book.\n" for n in range(10_000)))
    with pytest.raises(DataError, match=r"one document .*data\.max_document_bytes"):
        place(SourceConfig(train_file=str(path)))
    sides = place(SourceConfig(train_file=str(path), max_document_bytes=2048))
    assert sum(map(len, sides["train"] + sides["validation"])) == path.stat().st_size
    assert 0 < len(sides["validation"]) < len(sides["train"])


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the corpus is empty"):
        place(SourceConfig(train_file=corpus(tmp_path, ["", " "])))


# --------------------------------------------------------------------------- a set of its own


def test_training_documents_that_validate_are_dropped(tmp_path: Path) -> None:
    shared = ["in both", "in both, and twice in train"]
    train = corpus(tmp_path, ["a", *shared, "b", shared[1], "in both "])
    validation = corpus(tmp_path, ["v", *shared, "v"], "validation.jsonl")
    config = SourceConfig(train_file=train, validation_file=validation)
    assert place(config) == {"validation": ["v", *shared, "v"], "train": ["a", "b", "in both "]}
    ledger = Ledger("test")
    assert len(list(iter_documents(config, "train", ledger))) == 3
    assert ledger.dropped["in_validation"].documents == 3
    ledger.check()


def test_sets_that_leave_one_side_nothing_are_errors(tmp_path: Path) -> None:
    full, blank = corpus(tmp_path, ["a"]), corpus(tmp_path, [" "], "blank.jsonl")
    copy = corpus(tmp_path, ["a", "b"], "copy.jsonl")
    for train, validation, problem in (
        (full, blank, "validation set has no documents with text.*validation_file: null"),
        (blank, full, "training set has no documents of its own: it is empty"),
        (full, copy, "all 1 are in validation too"),
    ):
        with pytest.raises(DataError, match=problem):
            place(SourceConfig(train_file=train, validation_file=validation))


def test_an_empty_validation_set_is_known_before_training_data_is_read(tmp_path: Path) -> None:
    config = SourceConfig(
        train_file=corpus(tmp_path, ["a"]),
        validation_file=corpus(tmp_path, [""], "validation.jsonl"),
    )
    ledger = Ledger("test")
    with pytest.raises(DataError, match="validation set"):
        list(iter_placed(open_source(config), config, ledger))
    assert ledger.into.documents == 1  # the blank one


@pytest.mark.parametrize("own", [False, True])
def test_max_documents_counts_training_documents(tmp_path: Path, own: bool) -> None:
    texts = [f"document {n}" for n in range(100)]
    validation = corpus(tmp_path, ["v", texts[2]], "v.jsonl") if own else None
    settings = {"train_file": corpus(tmp_path, texts), "validation_file": validation}
    whole = place(SourceConfig(**settings, validation_fraction=0.2))
    some = place(SourceConfig(**settings, validation_fraction=0.2, max_documents=30))
    assert some["train"] == whole["train"][:30]
    assert some["validation"] == whole["validation"][: len(some["validation"])]
    assert (some["validation"] == whole["validation"]) == own


def test_one_split_alone_is_what_both_together_give(tmp_path: Path) -> None:
    texts = [f"document {n}" for n in range(200)]
    cut = SourceConfig(train_file=corpus(tmp_path, texts), validation_fraction=0.2)
    own = SourceConfig(
        train_file=corpus(tmp_path, texts), validation_file=corpus(tmp_path, texts[:9], "v.jsonl")
    )
    for config in (cut, own):
        sides = place(config)
        for split in ("train", "validation"):
            ledger = Ledger("test")
            alone = [document.text for document in iter_documents(config, split, ledger)]
            assert alone == sides[split]
            ledger.check()


def test_bad_lines_of_both_sets_count_together(tmp_path: Path) -> None:
    for name in ("t.jsonl", "v.jsonl"):
        (tmp_path / name).write_bytes(b"bad\n" + jsonl([f"in {name}"]))
    config = SourceConfig(
        train_file=str(tmp_path / "t.jsonl"),
        validation_file=str(tmp_path / "v.jsonl"),
        on_bad_line="skip",
        max_bad_lines=1,
    )
    with pytest.raises(DataError, match=r"t\.jsonl:1: .*number 2"):
        place(config)


# --------------------------------------------------------------------------- standard library


def test_the_standard_library_is_a_corpus_with_enough_to_validate_on() -> None:
    sides = place(STDLIB)
    validation = sum(len(text.encode()) for text in sides["validation"])
    train = sum(len(text.encode()) for text in sides["train"])
    assert len(sides["validation"]) >= 20
    assert validation >= 300_000
    assert len(sides["train"]) >= 500
    assert 9e6 < train < 20e6
    assert max(len(text.encode()) for text in sides["validation"]) < 0.4 * validation
    assert not set(sides["train"]) & set(sides["validation"])


def test_the_standard_library_is_read_as_it_is_without_what_does_not_belong() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    names = stdlib_names(root)
    assert names == sorted(names)
    assert {"os.py", "json/decoder.py", "encodings/utf_8.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    assert not any(name.startswith(("_sysconfigdata", "config-")) for name in names)
    documents = list(open_stdlib(STDLIB).train(Intake(STDLIB, Ledger("test"))))
    for document in documents[::50]:
        data = (root / document.source).read_bytes()
        assert document.text.encode() == data.removeprefix(b"\xef\xbb\xbf")


def library(root: Path) -> None:
    for name, content in {
        "os.py": b"os\r\n", "b/c.py": b"c\n", "b.py": b"b\n", "b/test/t.py": b"t\n",
        "site-packages/x.py": b"x\n", "idlelib/idle_test/t.py": b"t\n", "b/__pycache__/c.py": b"c",
        "_sysconfigdata_x.py": b"s\n", "config-3.11/p.py": b"p\n", "sitecustomize.py": b"s\n",
        "b/sitecustomize.py": b"kept\n", "notes.txt": b"n\n", "empty.py": b"",
        "latin.py": b"# coding: latin-1\n\xe9\n", "undecodable.py": b"\xe9\n",
        "mark.py": b"\xef\xbb\xbfm\n",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_which_files_make_the_corpus_and_what_becomes_of_odd_ones(tmp_path: Path) -> None:
    library(tmp_path)
    ledger = Ledger("test")
    source = open_stdlib(STDLIB, tmp_path)
    assert source.validation is not None
    intake = Intake(STDLIB, ledger)
    found = {
        d.source: d.text for reader in (source.train, source.validation) for d in reader(intake)
    }
    assert found == {
        "b.py": "b\n", "b/c.py": "c\n", "b/sitecustomize.py": "kept\n", "mark.py": "m\n",
        "os.py": "os\r\n", "latin.py": "# coding: latin-1\né\n",
    }  # fmt: skip
    assert {reason: count.documents for reason, count in ledger.dropped.items()} == {
        "empty": 1, "undecodable": 1,
    }  # fmt: skip


def test_a_file_stays_on_its_side_whatever_it_holds(tmp_path: Path) -> None:
    (tmp_path / "os.py").write_bytes(b"x = 1\n")
    names = [f"module{n}.py" for n in range(200)]
    sides = []
    for content in (b"x = 1\n", b"x = 2\n"):
        for name in names:
            (tmp_path / name).write_bytes(content)
        source = open_stdlib(STDLIB, tmp_path)
        assert source.validation is not None
        sides.append({d.source for d in source.validation(Intake(STDLIB, Ledger("test")))})
    assert sides[0] == sides[1]
    assert 0 < len(sides[0]) < 20


def test_a_python_without_source_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "python311.zip").touch()
    for root in (tmp_path, tmp_path / "gone"):
        with pytest.raises(DataError, match=r"no source files .*data\.train_file"):
            open_stdlib(STDLIB, root)


def test_reading_text_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from llm_trainer.config import SourceConfig\n"
        "from llm_trainer.data import Ledger, iter_documents\n"
        "config = SourceConfig(dataset_name='python-stdlib')\n"
        "print(sum(1 for _ in iter_documents(config, 'validation', Ledger('test'))))\n"
        "heavy = ('torch', 'ray', 'fsspec', 'datasets', 'pandas', 'tokenizers', 'mlflow')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, loaded = done.stdout.splitlines()
    assert int(count) >= 20
    assert json.loads(loaded) == []
