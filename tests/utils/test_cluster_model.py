"""The cost model against second computations: counters of torch, real bytes, closed forms."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.models import TransformerLM
from llm_trainer.training.muon import orthogonalize
from llm_trainer.utils import collectives
from llm_trainer.utils.hardware import (
    ACCELERATORS,
    Accelerator,
    Cluster,
    Link,
    make_cluster,
    parse_cluster,
)
from llm_trainer.utils.parameters import count_parameters, flops_per_token
from llm_trainer.utils.rank_memory import rank_memory, verdict
from llm_trainer.utils.step_model import (
    Job,
    block_parameters,
    block_seconds,
    exposed_communication,
    muon_flops,
    optimizer_seconds,
    product_seconds,
    step_time,
)

LLAMA = {
    "norm": "rmsnorm", "position": "rope", "activation": "swiglu", "bias": False,
    "tie_embeddings": False, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
IDEAL = Accelerator("ideal", 1e12, 10**12, 1e30, 1.0, 0, launch_seconds=0.0)
"""A device of 1 TFLOP/s that moves bytes in no time."""
LINK = Link(1e9, 1e-5)


def tiny(**changes) -> ModelConfig:
    values = {
        "vocab_size": 300, "d_model": 32, "n_heads": 2, "n_layers": 2, "d_ff": 64,
        "max_seq_len": 32, "dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    return ModelConfig(**(values | changes))


def cluster(count: int = 1, per_node: int = 8, chip: Accelerator = IDEAL) -> Cluster:
    return Cluster(chip, count, min(count, per_node), LINK, LINK)


# --------------------------------------------------------------------------- compute


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation": "swiglu", "n_kv_heads": 1, "tie_embeddings": False, "bias": False}],
)
def test_products_are_those_that_torch_counts(changes, monkeypatch):
    """On a device of 1 TFLOP/s without memory traffic, seconds are operations."""
    monkeypatch.setattr("llm_trainer.utils.step_model.ATTENTION_SHARE", 1.0)
    config = tiny(**changes)
    model = TransformerLM(config)
    model.set_attention_kernel("masked")
    ids = torch.randint(0, 300, (3, 24))
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    job = Job(config, 3, 24, flash=False)
    step = step_time(job, cluster())
    counted = step.attention + step.projections + step.mlp + step.head
    assert counted * 1e12 == pytest.approx(counter.get_total_flops())
    assert step.useful_flops == counter.get_total_flops()
    by_part = counter.get_flop_counts()["Global"]
    assert step.attention * 1e12 == pytest.approx(by_part[torch.ops.aten.bmm])


@pytest.mark.parametrize("layers", [2, 5])
def test_how_a_model_begins_does_not_change_its_time(layers):
    plain = tiny(n_layers=layers)
    begun = replace(plain, position="rope", previous_token_heads=1, induction_head=True)
    times = [step_time(Job(config, 4, 32), cluster()) for config in (plain, begun)]
    assert times[0] == times[1]


def test_recomputing_is_a_third_of_the_blocks():
    job = Job(tiny(), 4, 32)
    plain, again = (step_time(replace(job, recompute=r), cluster()) for r in (False, True))
    blocks = plain.attention + plain.projections + plain.mlp + plain.elementwise
    assert again.recompute == pytest.approx(blocks / 3, rel=1e-6)
    assert again.mfu < plain.mfu


def test_operations_of_muon_are_those_of_the_iteration():
    config = tiny(activation="swiglu", n_kv_heads=1)
    shapes = [(32, 32), (32, 32), (16, 32), (16, 32), (64, 32), (64, 32), (32, 64)]
    with FlopCounterMode(display=False) as counter:
        for rows, columns in shapes:
            wide = torch.randn(1, min(rows, columns), max(rows, columns))
            orthogonalize(wide)
    assert muon_flops(config) == config.n_layers * counter.get_total_flops()


def test_small_products_reach_less_of_the_peak():
    chip = ACCELERATORS["a100-80"]
    job = Job(tiny(), 1, 32)

    def reached(n: int) -> float:
        return 6.0 * n**3 / product_seconds(n, n, n, job, chip) / chip.peak_flops

    speeds = [reached(2**k) for k in range(6, 15)]
    assert speeds == sorted(speeds)
    assert speeds[0] < 0.15 < 0.9 * chip.matmul_share < speeds[-1] < chip.matmul_share


def test_a_tiny_model_on_a_gpu_waits_for_its_kernels():
    h100 = make_cluster("h100", 1)
    step = step_time(Job(tiny(), 1, 32, fused=False), h100)
    assert step.elementwise > 0.9 * (step.compute - step.head)
    assert step.compute >= 2 * 60 * h100.accelerator.launch_seconds


# --------------------------------------------------------------------------- collectives


@given(
    size=st.floats(1, 1e12), ranks=st.integers(2, 4096), bandwidth=st.floats(1e6, 1e12),
    latency=st.floats(0, 1e-3),
)  # fmt: skip
@settings(max_examples=50)
def test_rings_have_their_closed_forms(size, ranks, bandwidth, latency):
    link = Link(bandwidth, latency)
    once = collectives.all_gather(size, ranks, link)
    hops, share = ranks - 1, (ranks - 1) / ranks
    assert once == pytest.approx(hops * latency + share * size / bandwidth)
    assert collectives.all_reduce(size, ranks, link) == pytest.approx(2 * once)
    assert collectives.reduce_scatter(size, ranks, link) == once
    assert collectives.all_gather(size, 1, link) == 0.0


def test_a_ring_passes_each_part_around():
    """The ring played hop by hop: all ranks send a part at once, and have it all after p - 1."""
    ranks, size = 5, 1e6
    has = [{rank} for rank in range(ranks)]
    clock = 0.0
    while any(len(parts) < ranks for parts in has):
        sent = [(rank - hop) % ranks for rank in range(ranks) for hop in [round(clock)]]
        for rank in range(ranks):
            has[(rank + 1) % ranks].add(sent[rank])
        clock += 1
    assert collectives.all_gather(size, ranks, LINK) == pytest.approx(
        clock * (LINK.latency + size / ranks / LINK.bandwidth)
    )


@given(
    count=st.sampled_from([1, 2, 8, 16, 64]), accumulation=st.integers(1, 4),
    parallel=st.sampled_from(["ddp", "fsdp", "hybrid"]),
)  # fmt: skip
@settings(max_examples=40)
def test_communication_is_hidden_at_most_whole(count, accumulation, parallel):
    job = Job(ModelConfig(**LLAMA), 2, 512, accumulation, parallel=parallel)
    where = make_cluster("a100-80", count)
    blocks = block_seconds(job, where.accelerator)
    total, exposed = exposed_communication(job, where, blocks, 1e-3)
    assert 0 <= exposed <= total * (1 + 1e-9)
    assert (total > 0) == (count > 1)
    faster = replace(where, intra=replace(where.intra, bandwidth=1e14),
                     inter=replace(where.inter, bandwidth=1e14))  # fmt: skip
    assert exposed_communication(job, faster, blocks, 1e-3)[1] <= exposed


def test_bytes_of_zero_on_the_network():
    """Rajbhandari et al. 2020, section 7: FSDP moves 3 times the parameters, DDP twice."""
    free = Link(1e9, 0.0)
    where = Cluster(IDEAL, 1024, 1024, free, free)
    config = tiny(d_model=256, d_ff=1024, n_layers=12, vocab_size=257)
    job = Job(config, 1, 32, parallel="fsdp", gather_bytes=4, reduce_bytes=4)
    count = count_parameters(config)
    blocks = block_seconds(job, IDEAL)
    fsdp, _ = exposed_communication(job, where, blocks, 0.0)
    share = 1023 / 1024 * 4 / 1e9
    outside = count.embedding + count.head
    expected = share * (3 * 12 * block_parameters(config) + 2 * outside)
    assert fsdp == pytest.approx(expected)
    ddp, _ = exposed_communication(replace(job, parallel="ddp"), where, blocks, 0.0)
    assert ddp == pytest.approx(2 * share * count.total)


def test_hybrid_sharding_spares_the_network_between_nodes():
    job = Job(ModelConfig(**LLAMA), 1, 128, parallel="fsdp")
    slow = parse_cluster("h100:64,inter_gb_s=5")
    whole, part = (step_time(replace(job, parallel=p), slow) for p in ("fsdp", "hybrid"))
    # 2 instead of 3 times the weights go between nodes
    assert part.communication < 0.7 * whole.communication


# --------------------------------------------------------------------------- memory


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_states_are_the_bytes_of_real_tensors(optimizer):
    from llm_trainer.training.optimizer import create_optimizer

    config = tiny(activation="swiglu", tie_embeddings=False)
    model = TransformerLM(config)
    ids = torch.randint(0, 300, (2, 16))
    model(ids, labels=ids).loss.backward()
    real = create_optimizer(model, optimizer)
    real.step()
    tensors = [t for state in real.state.values() for key, t in state.items()
               if isinstance(t, torch.Tensor) and key != "step"]  # fmt: skip
    memory = rank_memory(Job(config, 2, 16, optimizer=optimizer), cluster())
    assert memory.optimizer == sum(t.nbytes for t in tensors)
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters())


def test_fsdp_shares_states_out_and_ddp_does_not():
    job = Job(ModelConfig(**LLAMA), 1, 128)
    alone = rank_memory(job, cluster())
    for ranks in (2, 8, 64):
        where = cluster(ranks, per_node=8)
        ddp, fsdp, hybrid = (
            rank_memory(replace(job, parallel=p), where) for p in ("ddp", "fsdp", "hybrid")
        )
        assert ddp.states == alone.states
        assert fsdp.states == pytest.approx(alone.states / ranks)
        assert hybrid.states == pytest.approx(alone.states / min(ranks, 8))
        assert alone.gathered == 0 < fsdp.gathered


@given(
    batch=st.integers(1, 16), ranks=st.sampled_from([1, 2, 8, 64, 512]),
    recompute=st.booleans(), half=st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_memory_grows_and_shrinks_as_it_should(batch, ranks, recompute, half):
    job = Job(ModelConfig(**LLAMA), batch, 256, parallel="fsdp", recompute=recompute, half=half)
    here = rank_memory(job, cluster(ranks))
    assert rank_memory(replace(job, batch_size=batch + 1), cluster(ranks)).total > here.total
    more = rank_memory(job, cluster(2 * ranks))
    assert more.states < here.states
    assert rank_memory(replace(job, recompute=True), cluster(ranks)).total <= here.total
    assert here.certain < here.total
    assert sum(size for _, size in here.parts()) == pytest.approx(here.total)


def test_verdicts():
    job = Job(ModelConfig(**LLAMA), 1, 128)
    needed = rank_memory(job, cluster())

    def said(size: float) -> str:
        return verdict(needed, replace(IDEAL, memory_bytes=int(size)))

    assert said(2 * needed.total) == "fits"
    assert said(1.1 * needed.total) == "close"
    assert said((needed.total + needed.certain) / 2) == "too large"
    assert said(0.99 * needed.certain) == "impossible"


def test_memory_of_torchtitan_falls_as_published():
    """Llama 3.1 8B on 8 and on 128 GPUs: 82.4 and 67.0 GiB eager, 77.0 and 62.0 compiled."""
    config = ModelConfig(
        vocab_size=128256, d_model=4096, n_heads=32, n_kv_heads=8, n_layers=32, d_ff=14336,
        max_seq_len=8192, **LLAMA,
    )  # fmt: skip
    job = Job(config, 2, 8192, parallel="fsdp", gather_bytes=2)
    few, many = (rank_memory(job, make_cluster("h100", n)) for n in (8, 128))
    assert (few.total - many.total) / 2**30 == pytest.approx(15.2, abs=0.5)
    # selective checkpointing keeps more than full checkpointing, and less than none
    full = rank_memory(replace(job, recompute=True), make_cluster("h100", 8))
    assert full.total < 77.0 * 2**30 < 82.4 * 2**30 < few.total


# --------------------------------------------------------------------------- published counts


MPT = {
    "125m": (768, 12, 12, 125_311_488), "350m": (1024, 24, 16, 355_985_408),
    "760m": (1536, 24, 12, 760_470_528), "1b": (2048, 24, 16, 1_315_950_592),
    "3b": (2560, 32, 20, 2_651_837_440), "7b": (4096, 32, 32, 6_658_859_008),
    "13b": (5120, 40, 40, 12_853_954_560), "30b": (7168, 48, 56, 29_975_214_080),
    "70b": (8192, 80, 64, 64_862_437_376),
}  # fmt: skip
"""Width, layers, heads, and NumParams of llm-foundry's table of training benchmarks."""


