"""What others measured, for `benchmarks.scale_model`: speed of training on clusters.

Each run has its source. MPT: llm-foundry, scripts/train/benchmarking/README.md (Apache 2.0), tables
"H100 80GB BF16", "A100 80GB" and "A100 40GB" of MosaicML's FSDP; a choice of rows, all with rows
of up to 8,192 tokens of every size and number of GPUs there is. torchtitan:
benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3 (H100 of 500 W with slower memory) and
docs/performance.md of 2024 (64 A100). TinyLlama, nanoGPT: README of each. llm.c: 24 hours on 8 H100
(discussion 677) for the 32,000 steps of 2^20 tokens in scripts/run_gpt2_1558M.sh. Llama 2: table 2
of the paper, 184,320 GPU-hours for 2 T tokens. nanochat: a d20 run on 8 A100 told of by a user
(21,400 steps of 524,288 tokens in 7 hours).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llm_trainer.config.model import ModelConfig
from llm_trainer.utils.hardware import Cluster, parse_cluster
from llm_trainer.utils.step_model import Job

MPT_SHAPES = {
    "125m": (768, 12, 12), "350m": (1024, 24, 16), "760m": (1536, 24, 12), "1b": (2048, 24, 16),
    "3b": (2560, 32, 20), "7b": (4096, 32, 32), "13b": (5120, 40, 40), "30b": (7168, 48, 56),
    "70b": (8192, 80, 64),
}  # fmt: skip
"""Width, layers, heads. Parameters equal the table's NumParams exactly (tests)."""

# hardware, model, row length, GPUs, rows of a micro-batch, micro-batches, recomputed, tokens/s/GPU
MPT_ROWS = """
a100-80 125m 512 8 128 2 0 165681
a100-80 125m 2048 8 32 2 0 141737
a100-80 350m 2048 8 32 2 0 58782
a100-80 760m 2048 8 24 2 0 32434
a100-80 760m 8192 8 6 2 0 20933
a100-80 1b 512 8 56 4 0 23148
a100-80 1b 2048 8 14 4 0 20513
a100-80 1b 8192 8 3 4 0 13814
a100-80 3b 512 8 40 6 0 12127
a100-80 3b 2048 8 10 2 0 10811
a100-80 3b 8192 8 3 6 0 7695
a100-80 7b 2048 8 6 2 0 4641
a100-80 7b 4096 8 16 2 1 3684
a100-80 7b 8192 8 8 2 1 3206
a100-80 13b 2048 8 2 3 0 2262
a100-80 13b 4096 8 10 3 1 2060
a100-80 30b 2048 8 3 21 1 916
a100-80 70b 2048 32 2 16 1 373
a100-80 70b 2048 64 8 4 1 410
a100-40 125m 2048 8 26 3 0 136334
a100-40 125m 2048 64 26 1 0 125234
a100-40 125m 2048 128 26 1 0 123936
a100-40 350m 2048 8 16 4 0 55995
a100-40 350m 2048 128 18 1 0 51934
a100-40 760m 2048 8 12 4 0 30173
a100-40 760m 2048 128 12 1 0 28940
a100-40 1b 2048 8 8 8 0 19271
a100-40 1b 2048 16 8 1 0 19085
a100-40 1b 2048 64 10 1 0 19001
a100-40 1b 2048 128 10 1 0 18647
a100-40 3b 2048 8 5 8 0 10065
a100-40 3b 2048 32 6 1 0 9914
a100-40 3b 2048 128 6 1 0 9538
a100-40 7b 2048 8 12 4 1 3679
a100-40 7b 2048 64 18 1 1 3665
a100-40 7b 2048 128 18 1 1 3623
a100-40 13b 2048 8 4 16 1 1668
a100-40 13b 2048 32 14 1 1 1998
a100-40 13b 2048 128 16 1 1 1972
a100-40 30b 2048 32 4 1 1 857
a100-40 30b 2048 128 6 1 1 865
a100-40 70b 2048 64 2 1 1 276
a100-40 70b 2048 128 4 1 1 376
h100 760m 512 8 96 2 0 83749
h100 760m 2048 8 24 2 0 63147
h100 760m 2048 32 24 1 0 67971
h100 1b 512 8 56 4 0 52275
h100 1b 2048 8 14 1 0 45455
h100 1b 2048 64 20 1 0 44402
h100 1b 8192 8 3 4 0 29157
h100 3b 512 8 40 6 0 27965
h100 3b 2048 16 10 3 0 24142
h100 3b 2048 64 6 3 0 22525
h100 3b 8192 8 3 6 0 16578
h100 7b 2048 8 6 1 0 10643
h100 7b 4096 8 16 2 1 8611
h100 7b 8192 8 8 2 1 6935
h100 13b 2048 8 2 1 0 4792
h100 13b 2048 64 2 1 0 4800
h100 13b 4096 8 10 3 1 4717
h100 30b 2048 8 3 21 1 2002
h100 30b 2048 32 14 3 1 2308
h100 70b 2048 32 2 16 1 882
h100 70b 2048 64 8 4 1 1039
"""


