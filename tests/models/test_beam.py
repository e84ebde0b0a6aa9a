"""Beam search against Hugging Face's, against an exhaustive search, and against greedy."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_trainer.models import TransformerLM
from llm_trainer.models.beam import beam_search
from llm_trainer.models.decoding import GenerationConfig, continue_prompts
from llm_trainer.models.request import PromptBatch
from llm_trainer.models.runner import CachedRunner
from tests.models.twin import tiny_model, twin

PROMPTS = torch.randint(1, 50, (4, 6), generator=torch.Generator().manual_seed(5))


def greedy(model: TransformerLM, **settings: Any) -> Tensor:
    return model.generate(PROMPTS, max_new_tokens=20, do_sample=False, **settings)


# --------------------------------------------------------------------------- transformers


def end_that_occurs(model: TransformerLM) -> int:
    """A token that greedy continuations reach, so that hypotheses really finish early."""
    values, counts = greedy(model)[:, 9:].unique(return_counts=True)
    return int(values[counts.argmax()])


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_results_equal_transformers(early_stopping: bool | str, length_penalty: float) -> None:
    ended = 0
    for seed, beams in ((0, 4), (1, 2), (2, 5)):
        ours = tiny_model(seed)
        theirs = twin(ours)
        end_id = end_that_occurs(ours)
        settings: dict[str, Any] = {
            "max_new_tokens": 20, "num_beams": beams, "do_sample": False,
            "length_penalty": length_penalty, "early_stopping": early_stopping,
        }  # fmt: skip
        expected = theirs.generate(
            PROMPTS, eos_token_id=end_id, pad_token_id=49, return_dict_in_generate=True,
            output_scores=True, **settings,
        )  # fmt: skip
        out = continue_prompts(
            ours, PROMPTS, None, GenerationConfig(end_id=end_id, pad_id=49, **settings)
        )
        assert torch.equal(torch.cat((PROMPTS, out.ids), dim=1), expected.sequences)
        torch.testing.assert_close(
            torch.tensor(out.scores), expected.sequences_scores, atol=1e-4, rtol=1e-4
        )
        ended += out.reasons.count("end")
    assert ended or length_penalty == 2.0, "hypotheses that end early are what is tested"


def test_repetition_penalty_and_padding_equal_transformers() -> None:
    ours = tiny_model()
    theirs = twin(ours)
    ids, mask = PROMPTS.clone(), torch.ones_like(PROMPTS)
    # the padding is a token that the rows have anyway: theirs penalises it, ours does not
    ids[0, :3], mask[0, :3] = ids[0, 5], 0
    ids[2, :1], mask[2, :1] = ids[2, 5], 0
    settings = {"max_new_tokens": 20, "num_beams": 3, "do_sample": False, "repetition_penalty": 1.4}
    expected = theirs.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(ours.generate(ids, attention_mask=mask, **settings), expected)


# --------------------------------------------------------------------------- exhaustive


class Markov:
    """A runner whose next-token logits depend on the last token only."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, copies: int) -> Tensor:
        return self.table[input_ids[:, -1].repeat_interleave(copies)]

    def step(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]

    def reorder(self, rows: Tensor) -> None:
        pass


def all_hypotheses(
    table: Tensor, first: int, end_id: int, length: int, penalty: float
) -> list[tuple[float, list[int]]]:
    """Every text that ends, or is `length` long, with its normalised score; best first."""
    log_probabilities = table.log_softmax(-1)
    found: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(range(table.shape[0]), repeat=length):
        kept = tokens[: tokens.index(end_id) + 1] if end_id in tokens else tokens
        score = sum(float(log_probabilities[a, b]) for a, b in itertools.pairwise((first, *kept)))
        found[kept] = score / len(kept) ** penalty
    return sorted(((score, list(kept)) for kept, score in found.items()), reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(8))