@pytest.mark.parametrize("name", MPT)
def test_parameters_of_mpt(name):
    width, layers, heads, parameters = MPT[name]
    config = ModelConfig(
        vocab_size=50368, d_model=width, n_layers=layers, n_heads=heads, d_ff=4 * width,
        max_seq_len=2048, position="learned",
    )  # fmt: skip
    assert count_parameters(config).total == parameters


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ((128256, 4096, 32, 8, 32, 14336), 8_030_261_248),  # Llama 3 8B
        ((32000, 4096, 32, None, 32, 11008), 6_738_415_616),  # Llama 2 7B
        ((32000, 2048, 32, 4, 22, 5632), 1_100_048_384),  # TinyLlama
    ],
)
def test_parameters_of_llamas(shape, parameters):
    vocab, width, heads, kv_heads, layers, inner = shape
    config = ModelConfig(
        vocab_size=vocab, d_model=width, n_heads=heads, n_kv_heads=kv_heads, n_layers=layers,
        d_ff=inner, max_seq_len=2048, **LLAMA,
    )  # fmt: skip
    assert count_parameters(config).total == parameters


def test_parameters_of_gpt2_xl():
    config = ModelConfig(
        vocab_size=50304, d_model=1600, n_heads=25, n_layers=48, d_ff=6400, max_seq_len=1024,
        position="learned",
    )  # fmt: skip
    assert count_parameters(config).total == 1_557_686_400  # as llm.c prints it
    assert flops_per_token(config, 1024) == pytest.approx(6 * 1.5577e9 + 12 * 48 * 1600 * 1024,
                                                          rel=2e-3)  # fmt: skip


