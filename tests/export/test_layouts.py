"""Which configuration becomes which layout, what is refused, and that both ways are exact."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import IntegrityError, ModelConfigurationError
from llm_trainer.export import export_tensors, layout_for, layout_of
from llm_trainer.export.layouts import LAYOUTS
from llm_trainer.models import TransformerLM
from llm_trainer.models.storage import model_tensors
from tests.export.small import GPT, VARIANTS, small_model

ROOT = Path(__file__).parents[2]
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "bias": False}
TINY = {"vocab_size": 19, "d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 6, "max_seq_len": 5}


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(**(TINY | changes))


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_shape_has_its_layout_and_comes_back(variant: str) -> None:
    architecture, changes = VARIANTS[variant]
    model = small_model(**changes)
    layout = layout_for(model.config)
    assert layout.architecture == architecture
    values = layout.to_config(model.config)
    assert layout_of(values) is layout
    assert layout.from_config(values) == model.config
    tensors = model_tensors(model)
    theirs = dict(layout.to_tensors(model.config, tensors))
    back = dict(layout.from_tensors(model.config, theirs, values))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_the_default_pipeline_trains_a_qwen3() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))["model"]
    assert layout_for(ModelConfig.from_dict(values)).name == "Qwen3"


def test_fields_that_only_training_reads_come_back(tmp_path: Path) -> None:
    changed = config(
        **LLAMA, dropout=0.2, attention_dropout=0.3, gradient_checkpointing=True, init="zero",
        init_std=3.0, n_kv_heads=2,
    )  # fmt: skip
    layout = layout_for(changed)
    values = layout.to_config(changed)
    assert values["attention_dropout"] == 0.3
    assert "initializer_range" not in values, "theirs is limited to 1"
    assert layout.from_config(values) == changed
    without = {key: value for key, value in values.items() if key != "llm_trainer"}
    plain = layout.from_config(without)
    assert plain.dropout == 0.0
    assert plain.n_kv_heads is None


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"pre_norm": False}, ["for GPT-NeoX: pre_norm (false) must be true"]),
        ({"position": "sinusoidal"}, ["for GPT-2: position (sinusoidal) must be learned"]),
        (LLAMA | {"activation": "relu2"}, ["Llama: activation (relu2) must be swiglu or geglu"]),
        (LLAMA | {"qk_norm": True, "bias": True}, ["Qwen3: bias (true) must be false"]),
        ({"qk_norm": True}, ["for GPT-NeoX: qk_norm (true) must be false"]),
        ({"n_kv_heads": 1}, ["for GPT-NeoX: n_kv_heads (1) must be 2"]),
        (LLAMA | {"position": "learned"}, ["for Llama: position (learned) must be rope"]),
        (
            {"activation": "swiglu"},
            ["Llama: norm (layernorm) must be rmsnorm", "must be gelu or relu or relu2 or silu"],
        ),
    ],
)
def test_refusals_name_field_value_and_what_fits(
    changes: dict[str, Any], reasons: list[str]
) -> None:
    with pytest.raises(ModelConfigurationError, match="no Hugging Face layout") as caught:
        layout_for(config(**changes))
    for reason in reasons:
        assert reason in str(caught.value)


def test_a_layout_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ModelConfigurationError, match=r"Llama: norm \(layernorm\)"):
        LAYOUTS[0].to_config(config())


FAMILIES: list[dict[str, list[Any]]] = [
    # field -> what the family can hold
    {"norm": ["rmsnorm"], "activation": ["swiglu", "geglu"], "n_kv_heads": [None, 1, 2]},
    {"norm": ["rmsnorm"], "activation": ["swiglu", "geglu"], "n_kv_heads": [None, 1, 2],
     "qk_norm": [True], "bias": [False]},
    {"activation": ["gelu", "relu", "relu2", "silu"], "position": ["rope", None]},
    {"activation": ["gelu", "relu", "relu2", "silu"], "position": ["learned"]},
]  # fmt: skip
ANYTHING: dict[str, list[Any]] = {
    "vocab_size": [1, 2, 40], "d_model": [4, 8, 12], "n_heads": [1, 2], "n_layers": [1, 2],
    "d_ff": [1, 6], "max_seq_len": [2, 9], "dropout": [0.0, 0.25], "attention_dropout": [0.0, 0.5],
    "tie_embeddings": [True, False], "bias": [True, False],
    "attention_bias": [None, True, False], "rope_theta": [1e4, 17.5],
    "norm_eps": [1e-5, 0.03], "init_std": [0.3, 2.0],
}  # fmt: skip
SPOILERS: list[dict[str, Any]] = [
    *[{}] * 8, {"pre_norm": False}, {"norm": "rmsnorm"}, {"norm": "layernorm"}, {"qk_norm": True},
    {"position": "sinusoidal"}, {"position": "learned"}, {"activation": "silu"}, {"bias": True},
]  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Of any family, and in half the cases with one field of another."""
    choices = ANYTHING | draw(st.sampled_from(FAMILIES))
    values = {name: draw(st.sampled_from(options)) for name, options in choices.items()}
    values |= draw(st.sampled_from(SPOILERS))
    if values["n_heads"] == 1 and values.get("n_kv_heads"):
        values["n_kv_heads"] = 1
    return ModelConfig(**values)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=configs())
