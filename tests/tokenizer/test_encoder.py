"""FastEncoder: the ids of `tokenizers`, by `tiktoken`; and what happens where that cannot be."""

from __future__ import annotations

import json
import logging
import pickle
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.exceptions import TokenizerError, TokenizerNotTrainedException
from llm_trainer.tokenizer import BPETokenizer, FastEncoder
from llm_trainer.tokenizer.definition import parse_definition
from llm_trainer.tokenizer.patterns import PIECE_CHARS
from llm_trainer.tokenizer.storage import END_TOKEN, Stored
from tests.tokenizer.texts import CORPUS, HARD, library_files, nasty


@pytest.fixture(scope="module")
def encoder(tokenizer: BPETokenizer) -> FastEncoder:
    found = FastEncoder(tokenizer)
    assert found.engine == "tiktoken"
    found.encode("x" * 2**16)  # past the comparison at the start
    return found


def slow(tokenizer: BPETokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def changed(tokenizer: BPETokenizer, change) -> BPETokenizer:  # type: ignore[no-untyped-def]
    """A tokenizer with another tokenizer.json."""
    value = json.loads(tokenizer.definition.text)
    change(value)
    result = BPETokenizer()
    result._set(Stored(parse_definition(value, "changed"), END_TOKEN, END_TOKEN))
    return result


# --------------------------------------------------------------------------- equal ids


@pytest.mark.parametrize("text", HARD)
def test_hard_texts(tokenizer: BPETokenizer, encoder: FastEncoder, text: str) -> None:
    ids = encoder.encode(text)
    assert (ids.dtype, ids.ndim) == (np.dtype(np.uint32), 1)
    assert ids.tolist() == slow(tokenizer, text)


@settings(max_examples=600)
@given(text=nasty)
def test_random_texts(tokenizer: BPETokenizer, encoder: FastEncoder, text: str) -> None:
    assert encoder.encode(text).tolist() == slow(tokenizer, text)


@settings(max_examples=150)
@given(
    text=st.lists(
        st.tuples(
            st.sampled_from(["a", " ", "\n", "é", "-", "0", "ab", "\t", "日"]), st.integers(1, 300)
        )
    ).map(lambda runs: "".join(unit * times for unit, times in runs))
)
def test_long_runs(tokenizer: BPETokenizer, encoder: FastEncoder, text: str) -> None:
    assert encoder.encode(text).tolist() == slow(tokenizer, text)


def test_every_source_file_of_a_sample(tokenizer: BPETokenizer, encoder: FastEncoder) -> None:
    texts = library_files(40)
    assert len(texts) > 30
    for text, ids in zip(texts, encoder.encode_batch(texts), strict=True):
        assert ids.tolist() == slow(tokenizer, text)


def test_control_tokens_are_never_made(encoder: FastEncoder) -> None:
    ids = encoder.encode("<|endoftext|> <|pad|><|endoftext|>")
    assert not set(ids.tolist()) & {0, 1}


def test_small_vocabularies() -> None:
    """Vocabularies of few letters have deep merges, where rules for ties matter most."""
    rng = random.Random(3)
    for seed in range(16):
        letters = "ab" if seed % 2 else "abc '\n"
        texts = ["".join(rng.choices(letters, k=400)) for _ in range(10)]
        tokenizer = BPETokenizer()
        tokenizer.train(texts, 258 + rng.randint(1, 60), pattern=rng.choice(["gpt2", "gpt4"]))
        encoder = FastEncoder(tokenizer)
        assert encoder.engine == "tiktoken"
        for _ in range(50):
            text = "".join(rng.choices(letters, k=rng.randint(0, 60)))
            assert encoder.encode(text).tolist() == slow(tokenizer, text)


# --------------------------------------------------------------------------- large and bad input


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", " \n", "-", "1", "é", "日", "\x00", "aB3", "= \t", "\u3000"]
)
def test_a_lot_of_one_thing(unit: str, tokenizer: BPETokenizer, encoder: FastEncoder) -> None:
    """Quadratic merging or a stack overflow would show here."""
    text = unit * (150_000 // len(unit.encode())) + "x"
    started = time.perf_counter()
    ids = encoder.encode(text)
    assert time.perf_counter() - started < 10
    assert encoder.engine == "tiktoken"
    assert ids.tolist() == slow(tokenizer, text)


def test_a_document_beyond_the_stack_goes_the_slow_way(
    gpt4: BPETokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = FastEncoder(gpt4)
    text = "start " + " " * 1_500_000 + "end"
    with caplog.at_level(logging.WARNING):
        assert encoder.encode(text).tolist() == slow(gpt4, text)
    assert encoder.engine == "tiktoken"  # for the next document
    assert not caplog.records


def test_random_bytes_as_text(tokenizer: BPETokenizer, encoder: FastEncoder) -> None:
    data = random.Random(1).randbytes(60_000)
    for text in (data.decode("latin-1"), data.decode("utf-8", "replace")):
        assert encoder.encode(text).tolist() == slow(tokenizer, text)


@pytest.mark.parametrize("engine", ["auto", "tokenizers"])
def test_long_documents_in_pieces(gpt4: BPETokenizer, engine) -> None:  # type: ignore[no-untyped-def]
    text = "".join(library_files(60))
    text = (text * (1 + 2 * PIECE_CHARS // len(text)))[: PIECE_CHARS + 50_000]
    encoder = FastEncoder(gpt4, engine=engine)
    assert encoder.encode(text).tolist() == slow(gpt4, text)


@pytest.mark.parametrize("engine", ["auto", "tokenizers"])
def test_what_is_no_text(gpt4: BPETokenizer, engine) -> None:  # type: ignore[no-untyped-def]
    encoder = FastEncoder(gpt4, engine=engine)
    with pytest.raises(TokenizerError, match=r"U\+D800 at character 3"):
        encoder.encode("abc\ud800")
    with pytest.raises(TokenizerError, match="found bytes"):
        encoder.encode(b"abc")  # type: ignore[arg-type]


def test_untrained() -> None:
    with pytest.raises(TokenizerNotTrainedException):
        FastEncoder(BPETokenizer())


# --------------------------------------------------------------------------- when not to use it


def unmerge(value) -> None:  # type: ignore[no-untyped-def]
    """The token of the last merge stays, without a merge that makes it."""
    del value["model"]["merges"][-1]


def merge_twice(value) -> None:  # type: ignore[no-untyped-def]
    """Two ways to make one token."""
    merges, vocab = value["model"]["merges"], value["model"]["vocab"]
    left, right = next(m.split(" ") for m in reversed(merges) if len(m.split(" ")[1]) > 1)
    other = f"{left}{right[0]} {right[1:]}"
    vocab[left + right[0]] = vocab.get(left + right[0], len(vocab))
    vocab[right[1:]] = vocab.get(right[1:], len(vocab))
    merges.append(other)


def unreachable(value) -> None:  # type: ignore[no-untyped-def]
    """A merge whose parts are merged otherwise before: `e r` comes first, so `te r` never comes."""
    merges, vocab = value["model"]["merges"], value["model"]["vocab"]
    merges.clear()
    for token in [t for t, i in vocab.items() if i >= 258]:
        del vocab[token]
    for left, right in [("e", "r"), ("t", "e"), ("te", "r")]:
        merges.append(f"{left} {right}")
        vocab[left + right] = len(vocab)


def reorder(value) -> None:  # type: ignore[no-untyped-def]
    value["model"]["merges"].reverse()


def other_pattern(value) -> None:  # type: ignore[no-untyped-def]
    value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s?\S+|\s+"


def take_whole(value) -> None:  # type: ignore[no-untyped-def]
    value["model"]["ignore_merges"] = True


def add_literal(value) -> None:  # type: ignore[no-untyped-def]
    content = {"content": "hello there", "id": len(value["model"]["vocab"]), "special": False}
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    value["added_tokens"].append({**content, **flags})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unmerge, "no merge makes"),
        (merge_twice, "make the same token"),
        (unreachable, "cannot be reached"),
        (reorder, "not in the order"),
        (other_pattern, "cuts words"),
        (take_whole, "words whole"),
        (add_literal, "added tokens"),
    ],
)
def test_vocabularies_without_proof(
    gpt4: BPETokenizer,
    change,  # type: ignore[no-untyped-def]
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = changed(gpt4, change)
    with caplog.at_level(logging.WARNING):
        encoder = FastEncoder(tokenizer)
        for text in [*CORPUS, "water hello there"]:
            assert encoder.encode(text).tolist() == slow(tokenizer, text)
            assert tokenizer.decode(encoder.encode(text)) == text
    assert encoder.engine == "tokenizers"
    (record,) = caplog.records
    assert reason in record.getMessage()


def test_the_proof_is_needed(gpt4: BPETokenizer) -> None:
    """Without the check of reachability the engines would differ: the check is not idle."""
    from llm_trainer.tokenizer.encoder import _build

    tokenizer = changed(gpt4, unreachable)
    fast = _build(tokenizer.definition).encode_ordinary("ter")
    assert fast != slow(tokenizer, "ter")


def test_a_difference_is_noticed_in_the_first_texts(
    gpt4: BPETokenizer, gpt2: BPETokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """As if a library had a fault: the engine of another vocabulary."""
    encoder = FastEncoder(gpt4)
    encoder._encoding = FastEncoder(gpt2)._encoding
    texts = CORPUS * 3
    with caplog.at_level(logging.WARNING):
        found = encoder.encode_batch(texts)
    assert encoder.engine == "tokenizers"
    assert [ids.tolist() for ids in found] == [slow(gpt4, text) for text in texts]
    (record,) = caplog.records
    assert "different ids" in record.getMessage()


def test_engine_by_choice_and_in_copies(gpt4: BPETokenizer) -> None:
    chosen = FastEncoder(gpt4, engine="tokenizers")
    for encoder in (FastEncoder(gpt4), chosen):
        copy = pickle.loads(pickle.dumps(encoder))
        assert copy.engine == encoder.engine
        assert copy.encode(CORPUS[0]).tolist() == slow(gpt4, CORPUS[0])


def test_it_is_faster(gpt4: BPETokenizer) -> None:
    texts = library_files(30)
    times = []
    for engine in ("tiktoken", "tokenizers"):
        encoder = FastEncoder(gpt4, engine=engine)  # type: ignore[arg-type]
        encoder.encode("x" * 2**16)
        started = time.process_time()
        encoder.encode_batch(texts)
        times.append(time.process_time() - started)
    assert times[0] * 1.5 < times[1]  # 3 to 4 times on an idle machine