# --------------------------------------------------------------------------- optimizer, hardware


def test_shards_make_the_optimizer_faster():
    config = ModelConfig(**LLAMA)
    adam = Job(config, 1, 128, parallel="fsdp")
    few, many = (optimizer_seconds(adam, make_cluster("h100", n)) for n in (2, 64))
    assert many == pytest.approx(few / 32, rel=1e-6)
    muon = replace(adam, optimizer="muon")
    whole = optimizer_seconds(muon, make_cluster("h100", 64))
    spread = optimizer_seconds(replace(muon, spread_optimizer=True), make_cluster("h100", 64))
    assert whole > 2 * spread, "though their directions travel"


def test_a_cluster_from_words():
    found = parse_cluster("h100:64,gpus_per_node=4,inter_gb_s=50,price_hour=2.5,memory_gb=94")
    assert (found.count, found.per_node, found.num_nodes) == (64, 4, 16)
    assert found.inter.bandwidth == 50e9
    assert found.accelerator.price_hour == 2.5
    assert found.accelerator.memory_bytes == 94 * 10**9
    assert found.describe() == "64 x h100 in 16 nodes"
    assert parse_cluster("A100-80").count == 1
    assert make_cluster("h100", 8).ring == make_cluster("h100", 8).intra
    two = make_cluster("h100", 16)
    assert two.ring.bandwidth == min(two.inter.bandwidth, two.intra.bandwidth)
    assert two.intra.latency < two.ring.latency < two.inter.latency


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("h10:8", "did you mean 'h100'?"), ("h100:x", "must be a whole number"),
        ("h100:0", "must be from 1"), ("h100:8,speed=3", "inter_gb_s"),
        ("h100:8,inter_gb_s=-1", "above 0"), ("h100:8,inter_gb_s=fast", "above 0"),
        ("h100:8,gpus_per_node=2.5", "whole number"),
    ],
)  # fmt: skip
def test_words_that_are_no_cluster(words, part):
    with pytest.raises(ConfigurationError, match=part.replace("?", r"\?")):
        parse_cluster(words)


def test_the_model_needs_no_torch():
    code = (
        "import sys, llm_trainer.utils.scale_plan, llm_trainer.utils.scale_simulation; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(tokens=st.integers(1, 64), width=st.sampled_from([64, 128, 512, 2048]))
@settings(max_examples=30)
def test_time_grows_with_the_work(tokens, width):
    config = tiny(d_model=width, d_ff=4 * width)
    where = make_cluster("h100", 1)
    one = step_time(Job(config, tokens, 32), where)
    two = step_time(Job(config, 2 * tokens, 32), where)
    assert one.total < two.total <= 2 * one.total * (1 + 1e-9)
    assert two.mfu >= one.mfu
    assert 0 < one.mfu < 1
    assert math.isclose(
        step_time(Job(config, tokens, 32, accumulation=2), where).compute, 2 * one.compute
    )
