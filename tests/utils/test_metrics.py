"""Metrics against closed forms, sacrebleu and naive counting."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from llm_trainer.data import LanguageModelingDataset
from llm_trainer.exceptions import DataError
from llm_trainer.utils.metrics import (
    compute_bleu_score,
    compute_diversity_metrics,
    compute_perplexity,
    compute_repetition_metrics,
    evaluate_generation_quality,
)
from tests.utils.tiny_text_model import TEXTS, tiny_text_model, tiny_tokenizer

# --------------------------------------------------------------------------- perplexity


def naive_perplexity(rows: list[Tensor]) -> float:
    """exp of the mean loss over all targets, row by row, token by token."""
    model = tiny_text_model()
    losses = torch.cat([model.token_losses(row[None])[0] for row in rows])
    return math.exp(losses.double().mean())


@pytest.mark.parametrize("pack", [True, False])
def test_perplexity_is_exact_at_any_batch_size(pack: bool) -> None:
    dataset = LanguageModelingDataset(TEXTS, tiny_tokenizer(), 24, pack_sequences=pack)
    rows = [item["input_ids"][item["attention_mask"].bool()] for item in dataset]
    assert len({len(row) for row in rows}) > 1, "rows of unequal length are what is tested"
    expected = naive_perplexity(rows)
    model = tiny_text_model().train()
    for batch_size in (1, 2, 5, 100):
        loader = DataLoader(dataset, batch_size=batch_size)
        assert compute_perplexity(model, loader, "cpu") == pytest.approx(expected, rel=1e-5)
    assert model.training
    assert torch.is_grad_enabled()


def test_perplexity_of_bare_ids_and_of_padding_on_either_side() -> None:
    torch.manual_seed(1)
    rows = [torch.randint(2, 300, (length,)) for length in (5, 9, 2)]
    expected = naive_perplexity(rows)
    assert compute_perplexity(tiny_text_model(), [r[None] for r in rows]) == pytest.approx(expected)
    for left in (True, False):
        ids, mask = torch.full((3, 9), 1), torch.zeros(3, 9, dtype=torch.long)
        for i, row in enumerate(rows):
            place = slice(9 - len(row), 9) if left else slice(0, len(row))
            ids[i, place], mask[i, place] = row, 1
        batch = {"input_ids": ids, "attention_mask": mask}
        assert compute_perplexity(tiny_text_model(), [batch], "cpu") == pytest.approx(expected)


def test_perplexity_of_labels() -> None:
    ids = torch.arange(20).view(2, 10)
    labels = ids.clone()
    labels[:, :6] = -100
    losses = tiny_text_model().token_losses(ids)[:, 5:]
    batch = {"input_ids": ids, "labels": labels}
    expected = math.exp(losses.double().mean())
    assert compute_perplexity(tiny_text_model(), [batch]) == pytest.approx(expected)


@pytest.mark.parametrize(("batches", "words"), [
    ([], "no batches"), ([torch.ones(2, 1, dtype=torch.long)], "1 batches without a target"),
    ([{"ids": torch.ones(1, 2)}], "without input_ids"),
])  # fmt: skip
def test_perplexity_of_nothing_is_an_error(batches: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        compute_perplexity(tiny_text_model(), batches, "cpu")


def test_a_diverged_model_has_a_finite_perplexity() -> None:
    model = tiny_text_model()
    model.head.weight.data *= 1e6
    assert compute_perplexity(model, [torch.arange(20).view(2, 10)]) <= math.exp(700)


# --------------------------------------------------------------------------- BLEU

PREDICTIONS = ["the cat sat on the mat today", "there is a dog in the garden", "short"]
REFERENCES = ["the cat sat on a mat today", "a dog is in the garden now", "a short one"]


def test_bleu_equals_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    expected = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score
    assert compute_bleu_score(PREDICTIONS, REFERENCES) == expected
    assert 0 < expected < 100
    assert compute_bleu_score(PREDICTIONS, [[one] for one in REFERENCES]) == expected
    assert compute_bleu_score(PREDICTIONS, PREDICTIONS) == pytest.approx(100)
    several = [[one, "another text"] for one in REFERENCES]
    more = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES, ["another text"] * 3]).score
    assert compute_bleu_score(PREDICTIONS, several) == more
    ragged = [[REFERENCES[0], PREDICTIONS[0]], [REFERENCES[1]], [REFERENCES[2]]]
    assert compute_bleu_score(PREDICTIONS, ragged) > expected


# --------------------------------------------------------------------------- texts


def test_diversity_by_hand() -> None:
    figures = compute_diversity_metrics(["a b a b", "a c"])
    assert figures["distinct_1"] == 3 / 6
    assert figures["distinct_2"] == 3 / 4  # ab ba ab | ac
    assert figures["distinct_3"] == 2 / 2
    assert figures["distinct_4"] == 1 / 1
    assert figures["vocabulary_size"] == 3
    assert figures["unique_texts"] == 1
    expected = -(3 / 6 * math.log2(3 / 6) + 2 / 6 * math.log2(2 / 6) + 1 / 6 * math.log2(1 / 6))
    assert figures["entropy_1"] == pytest.approx(expected)
    assert compute_diversity_metrics(["x", "x", "y", "x"])["unique_texts"] == 0.5


def test_repetition_by_hand() -> None:
    figures = compute_repetition_metrics(["a b a b a b", "c c c d"])
    assert figures["repetition_2"] == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert figures["repetition_3"] == pytest.approx((2 / 4 + 0) / 2)
    assert figures["repetition_4"] == pytest.approx((1 / 3 + 0) / 2)
    assert figures["repeated_words"] == pytest.approx((0 + 2 / 3) / 2)
    assert figures["longest_run"] == (1 + 3) / 2
    lines = compute_repetition_metrics(["one\n\ntwo\n  one\n\none\n"])
    assert lines["repeated_lines"] == 2 / 4


words = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)


@given(st.lists(words, min_size=1, max_size=5))
def test_figures_stay_in_their_range(texts: list[str]) -> None:
    diversity, repetition = compute_diversity_metrics(texts), compute_repetition_metrics(texts)
    for name, value in (diversity | repetition).items():
        assert value >= 0, name
        if name not in ("vocabulary_size", "longest_run", "entropy_1", "entropy_2"):
            assert value <= 1, name
    assert diversity["vocabulary_size"] == len({word for text in texts for word in text.split()})
    assert diversity["entropy_1"] <= math.log2(3) + 1e-9
    reversed_texts = compute_diversity_metrics(texts[::-1])
    assert reversed_texts["distinct_2"] == diversity["distinct_2"]


@pytest.mark.parametrize("texts", [[""], ["", "  \n"], ["word"]])
def test_texts_with_little_or_nothing_in_them(texts: list[str]) -> None:
    figures = evaluate_generation_quality(texts)
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["repetition_2"] == 0
    assert figures["distinct_2"] == 0


def test_quality_takes_both_spellings() -> None:
    expected = evaluate_generation_quality(PREDICTIONS, REFERENCES)
    assert expected == evaluate_generation_quality(
        generated_texts=PREDICTIONS, reference_texts=REFERENCES
    )
    assert expected == evaluate_generation_quality(PREDICTIONS, reference_texts=REFERENCES)
    parts = compute_diversity_metrics(PREDICTIONS) | compute_repetition_metrics(PREDICTIONS)
    assert expected == expected | parts
    assert expected["bleu"] == compute_bleu_score(PREDICTIONS, REFERENCES)
    assert 0 < expected["chrf"] < 100
    assert expected["mean_words"] == (7 + 7 + 1) / 3
    alone = evaluate_generation_quality(PREDICTIONS)
    assert "bleu" not in alone
    assert alone == {name: expected[name] for name in alone}


@pytest.mark.parametrize(("call", "message"), [
    (lambda: compute_diversity_metrics([]), "texts is empty"),
    (lambda: compute_repetition_metrics([]), "texts is empty"),
    (lambda: compute_diversity_metrics("text"), r"texts \('text'\) must be a list of texts"),
    (lambda: compute_repetition_metrics(["a", None]), "texts must be a list of texts"),
    (lambda: compute_bleu_score([], []), "predictions is empty"),
    (lambda: compute_bleu_score(["a"], ["a", "b"]), "2 references for 1 predictions"),
    (lambda: compute_bleu_score(["a"], "a"), "one text for 1 predictions"),
    (lambda: compute_bleu_score(["a"], [[]]), "references of prediction 0 is empty"),
    (lambda: evaluate_generation_quality(), "generated is missing"),
    (lambda: evaluate_generation_quality([]), "generated is empty"),
    (lambda: evaluate_generation_quality(["a"], generated_texts=["a"]), "the same argument"),
    (lambda: evaluate_generation_quality(["a"], ["a", "b"]), "2 references"),
])  # fmt: skip
def test_nonsense_is_named(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
