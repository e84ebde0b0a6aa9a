"""The decoding loop: equivalences, limits, ends, streams, errors, and Hugging Face's results."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import GenerationError
from llm_trainer.models import TransformerLM, decoding
from llm_trainer.models.decoding import GenerationConfig, continue_prompts, generate
from tests.models.twin import tiny_model, twin

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {
        "norm": "layernorm", "activation": "gelu", "n_kv_heads": None, "bias": True,
        "tie_embeddings": True, "use_learned_pos_emb": True,
    },
    "post-norm": {"pre_norm": False, "position": "sinusoidal", "activation": "relu2"},
}  # fmt: skip


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> TransformerLM:
    return tiny_model(**SHAPES[request.param])


def prompts(*lengths: int, seed: int = 1, vocab_size: int = 50) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab_size, (n,), generator=generator) for n in lengths]


def padded(rows: list[Tensor], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1
    return ids, mask


def new_tokens(model: TransformerLM, row: Tensor, **settings: Any) -> list[int]:
    out = continue_prompts(model, row[None], None, GenerationConfig(**settings))
    return out.ids[0, : out.lengths[0]].tolist()


# --------------------------------------------------------------------------- equivalences


def test_greedy_takes_the_argmax_of_the_whole_model(model: TransformerLM) -> None:
    (row,) = prompts(5)
    ids = row.tolist()
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    out = model.generate(row[None], max_new_tokens=12, do_sample=False)
    assert out.tolist() == [ids]


@pytest.mark.parametrize("settings", [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.3},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 3},
    {"temperature": 0.9, "repetition_penalty": 1.2, "seed": 3},
    {"num_beams": 3},
    {"num_beams": 3, "do_sample": True, "seed": 1},
])  # fmt: skip
def test_cached_equals_uncached(model: TransformerLM, settings: dict[str, Any]) -> None:
    ids, mask = padded(prompts(4, 9, 1))
    outs = [
        generate(model, ids, mask, GenerationConfig(max_new_tokens=15, use_cache=c, **settings))
        for c in (True, False)
    ]
    assert torch.equal(*outs)


@pytest.mark.parametrize("settings", [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.3},
    {"num_beams": 3},
])  # fmt: skip
@pytest.mark.parametrize("budget", [{"max_new_tokens": 12}, {"max_length": 20}])
def test_left_padded_batch_equals_one_by_one(
    model: TransformerLM, settings: dict[str, Any], budget: dict[str, Any]
) -> None:
    rows = prompts(3, 11, 7, 1)
    config = GenerationConfig(**settings, **budget, end_id=7)
    out = continue_prompts(model, *padded(rows), config)
    for i, row in enumerate(rows):
        assert out.ids[i, : out.lengths[i]].tolist() == new_tokens(
            model, row, **settings, **budget, end_id=7
        )


def test_a_row_is_drawn_alike_whatever_is_beside_it() -> None:
    model = tiny_model()
    rows = prompts(6, 3, 9)
    settings = {"seed": 11, "max_new_tokens": 20}
    out = continue_prompts(model, *padded(rows), GenerationConfig(**settings))
    assert out.ids[0].tolist() == new_tokens(model, rows[0], **settings)
    assert new_tokens(model, rows[1], **settings) != out.ids[1].tolist()  # there it is row 0


def test_padding_never_takes_room_from_shorter_rows() -> None:
    """Side by side these rows would not fit into the context; the result must not show it."""
    model = tiny_model(max_seq_len=24)
    rows = prompts(2, 18, 3, 20)
    config = GenerationConfig(max_length=24, do_sample=False)
    out = continue_prompts(model, *padded(rows), config)
    assert out.lengths == [22, 6, 21, 4]
    for i, row in enumerate(rows):
        expected = new_tokens(model, row, max_length=24, do_sample=False)
        assert out.ids[i, : out.lengths[i]].tolist() == expected
        assert out.ids[i, out.lengths[i] :].eq(0).all()


# --------------------------------------------------------------------------- randomness


def test_seeds() -> None:
    model = tiny_model()
    (row,) = prompts(4)
    first = new_tokens(model, row, max_new_tokens=30, seed=1)
    assert first == new_tokens(model, row, max_new_tokens=30, seed=1)
    assert first[:10] == new_tokens(model, row, max_new_tokens=10, seed=1)
    assert first != new_tokens(model, row, max_new_tokens=30, seed=2)


def test_without_a_seed_the_global_one_counts() -> None:
    model = tiny_model()
    (row,) = prompts(4)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(new_tokens(model, row, max_new_tokens=30))
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("settings", [{"seed": 1}, {"do_sample": False}, {"num_beams": 2}])
def test_state_is_left_as_it_was(settings: dict[str, Any]) -> None:
    model = tiny_model(dropout=0.5)
    (row,) = prompts(4)
    expected = new_tokens(model, row, **settings)
    model.train()
    torch.use_deterministic_algorithms(True)
    try:
        before = torch.random.get_rng_state()
        assert new_tokens(model, row, **settings) == expected, "dropout must be off"
        assert torch.equal(torch.random.get_rng_state(), before)
        assert model.training
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    out = model.generate(row[None], max_new_tokens=3, **settings)
    model(out, labels=out).loss.backward()  # the result is an ordinary tensor


def test_temperature_zero_is_greedy() -> None:
    model = tiny_model()
    (row,) = prompts(4)
    greedy = new_tokens(model, row, do_sample=False)
    assert new_tokens(model, row, temperature=0) == greedy
    assert new_tokens(model, row, temperature=0, do_sample=True, top_k=5) == greedy
    assert new_tokens(model, row, top_k=1) == greedy
    assert new_tokens(model, row, top_p=1e-9) == greedy
    assert new_tokens(model, row, temperature=1e-4, seed=0) == greedy


# --------------------------------------------------------------------------- ends and limits


def test_rows_end_at_the_end_token_each_on_its_own() -> None:
    model = tiny_model()
    rows = prompts(5, 5, 5, 5, 5, 5, seed=4)
    free = continue_prompts(model, torch.stack(rows), None, GenerationConfig(temperature=0))
    end_id = free.ids[2, 3].item()
    config = GenerationConfig(temperature=0, end_id=end_id, pad_id=49)
    out = continue_prompts(model, torch.stack(rows), None, config)
    for i in range(6):
        expected = free.ids[i].tolist()
        if end_id in expected:
            expected = expected[: expected.index(end_id) + 1]
            assert out.reasons[i] == "end"
        else:
            assert out.reasons[i] == "length"
        assert out.ids[i, : out.lengths[i]].tolist() == expected
        assert out.ids[i, out.lengths[i] :].eq(49).all()
    assert out.ids.shape[1] == max(out.lengths)


def test_max_length_counts_the_prompt_and_max_new_tokens_wins() -> None:
    model = tiny_model()
    ids = torch.stack(prompts(10, 10))
    assert model.generate(ids, max_length=25).shape == (2, 25)
    assert model.generate(ids, max_length=25, max_new_tokens=3).shape == (2, 13)
    assert model.generate(ids, 25).shape == (2, 25)
    with pytest.raises(GenerationError, match=r"max_length \(10\) counts the prompt.*10 tokens"):
        model.generate(ids, max_length=10)


def test_generation_ends_with_the_context(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(max_seq_len=16)
    (row,) = prompts(10)
    with caplog.at_level(logging.WARNING):
        assert model.generate(row[None], max_new_tokens=50, seed=0).shape == (1, 16)
        assert len(caplog.records) == 1
        assert "16 tokens: 6 new tokens are generated instead of 50" in caplog.text
    assert model.generate(row[None], max_new_tokens=6, seed=0).shape == (1, 16)
    assert len(caplog.records) == 1, "what fits is no cause for a warning"


def test_a_prompt_beyond_the_context_is_cut_on_its_left(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(max_seq_len=16)
    (row,) = prompts(40)
    with caplog.at_level(logging.WARNING):
        out = model.generate(row[None], max_new_tokens=5, temperature=0)
    assert len(caplog.records) == 1
    assert "of a prompt of 40 tokens only the last 11 are used" in caplog.text
    assert out[0, :40].tolist() == row.tolist(), "the result has the whole prompt"
    assert out[0, 40:].tolist() == new_tokens(model, row[-11:], max_new_tokens=5, temperature=0)
    caplog.clear()
    out = model.generate(row[None], max_new_tokens=500, temperature=0)
    assert out.shape == (1, 48), "half of the context is kept for the prompt"
    assert len(caplog.records) == 1


def test_a_prompt_that_just_fits(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(max_seq_len=16)
    (row,) = prompts(15)
    out = model.generate(row[None], max_new_tokens=1, temperature=0)
    with torch.no_grad():
        assert out[0, 15] == model(row[None]).logits[0, -1].argmax()
    assert not caplog.records


def test_one_token_of_context_left_in_a_batch() -> None:
    model = tiny_model(max_seq_len=16)
    rows = prompts(15, 2)
    config = GenerationConfig(max_new_tokens=9, temperature=0)
    out = continue_prompts(model, *padded(rows), config)
    assert out.lengths == [1, 9]
    assert out.ids[1].tolist() == new_tokens(model, rows[1], max_new_tokens=9, temperature=0)


def test_looking_seldom_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator the host learns some steps later that all rows have ended."""
    model = tiny_model()
    ids = torch.stack(prompts(5, 5, 5, seed=4))
    free = continue_prompts(model, ids, None, GenerationConfig(temperature=0))
    for settings in ({}, {"end_id": free.ids[0, 2].item()}, {"max_new_tokens": 3}):
        results = []
        for every in (1, 8, 3):
            monkeypatch.setattr(decoding, "_steps_per_check", lambda *_, every=every, **__: every)
            for seed in range(4):
                config = GenerationConfig(seed=seed, top_k=3, **settings)
                out = continue_prompts(model, ids, None, config)
                results.append((out.ids.tolist(), out.lengths, out.reasons))
        assert results[:4] == results[4:8] == results[8:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    ids, mask = padded(prompts(4, 9))
    for settings in ({"temperature": 0}, {"seed": 1, "top_p": 0.9}, {"num_beams": 2}):
        out = model.generate(ids, attention_mask=mask, max_new_tokens=8, **settings)
        assert out.shape == (2, 17)


# --------------------------------------------------------------------------- streaming


def test_streamed_tokens_are_the_result() -> None:
    model = tiny_model(max_seq_len=24)
    rows = prompts(2, 18, 3, 20)  # in two batches
    seen: list[list[int]] = [[] for _ in rows]

    def streamer(tokens: list[int | None]) -> None:
        assert len(tokens) == len(rows)
        for row, token in zip(seen, tokens, strict=True):
            if token is not None:
                row.append(token)

    config = GenerationConfig(max_length=24, seed=2, end_id=3)
    out = continue_prompts(model, *padded(rows), config, streamer=streamer)
    assert seen == [out.ids[i, : out.lengths[i]].tolist() for i in range(4)]
    quiet = continue_prompts(model, *padded(rows), config)
    assert torch.equal(quiet.ids, out.ids)


def test_a_streamer_ends_rows() -> None:
    model = tiny_model()
    ids = torch.stack(prompts(4, 4, 4))
    count = 0

    def streamer(tokens: list[int | None]) -> set[int]:
        nonlocal count
        count += 1
        return {1} if count == 3 else {0, 2} if count == 5 else set()

    config = GenerationConfig(seed=0, max_new_tokens=20)
    out = continue_prompts(model, ids, None, config, streamer=streamer)
    assert out.lengths == [5, 3, 5]
    assert out.reasons == ["stop"] * 3
    assert count == 5
    whole = continue_prompts(model, ids, None, config)
    assert out.ids[0].tolist() == whole.ids[0, :5].tolist()


def test_a_mask_is_not_confused_with_padding_ids() -> None:
    """An id that is also the pad id counts as a token where the mask says so."""
    model = tiny_model()
    ids = torch.tensor([[0, 0, 5]])
    whole = model.generate(ids, max_new_tokens=5, temperature=0)
    last = model.generate(
        ids, max_new_tokens=5, temperature=0, attention_mask=torch.tensor([[0, 0, 1]])
    )
    assert last[0, 3:].tolist() == new_tokens(model, ids[0, 2:], max_new_tokens=5, temperature=0)
    assert not torch.equal(whole, last)


# --------------------------------------------------------------------------- learning, peers


def test_a_learned_cycle_is_continued() -> None:
    """The proof that the model learned the NEXT token, and that generation goes on with it."""
    torch.manual_seed(0)
    cycle = torch.tensor([3, 1, 4, 15, 9, 2, 6, 5, 35, 8])
    model = TransformerLM(ModelConfig(
        vocab_size=40, d_model=32, n_heads=2, n_layers=2, d_ff=64, max_seq_len=64, dropout=0.0,
        attention_dropout=0.0,
    ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = cycle.repeat(7)[torch.arange(10)[:, None] + torch.arange(32)]
    for _ in range(60):
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = model.generate(cycle[None, :4], max_length=60, do_sample=False)
    assert torch.equal(out[0], cycle.repeat(6))
    beams = model.generate(cycle[None, :4], max_length=60, num_beams=3)
    assert torch.equal(beams, out)
    drawn = model.generate(cycle[None, :4], max_length=60, top_k=40, temperature=0.5, seed=0)
    assert torch.equal(drawn, out)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers(penalty: float) -> None:
    ours = tiny_model()
    theirs = twin(ours)
    ids = torch.stack(prompts(6, 6, 6, seed=3))
    settings = {"max_new_tokens": 30, "do_sample": False, "repetition_penalty": penalty}
    assert torch.equal(ours.generate(ids, **settings), theirs.generate(ids, **settings))
