"""BPETokenizer: the API, losslessness, control ids, determinism."""

from __future__ import annotations

import inspect
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from llm_trainer.exceptions import TokenizerError, TokenizerNotTrainedException
from llm_trainer.tokenizer import BPETokenizer
from pipeline.worker import die_with_parent
from tests.hub_server import HubServer
from tests.test_layers import ROOT
from tests.tokenizer.texts import CORPUS, HARD, library_files, nasty

# --------------------------------------------------------------------------- before training


def test_untrained() -> None:
    tokenizer = BPETokenizer()
    assert (tokenizer.vocab, tokenizer.vocab_size, len(tokenizer)) == ({}, 0, 0)
    assert tokenizer.special_tokens == []
    assert not tokenizer.is_trained
    assert repr(tokenizer) == "BPETokenizer(untrained)"
    assert pickle.loads(pickle.dumps(tokenizer)).vocab_size == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t.encode("x"),
        lambda t: t.encode_batch(["x"]),
        lambda t: t.decode([1]),
        lambda t: t.save_pretrained("/nowhere"),
        lambda t: t.get_vocab_stats(),
        lambda t: t.token_bytes(),
        lambda t: t.end_id,
        lambda t: t.pad_id,
        lambda t: t.digest,
    ],
)
def test_untrained_cannot_be_used(use) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TokenizerNotTrainedException, match="call train"):
        use(BPETokenizer())


def test_signatures() -> None:
    train = inspect.signature(BPETokenizer.train).parameters
    assert list(train)[:3] == ["self", "texts", "vocab_size"]
    assert train["vocab_size"].default == 50000
    dataset = inspect.signature(BPETokenizer.train_from_dataset).parameters
    assert list(dataset)[:3] == ["self", "dataset_name", "vocab_size"]
    assert dataset["vocab_size"].default == 50000
    assert all(p.kind is not p.VAR_KEYWORD for p in dataset.values())
    assert inspect.signature(BPETokenizer.encode).parameters["add_special_tokens"].default is True
    assert inspect.signature(BPETokenizer.decode).parameters["skip_special_tokens"].default is True


# --------------------------------------------------------------------------- text and back


def test_ids_and_special_tokens(tokenizer: BPETokenizer) -> None:
    assert tokenizer.special_tokens == ["<|endoftext|>", "<|pad|>"]
    assert (tokenizer.end_id, tokenizer.pad_id) == (0, 1)
    assert tokenizer.vocab_size == len(tokenizer) == len(tokenizer.vocab) == 1500
    assert sorted(tokenizer.vocab.values()) == list(range(1500))
    assert list(tokenizer.vocab.values()) == list(range(1500))
    ids = tokenizer.encode("Hello world!")
    assert ids[-1] == tokenizer.end_id
    assert ids[:-1] == tokenizer.encode("Hello world!", add_special_tokens=False)
    assert tokenizer.decode(ids) == "Hello world!"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "Hello world!<|endoftext|>"


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back(tokenizer: BPETokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=600)
@given(text=nasty)
def test_any_text_comes_back_and_holds_no_control_id(tokenizer: BPETokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert min(ids, default=2) >= 2


def test_all_planes_come_back(gpt4: BPETokenizer) -> None:
    points = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 31)]
    text = "".join(map(chr, points))
    for start in range(0, len(text), 2**16):
        part = text[start : start + 2**16]
        assert gpt4.decode(gpt4.encode(part)) == part


