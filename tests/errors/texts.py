"""Nonsense for the tokenizer and the data: raw text, packed rows, data sets, loaders."""

from __future__ import annotations

import numpy as np

from llm_trainer.config import PackingConfig, TokenizerConfig
from llm_trainer.data import (
    LanguageModelingDataset,
    PackedRows,
    RawCorpus,
    build_raw,
    create_dataloader,
    iter_documents,
    pack_corpus,
)
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.vocabulary import build_tokenizer
from llm_trainer.tokenizer import BPETokenizer, FastEncoder
from tests.errors.nonsense import (
    CHOICE,
    COUNT,
    FLAG,
    FOLDER,
    HUGE,
    INF,
    NAN,
    NEW_FOLDER,
    OBJECT,
    SIZE,
    TEXT,
    TEXTS,
    WHOLE,
    Entry,
    maybe,
)

BAD_IDS = (None, "text", 1.5, [1.5], ["a"], [[1], [2]], [-1], [300], [HUGE], [None], {1: 2})
VOCABULARY = (*COUNT, 256)
STDLIB = {"dataset_name": "python-stdlib", "vocab_size": 300, "max_documents": 5}
TRAINED = ["some text to train on"] * 3
ROWS = ("text", None, 1.5, [1.5], [-1], [10**6])