def test_a_wide_beam_finds_the_best_of_all(seed: int, penalty: float) -> None:
    """With as many beams as there are texts nothing is pruned."""
    table = 2 * torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
    best_score, best = all_hypotheses(table, first=1, end_id=0, length=4, penalty=penalty)[0]
    config = GenerationConfig(num_beams=128, length_penalty=penalty, early_stopping="never")
    batch = PromptBatch(torch.tensor([[1]]), None, [0], [4])
    out = beam_search(Markov(table), batch, config, None, end_id=0, pad_id=0)
    assert out.scores == [pytest.approx(best_score, abs=1e-5)]
    assert out.ids[0, : out.lengths[0]].tolist() == best


def test_rows_have_limits_of_their_own() -> None:
    table = 2 * torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    config = GenerationConfig(num_beams=3)
    both = PromptBatch(torch.tensor([[1], [2]]), None, [0, 1], [3, 6])
    out = beam_search(Markov(table), both, config, None, end_id=None, pad_id=4)
    assert out.lengths == [3, 6]
    for row, (start, limit) in enumerate(((1, 3), (2, 6))):
        one = PromptBatch(torch.tensor([[start]]), None, [0], [limit])
        alone = beam_search(Markov(table), one, config, None, end_id=None, pad_id=4)
        assert out.ids[row, :limit].tolist() == alone.ids[0].tolist()
        assert out.scores is not None
        assert alone.scores == [out.scores[row]]
    assert out.ids[0, 3:].tolist() == [4, 4, 4]


# --------------------------------------------------------------------------- greedy, draws


@pytest.mark.parametrize("end", [False, True])
def test_a_beam_of_one_is_greedy(end: bool) -> None:
    """Ending at once, as greedy does; otherwise a beam tries what lies beyond an early end."""
    model = tiny_model()
    end_id = end_that_occurs(model) if end else None
    config = GenerationConfig(max_new_tokens=20, temperature=0, end_id=end_id, early_stopping=True)
    expected = continue_prompts(model, PROMPTS, None, config)
    batch = PromptBatch(PROMPTS, None, list(range(4)), [20] * 4)
    with torch.no_grad():
        out = beam_search(
            CachedRunner(model, 20), batch, config, None, end_id=end_id, pad_id=end_id or 0
        )
    assert torch.equal(out.ids, expected.ids)
    assert (out.lengths, out.reasons) == (expected.lengths, expected.reasons)


def test_more_beams_find_better_texts() -> None:
    model = tiny_model()
    means = []
    for beams in (1, 2, 8, 32):
        config = GenerationConfig(max_new_tokens=12, num_beams=beams, do_sample=False)
        out = continue_prompts(model, PROMPTS, None, config)
        ids = torch.cat((PROMPTS, out.ids), dim=1)
        means.append(float(model.token_losses(ids)[:, 5:].mean()))
        if out.scores is not None:  # the score is what the model itself says of the text
            expected = -model.token_losses(ids)[:, 5:].mean(dim=1)
            torch.testing.assert_close(torch.tensor(out.scores), expected, atol=1e-4, rtol=1e-4)
    assert means[0] > means[1] > means[2] >= means[3]


def test_drawn_beams() -> None:
    model = tiny_model()
    settings = {"max_new_tokens": 15, "num_beams": 3, "do_sample": True}
    first = model.generate(PROMPTS, seed=1, **settings)
    assert torch.equal(first, model.generate(PROMPTS, seed=1, **settings))
    assert not torch.equal(first, model.generate(PROMPTS, seed=2, **settings))
    assert torch.equal(first[:1], model.generate(PROMPTS[:1], seed=1, **settings))
    best = model.generate(PROMPTS, max_new_tokens=15, num_beams=3)
    assert not torch.equal(first, best)
    cold = model.generate(PROMPTS, seed=1, **settings | {"temperature": 0.001})
    assert torch.equal(cold, best), "the noise vanishes beside the scores"
    assert torch.equal(model.generate(PROMPTS, **settings | {"temperature": 0}), best)


def test_more_beams_than_tokens() -> None:
    model = tiny_model(vocab_size=3)
    out = model.generate(torch.tensor([[1, 2]]), num_beams=10, max_new_tokens=5, end_id=0)
    assert out.shape[1] <= 7