def test_spelling_of_control_tokens_is_plain_text(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    hostile = "<|endoftext|><|pad|> a<|endoftext|>\n<|pad|>"
    tokenizer.save_pretrained(tmp_path / "saved")
    copies = [
        tokenizer,
        BPETokenizer.from_pretrained(tmp_path / "saved"),
        pickle.loads(pickle.dumps(tokenizer)),
        pickle.loads(pickle.dumps(BPETokenizer.from_pretrained(tmp_path / "saved"))),
    ]
    for copy in copies:
        ids = copy.encode(hostile, add_special_tokens=False)
        assert not set(ids) & {0, 1}
        assert copy.decode(ids) == hostile
        assert not set(copy.encode_batch([hostile])[0].tolist()) & {0, 1}


def test_batch_is_each_text(tokenizer: BPETokenizer) -> None:
    arrays = tokenizer.encode_batch(HARD)
    assert [array.tolist() for array in arrays] == [
        tokenizer.encode(text, add_special_tokens=False) for text in HARD
    ]
    assert {array.dtype for array in arrays} == {np.dtype(np.uint32)}
    assert tokenizer.encode_batch([]) == []


def test_decode_takes_arrays_tensors_and_single_ids(gpt4: BPETokenizer) -> None:
    ids = gpt4.encode("some text")
    for form in (ids, tuple(ids), np.array(ids, np.uint16), torch.tensor(ids), iter(ids)):
        assert gpt4.decode(list(form) if not hasattr(form, "__len__") else form) == "some text"
    assert gpt4.decode(ids[0]) == gpt4.decode([ids[0]])  # type: ignore[arg-type]
    assert gpt4.decode([]) == ""


def test_decode_of_half_a_character(gpt4: BPETokenizer) -> None:
    ids = gpt4.encode("\U0001f9ff", add_special_tokens=False)
    assert len(ids) > 1
    assert "\ufffd" in gpt4.decode(ids[:-1])


@pytest.mark.parametrize("ids", [[1500], [-1], [2**40], [5, 99999], [1.5], ["a"], [[1, 2]], None])
def test_ids_outside_the_vocabulary(gpt4: BPETokenizer, ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match="token"):
        gpt4.decode(ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab\ud800c", r"U\+D800 at character 2"),
        ("\udfff", r"U\+DFFF at character 0"),
        (b"bytes", "found bytes"),
        (None, "found NoneType"),
    ],
)
def test_what_is_no_text(gpt4: BPETokenizer, text: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        gpt4.encode(text)
    with pytest.raises(TokenizerError, match=f"text 1: .*{message}"):
        gpt4.encode_batch(["fine", text])
    with pytest.raises(TokenizerError, match=f"text 1: .*{message}"):
        BPETokenizer().train(["fine", text], 300)


# --------------------------------------------------------------------------- training


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], iter(())])
def test_no_text(texts: list[str]) -> None:
    tokenizer = BPETokenizer()
    with pytest.raises(TokenizerError, match="no text"):
        tokenizer.train(texts, 300)
    assert not tokenizer.is_trained


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 256}, r"vocab_size \(256\) must be a whole number from 257"),
        ({"min_frequency": 0}, r"min_frequency \(0\)"),
        ({"pattern": "gpt3"}, r"pattern \('gpt3'\) must be one of gpt2, gpt4"),
        ({"texts": "one string"}, "single string"),
    ],
)
def test_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        BPETokenizer().train(**{"texts": CORPUS, "vocab_size": 300, **settings})  # type: ignore[arg-type]


def test_an_error_of_the_caller_comes_through() -> None:
    def texts():  # type: ignore[no-untyped-def]
        yield "some text"
        raise KeyError("the caller's")

    with pytest.raises(KeyError, match="the caller's"):
        BPETokenizer().train(texts(), 300)


def test_a_vocabulary_that_the_text_cannot_fill(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = BPETokenizer()
    with caplog.at_level(logging.WARNING):
        tokenizer.train(["abab abab"], 50000)
    (record,) = caplog.records
    assert f"{tokenizer.vocab_size:,}" in record.getMessage()
    assert "50,000" in record.getMessage()
    assert tokenizer.vocab_size == len(tokenizer.vocab) == 258 + 2


def test_smallest_vocabularies() -> None:
    smallest, with_pad = BPETokenizer(), BPETokenizer()
    smallest.train(["aa"], 257)
    with_pad.train(["aa"], 258)
    assert (smallest.end_id, smallest.pad_id, smallest.special_tokens) == (0, 0, ["<|endoftext|>"])
    assert (with_pad.end_id, with_pad.pad_id, with_pad.vocab_size) == (0, 1, 258)
    for tokenizer in (smallest, with_pad):
        text = "anything at all: 日本 🙂\x00"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text)) == len(text.encode()) + 1


def test_training_again_forgets() -> None:
    tokenizer = BPETokenizer()
    tokenizer.train(["abab " * 9], 260)
    first = tokenizer.digest
    tokenizer.train(["xyxy " * 9], 260)
    assert tokenizer.digest != first
    again = BPETokenizer()
    again.train(["xyxy " * 9], 260)
    assert again.digest == tokenizer.digest


def test_long_words_do_not_hold_training_up() -> None:
    """Merging within a word is quadratic in its length: this took an hour uncut."""
    started = time.perf_counter()
    word = "".join(chr(97 + (i * i + i // 7) % 26) for i in range(2_000_000))
    tokenizer = BPETokenizer()
    tokenizer.train([word, " " * 1_000_000, "normal text here\n" * 10], 600)
    assert time.perf_counter() - started < 20
    assert tokenizer.vocab_size == 600
    assert max(tokenizer.token_bytes()) <= 256


def test_long_texts_are_trained_as_their_pieces() -> None:
    lines = [f"line {i}: some words and {i * i} numbers\n" for i in range(60_000)]
    whole, pieces = BPETokenizer(), BPETokenizer()
    whole.train(["".join(lines)], 700)  # 2 MB: cut where words end
    pieces.train(lines, 700)
    assert whole.digest == pieces.digest


def test_same_bytes_for_any_number_of_threads_and_any_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys; from llm_trainer.tokenizer import BPETokenizer as T; "
        "from tests.tokenizer.texts import CORPUS, library_files; "
        "t = T(); t.train(CORPUS + library_files(40), 900); t.save_pretrained(sys.argv[1])"
    )
    found = set()
    for run, (threads, seed) in enumerate([("1", "0"), ("2", "1"), ("7", "2")]):
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / str(run))],
            check=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        files = sorted((tmp_path / str(run)).iterdir())
        found.add(tuple((file.name, file.read_bytes()) for file in files))
    assert len(found) == 1


