"""The plan equals what is built: parameters, FLOPs, optimizer states and activations."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.models import TransformerLM
from llm_trainer.utils.planning import (
    PROCESS_BYTES,
    Actuals,
    calculate_parameters,
    count_parameters,
    estimate_memory_usage,
    flops_per_token,
    format_bytes,
    format_seconds,
    optimizer_bytes,
    plan_memory,
    planned_steps,
    training_plan,
)


def small(**changes) -> ModelConfig:
    values = {
        "vocab_size": 300, "d_model": 64, "n_heads": 4, "n_layers": 2, "d_ff": 96,
        "max_seq_len": 32, "dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    return ModelConfig(**(values | changes))


def build_on_meta(config: ModelConfig) -> TransformerLM:
    with torch.device("meta"):
        return TransformerLM(config)


SWITCHES = {
    "bias": [True, False],
    "attention_bias": [None, True, False],
    "activation": ["gelu", "swiglu", "relu2"],
    "n_kv_heads": [None, 2, 1],
    "qk_norm": [True, False],
    "tie_embeddings": [True, False],
    "position": ["rope", "learned", "sinusoidal"],
    "norm": ["rmsnorm", "layernorm"],
    "pre_norm": [True, False],
}


@pytest.mark.parametrize("pre_norm", SWITCHES["pre_norm"])
@pytest.mark.parametrize("norm", SWITCHES["norm"])
def test_parameters_equal_the_built_model_for_every_switch(norm, pre_norm):
    names = [name for name in SWITCHES if name not in ("norm", "pre_norm")]
    for values in itertools.product(*(SWITCHES[name] for name in names)):
        config = small(norm=norm, pre_norm=pre_norm, **dict(zip(names, values, strict=True)))
        model = build_on_meta(config)
        count = count_parameters(config)
        assert count.total == model.get_num_params() == calculate_parameters(config), config
        groups = dict.fromkeys(("embedding", "head", "attention", "mlp", "norms", "hidden"), 0)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                group = "norms"
            elif "embedding" in name:
                group = "embedding"
            elif name.startswith("head"):
                group = "head"
            else:
                group = "mlp" if "feed_forward" in name else "attention"
                groups["hidden"] += parameter.numel() if parameter.ndim == 2 else 0
            groups[group] += parameter.numel()
        for name in ("embedding", "head", "attention", "mlp", "norms"):
            assert getattr(count, name) == groups[name], (name, config)
        assert count.hidden_matrices == groups["hidden"]
        assert count.multiplied == groups["hidden"] + config.vocab_size * config.d_model
        assert count.non_embedding == count.total - count.embedding - count.head


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "swiglu", "tie_embeddings": False, "n_kv_heads": 1, "bias": False},
        {"position": "learned", "norm": "rmsnorm", "qk_norm": True, "pre_norm": False},
    ],
)
def test_flops_equal_what_torch_counts(changes):
    config = small(**changes)
    model = TransformerLM(config)
    model.set_attention_kernel("masked")  # the counter sees its products; the square is whole
    ids = torch.randint(0, config.vocab_size, (3, 24))
    with FlopCounterMode(display=False) as counter:
        loss = model(ids, labels=ids).loss
        loss.backward()
    assert counter.get_total_flops() == flops_per_token(config, 24) * ids.numel()


def test_flops_of_gpt2_small_are_palms_formula():
    # 124 M parameters of which 1024 x 768 positions are looked up only; 6 N + 12 L H Q T by hand
    config = ModelConfig(
        vocab_size=50257, position="learned", dropout=0.0, attention_dropout=0.0, bias=False
    )
    matrices = 12 * 12 * 768 * 768 + 50257 * 768
    assert flops_per_token(config, 1024) == 6 * matrices + 12 * 12 * 12 * 64 * 1024


def test_memory_of_the_api_reference():
    config = ModelConfig()
    assert estimate_memory_usage(config) == calculate_parameters(config) * 16 / 1024**3


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
def test_optimizer_bytes_equal_the_states_of_the_real_ones(name):
    config = small(activation="swiglu", tie_embeddings=False, qk_norm=True)
    model = TransformerLM(config)
    ids = torch.randint(0, config.vocab_size, (2, 16))
    model(ids, labels=ids).loss.backward()
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    hidden_ids = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in hidden_ids]
    optimizers = {
        "adamw": lambda: [torch.optim.AdamW(model.parameters())],
        "adam": lambda: [torch.optim.Adam(model.parameters())],
        "sgd": lambda: [torch.optim.SGD(model.parameters(), momentum=0.9)],
        "muon": lambda: [torch.optim.Muon(hidden), torch.optim.AdamW(rest)],
    }[name]()
    total = 0
    for optimizer in optimizers:
        optimizer.step()
        for state in optimizer.state.values():
            total += sum(t.nbytes for key, t in state.items() if t is not None and key != "step")
    assert optimizer_bytes(count_parameters(config), name) == total
    assert optimizer_bytes(count_parameters(config), "sgd", momentum=0.0) == 0


@pytest.mark.parametrize("amp", [True, False])
@pytest.mark.parametrize("kernel", ["sdpa", "masked"])
@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "swiglu", "norm": "rmsnorm", "bias": False, "qk_norm": True},
        {"position": "learned"},
        {"activation": "relu2", "norm": "rmsnorm", "n_kv_heads": 1},
        {"attention_dropout": 0.1},
    ],
)
def test_activations_are_within_a_fifth_of_what_autograd_keeps(changes, kernel, amp):
    config = small(vocab_size=257, d_model=128, d_ff=384, n_layers=3, max_seq_len=128, **changes)
    model = TransformerLM(config)
    model.set_attention_kernel(kernel)
    ids = torch.randint(0, 257, (4, 128))
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=amp),
    ):
        model.loss_sum(ids, ids)
    measured = sum(t.untyped_storage().nbytes() for t in kept.values() if t.shape[-1:] != (257,))
    training = TrainingConfig(batch_size=4, use_amp=amp, amp_dtype="bfloat16")
    planned = plan_memory(config, training, 128, kernel=kernel)
    assert planned.activations == pytest.approx(measured, rel=0.2)
    assert planned.weights == planned.gradients == 4 * model.get_num_params()
    assert planned.total == sum(
        (planned.weights, planned.gradients, planned.optimizer, planned.activations, planned.logits)
    )


def test_the_process_itself_counts_where_it_is_said_to():
    training = TrainingConfig(max_steps=2)
    without = training_plan(small(), training, 10, 32)
    counted = training_plan(small(), training, 10, 32, process=PROCESS_BYTES)
    assert counted.memory.total == without.memory.total + PROCESS_BYTES
    assert "Python and torch" in counted.render()
    assert "Python and torch" not in without.render()


def test_checkpointing_saves_memory():
    def planned(**changes) -> int:
        return plan_memory(small(n_layers=12, **changes), TrainingConfig(), 32).activations

    assert planned(gradient_checkpointing=True) < planned() / 3


@given(
    rows=st.integers(1, 10_000), epochs=st.integers(1, 5), batch=st.integers(1, 64),
    accumulation=st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_steps_cover_the_epochs_and_no_more(rows, epochs, batch, accumulation):
    training = TrainingConfig(
        num_epochs=epochs, batch_size=batch, gradient_accumulation_steps=accumulation
    )
    steps = planned_steps(training, rows)
    assert steps * batch * accumulation >= epochs * rows > (steps - 1) * batch * accumulation
    training.max_steps = 7
    assert planned_steps(training, rows) == 7


def test_plan_numbers_follow_from_each_other():
    training = TrainingConfig(
        batch_size=4, gradient_accumulation_steps=2, max_steps=50, use_amp=False, optimizer="muon"
    )
    plan = training_plan(small(), training, num_rows=100, row_length=32, peak_flops=1e9, mfu=0.5)
    assert plan.tokens_per_step == 8 * 32
    assert plan.tokens == 50 * 8 * 32
    assert plan.epochs == 4.0
    assert plan.tokens_per_parameter == plan.tokens / plan.parameters.total
    assert plan.total_flops == plan.tokens * flops_per_token(small(), 32)
    assert plan.seconds == plan.total_flops / 0.5e9
    assert plan.utilization(plan.tokens_per_second) == pytest.approx(0.5)
    assert plan.to_dict()["estimated_seconds"] == plan.seconds
    unknown = training_plan(small(), training, 100, 32)
    assert unknown.seconds is None
    assert "peak not measured" in unknown.render()


def test_table_is_aligned_and_gains_a_column():
    plan = training_plan(small(), TrainingConfig(max_steps=10, batch_size=2), 100, 32, 1e9)
    before = plan.render().splitlines()
    after = plan.render(
        Actuals(
            parameters=plan.parameters.total, steps=10, tokens=640, seconds=75.0, peak_memory=10**9
        )
    ).splitlines()
    assert len(after) == len(before) + 1
    assert after[0].split() == ["plan", "actual"]
    column = after[0].index("actual") + len("actual")
    labels = [line.split("  ")[0] for line in before if not line.startswith(" ")]
    assert labels == [
        "parameters", "tokens per step", "steps", "tokens", "epochs", "tokens per parameter",
        "FLOPs", "memory", "tokens per second", "share of peak (MFU)", "time",
    ]  # fmt: skip
    by_label = {line[: len("tokens per parameter")].strip(): line for line in after}
    for label, actual in {
        "steps": "10", "tokens": "640", "time": "1 min 15 s", "memory": "1.0 GB",
        "tokens per second": "9", "parameters": f"{plan.parameters.total:,}",
    }.items():  # fmt: skip
        assert by_label[label][:column].endswith(actual), by_label[label]
    partial = plan.render(Actuals(steps=3))
    assert next(line for line in partial.splitlines() if line.startswith("time")).endswith("-")


@pytest.mark.parametrize(
    ("value", "text"),
    [(12, "12 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (16e9, "16.0 GB"), (3e12, "3.0 TB")],
)
def test_format_bytes(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.25, "0.2 s"), (59.94, "59.9 s"), (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"), (18420, "5 h 07 min"), (360000, "100 h 00 min"),
    ],
)  # fmt: skip
def test_format_seconds(value, text):
    assert format_seconds(value) == text


def test_planning_needs_no_torch():
    code = "import sys, llm_trainer.utils.planning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
