"""The leak report finds what was planted, agrees with brute force, and costs little memory."""

from __future__ import annotations

import itertools
import random
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.utils.leakage import find_leaks
from llm_trainer.utils.shingles import NUM_WORDS, NormalisedText

Doc = namedtuple("Doc", "text source")


def words(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(count)]


def report(validation, train, **options):
    return find_leaks(lambda: iter(validation), iter(train), **options)


def fixture_corpus():
    validation = [Doc(" ".join(words(k, 200)), f"v{k}") for k in range(6)]
    train = [Doc(" ".join(words(100 + k, 300)), f"t{k}") for k in range(20)]
    return validation, train


def test_planted_duplicates_are_found_and_nothing_else():
    validation, train = fixture_corpus()
    same = validation[1].text.upper().replace(" ", "\n\t ")
    changed = validation[2].text.split()
    changed[100] = "different"  # 5 of about 196 shingles change: Jaccard 191 / 201
    train.insert(7, Doc(same, "copy"))
    train.append(Doc(" ".join(changed), "edited"))
    train.append(Doc(validation[3].text + " " + " ".join(words(999, 2000)), "swallowed"))
    found = report(validation, train, threshold=0.8)
    assert [(p.validation, p.train, p.equal) for p in found.pairs] == [
        ("v1", "copy", True),
        ("v2", "edited", False),
    ]
    assert found.pairs[0].similarity == 1.0
    assert found.pairs[1].similarity == 191 / 201
    assert (found.equal, found.near, found.documents, found.train_documents) == (1, 1, 6, 23)
    shared = len(validation[1].text) + len(validation[2].text)
    assert found.shared_bytes == shared
    assert found.shared_share == shared / sum(len(doc.text) for doc in validation)
    # v1 and v3 occur whole in train, v2 but for 5 of its shingles
    assert found.ngram_overlap == pytest.approx((196 + 196 + 191) / (6 * 196))
    assert found.to_dict()["leak_equal_documents"] == 1


def test_unrelated_corpora_share_nothing():
    validation, train = fixture_corpus()
    found = report(validation, train)
    assert (found.equal, found.near, found.shared_bytes, found.ngram_overlap) == (0, 0, 0, 0.0)
    assert found.pairs == ()


def test_an_equal_document_is_equal_although_a_near_one_came_first():
    validation, train = fixture_corpus()
    near = validation[0].text + " one more"
    train = [Doc(near, "near"), *train, Doc(validation[0].text, "same")]
    pair = report(validation, train).pairs[0]
    assert (pair.train, pair.equal) == ("same", True)


def brute_force(validation, train, threshold):
    def grams(text):
        units = text.lower().split()
        if not units:
            return set()
        return {tuple(units[k : k + NUM_WORDS]) for k in range(max(1, len(units) - NUM_WORDS + 1))}

    found = {}
    for doc, other in itertools.product(validation, train):
        left, right = grams(doc.text), grams(other.text)
        if left and right:
            similarity = len(left & right) / len(left | right)
            if similarity >= threshold and doc.source not in found:
                found[doc.source] = (other.source, similarity)
    return found


texts = st.lists(st.sampled_from(["a", "b", "C", "if", "x1"]), max_size=14).map(" ".join)


@given(
    validation=st.lists(texts, max_size=6), train=st.lists(texts, max_size=8),
    threshold=st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_agrees_with_brute_force(validation, train, threshold):
    validation = [Doc(text, f"v{k}") for k, text in enumerate(validation)]
    train = [Doc(text, f"t{k}") for k, text in enumerate(train)]
    found = {
        pair.validation: (pair.train, pair.similarity)
        for pair in report(validation, train, threshold=threshold).pairs
    }
    expected = brute_force(validation, train, threshold)
    assert found.keys() == expected.keys()
    for source, (other, similarity) in expected.items():
        if found[source][1] != 1.0:  # an equal text is preferred to the first similar one
            assert found[source] == (other, pytest.approx(similarity))


def test_a_common_header_makes_no_pairs_and_no_quadratic_work():
    header = " ".join(words(1, 80))
    validation = [Doc(header + " " + " ".join(words(k, 120)), f"v{k}") for k in range(300)]
    train = [Doc(header + " " + " ".join(words(5000 + k, 120)), f"t{k}") for k in range(300)]
    found = report(validation, train, threshold=0.8)
    assert found.pairs == ()
    assert 0 < found.ngram_overlap < 0.1
    assert report(validation, train, threshold=0.2).near == 300


def test_more_validation_than_the_limit_is_sampled_and_said():
    validation, train = fixture_corpus()
    size = len(validation[0].text)
    found = report(validation, [*train, *validation], max_validation_bytes=3 * size + size // 2)
    assert 0 < found.documents < 6
    assert found.documents + found.skipped_documents == 6
    assert found.equal == found.documents
    again = report(
        validation[::-1], [*train, *validation], max_validation_bytes=3 * size + size // 2
    )
    assert {p.validation for p in again.pairs} == {p.validation for p in found.pairs}


def test_empty_sides():
    validation, train = fixture_corpus()
    assert report([], train).to_dict()["leak_bytes_share"] == 0.0
    assert report(validation, []).pairs == ()
    assert report([Doc(" \n", "blank")], [Doc("", "empty")]).pairs == ()


def test_shingles_are_distinct_stable_and_blind_to_case_and_space():
    text = "The quick brown fox jumps over the lazy dog"
    first = NormalisedText(text)
    second = NormalisedText(text.upper().replace(" ", " \n "))
    assert first.digest == second.digest
    assert np.array_equal(first.shingles(), second.shingles())
    assert len(first.shingles()) == 9 - NUM_WORDS + 1
    # pinned: another value would change reports between versions without a word
    assert first.shingles()[0] == np.uint64(252765828523057954)


def test_text_without_spaces_is_taken_by_characters():
    first = "我们提出了一种新的简单网络架构" * 4
    changed = first.replace("简单", "复杂", 1)
    train = [Doc(changed, "t")]
    pair = report([Doc(first, "v")], train, threshold=0.5).pairs[0]
    assert 0.5 <= pair.similarity < 1
