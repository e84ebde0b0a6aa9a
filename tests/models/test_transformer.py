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


@pytest.mark.parametrize("documents", [False, True])
def test_what_training_compiles_is_one_graph(
    model: TransformerLM, ids: Tensor, documents: bool
) -> None:
    """A step in the code that the compiler can't follow would cut it, and only cost time; and a
    graph from the backward passes of compiled code has the gradients of eager code."""
    torch.compiler.reset()  # one function is compiled for eight models at most
    model.set_attention_kernel("masked")
    segments = (torch.arange(17) > 8).long().expand(3, 17) if documents else None
    compiled = torch.compile(model.loss_sum, dynamic=False, fullgraph=True, backend="aot_eager")
    parameters = list(model.parameters())
    losses = [loss(ids, ids, segments) for loss in (compiled, model.loss_sum)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


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


# --------------------------------------------------------------------------- Hugging Face

pytest.importorskip("transformers")


@pytest.mark.parametrize("shape", ["llama", "qwen3", "gpt-neox", "gpt2"])
def test_logits_equal_hugging_face(ids: Tensor, shape: str) -> None:
    """The same weights in their model of each family; tests/export has all variants."""
    ours = tiny(**SHAPES["qwen3"] | {"qk_norm": False} if shape == "llama" else SHAPES[shape])
    theirs = twin(ours)
    assert theirs.config.model_type == shape.replace("-", "_")
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)
