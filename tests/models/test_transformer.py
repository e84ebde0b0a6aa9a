"""The model against closed forms, itself, and Hugging Face's Llama, Qwen3, GPT-2 and GPT-NeoX."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import IntegrityError, ModelConfigurationError
from llm_trainer.models import KVCache, TransformerLM
from tests.models.twin import twin

SHAPES: dict[str, dict[str, Any]] = {
    "gpt-neox": {},
    "qwen3": {
        "norm": "rmsnorm", "activation": "swiglu", "qk_norm": True, "n_kv_heads": 2,
        "bias": False, "tie_embeddings": False,
    },
    "gpt2": {"use_learned_pos_emb": True},
    "post-norm": {"pre_norm": False, "position": "sinusoidal", "activation": "relu2"},
    "geglu": {"activation": "geglu", "norm": "rmsnorm"},
}  # fmt: skip


def tiny(**changes: Any) -> TransformerLM:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "vocab_size": 50, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64,
        "max_seq_len": 32, "init_std": 0.3, "dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    return TransformerLM(ModelConfig(**(values | changes))).eval()


@pytest.fixture(params=SHAPES, ids=list(SHAPES))
def model(request: pytest.FixtureRequest) -> TransformerLM:
    return tiny(**SHAPES[request.param])


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 50, (3, 17), generator=torch.Generator().manual_seed(1))


def test_loss_is_shifted(model: TransformerLM, ids: Tensor) -> None:
    output = model(ids, labels=ids)
    log_probabilities = output.logits.log_softmax(-1)
    picked = [
        -log_probabilities[row, t, ids[row, t + 1]]
        for row in range(ids.shape[0])
        for t in range(ids.shape[1] - 1)
    ]
    expected = torch.stack(picked).mean()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model.token_losses(ids).mean(), expected)
    torch.testing.assert_close(model.loss_sum(ids, ids) / len(picked), expected)


def test_ignored_labels_do_not_count(model: TransformerLM, ids: Tensor) -> None:
    labels = ids.clone()
    labels[1, 9:] = -100
    losses = model.token_losses(ids, lengths=torch.tensor([17, 9, 17]))
    assert torch.all(losses[1, 8:] == 0)
    expected = losses.sum() / (16 + 8 + 16)
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)


def test_no_position_sees_a_later_one(model: TransformerLM, ids: Tensor) -> None:
    before = model(ids).logits
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 50
    after = model(changed).logits
    torch.testing.assert_close(after[:, :10], before[:, :10])
    assert not torch.allclose(after[:, 10], before[:, 10])


def test_both_attention_kernels_agree(model: TransformerLM, ids: Tensor) -> None:
    expected = model(ids).logits
    model.set_attention_kernel("masked")
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("static", [False, True])
def test_cached_equals_uncached(model: TransformerLM, ids: Tensor, static: bool) -> None:
    expected = model(ids).logits
    cache = KVCache(model.config, 3, 32, static=static)
    parts = [model(ids[:, :10], cache=cache).logits]
    parts += [model(ids[:, t : t + 1], cache=cache).logits for t in range(10, 17)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)
    assert cache.length == 17


def test_left_padding_changes_nothing(model: TransformerLM, ids: Tensor) -> None:
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(3, 4), torch.ones(3, 17)], 1)
    logits = model(padded, attention_mask=mask).logits[:, 4:]
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_segments_keep_documents_apart(model: TransformerLM, ids: Tensor) -> None:
    segments = torch.zeros(3, 17, dtype=torch.int32)
    segments[:, 8:] = 1
    logits = model(ids, segments=segments).logits
    torch.testing.assert_close(logits[:, :8], model(ids[:, :8]).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[:, 8:], model(ids[:, 8:]).logits, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(ids: Tensor) -> None:
    plain, recomputing = tiny(), tiny(gradient_checkpointing=True)
    for model in (plain, recomputing):
        model.train()
        model.loss_sum(ids, ids).backward()
    for a, b in zip(plain.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_zero_init_starts_as_identity(ids: Tensor) -> None:
    model = tiny(init="zero", norm="rmsnorm", bias=False)
    expected = model.head(model.final_norm(model.embedding(ids)))
    torch.testing.assert_close(model(ids).logits, expected)


def test_uniform_model_has_loss_log_v(ids: Tensor) -> None:
    model = tiny(tie_embeddings=False)
    torch.nn.init.zeros_(model.head.weight)
    assert model(ids, labels=ids).loss.item() == pytest.approx(math.log(50), abs=1e-6)


def test_round_trip(model: TransformerLM, ids: Tensor, tmp_path: Path) -> None:
    model.tokenizer_digest = "abc"
    model.save_pretrained(tmp_path / "m")
    loaded = TransformerLM.from_pretrained(tmp_path / "m")
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config == model.config
    assert loaded.tokenizer_digest == "abc"
    first = (tmp_path / "m" / "model.safetensors").read_bytes()
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first


def test_damaged_directory_is_named(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        TransformerLM.from_pretrained(tmp_path / "m")
    with pytest.raises(IntegrityError, match="no such model"):
        TransformerLM.from_pretrained(tmp_path / "absent")


def test_size(model: TransformerLM) -> None:
    distinct = {id(p): p.numel() for p in model.parameters()}
    assert model.get_num_params() == sum(distinct.values())
    assert model.get_model_size_mb() == pytest.approx(4 * sum(distinct.values()) / 2**20)


def test_config_is_checked_again() -> None:
    config = ModelConfig()
    config.n_heads = 5
    with pytest.raises(ModelConfigurationError, match="n_heads"):
        TransformerLM(config)


def test_too_long_a_row_is_refused(model: TransformerLM) -> None:
    with pytest.raises(ValueError, match="max_seq_len"):
        model(torch.zeros(1, 33, dtype=torch.long))


# --------------------------------------------------------------------------- previous token heads


def attention_weights(model: TransformerLM, ids: Tensor, layer: int) -> Tensor:
    """Weights of one layer, (batch, heads, time, keys), from queries and keys written out here."""
    seen: list[Tensor] = []
    attention = model.blocks[layer].attention
    handle = attention.qkv.register_forward_hook(lambda *call: seen.append(call[2]))
    model(ids)
    handle.remove()
    config = model.config
    blocks = seen[0].unflatten(-1, (-1, config.d_head)).transpose(1, 2)
    q, k = blocks[:, : config.n_heads], blocks[:, config.n_heads :][:, : config.num_kv_heads]
    if config.qk_norm:
        q, k = attention.q_norm(q), attention.k_norm(k)
    k = k.repeat_interleave(config.n_heads // config.num_kv_heads, dim=1)
    half = config.d_head // 2
    angle = torch.arange(ids.shape[1])[:, None] * config.rope_theta ** (-torch.arange(half) / half)
    turn = torch.polar(torch.ones_like(angle), angle)
    q, k = (torch.complex(x[..., :half], x[..., half:]) * turn for x in (q, k))
    scores = (q[..., :, None, :] * k[..., None, :, :].conj()).real.sum(-1) * config.d_head**-0.5
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -math.inf).softmax(-1)


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2}, {"qk_norm": False}, {"d_model": 128}])
def test_heads_that_begin_by_looking_back(changes: dict[str, Any]) -> None:
    """Head n of the first half of the layers looks at the token n + 1 before; no other does."""
    values = {
        **SHAPES["qwen3"], "d_model": 256, "n_layers": 3, "n_kv_heads": None, "init_std": 0.02,
        "attention_bias": True, "init": "zero", **changes,
    }  # fmt: skip
    made = tiny(**values, previous_token_heads=3)
    ids = torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(2))
    for layer in range(3):
        weights = attention_weights(made, ids, layer)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4, 32))
        for head in range(3):
            there = weights[:, head].diagonal(-head - 1, 1, 2)  # the weight that is meant
            if layer < 2:
                assert torch.equal(weights[:, head].argmax(-1)[:, head + 1 :],
                                   torch.arange(32 - head - 1).expand(4, -1))  # fmt: skip
                assert there.mean() > 0.4
            else:
                assert there.mean() < 0.2
    plain = tiny(**values)
    for name, parameter in made.named_parameters():
        same = torch.equal(parameter, dict(plain.named_parameters())[name])
        assert same != (name in ("blocks.0.attention.qkv.bias", "blocks.1.attention.qkv.bias"))


@pytest.mark.parametrize(
    "changes", [{"attention_bias": False}, {"bias": False}, {"position": "learned"}]
)
def test_heads_that_look_back_need_biases_and_rotary_positions(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelConfigurationError, match=r"previous_token_heads \(1\) are made of"):
        tiny(previous_token_heads=1, **changes)
    with pytest.raises(ModelConfigurationError, match=r"previous_token_heads \(5\) must be from 0"):
        tiny(previous_token_heads=5)


# --------------------------------------------------------------------------- Hugging Face

pytest.importorskip("transformers")


@pytest.mark.parametrize("shape", ["llama", "qwen3", "gpt-neox", "gpt2"])
def test_logits_equal_hugging_face(ids: Tensor, shape: str) -> None:
    """The same weights in their model of each family; tests/export has all variants."""
    ours = tiny(**SHAPES["qwen3"] | {"qk_norm": False} if shape == "llama" else SHAPES[shape])
    theirs = twin(ours)
    assert theirs.config.model_type == shape.replace("-", "_")
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)