def test_every_configuration_is_exact_or_refused(shape: ModelConfig, tmp_path: Path) -> None:
    """`export_tensors` compares with transformers and raises if anything differs."""
    try:
        layout = layout_for(shape)
    except ModelConfigurationError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        named = re.findall(r"(\w+) \([\w.]+\) must be", refusal)
        assert len(named) >= len(refusal.splitlines()) - 1 > 0, refusal
        assert set(named) <= {field.name for field in dataclasses.fields(ModelConfig)}
        return
    assert layout.from_config(layout.to_config(shape)) == shape
    torch.manual_seed(0)
    model = TransformerLM(shape)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.5)
    made = export_tensors(shape, model_tensors(model), tmp_path / "out")
    assert made.architecture == layout.architecture
    assert made.parity.logits["max_abs_difference"] <= made.parity.logits["tolerance"]


# --------------------------------------------------------------------------- their files


def family(name: str, **changes: Any) -> dict[str, Any]:
    shapes = {
        "llama": LLAMA, "qwen3": LLAMA | {"qk_norm": True}, "gpt_neox": {},
        "gpt2": {"position": "learned"},
    }  # fmt: skip
    shape = config(**shapes[name])
    return {**layout_for(shape).to_config(shape), **changes}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "mamba"}, r"model_type \('mamba'\) is not one .* llama, qwen3, gpt_neox"),
        ({}, r"model_type \(None\)"),
        (family("llama", rope_scaling={"type": "linear", "factor": 2.0}), r"rope_type \('linear'"),
        (
            family("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 1.0}),
            r"rope_type \('llama3'\) must be 'default'",
        ),
        (
            family("qwen3", rope_parameters={"full_attention": {"rope_theta": 1.0}}),
            "differ between layers",
        ),
        (family("llama", head_dim=8), r"head_dim \(8\) must be .* \(4\)"),
        (family("qwen3", head_dim=None), r"head_dim \(128\) must be"),
        (family("llama", hidden_act="gelu_pytorch_tanh"), "hidden_act .* tanh approximation"),
        (family("gpt2", activation_function="gelu_new"), "activation_function .*'gelu_new'.*tanh"),
        (family("gpt2", activation_function=None), "gelu_new"),
        (family("gpt_neox", hidden_act="mish"), "hidden_act .*no counterpart"),
        (family("gpt_neox", use_parallel_residual=True), "use_parallel_residual .* must be False"),
        (family("gpt_neox", use_parallel_residual=None), "use_parallel_residual"),
        (family("gpt_neox", rope_parameters=None, rotary_pct=0.25), r"rotary_pct \(0.25\)"),
        (family("gpt_neox", rope_parameters=None, rotary_pct=None), r"rotary_pct \(0.25\)"),
        (family("gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
        (family("gpt2", scale_attn_weights=False), "scale_attn_weights"),
        (family("gpt2", add_cross_attention=True), "add_cross_attention"),
        (
            family("qwen3", use_sliding_window=True, sliding_window=8, layer_types=None,
                   max_window_layers=0),
            r"sliding_window \(8\) is in force",
        ),
        (family("qwen3", layer_types=["sliding_attention"]), "layer_types"),
        (family("llama", quantization_config={"bits": 4}), "quantization_config"),
        (family("llama", hidden_size="8"), r"hidden_size \('8'\) must be a whole number"),
        (family("llama", vocab_size=None), "vocab_size is missing"),
        (family("llama", vocab_size=10**12), "vocab_size .* from 1 to"),
        (family("llama", max_position_embeddings=2**21), "max_position_embeddings .* above"),
        (family("llama", attention_bias="yes"), "attention_bias .* true or false"),
        (family("llama", rms_norm_eps="x"), "rms_norm_eps .* must be a number"),
        (family("llama", num_attention_heads=3, head_dim=None), "divisible by n_heads"),
        (family("llama", llm_trainer={"n_layers": 2}), "llm_trainer may have the keys"),
        (family("llama", llm_trainer=[]), "llm_trainer may have the keys"),
        (family("llama", llm_trainer={"position": "learned"}), "contradicts the keys beside it"),
        (family("llama", llm_trainer={"n_kv_heads": 1}), "contradicts the keys beside it"),
        (family("llama", llm_trainer={"rope_theta": 5.0}), "contradicts the keys beside it"),
        (family("llama", llm_trainer={"bias": True}), "contradicts the keys beside it"),
        (family("llama", llm_trainer={"init": "other"}), "init"),
    ],
)  # fmt: skip
def test_their_configurations_without_counterpart_are_refused(
    values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelConfigurationError, match=reason):
        layout_of(values, "x/config.json").from_config(values, "x/config.json")


def test_all_reasons_come_at_once() -> None:
    values = family("llama", hidden_act="mish", head_dim=16, rope_scaling={"type": "yarn"})
    with pytest.raises(ModelConfigurationError) as caught:
        layout_of(values).from_config(values)
    assert len(str(caught.value).splitlines()) == 4


def test_what_does_not_change_the_numbers_is_accepted() -> None:
    values = family("qwen3", use_sliding_window=True, sliding_window=None, swiglu_limit=1)
    assert layout_of(values).from_config(values) == config(**LLAMA, qk_norm=True)
    old = family("llama", rope_parameters=None, rope_theta=123, rope_scaling=None)
    assert layout_of(old).from_config(old).rope_theta == 123.0


def test_dropouts_that_differ_become_one_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = family("gpt2", embd_pdrop=0.5)
    assert layout_of(values).from_config(values).dropout == 0.1
    assert "embd_pdrop (0.5) becomes resid_pdrop (0.1)" in caplog.text


def test_a_bias_that_is_said_to_be_none_must_be_zero() -> None:
    model = small_model(**GPT | {"bias": False})
    layout = layout_for(model.config)
    values = layout.to_config(model.config)
    theirs: dict[str, Tensor] = dict(layout.to_tensors(model.config, model_tensors(model)))
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h.bias"
    theirs[name] = theirs[name] + 1
    with pytest.raises(IntegrityError, match=rf"{re.escape(name)} is not zero"):
        dict(layout.from_tensors(model.config, theirs, values))


def test_names_of_old_releases_are_known() -> None:
    neox, gpt2 = LAYOUTS[2], LAYOUTS[3]
    assert neox.canonical(["gpt_neox.x", "lm_head.weight", "gpt_neox.l.attention.bias"]) == {
        "gpt_neox.x": "gpt_neox.x", "embed_out.weight": "lm_head.weight",
    }  # fmt: skip
    assert gpt2.canonical(["wte.weight", "h.0.attn.c_attn.bias", "h.0.attn.bias"]) == {
        "transformer.wte.weight": "wte.weight",
        "transformer.h.0.attn.c_attn.bias": "h.0.attn.c_attn.bias",
    }
    with pytest.raises(IntegrityError, match="twice"):
        neox.canonical(["gpt_neox.x", "lm_head.weight", "embed_out.weight"])