ENTRIES = [
    Entry(
        "llm_trainer.tokenizer:BPETokenizer.train", lambda w: BPETokenizer().train,
        lambda w: {"texts": TRAINED, "vocab_size": 260},
        {
            "texts": (*TEXTS, b"bytes", ["\ud800"]), "vocab_size": VOCABULARY,
            "min_frequency": COUNT, "pattern": CHOICE, "show_progress": FLAG,
        },
        cases=(
            ({"texts": []}, ("no text", "0 texts", "give")), ({"texts": ["", ""]}, ("2 texts",)),
        ),
    ),
    Entry(
        "llm_trainer.tokenizer:BPETokenizer.train_from_dataset",
        lambda w: BPETokenizer().train_from_dataset, lambda w: STDLIB,
        {
            "dataset_name": (*TEXT, ""), "vocab_size": VOCABULARY, "dataset_config": maybe(TEXT),
            "dataset_split": (*TEXT, ""), "text_column": (*TEXT, ""), "revision": maybe(TEXT),
            "streaming": FLAG, "max_documents": maybe(COUNT), "min_frequency": COUNT,
            "pattern": CHOICE, "show_progress": FLAG,
        },
    ),
    Entry(
        "llm_trainer.tokenizer:BPETokenizer.save_pretrained", lambda w: w.tokenizer.save_pretrained,
        lambda w: {"save_directory": "models/tokenizer"},
        {"save_directory": (*NEW_FOLDER, "folder", "models/final")},
    ),
    Entry(
        "llm_trainer.tokenizer:BPETokenizer.from_pretrained",
        lambda w: BPETokenizer.from_pretrained, lambda w: {"load_directory": "models/tokenizer"},
        {"load_directory": (*FOLDER, "data/raw")},
    ),
    Entry(
        "llm_trainer.tokenizer:BPETokenizer.encode", lambda w: w.tokenizer.encode,
        lambda w: {"text": "def"}, {"text": (*TEXT, "\ud800"), "add_special_tokens": FLAG},
    ),
    Entry(
        "llm_trainer.tokenizer:BPETokenizer.encode_batch", lambda w: w.tokenizer.encode_batch,
        lambda w: {"texts": ["def"]}, {"texts": (*TEXTS, ["\ud800"])},
    ),
    Entry(
        "llm_trainer.tokenizer:BPETokenizer.decode", lambda w: w.tokenizer.decode,
        lambda w: {"token_ids": [5, 6]}, {"token_ids": BAD_IDS, "skip_special_tokens": FLAG},
        called={"token_ids": "token"},
    ),
    *(
        Entry(
            f"llm_trainer.tokenizer:BPETokenizer.{name}",
            lambda w, name=name: getattr(w.untrained, name), lambda w, call=call: call, {},
            cases=(({}, ("not trained", "train")),),
        )
        for name, call in {
            "encode": {"text": "a"}, "encode_batch": {"texts": ["a"]}, "decode": {"token_ids": []},
            "save_pretrained": {"save_directory": "made"}, "token_bytes": {}, "get_vocab_stats": {},
        }.items()
    ),
    Entry(
        "llm_trainer.tokenizer:FastEncoder", lambda w: FastEncoder,
        lambda w: {"tokenizer": w.tokenizer}, {"tokenizer": OBJECT, "engine": CHOICE},
        cases=((lambda w: {"tokenizer": w.untrained}, ("not trained", "train")),),
    ),
    Entry(
        "llm_trainer.tokenizer:FastEncoder.encode", lambda w: w.encoder.encode,
        lambda w: {"text": "def"}, {"text": (*TEXT, "\ud800")},
    ),
    Entry(
        "llm_trainer.tokenizer:FastEncoder.encode_batch", lambda w: w.encoder.encode_batch,
        lambda w: {"texts": ["def"]}, {"texts": (*TEXTS, ["\ud800"])},
    ),
    Entry(
        "llm_trainer.data:build_raw", lambda w: build_raw,
        lambda w: {"config": w.source, "out": "data/again", "progress": False},
        {"config": (*OBJECT, PackingConfig()), "out": NEW_FOLDER, "progress": FLAG,
         "engine": OBJECT},
    ),
    Entry(
        "llm_trainer.data:RawCorpus", lambda w: RawCorpus, lambda w: {"path": "data/raw"},
        {"path": (*FOLDER, "data/packed"), "verify": FLAG},
    ),
    *(
        Entry(
            f"llm_trainer.data:RawCorpus.{name}",
            lambda w, name=name: lambda split: list(_all(getattr(w.raw, name)(split))),
            lambda w: {"split": "train"}, {"split": CHOICE},
        )
        for name in ("num_documents", "num_bytes", "files", "iter_documents")
    ),
    Entry(
        "llm_trainer.data:iter_documents",
        lambda w: lambda **k: list(iter_documents(**k)),
        lambda w: {"config": w.source, "split": "train", "ledger": Ledger("test")},
        {"config": OBJECT, "split": CHOICE, "ledger": OBJECT},
    ),
    Entry(
        "llm_trainer.data.vocabulary:build_tokenizer", lambda w: build_tokenizer,
        lambda w: {
            "raw": w.raw, "config": TokenizerConfig(300), "out": "data/tokens", "progress": False,
        },
        {
            "raw": OBJECT, "config": (*OBJECT, PackingConfig()), "out": (*NEW_FOLDER, "folder"),
            "progress": FLAG,
        },
    ),
    Entry(
        "llm_trainer.data:pack_corpus", lambda w: pack_corpus,
        lambda w: {
            "raw": w.raw, "tokenizer": w.tokenizer, "config": w.packing, "out": "data/rows",
            "num_workers": 1, "progress": False,
        },
        {
            "raw": OBJECT, "tokenizer": OBJECT, "config": (*OBJECT, TokenizerConfig()),
            "out": NEW_FOLDER, "num_workers": COUNT, "progress": FLAG, "engine": OBJECT,
        },
        cases=(
            (lambda w: {"tokenizer": w.untrained}, ("not trained", "train")),
            ({"config": PackingConfig(max_length=10**6)}, ("max_length", "1,000,000", "set")),
        ),
    ),
    Entry(
        "llm_trainer.data:PackedRows", lambda w: PackedRows,
        lambda w: {"path": "data/packed", "split": "train"},
        {
            "path": (*FOLDER, "data/raw"), "split": CHOICE, "verify": FLAG,
            "tokenizer_digest": (3, b"digest"),
        },
        cases=(({"tokenizer_digest": "0" * 64}, ("000000000000", "tokenizer", "run")),),
    ),
    *(
        Entry(
            f"llm_trainer.data:{home}.{name}", lambda w, of=of, name=name: getattr(of(w), name),
            lambda w, given=given: given, {next(iter(given)): values}, also=(IndexError,),
            called={"index": "indices"},
        )
        for home, of in {
            "PackedRows": lambda w: w.packed, "LanguageModelingDataset": lambda w: w.dataset,
        }.items()
        for name, given, values in (
            ("rows", {"indices": np.array([0])}, ROWS),
            ("segments", {"indices": np.array([0])}, ROWS),
            ("pieces", {"index": 0}, (None, "text", 1.5, -1, 10**6)),
            ("documents", {"index": 0}, (None, "text", 1.5, -1, 10**6)),
        )
    ),
    Entry(
        "llm_trainer.data:LanguageModelingDataset", lambda w: LanguageModelingDataset,
        lambda w: {"texts": TRAINED, "tokenizer": w.tokenizer, "max_length": 8},
        {
            "texts": (*TEXTS, b"bytes", ["\ud800"]), "tokenizer": OBJECT, "max_length": (*COUNT, 1),
            "pack_sequences": FLAG, "min_length": SIZE,
        },
        cases=(
            ({"texts": []}, ("no text", "0 texts", "give")),
            ({"texts": ["", ""]}, ("2 texts", "2 empty")),
            ({"min_length": 10**6}, ("min_length (1000000)",)),
            (lambda w: {"tokenizer": w.untrained}, ("not trained", "train")),
        ),
    ),
    Entry(
        "llm_trainer.data:LanguageModelingDataset.__getitem__", lambda w: w.dataset.__getitem__,
        lambda w: {"idx": 0}, {"idx": (None, "text", 1.5, 10**6, -(10**6))},
        also=(IndexError, TypeError),
    ),
    Entry(
        "llm_trainer.data:create_dataloader", lambda w: create_dataloader,
        lambda w: {"dataset": w.dataset, "batch_size": 2},
        {
            "dataset": (*OBJECT, iter([1])), "batch_size": (*COUNT, 10**6), "shuffle": FLAG,
            "num_workers": SIZE, "pin_memory": FLAG, "drop_last": FLAG, "seed": WHOLE[:-1],
            "timeout": (None, "long", NAN, INF, -1.0, 0.0),
        },
        cases=(({"dataset": []}, ("no rows",)),),
    ),
]  # fmt: skip


def _all(found: object) -> list[object]:
    return [found] if isinstance(found, int) else list(found)  # type: ignore[call-overload]
