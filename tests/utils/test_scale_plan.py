"""Plans on clusters, saving and failing, simulations, and a corpus on paper."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.exceptions import ConfigurationError, TrainingError
from llm_trainer.utils import memory_check, present
from llm_trainer.utils.corpus_model import Corpus, Workers, corpus_price, corpus_stages
from llm_trainer.utils.fault_model import (
    HOURS_BETWEEN_FAILURES,
    checkpoint_bytes,
    daly_interval,
    goodput,
    plan_saving,
    young_interval,
)
from llm_trainer.utils.hardware import make_cluster, parse_cluster
from llm_trainer.utils.parameters import count_parameters
from llm_trainer.utils.rank_memory import rank_memory
from llm_trainer.utils.scale_plan import choose_parallel, plan_scale, share_out
from llm_trainer.utils.scale_simulation import expected_maximum, failing, fsdp_step, straggling
from llm_trainer.utils.step_model import Job, block_seconds, exposed_communication, fsdp_times

MINUTE = 60.0
SEVEN = ModelConfig(
    vocab_size=32000, d_model=4096, n_heads=32, n_layers=32, d_ff=11008, max_seq_len=4096,
    norm="rmsnorm", position="rope", activation="swiglu", bias=False, tie_embeddings=False,
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
SMALL = ModelConfig(
    vocab_size=300, d_model=32, n_heads=2, n_layers=2, d_ff=64, max_seq_len=32, dropout=0.0,
    attention_dropout=0.0,
)  # fmt: skip


# --------------------------------------------------------------------------- plans


def test_a_plan_that_fits():
    training = TrainingConfig(batch_size=1, gradient_accumulation_steps=512)
    plan = plan_scale(SEVEN, training, make_cluster("h100", 64), 4096, 1000)
    assert plan.fits
    assert plan.remedy is None
    assert plan.job.parallel == "fsdp"
    assert plan.job.batch_size * plan.job.accumulation * 64 == 512
    shown = plan.render()
    assert "64 x h100 in 8 nodes" in shown
    assert plan.price == pytest.approx(3.0 * 64 * plan.seconds / 3600)
    assert plan.seconds == pytest.approx(1000 * plan.step.total / plan.saving.goodput)
    assert f"${plan.price:,.0f}" in shown
    assert plan.tokens_per_second == pytest.approx(512 * 4096 / plan.step.total)


@pytest.mark.parametrize(
    ("hardware", "batch", "rows"),
    [("h100:8", 8, 128), ("a100-40:32", 4, 256), ("h100:64", 4, 1024), ("h100:1", 4, 1024)],
)
def test_the_remedy_fits(hardware, batch, rows):
    """What is advised is planned in turn, and is not refused."""
    training = TrainingConfig(batch_size=batch, gradient_accumulation_steps=rows // batch)
    cluster = parse_cluster(hardware)
    plan = plan_scale(SEVEN, training, cluster, 4096, 10)
    assert not plan.fits
    assert plan.remedy is not None
    assert plan.remedy in plan.render()
    advice = dict(
        words.split(": ") for words in plan.remedy.partition(" would fit")[0].split(", ")
        if ": " in words
    )  # fmt: skip
    words = plan.remedy.split()
    if "accelerators" in plan.remedy:
        cluster = make_cluster(cluster.accelerator.name, int(words[0]))
    changed = TrainingConfig(
        batch_size=int(advice.get("batch_size", batch)),
        gradient_accumulation_steps=int(advice.get("gradient_accumulation_steps", rows // batch)),
    )
    assert changed.effective_batch_size == rows
    again = plan_scale(
        SEVEN, changed, cluster, 4096, 10, parallel=advice.get("parallel", plan.job.parallel),
        recompute="activation_checkpointing" in plan.remedy,
    )  # fmt: skip
    assert again.fits, again.render()


def test_a_model_too_large_for_all_that_is_tried():
    giant = replace(SEVEN, d_model=16384, n_heads=128, d_ff=53248, n_layers=126)
    plan = plan_scale(giant, TrainingConfig(batch_size=1), make_cluster("l4", 1), 4096, 10)
    assert plan.verdict == "impossible"
    assert "make the model or its rows smaller" in plan.complaint()
    assert count_parameters(giant).total > 4e11


def test_how_a_model_is_spread():
    assert choose_parallel(Job(SMALL, 1, 32), make_cluster("h100", 8)) == "ddp"
    assert choose_parallel(Job(SEVEN, 1, 4096), make_cluster("h100", 8)) == "fsdp"
    assert choose_parallel(Job(SEVEN, 1, 4096), make_cluster("h100", 1)) == "none"
    plan = plan_scale(SMALL, TrainingConfig(batch_size=8), make_cluster("h100", 1), 32, 1)
    assert plan.job.parallel == "none"
    assert plan.step.communication == 0
    assert "network" not in plan.render()


@given(
    batch=st.integers(1, 32), accumulation=st.integers(1, 64), ranks=st.integers(1, 64)
)  # fmt: skip
@settings(max_examples=60)
def test_a_step_is_shared_out_whole(batch, accumulation, ranks):
    training = TrainingConfig(batch_size=batch, gradient_accumulation_steps=accumulation)
    if (batch * accumulation) % ranks:
        with pytest.raises(ConfigurationError, match="cannot share evenly"):
            share_out(training, ranks)
        return
    rows, times = share_out(training, ranks)
    assert rows * times * ranks == training.effective_batch_size
    assert rows <= batch


# --------------------------------------------------------------------------- this machine


def refused(monkeypatch, size: int, swap: int = 0, ranks: int = 1, warn: bool = True) -> None:
    monkeypatch.setattr(present, "present_memory", lambda device: size)
    monkeypatch.setattr(memory_check, "present_swap", lambda device: swap)
    memory_check.check_memory(
        SMALL, TrainingConfig(batch_size=64), 32, torch.device("cpu"), ranks=ranks, per_node=ranks,
        warn=warn,
    )  # fmt: skip


def test_only_what_is_certain_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(present, "PROCESS_BYTES", 0)
    job = Job(SMALL, 64, 32)
    needed = rank_memory(job, present.present_cluster(torch.device("cpu"), 1e12))
    with caplog.at_level(logging.WARNING):
        refused(monkeypatch, int(2 * needed.total))
        assert not caplog.records
        refused(monkeypatch, int(1.02 * needed.total), warn=False)
        assert not caplog.records
        refused(monkeypatch, int(1.02 * needed.total))
        assert "may fail" in caplog.text
        caplog.clear()
        refused(monkeypatch, int((needed.certain + needed.total) / 2))
        assert "batch_size: 32, gradient_accumulation_steps: 2 would fit" in caplog.text
    with pytest.raises(TrainingError, match=r"needs at least .* would fit"):
        refused(monkeypatch, int(0.9 * needed.certain))
    refused(monkeypatch, int(0.9 * needed.certain), swap=int(needed.certain))
    # two processes share the machine's memory and the model
    refused(monkeypatch, int(1.4 * needed.certain), ranks=2)


def test_memory_here_is_that_of_the_container(monkeypatch, tmp_path):
    whole = present.present_memory(torch.device("cpu"))
    assert 10**8 < whole < 10**14
    (tmp_path / "limit").write_text("123456789\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(present, "LIMITS", (str(tmp_path / "none"), str(tmp_path / "limit")))
    assert present.present_memory(torch.device("cpu")) == 123456789
    assert present.present_swap(torch.device("cpu")) >= 0


# --------------------------------------------------------------------------- saving and failing


@pytest.mark.parametrize(("hours", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_intervals_of_dalys_figures(hours, minutes):
    """Daly 2006, figures 3 to 5: d = 5 min; 117, 57 and 9.1 minutes."""
    found = daly_interval(5 * MINUTE, hours * 60 * MINUTE) / MINUTE
    assert found == pytest.approx(minutes, rel=6e-3)  # rounded to minutes


@given(save=st.floats(0.1, 100), between=st.floats(1e3, 1e7))
@settings(max_examples=60)
def test_the_interval_loses_least(save, between):
    best = daly_interval(save, between)
    here = goodput(best, save, 60, between)
    for other in (best / 2, best * 2):
        assert goodput(other, save, 60, between) < here
    assert 0 < here < 1
    assert best == pytest.approx(young_interval(save, between), rel=0.5, abs=2 * save)
    assert daly_interval(3 * between, between) == between


def test_an_impossible_goodput_is_none():
    assert goodput(1e9, 1.0, 1.0, 1.0) == 0.0
    with pytest.raises(ConfigurationError, match="between"):
        goodput(1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(("interval", "between"), [(7000, 86400), (540, 3000), (1000, 11000)])
def test_failures_simulated_are_those_of_the_closed_form(interval, between):
    closed = goodput(interval, 20, 300, between)
    runs = [failing(5e6, interval, 20, 300, between, seed) for seed in range(4)]
    assert sum(runs) / 4 == pytest.approx(closed, rel=0.02)
    assert failing(1e5, 1000, 10, 1, 1e12) == pytest.approx(1000 / 1010, rel=1e-6)


def test_failures_of_llama_3():
    """419 in 54 days on 16,384 GPUs are one in 3 hours; more than 90 % of the time was useful."""
    between = HOURS_BETWEEN_FAILURES / 16384
    assert between == pytest.approx(3.09, abs=0.01)
    found = goodput(daly_interval(10, between * 3600), 10, 600, between * 3600)
    assert 0.88 < found < 0.96


def test_saving_is_of_the_bytes_that_there_are():
    assert checkpoint_bytes(SMALL, "adamw") == 12 * count_parameters(SMALL).total
    one = plan_saving(SEVEN, "adamw", accelerators=64, writers=1)
    many = plan_saving(SEVEN, "adamw", accelerators=64, writers=8)
    assert one.write == pytest.approx(8 * many.write)
    assert many.goodput > one.goodput
    waits = plan_saving(SEVEN, "adamw", accelerators=64, writers=8, asynchronous=True)
    assert waits.stall < many.stall / 10
    assert waits.goodput > many.goodput
    assert waits.interval >= waits.write


# --------------------------------------------------------------------------- simulations


@pytest.mark.parametrize("gather", [0.01, 0.5, 1.5, 4.0])
def test_prefetch_simulated_is_the_closed_form_for_equal_blocks(gather):
    layers, forward, backward = 24, 1.0, 2.0
    compute = layers * (forward + backward)
    played = fsdp_step([forward] * layers, [backward] * layers, [gather] * layers,
                       [gather] * layers)  # fmt: skip
    behind = (layers - 1) * (max(0.0, gather - forward) + max(0.0, 2 * gather - backward))
    closed = compute + 2 * gather + behind + gather
    assert played == pytest.approx(closed, rel=0.02)
    assert played >= max(compute, layers * 3 * gather)


def test_prefetch_simulated_is_what_the_step_model_says():
    where = parse_cluster("a100-80:16,inter_gb_s=10")
    job = Job(SEVEN, 1, 2048, parallel="fsdp")
    blocks = block_seconds(job, where.accelerator)
    forward, layers = sum(blocks.values()) / 3, SEVEN.n_layers
    parameters = (count_parameters(SEVEN).non_embedding) / layers
    gather, scatter, _ = fsdp_times(job, where, parameters)
    played = fsdp_step([forward] * layers, [2 * forward] * layers, [gather] * layers,
                       [scatter] * layers)  # fmt: skip
    _, exposed = exposed_communication(job, where, blocks, 0.0)
    outside = sum(fsdp_times(job, where, 2 * 32000 * 4096)[:2])
    assert exposed > 0.2 * forward * layers, "a slow network is not hidden"
    assert played + outside == pytest.approx(3 * forward * layers + exposed, rel=0.02)


def test_prefetch_helps_and_never_hurts():
    generator = random.Random(0)
    for _ in range(30):
        forward, gather, scatter = ([generator.uniform(0.1, 2) for _ in range(8)] for _ in range(3))
        backward = [2 * seconds for seconds in forward]
        times = [fsdp_step(forward, backward, gather, scatter, prefetch=n) for n in (0, 1, 2)]
        assert times[0] >= times[1] - 1e-9
        assert min(times) >= sum(forward) + sum(backward)
    no = [0.0] * 8
    assert fsdp_step(forward, backward, no, no) == pytest.approx(sum(forward) + sum(backward))


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_stragglers_wait_for_the_maximum(ranks):
    played = straggling(ranks, 1.0, 0.05, steps=3000)
    assert played == pytest.approx(1.0 + 0.05 * expected_maximum(ranks), abs=2e-3)
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), rel=0.05)  # exact


# --------------------------------------------------------------------------- a corpus


def test_a_terabyte_by_hand():
    corpus, workers = Corpus(1e12), Workers()
    stages = {stage.name: stage for stage in corpus_stages(corpus, workers)}
    assert corpus.tokens == pytest.approx(227e9, rel=0.01)
    assert stages["pack_sequences"].bound == "cores"
    assert stages["pack_sequences"].seconds == pytest.approx(1e12 / (256 * 30e6))
    assert stages["download"].bound == "source"
    assert stages["download"].seconds == pytest.approx(0.4e12 / 2.5e9)
    assert stages["train_tokenizer"].seconds == pytest.approx(200 * 2**20 / 2.2e6)
    digest = stages["DVC's digest of each output"]
    assert digest.seconds == pytest.approx((0.4e12 + corpus.rows) / 0.5e9)
    untracked = corpus_stages(corpus, workers, tracked=False)
    assert len(untracked) == len(stages) - 1
    price = corpus_price(list(stages.values()), corpus, workers)
    assert price["storage"] == pytest.approx((0.4 + corpus.rows / 1e12) * 23)
    assert price["requests"] < 2


@given(count=st.integers(1, 512), efficiency=st.floats(0.3, 1.0))
@settings(max_examples=40)
def test_more_workers_never_take_longer(count, efficiency):
    corpus = Corpus(1e12)
    for fewer, more in zip(
        corpus_stages(corpus, Workers(count=count), efficiency=efficiency),
        corpus_stages(corpus, Workers(count=2 * count), efficiency=efficiency),
        strict=True,
    ):
        assert more.seconds <= fewer.seconds
        assert more.seconds >= fewer.seconds / 2 * (1 - 1e-9)
        assert (more.read, more.written, more.requests) == (
            fewer.read, fewer.written, fewer.requests,
        )  # fmt: skip


def test_a_plan_is_of_the_configured_way():
    where = make_cluster("h100", 16)
    training = TrainingConfig(batch_size=1, gradient_accumulation_steps=64)
    assert plan_scale(SEVEN, training, where, 4096, 1).job.parallel == "fsdp"
    for changes, way in (
        ({"parallel": "ddp"}, "ddp"), ({"parallel": "fsdp", "hybrid_shard": True}, "hybrid"),
    ):  # fmt: skip
        plan = plan_scale(SEVEN, replace(training, **changes), where, 4096, 1)
        assert plan.job.parallel == way
    kept = plan_scale(SEVEN, replace(training, activation_checkpointing=True), where, 4096, 1)
    assert kept.job.recompute
    assert kept.memory.activations < plan.memory.activations