def test_golden_merges() -> None:
    """What a release of `tokenizers` must not change: merges, ids and digest."""
    tokenizer = BPETokenizer()
    tokenizer.train(["low lower lowest newer newest wider\n" * 5], 266)
    assert tokenizer.definition.merges == [
        ("w", "e"), ("l", "o"), ("e", "we"), ("n", "ewe"), ("s", "t"), ("Ġ", "lo"), ("Ġ", "newe"),
        ("Ġlo", "we"),
    ]  # fmt: skip
    assert tokenizer.encode("lowest", add_special_tokens=False) == [259, 258, 262]
    assert tokenizer.digest == "24d5ec3bb5a1aaffcf9e97ff5c2f702a70b51f010dc92d55fb5f41f3e7a2b25f"


# --------------------------------------------------------------------------- other processes


def _ids(tokenizer: BPETokenizer, text: str) -> list[int]:
    return tokenizer.encode(text) + tokenizer.encode_batch([text, text])[1].tolist()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_worker_processes(gpt4: BPETokenizer, method: str) -> None:
    with multiprocessing.get_context(method).Pool(2, die_with_parent) as pool:
        texts = HARD[:20]
        found = pool.starmap_async(_ids, [(gpt4, text) for text in texts]).get(timeout=60)
    assert found == [_ids(gpt4, text) for text in texts]


def test_a_fork_after_training_prints_nothing_and_keeps_the_parents_threads() -> None:
    code = """
import os
from llm_trainer.tokenizer import BPETokenizer
t = BPETokenizer()
t.train(["some text to learn from " * 50] * 200, 270)
for _ in range(2):
    child = os.fork()
    if child == 0:
        t.encode_batch(["a b c"] * 100)
        os._exit(os.environ["TOKENIZERS_PARALLELISM"] != "false")
    assert os.waitpid(child, 0)[1] == 0
assert "TOKENIZERS_PARALLELISM" not in os.environ
t.encode_batch(["a b c"] * 100)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --------------------------------------------------------------------------- data sets


def test_train_from_the_standard_library() -> None:
    tokenizer = BPETokenizer()
    tokenizer.train_from_dataset("python-stdlib", vocab_size=400, max_documents=25)
    assert tokenizer.vocab_size == 400
    assert " self" in {v.decode(errors="replace") for v in tokenizer.definition.token_values()}


def test_train_from_a_hub_data_set_by_its_old_name(tmp_path: Path) -> None:
    """`datasets` reads its environment once, so in a process of its own."""
    lines = [
        json.dumps({"text": f"a story about number {n} and its friends\n"}) for n in range(200)
    ]
    files = {"train.jsonl": "\n".join(lines).encode()}
    code = (
        "from llm_trainer.tokenizer import BPETokenizer as T; t = T(); "
        "t.train_from_dataset('TinyStories', 280, streaming=True, max_documents=150); "
        "print(t.vocab_size, t.encode(' story', add_special_tokens=False))"
    )
    with HubServer({"roneneldan/TinyStories": files}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, env={**os.environ, **hub.environment(tmp_path)},
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    size, _, ids = done.stdout.strip().partition(" ")
    assert size == "280"
    assert len(json.loads(ids)) < 4  # six letters: merges were learned


# --------------------------------------------------------------------------- statistics


def test_vocabulary_statistics(gpt4: BPETokenizer) -> None:
    stats = gpt4.get_vocab_stats()
    lengths = gpt4.token_bytes()
    assert stats["vocab_size"] == 1500
    assert stats["special_tokens"] == 2
    assert stats["byte_tokens"] == 256
    assert stats["merges"] == 1500 - 258
    assert stats["max_token_bytes"] == lengths.max() == len(stats["longest_token"].encode())
    assert stats["mean_token_bytes"] == pytest.approx(lengths[2:].mean(), abs=1e-3)
    values = gpt4.definition.token_values()
    assert stats["whitespace_tokens"] == sum(bool(v) and not v.strip() for v in values)
    assert stats["incomplete_tokens"] >= 128  # the bytes that are no character by themselves
    json.dumps(stats)


def test_token_bytes_add_up(tokenizer: BPETokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int64
    assert lengths[:2].tolist() == [0, 0]
    assert lengths[2:].min() == 1
    for text in library_files(15):
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())