@dataclass(frozen=True)
class Published:
    """A run of others, and the job that it was."""

    name: str
    source: str
    hardware: str
    job: Job
    tokens_per_second: float
    """Of one GPU."""
    note: str = ""
    tags: frozenset[str] = field(default_factory=frozenset)

    @property
    def cluster(self) -> Cluster:
        """What it ran on."""
        return parse_cluster(self.hardware)


def published() -> list[Published]:
    """All runs, those of llm-foundry first."""
    return [*_foundry(), *_others()]


def _foundry() -> list[Published]:
    runs = []
    for line in MPT_ROWS.split("\n"):
        if not line:
            continue
        chip, name, *numbers = line.split()
        row, count, batch, accumulation, recomputed, speed = (int(n) for n in numbers)
        width, layers, heads = MPT_SHAPES[name]
        model = ModelConfig(
            vocab_size=50368, d_model=width, n_layers=layers, n_heads=heads, d_ff=4 * width,
            max_seq_len=row, position="learned", dropout=0.0, attention_dropout=0.0,
        )  # fmt: skip
        job = Job(
            model, batch, row, accumulation, parallel="fsdp", recompute=bool(recomputed),
            gather_bytes=2, reduce_bytes=2, fused=False,
        )  # fmt: skip
        runs.append(
            Published(f"MPT {name}, rows of {row}", "llm-foundry", f"{chip}:{count}", job, speed)
        )
    return runs


def _llama(**shape: Any) -> ModelConfig:
    return ModelConfig(
        norm="rmsnorm", position="rope", activation=shape.pop("activation", "swiglu"), bias=False,
        tie_embeddings=False, dropout=0.0, attention_dropout=0.0, **shape,
    )  # fmt: skip


def _gpt2(**shape: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=50304, max_seq_len=1024, position="learned", dropout=0.0, attention_dropout=0.0,
        **shape,
    )  # fmt: skip


def _others() -> list[Published]:
    llama3 = _llama(vocab_size=128256, d_model=4096, n_heads=32, n_kv_heads=8, n_layers=32,
                    d_ff=14336, max_seq_len=8192)  # fmt: skip
    llama2 = _llama(vocab_size=32000, d_model=4096, n_heads=32, n_layers=32, d_ff=11008,
                    max_seq_len=4096)  # fmt: skip
    tiny = _llama(vocab_size=32000, d_model=2048, n_heads=32, n_kv_heads=4, n_layers=22,
                  d_ff=5632, max_seq_len=2048)  # fmt: skip
    chat = _llama(vocab_size=65536, d_model=1280, n_heads=10, n_layers=20, d_ff=5120,
                  max_seq_len=2048, activation="relu2", qk_norm=True)  # fmt: skip
    small = _gpt2(d_model=768, n_heads=12, n_layers=12, d_ff=3072, bias=False)
    large = _gpt2(d_model=1600, n_heads=25, n_layers=48, d_ff=6400)
    sharded: dict[str, Any] = {"parallel": "fsdp", "gather_bytes": 2}
    day = 86400
    selective = "selective activation checkpointing, counted as none"
    slower = f"{selective}; H100 of 500 W with 2.4 TB/s, counted as the usual one"
    return [
        Published("Llama 3.1 8B, eager", "torchtitan, table 1", "h100:8",
                  Job(llama3, 2, 8192, **sharded, fused=False), 5762, slower),
        Published("Llama 3.1 8B, compiled", "torchtitan, table 1", "h100:8",
                  Job(llama3, 2, 8192, **sharded), 6667, slower),
        Published("Llama 3.1 8B, eager", "torchtitan, table 3", "h100:128",
                  Job(llama3, 2, 8192, **sharded, fused=False), 5605, slower),
        Published("Llama 3.1 8B, compiled", "torchtitan, table 3", "h100:128",
                  Job(llama3, 2, 8192, **sharded), 6514, slower),
        Published("Llama 3 8B, compiled", "torchtitan, 2024", "a100-80:64",
                  Job(llama3, 1, 8192, **sharded), 2904, selective),
        Published("TinyLlama 1.1B", "its README", "a100-40:16",
                  Job(tiny, 8, 2048, 8, **sharded), 24000),
        Published("GPT-2 1.6B", "llm.c", "h100:8",
                  Job(large, 16, 1024, 8, parallel="ddp"), 32000 * 2**20 / 8 / day,
                  "hand-written kernels; 24 hours in all"),
        Published("nanochat d20", "a user's report", "a100-80:8",
                  Job(chat, 32, 2048, parallel="ddp", optimizer="muon", spread_optimizer=True),
                  21400 * 524288 / 8 / (7 * 3600), "'7 hrs' in all"),
        Published("GPT-2 124M", "nanoGPT, README", "a100-40:8",
                  Job(small, 12, 1024, 5, parallel="ddp"), 600000 * 491520 / 8 / (4 * day),
                  "'about 4 days' in all, evaluations included, torch 2.0 nightly"),
        Published("Llama 2 7B", "paper, table 2", "a100-80:1024",
                  Job(llama2, 1, 4096, **sharded), 2e12 / 184320 / 3600,
                  "GPU-hours in all, failures included; part of it at 350 W; GPUs assumed"),
    ]  # fmt: skip
